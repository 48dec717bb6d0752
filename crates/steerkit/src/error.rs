//! What can go wrong with data, vectors, plans and runs, and what to do about it.

use std::path::{Path, PathBuf};

use steerkit_model::error::{ErrorKind, ModelError};

use crate::ask::AskError;
use crate::data::Note;

/// An error of this crate. Messages name the file, the place, what was found and what was expected;
/// [`SteerError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SteerError {
    /// The file system said no; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// The model said no.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// Processes that share a run could not.
    #[error("{message}")]
    Ranks {
        /// What happened, and where.
        message: String,
        /// What to do.
        hint: &'static str,
    },

    /// A file breaks its format.
    #[error("{path}: {place}: found {found}, expected {expected}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, column, field, tensor or offset.
        place: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
        /// What to do.
        hint: Option<Box<str>>,
    },

    /// A column (CSV) or key (JSONL) that a preference pair needs is not there.
    #[error(transparent)]
    MissingColumn(Box<MissingColumn>),

    /// A recipe with a key or value that is not understood.
    #[error("{place}: {message}")]
    Recipe {
        /// File, line and column, or the setting.
        place: String,
        /// What was found and what was expected.
        message: String,
        /// What to do.
        hint: Option<String>,
    },

    /// An evaluation of a name that nobody knows.
    #[error("{name:?} is neither a file nor a built-in evaluation ({})", known.join(", "))]
    UnknownEvaluation {
        /// What was asked for.
        name: String,
        /// The built-in evaluations.
        known: Vec<String>,
        /// The one most like it.
        nearest: Option<String>,
    },

    /// An evaluation that cannot be run as it was asked for.
    #[error("{what}")]
    Unfit {
        /// What does not go together.
        what: String,
        /// What to do.
        hint: String,
    },

    /// An evaluation whose data file nobody named.
    #[error("the evaluation names no data file")]
    NoEvaluationData,

    /// Training left the finite numbers.
    #[error("training diverged at step {step}: {what}")]
    Diverged {
        /// The step, from 1.
        step: usize,
        /// Which number, and its value.
        what: String,
        /// The last finite vector.
        saved: Option<PathBuf>,
    },

    /// The caller asked a run to stop.
    #[error("interrupted after step {step} of {total}; the state is in {folder}")]
    Interrupted {
        /// Steps done.
        step: usize,
        /// Steps of the whole run.
        total: usize,
        /// The run's folder.
        folder: PathBuf,
    },

    /// A run folder that another process writes to.
    #[error("{folder}: another run is writing to this folder")]
    Locked {
        /// The run's folder.
        folder: PathBuf,
    },

    /// A new run in a folder that holds one.
    #[error("{folder}: the folder already holds a run")]
    RunExists {
        /// The run's folder.
        folder: PathBuf,
    },

    /// A run that cannot be continued because its inputs are others now.
    #[error("{folder}: the run cannot be resumed: {}", differences.join("; "))]
    ResumeMismatch {
        /// The run's folder.
        folder: PathBuf,
        /// `what: then -> now`.
        differences: Vec<String>,
    },

    /// A run that needs more memory than there is.
    #[error("training needs about {needed_mb} MB, {available_mb} MB are free")]
    Memory {
        /// The estimate, in 10^6 bytes.
        needed_mb: u64,
        /// Free memory, in 10^6 bytes.
        available_mb: u64,
        /// `micro_batch_rows` that would fit, if any.
        fitting_rows: Option<usize>,
    },

    /// Data with faults, read in strict mode.
    #[error("{path}: {}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    FaultyData {
        /// The file or folder.
        path: PathBuf,
        /// Every fault found.
        faults: Vec<Note>,
    },

    /// A vector of zeros only.
    #[error("vector {name:?}: every number is zero")]
    ZeroVector {
        /// The vector.
        name: String,
    },

    /// A search for a unit dose that did not come near its divergence.
    #[error(
        "no multiplier of vector {name:?} gives a divergence of {target} nats: the nearest, {multiplier:.3}, gives {found:.3}"
    )]
    Calibration {
        /// The vector.
        name: String,
        /// The divergence wanted.
        target: f64,
        /// The nearest multiplier that was tried.
        multiplier: f64,
        /// Its divergence; NaN when no token was predicted.
        found: f64,
    },

    /// Another model could not be asked, or its answers are no measurement.
    #[error(transparent)]
    Ask(Box<AskError>),
    /// A condition without a threshold.
    #[error("vector {name:?} has no gate threshold")]
    NoThreshold {
        /// The vector.
        name: String,
    },

    /// Vectors that a file format cannot hold.
    #[error("{path}: {what}")]
    Export {
        /// The file that was to be written.
        path: PathBuf,
        /// What does not fit.
        what: String,
        /// What to do.
        hint: String,
    },

    /// Vectors that cannot be combined.
    #[error("{what}")]
    Combine {
        /// Which, and why.
        what: String,
        /// What to do.
        hint: String,
    },

    /// A multiplier that is not finite.
    #[error("vector {name:?}: found the multiplier {found}, expected a finite number")]
    Multiplier {
        /// The vector.
        name: String,
        /// The multiplier.
        found: f32,
    },

    /// A plan with multipliers other than zero that leaves the model as it is.
    #[error("steering after block {layer} changes nothing: {} add up to zero", names.join(" and "))]
    NoEffect {
        /// The block.
        layer: usize,
        /// Vectors with their multipliers.
        names: Vec<String>,
    },
}

impl From<AskError> for SteerError {
    fn from(error: AskError) -> Self {
        Self::Ask(Box::new(error))
    }
}

