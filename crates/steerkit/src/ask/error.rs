//! What can go wrong when another model is asked.

use steerkit_model::ErrorKind;

/// Another model could not be asked, or its answers are no measurement. What was answered before is in the store.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// An address, key or limit that cannot be used.
    #[error("{what}")]
    Setting {
        /// What was found and what was expected.
        what: String,
        /// What to do.
        hint: String,
    },

    /// No usable answer after all attempts.
    #[error("{url}: {what} (attempt {attempts} of {attempts})")]
    Unreachable {
        /// The endpoint.
        url: String,
        /// What happened last.
        what: String,
        /// How often it was tried.
        attempts: u32,
    },

    /// The endpoint refuses every call alike.
    #[error("{url}: status {status}: {message}")]
    Refused {
        /// The endpoint.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the endpoint says.
        message: String,
    },

    /// The next call could go over the cap.
    #[error("the cap of {cap} is reached: {spent} spent, the next call may take {next}")]
    Cap {
        /// The cap, with its unit.
        cap: String,
        /// What was spent.
        spent: String,
        /// What the next call may take.
        next: String,
    },

    /// Too many answers without a score.
    #[error(
        "{unscored} of {total} {what} have no score ({:.1}%), at most {:.0}% may",
        100.0 * *unscored as f64 / *total as f64,
        100.0 * limit
    )]
    Unscored {
        /// What was judged.
        what: &'static str,
        /// Answers without a score.
        unscored: usize,
        /// Answers judged.
        total: usize,
        /// The share allowed.
        limit: f64,
    },

    /// Fewer texts than asked for.
    #[error("{found} usable pairs came from {calls} calls, {wanted} were asked for")]
    TooFew {
        /// Usable pairs.
        found: usize,
        /// Pairs asked for.
        wanted: usize,
        /// Calls made.
        calls: usize,
    },
}

impl AskError {
    /// What to do.
    pub fn hint(&self) -> String {
        match self {
            Self::Setting { hint, .. } => hint.clone(),
            Self::Unreachable { .. } => {
                "see whether the endpoint is up; the same command goes on from what is stored".into()
            }
            Self::Refused { status: 300..=399, .. } => {
                "redirects are not followed, because the key would go with them: give the address it points to"
                    .into()
            }
            Self::Refused { status: 401 | 403, .. } => {
                "name the environment variable that holds the key, and see that the key is valid".into()
            }
            Self::Refused { .. } => "see the address (it usually ends in /v1) and the model's name".into(),
            Self::Cap { .. } => "raise the cap; the same command goes on from what is stored".into(),
            Self::Unscored { .. } => {
                "the scores are no measurement: take a more capable judge, and read some of its replies in the store"
                    .into()
            }
            Self::TooFew { .. } => {
                "describe the behaviour more concretely, take a more capable model, or ask for fewer".into()
            }
        }
    }

    /// What kind of mistake it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Setting { .. } => ErrorKind::Usage,
            _ => ErrorKind::Failed,
        }
    }
}
