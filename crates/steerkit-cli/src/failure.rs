//! Why a command ended early: a message, hints, and an exit code.

use std::fmt::Display;

use steerkit::SteerError;
use steerkit_model::{ErrorKind, ModelError};

/// Results of commands.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something to tell the user.
    Told {
        /// What kind of mistake; decides the exit code.
        kind: ErrorKind,
        /// Lower case, no full stop.
        message: String,
        /// What to do.
        hints: Vec<String>,
    },
    /// Whoever read stdout has gone, having seen enough.
    ReaderGone,
}

impl Failure {
    /// A failure without hint.
    pub(crate) fn new(kind: ErrorKind, message: impl Display) -> Self {
        Self::Told { kind, message: message.to_string(), hints: Vec::new() }
    }

    /// Wrong use of an option.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// A bad input file or value.
    pub(crate) fn input(message: impl Display) -> Self {
        Self::new(ErrorKind::BadInput, message)
    }

    /// The failure with one more hint.
    pub(crate) fn hint(mut self, hint: impl Display) -> Self {
        if let Self::Told { hints, .. } = &mut self {
            hints.push(hint.to_string());
        }
        self
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::ReaderGone => 0,
            Self::Told { kind, .. } => match kind {
                ErrorKind::Failed => 1,
                ErrorKind::Usage => 2,
                ErrorKind::BadInput => 3,
                ErrorKind::FileSystem => 4,
                ErrorKind::Diverged => 5,
                ErrorKind::Interrupted => 130,
            },
        }
    }
}

impl From<SteerError> for Failure {
    fn from(error: SteerError) -> Self {
        let hints = error.hint().into_iter().collect();
        Self::Told { kind: error.kind(), message: error.to_string(), hints }
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        let hints = error.hint().into_iter().collect();
        Self::Told { kind: error.kind(), message: error.to_string(), hints }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(ErrorKind::FileSystem, error)
    }
}
