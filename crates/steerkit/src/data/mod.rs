//! Preference data: reading pairs, checking them, splitting and sampling them.
//!
//! Three layouts are read, the first two in UTF-8 (with or without byte order mark) or UTF-16 with byte order mark:
//! - CSV with a header row, cells quoted as in RFC 4180; the authors' files have the columns `question`,
//!   `matching`, `not_matching`; further columns are ignored;
//! - JSONL, one object per line: `{"prompt": "...", "chosen": "...", "rejected": "..."}` or the authors' names;
//! - Parquet with the same columns, uncompressed or with Snappy, as Hugging Face's data sets come.
//!
//! Text is taken as it stands: nothing is trimmed, and what looks like a control token (`<|im_end|>`,
//! `[/INST]`) stays plain text. The one change: a line end `\r\n` inside a quoted CSV cell becomes `\n`, so that
//! a file gives the same pairs whichever line ends it was saved with.

pub mod check;
mod classify;
mod csv;
mod encoding;
pub mod generate;
mod grams;
mod import;
mod jsonl;
mod note;
mod parquet;
mod read;
mod records;
mod split;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use import::{Import, Layout};
pub use note::{Note, NoteKind};
pub use read::{ColumnMap, Format, ReadOptions, Reader, read};
pub use records::{Record, Records, records};
pub(crate) use split::ENDS;
pub use split::{Splits, sample};

/// One prompt with a response that shows the target behaviour and one that shows its opposite.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreferencePair {
    /// The user's question.
    pub prompt: String,
    /// The response with the target behaviour.
    pub chosen: String,
    /// The response with the opposite behaviour.
    pub rejected: String,
}

/// The pairs of one file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The pairs, in file order (or in the order a sample drew them).
    pub pairs: Vec<PreferencePair>,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file's bytes, lower-case hex. A sample keeps the hash of the file it came from.
    pub sha256: String,
    /// What is odd about the data and was let through.
    pub notes: Vec<Note>,
}

impl Dataset {
    /// A note when there are fewer pairs than one batch of training takes.
    pub fn batch_note(&self, batch: usize) -> Option<Note> {
        (self.pairs.len() < batch).then(|| Note::new(NoteKind::FewerThanBatch { batch }, self.pairs.len()))
    }
}
