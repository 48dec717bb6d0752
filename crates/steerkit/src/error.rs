//! What can go wrong with data, vectors, plans and runs, and what to do about it.

use std::path::PathBuf;

use steerkit_model::error::{ErrorKind, ModelError};

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
        hint: Option<String>,
    },

    /// A column (CSV) or key (JSONL) that a preference pair needs is not there.
    #[error("{path}: line {line}: no {role} column: found {}, expected {}", quoted(found), quoted(expected))]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// 1-based line of the header or the object.
        line: u64,
        /// `prompt`, `chosen` or `rejected`.
        role: &'static str,
        /// The headers or keys of the file.
        found: Vec<String>,
        /// The names that would have been taken.
        expected: Vec<String>,
        /// The header closest to one of them.
        closest: Option<String>,
        /// What the file looks like instead, where that can be told.
        hint: Option<String>,
    },

    /// Data with faults, read in strict mode.
    #[error("{path}: {}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    FaultyData {
        /// The file or folder.
        path: PathBuf,
        /// Every fault found.
        faults: Vec<Note>,
    },
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
            Self::Malformed { hint, .. } => hint.clone(),
            Self::MissingColumn { role, closest, hint, .. } => hint.clone().or_else(|| {
                Some(match closest {
                    Some(name) => format!("map the column: {role} = {name:?}"),
                    None => format!("name the column that holds the {role} in the column map"),
                })
            }),
            Self::FaultyData { .. } => {
                Some("mend the rows, remove duplicate rows with dedup, or read without strict".into())
            }
        }
    }

    /// What kind of mistake it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_) => ErrorKind::FileSystem,
            Self::Model(error) => error.kind(),
            Self::Malformed { .. } | Self::MissingColumn { .. } | Self::FaultyData { .. } => {
                ErrorKind::BadInput
            }
        }
    }
}
