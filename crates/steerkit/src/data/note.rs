//! What is odd about a data file and was let through.

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;

use super::PreferencePair;

/// How many rows a note names.
const EXAMPLES: usize = 5;

/// Texts that chat templates use as control tokens. Data may contain them; they stay plain text.
const CONTROL_TEXTS: [&str; 12] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "</s>",
];

/// The kinds of notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// A prompt or response of no characters but white space.
    EmptyCell,
    /// A row equal to an earlier row.
    DuplicateRow,
    /// A prompt of an earlier row, with other responses.
    DuplicatePrompt,
    /// A row with the same response on both sides.
    EqualSides,
    /// A prompt that is also in an earlier split.
    Overlap,
    /// A row with the text of a control token. It is kept as plain text.
    ControlText,
    /// A duplicate row, removed because the caller asked for it.
    Removed,
    /// A single row.
    OneRow,
    /// The file goes on after the row limit that the caller set.
    Limited,
    /// Fewer rows than one batch.
    FewerThanBatch {
        /// Pairs of a batch.
        batch: usize,
    },
}

/// Something odd about the data, how often, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What.
    pub kind: NoteKind,
    /// How many rows.
    pub count: usize,
    /// The first rows, counted from 1 without the header.
    pub rows: Vec<usize>,
}

impl Note {
    pub(super) fn new(kind: NoteKind, count: usize) -> Self {
        Self { kind, count, rows: Vec::new() }
    }

    /// Whether strict reading refuses it. The others only inform.
    pub fn is_fault(&self) -> bool {
        matches!(
            self.kind,
            NoteKind::EmptyCell
                | NoteKind::DuplicateRow
                | NoteKind::DuplicatePrompt
                | NoteKind::EqualSides
                | NoteKind::Overlap
        )
    }

    /// Counts row `row` (from 1) in.
    pub(super) fn add(&mut self, row: usize) {
        self.count += 1;
        if self.rows.len() < EXAMPLES {
            self.rows.push(row);
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.count;
        let (row, s) = if n == 1 { ("row", "s") } else { ("rows", "") };
        match self.kind {
            NoteKind::EmptyCell => write!(f, "{n} {row} with an empty cell")?,
            NoteKind::DuplicateRow => write!(f, "{n} {row} repeat{s} an earlier row")?,
            NoteKind::DuplicatePrompt => {
                write!(f, "{n} {row} repeat{s} an earlier prompt with other responses")?;
            }
            NoteKind::EqualSides => write!(f, "{n} {row} with equal chosen and rejected responses")?,
            NoteKind::Overlap => write!(f, "{n} {row} with a prompt of an earlier split")?,
            NoteKind::ControlText => {
                write!(f, "{n} {row} with the text of a control token, kept as plain text")?;
            }
            NoteKind::Removed => write!(f, "{n} duplicate {row} removed")?,
            NoteKind::OneRow => write!(f, "a single row")?,
            NoteKind::Limited => write!(f, "only the first {n} {row} read, as asked; the file has more")?,
            NoteKind::FewerThanBatch { batch } => write!(f, "{n} {row} for a batch of {batch}")?,
        }
        if !self.rows.is_empty() {
            let rows: Vec<String> = self.rows.iter().map(ToString::to_string).collect();
            let more = if self.count > self.rows.len() { ", …" } else { "" };
            write!(f, " ({row} {}{more})", rows.join(", "))?;
        }
        Ok(())
    }
}

/// Whether a text holds that of a control token.
pub(super) fn spells_control(text: &str) -> bool {
    CONTROL_TEXTS.iter().any(|control| text.contains(control))
}

/// The notes on `pairs`, empty kinds left out, in a fixed order.
pub(super) fn observe(pairs: &[PreferencePair]) -> Vec<Note> {
    let mut empty = Note::new(NoteKind::EmptyCell, 0);
    let mut repeated = Note::new(NoteKind::DuplicateRow, 0);
    let mut same_prompt = Note::new(NoteKind::DuplicatePrompt, 0);
    let mut equal = Note::new(NoteKind::EqualSides, 0);
    let mut control = Note::new(NoteKind::ControlText, 0);
    let mut seen = HashSet::new();
    let mut prompts: HashSet<&str> = HashSet::new();
    for (i, pair) in pairs.iter().enumerate() {
        let row = i + 1;
        let cells = [&pair.prompt, &pair.chosen, &pair.rejected];
        if cells.iter().any(|cell| cell.trim().is_empty()) {
            empty.add(row);
        }
        if pair.chosen == pair.rejected {
            equal.add(row);
        }
        if cells.iter().any(|cell| spells_control(cell)) {
            control.add(row);
        }
        let new_prompt = prompts.insert(&pair.prompt);
        if !seen.insert(pair) {
            repeated.add(row);
        } else if !new_prompt {
            same_prompt.add(row);
        }
    }
    let mut notes = vec![empty, repeated, same_prompt, equal, control];
    notes.retain(|note| note.count > 0);
    if pairs.len() == 1 {
        notes.push(Note::new(NoteKind::OneRow, 1));
    }
    notes
}
