//! What can go wrong with a model, and what to do about it.

use std::path::{Path, PathBuf};

/// An error of this crate. Messages name the file, the place, what was found and what was expected;
/// [`ModelError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file system said no; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// A file breaks its format.
    #[error("{path}: {place}: found {found}, expected {expected}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Field, tensor, offset or line.
        place: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
        /// What to do.
        hint: Option<String>,
    },

    /// A file is fine but asks for something this build cannot do.
    #[error("{path}: {what} \"{found}\" is not supported (supported: {})", known.join(", "))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature: `architecture`, `rope type`, …
        what: String,
        /// The value in the file.
        found: String,
        /// The values that would work.
        known: Vec<String>,
    },

    /// A number that is not finite where it must be.
    #[error("{place}: {found} of {total} values are not finite")]
    NonFinite {
        /// Tensor or pass.
        place: String,
        /// How many.
        found: usize,
        /// Of how many.
        total: usize,
    },

    /// A text longer than the model's context.
    #[error("{tokens} tokens do not fit the model's context of {context}")]
    TooLong {
        /// Length found.
        tokens: usize,
        /// Limit.
        context: usize,
    },

    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },

    /// A layer that the model does not have.
    #[error("layer {layer} does not exist: the model has blocks 0 to {}", n_layers - 1)]
    UnknownLayer {
        /// The layer asked for.
        layer: usize,
        /// Blocks of the model.
        n_layers: usize,
    },

    /// A model that is neither a path nor in the cache.
    #[error("no file or folder and no downloaded model is called \"{name}\"")]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// Models in the cache or to be had by name.
        known: Vec<String>,
    },

    /// A model that could not be downloaded.
    #[error("cannot fetch {name}: {}", reasons.join("; "))]
    Fetch {
        /// The model.
        name: String,
        /// Each route that was tried, and why it failed.
        reasons: Vec<String>,
    },

    /// A long context asked of a model whose rotary embedding has none.
    #[error("model {model} has no LongRoPE divisors beyond its context")]
    NoLongContext {
        /// The model.
        model: String,
    },

    /// A model without a tokeniser where one is needed.
    #[error("model {model} has no tokeniser")]
    NoTokenizer {
        /// The model.
        model: String,
    },

    /// A setting of a request outside its limits.
    #[error("{name} is {found}, allowed is {allowed}")]
    OutOfRange {
        /// The setting.
        name: String,
        /// Its value.
        found: String,
        /// The values that would work.
        allowed: String,
    },

    /// More requests than may wait.
    #[error("{waiting} requests are waiting already")]
    QueueFull {
        /// How many.
        waiting: usize,
    },

    /// A computation for one text panicked: a bug.
    #[error("internal error: {0}")]
    Panicked(String),

    /// Stopped by the caller.
    #[error("interrupted")]
    Interrupted,

    /// A vector of another width than the residual stream.
    #[error("the vector has {found} numbers, the model's residual stream {d_model}: made for another model?")]
    Width {
        /// Width of the vector.
        found: usize,
        /// Width of the model.
        d_model: usize,
    },

    /// A device that cannot be opened, or that failed at an operation.
    #[error("device: {0}")]
    Device(String),

    /// The tokeniser cannot encode a text.
    #[error("the tokeniser failed: {0}")]
    Tokenize(String),

    /// A chat template that cannot be used, or that refuses the messages.
    #[error("chat template: {found}")]
    Template {
        /// What the template engine says, with the line.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// What kind of mistake an error is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Wrong use of an option or a function (exit code 2).
    Usage,
    /// A bad input file or value (3).
    BadInput,
    /// The file system (4).
    FileSystem,
    /// Training left the finite numbers (5).
    Diverged,
    /// Stopped by the user (130).
    Interrupted,
    /// Anything else (1).
    Failed,
}

impl ModelError {
    /// A file that breaks its format at `place`, without a hint.
    pub(crate) fn malformed(
        path: &Path,
        place: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            place: place.into(),
            found: found.into(),
            expected: expected.into(),
            hint: None,
        }
    }

    /// A value this build cannot work with, and the values it can.
    pub(crate) fn unsupported(path: &Path, what: &str, found: impl Into<String>, known: &[&str]) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            what: what.to_owned(),
            found: found.into(),
            known: known.iter().map(|&k| k.to_owned()).collect(),
        }
    }

    /// The same error with advice.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        if let Self::Malformed { hint, .. } = &mut self {
            *hint = Some(advice.into());
        }
        self
    }

    /// What to do, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Malformed { hint, .. } | Self::Template { hint, .. } => hint.clone(),
            Self::UnknownModel { name, known } => {
                let closest = known
                    .iter()
                    .map(|k| (strsim::jaro_winkler(name, k), k))
                    .max_by(|a, b| a.0.total_cmp(&b.0));
                Some(match closest {
                    Some((likeness, k)) if likeness > 0.8 && k != name => format!("did you mean \"{k}\"?"),
                    _ => format!(
                        "give the path of a .gguf file or a folder, or pull a model by name first ({} or org/name)",
                        known.join(", ")
                    ),
                })
            }
            Self::Fetch { .. } => Some(
                "check the network and repeat the command, which goes on where it broke off, or give a model file of \
                 your own with --model FILE"
                    .to_owned(),
            ),
            Self::NoTokenizer { .. } => {
                Some("use a GGUF file, or a folder with tokenizer.json beside config.json".to_owned())
            }
            Self::Device(_) => Some(
                "run on the CPU; a GPU needs a build with --features cuda or --features metal".to_owned(),
            ),
            _ => None,
        }
    }

    /// What kind of mistake it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_) => ErrorKind::FileSystem,
            Self::UnknownModel { .. } | Self::OutOfRange { .. } => ErrorKind::Usage,
            Self::Fetch { .. } | Self::QueueFull { .. } | Self::Device(_) | Self::Panicked(_) => {
                ErrorKind::Failed
            }
            Self::Interrupted => ErrorKind::Interrupted,
            _ => ErrorKind::BadInput,
        }
    }
}