/// A column (CSV) or key (JSONL) that a preference pair needs is not there.
#[derive(Debug, thiserror::Error)]
#[error("{path}: line {line}: no {role} column: found {}, expected {}", quoted(found), quoted(expected))]
pub struct MissingColumn {
    /// The file.
    pub path: PathBuf,
    /// 1-based line of the header or the object.
    pub line: u64,
    /// `prompt`, `chosen` or `rejected`.
    pub role: &'static str,
    /// The headers or keys of the file.
    pub found: Vec<String>,
    /// The names that would have been taken.
    pub expected: Vec<String>,
    /// The header closest to one of them.
    pub closest: Option<String>,
    /// What the file looks like instead, where that can be told.
    pub hint: Option<String>,
}

impl MissingColumn {
    fn advice(&self) -> String {
        match (&self.hint, &self.closest) {
            (Some(hint), _) => hint.clone(),
            (None, Some(name)) => format!("map the column: {} = {name:?}", self.role),
            (None, None) => format!("name the column that holds the {} in the column map", self.role),
        }
    }
}

/// A [`SteerError::Malformed`] with a hint.
pub(crate) fn malformed(
    path: &Path,
    place: impl Into<String>,
    found: impl Into<String>,
    expected: impl Into<String>,
    hint: impl Into<String>,
) -> SteerError {
    SteerError::Malformed {
        path: path.to_owned(),
        place: place.into(),
        found: found.into(),
        expected: expected.into(),
        hint: Some(hint.into().into_boxed_str()),
    }
}

/// `"a", "b"`, at most 12 names of 60 characters.
fn quoted(names: &[String]) -> String {
    let short = |name: &String| -> String { format!("{:?}", name.chars().take(60).collect::<String>()) };
    let mut text = names.iter().take(12).map(short).collect::<Vec<_>>().join(", ");
    if names.len() > 12 {
        text.push_str(&format!(" and {} more", names.len() - 12));
    }
    if text.is_empty() { "nothing".into() } else { text }
}

impl SteerError {
    /// What to do, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io(_) => None,
            Self::Model(error) => error.hint(),
            Self::Ranks { hint, .. } => Some((*hint).into()),
            Self::Ask(error) => Some(error.hint()),
            Self::Malformed { hint, .. } => hint.as_deref().map(str::to_owned),
            Self::MissingColumn(missing) => Some(missing.advice()),
            Self::Recipe { hint, .. } => hint.clone(),
            Self::UnknownEvaluation { nearest, .. } => Some(match nearest {
                Some(name) => format!("did you mean {name:?}?"),
                None => "steerkit eval list shows what each of them measures".into(),
            }),
            Self::NoEvaluationData => {
                Some("name it with --data, or as `data` in the evaluation's [task]".into())
            }
            Self::Diverged { saved, .. } => {
                let kept = saved.as_ref().map(|p| format!("; the last finite vector is in {}", p.display()));
                let advice = "lower optimiser.lr or objective.beta, or use the auto preset";
                Some(format!("{advice}{}", kept.unwrap_or_default()))
            }
            Self::Interrupted { .. } => Some("resume the run to finish it with the same result".into()),
            Self::Locked { .. } => Some("wait for the other run, or choose another folder".into()),
            Self::RunExists { .. } => {
                Some("resume it, overwrite it, or choose another folder for the new run".into())
            }
            Self::ResumeMismatch { .. } => {
                Some("restore what changed, or start a new run in another folder".into())
            }
            Self::Memory { fitting_rows, .. } => Some(match fitting_rows {
                Some(rows) => {
                    format!("set micro_batch_rows to {rows}; the result stays the same but for rounding")
                }
                None => "use a smaller model, or a machine with more memory".into(),
            }),
            Self::FaultyData { .. } => {
                Some("mend the rows, remove duplicate rows with dedup, or read without strict".into())
            }
            Self::Calibration { .. } => Some("choose another --kl, or more prompts and tokens".into()),
            Self::NoThreshold { .. } => {
                Some("name one (VECTOR:0.3), or measure it: steerkit vector gate VECTOR".into())
            }
            Self::ZeroVector { .. } => Some("train the vector again; the run took no step".into()),
            Self::Export { hint, .. } | Self::Combine { hint, .. } | Self::Unfit { hint, .. } => {
                Some(hint.clone())
            }
            Self::Multiplier { .. } => Some("give a number such as 1, -1 or 0.5".into()),
            Self::NoEffect { .. } => Some("set the multipliers to 0 for the plain model".into()),
        }
    }

    /// What kind of mistake it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_) => ErrorKind::FileSystem,
            Self::Model(error) => error.kind(),
            Self::Ask(error) => error.kind(),
            Self::Malformed { .. }
            | Self::MissingColumn(_)
            | Self::FaultyData { .. }
            | Self::ZeroVector { .. }
            | Self::Recipe { .. }
            | Self::RunExists { .. }
            | Self::ResumeMismatch { .. }
            | Self::NoThreshold { .. }
            | Self::Combine { .. } => ErrorKind::BadInput,
            Self::Export { .. }
            | Self::Multiplier { .. }
            | Self::NoEffect { .. }
            | Self::Unfit { .. }
            | Self::UnknownEvaluation { .. }
            | Self::NoEvaluationData => ErrorKind::Usage,
            Self::Diverged { .. } => ErrorKind::Diverged,
            Self::Interrupted { .. } => ErrorKind::Interrupted,
            Self::Locked { .. } | Self::Memory { .. } | Self::Calibration { .. } | Self::Ranks { .. } => {
                ErrorKind::Failed
            }
        }
    }
}
