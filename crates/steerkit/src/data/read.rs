//! Reading preference pairs, one by one or all at once.

use std::collections::HashSet;
use std::io::BufRead;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::csv::CsvRows;
use super::encoding::Lines;
use super::jsonl::{self, Value};
use super::note::observe;
use super::{Dataset, Note, NoteKind, PreferencePair};
use crate::error::{MissingColumn, malformed};
use crate::{Result, SteerError};

/// The three cells of a pair: what they are called here and which columns are taken for them by default.
const ROLES: [(&str, &[&str]); 3] = [
    ("prompt", &["prompt", "question"]),
    ("chosen", &["chosen", "matching"]),
    ("rejected", &["rejected", "not_matching"]),
];

/// The layouts of a text file. (A Parquet file is told by its first bytes, and its rows are read as JSON lines.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A header row, then one pair per row.
    Csv,
    /// One JSON object per line.
    Jsonl,
}

/// Which column (CSV) or key (JSONL) holds what. Where a name is not given, `prompt` or `question`, `chosen` or
/// `matching`, `rejected` or `not_matching` are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColumnMap {
    /// Column of the prompt.
    pub prompt: Option<String>,
    /// Column of the response with the target behaviour.
    pub chosen: Option<String>,
    /// Column of the response with the opposite behaviour.
    pub rejected: Option<String>,
}

/// How to read a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// The layout; by the file's extension (`csv`, `jsonl`, `ndjson`, `json`) or else its first character if `None`.
    pub format: Option<Format>,
    /// Which columns hold the pair.
    pub columns: ColumnMap,
    /// Largest cell, in bytes of UTF-8. A line or row may have four times as many and 64 KiB. Default 1 MiB.
    pub max_cell_bytes: usize,
    /// [`read`] stops after so many rows and notes it. Default: all rows, all in memory.
    pub limit: Option<usize>,
    /// Empty cells, duplicate rows and prompts and equal sides are an error instead of notes.
    pub strict: bool,
    /// [`read`] keeps only the first of equal rows and notes how many it removed.
    pub dedup: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            format: None,
            columns: ColumnMap::default(),
            max_cell_bytes: 1 << 20,
            limit: None,
            strict: false,
            dedup: false,
        }
    }
}

/// Reads a file's pairs into memory, with notes on what is odd about them.
///
/// # Errors
/// A file that cannot be read, breaks its format, lacks a column or has no rows; with `strict`, a file with faults.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let mut reader = Reader::open(path, options)?;
    let mut pairs = Vec::new();
    let mut limited = false;
    while options.limit.is_none_or(|limit| pairs.len() < limit) {
        match reader.next() {
            Some(pair) => pairs.push(pair?),
            None => break,
        }
    }
    if options.limit == Some(pairs.len()) {
        limited = reader.next().transpose()?.is_some();
    }
    if pairs.is_empty() {
        let found = if limited { "a limit of 0 rows" } else { "no rows" };
        return Err(malformed(path, "data", found, "at least one pair", "one row holds one pair"));
    }
    let sha256 = reader.finish()?;
    let mut removed = Note::new(NoteKind::Removed, 0);
    if options.dedup {
        let mut seen = HashSet::new();
        let keep: Vec<bool> = pairs.iter().map(|pair| seen.insert(pair)).collect();
        for (row, _) in keep.iter().enumerate().filter(|(_, keep)| !**keep) {
            removed.add(row + 1);
        }
        let mut keep = keep.into_iter();
        pairs.retain(|_| keep.next().unwrap_or(true));
    }
    let mut notes = observe(&pairs);
    if options.strict && notes.iter().any(Note::is_fault) {
        notes.retain(Note::is_fault);
        return Err(SteerError::FaultyData { path: path.to_owned(), faults: notes });
    }
    if removed.count > 0 {
        notes.push(removed);
    }
    if limited {
        notes.push(Note::new(NoteKind::Limited, options.limit.unwrap_or(0)));
    }
    Ok(Dataset { pairs, path: path.to_owned(), sha256, notes })
}

enum Rows {
    Csv { rows: CsvRows, headers: Vec<String>, columns: [usize; 3] },
    Jsonl { text: String },
}

/// The pairs of a file one by one, in memory of one row. After an error it ends.
pub struct Reader {
    lines: Lines,
    rows: Rows,
    map: ColumnMap,
    max_cell: usize,
    failed: bool,
}

impl Reader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// As [`read`].
    pub fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        Self::of_lines(Lines::open(path, max_row(options))?, options)
    }

    /// Reads from `source`; `path` names it in errors, and its extension gives the format unless the options do.
    ///
    /// # Errors
    /// As [`read`].
    pub fn new(source: Box<dyn BufRead + Send>, path: &Path, options: &ReadOptions) -> Result<Self> {
        Self::of_lines(Lines::new(source, path, max_row(options))?, options)
    }

    fn of_lines(mut lines: Lines, options: &ReadOptions) -> Result<Self> {
        let max_cell = options.max_cell_bytes;
        let format = options.format.filter(|_| !lines.are_parquet());
        let rows = match format.unwrap_or_else(|| format_of(&lines)) {
            Format::Jsonl => Rows::Jsonl { text: String::new() },
            Format::Csv => {
                let mut rows = CsvRows::new(max_cell, max_row(options));
                let mut headers = Vec::new();
                let line = rows.next(&mut lines, &mut headers)?.ok_or_else(|| {
                    let hint = "the first row names the columns: prompt,chosen,rejected";
                    lines.error("line 1", "an empty file", "a header row", hint)
                })?;
                let names: Vec<&str> = headers.iter().map(String::as_str).collect();
                let columns = columns_of(lines.path(), line, &names, &options.columns)?;
                Rows::Csv { rows, headers, columns }
            }
        };
        Ok(Self { lines, rows, map: options.columns.clone(), max_cell, failed: false })
    }

    /// The line (from 1) that was read last.
    pub fn line(&self) -> u64 {
        self.lines.number
    }

    /// SHA-256 of the whole file in lower-case hex; reads what is left of it without looking at it.
    ///
    /// # Errors
    /// When the rest cannot be read.
    pub fn finish(self) -> Result<String> {
        self.lines.finish()
    }

    fn row(&mut self) -> Result<Option<PreferencePair>> {
        let (line, [prompt, chosen, rejected]) = match &mut self.rows {
            Rows::Csv { rows, headers, columns } => {
                let mut cells = Vec::with_capacity(headers.len());
                let Some(line) = rows.next(&mut self.lines, &mut cells)? else { return Ok(None) };
                if cells.len() != headers.len() {
                    return Err(ragged(&self.lines, line, cells.len(), headers));
                }
                (line, columns.map(|i| std::mem::take(&mut cells[i])))
            }
            Rows::Jsonl { text } => {
                let mut members = Vec::new();
                let Some(line) = jsonl::next(&mut self.lines, text, &mut members)? else { return Ok(None) };
                let names: Vec<&str> = members.iter().map(|(key, _)| key.as_str()).collect();
                let columns = columns_of(self.lines.path(), line, &names, &self.map)?;
                (line, texts(&self.lines, line, &members, columns)?)
            }
        };
        for ((role, _), cell) in ROLES.iter().zip([&prompt, &chosen, &rejected]) {
            if cell.len() > self.max_cell {
                let found = format!("{} bytes", cell.len());
                let expected = format!("at most {} bytes", self.max_cell);
                let hint = "split the text or raise max_cell_bytes";
                return Err(self.lines.error(format!("line {line}, {role}"), found, expected, hint));
            }
            if cell.contains('\0') {
                let hint = "remove the \\u0000 escape";
                return Err(self.lines.error(
                    format!("line {line}, {role}"),
                    "a NUL character",
                    "text",
                    hint,
                ));
            }
        }
        Ok(Some(PreferencePair { prompt, chosen, rejected }))
    }
}

impl Iterator for Reader {
    type Item = Result<PreferencePair>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let row = self.row();
        self.failed = !matches!(row, Ok(Some(_)));
        row.transpose()
    }
}

/// The most bytes of a row.
fn max_row(options: &ReadOptions) -> usize {
    options.max_cell_bytes.saturating_mul(4).saturating_add(1 << 16)
}

/// By extension, else by the first character.
pub(super) fn format_of(lines: &Lines) -> Format {
    let extension = lines.path().extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match extension.as_deref() {
        _ if lines.are_parquet() => Format::Jsonl,
        Some("jsonl" | "ndjson" | "json") => Format::Jsonl,
        Some("csv") => Format::Csv,
        _ if matches!(lines.first_char(), Some('{' | '[')) => Format::Jsonl,
        _ => Format::Csv,
    }
}

/// The places of prompt, chosen and rejected among `names`. Case and outer white space do not count.
fn columns_of(path: &Path, line: u64, names: &[&str], map: &ColumnMap) -> Result<[usize; 3]> {
    let given = [&map.prompt, &map.chosen, &map.rejected];
    let mut columns = [0; 3];
    for (i, (role, defaults)) in ROLES.into_iter().enumerate() {
        let wanted: Vec<&str> = given[i].as_deref().map_or_else(|| defaults.to_vec(), |name| vec![name]);
        let is_wanted = |name: &str| wanted.iter().any(|want| name.trim().eq_ignore_ascii_case(want.trim()));
        let hits: Vec<usize> = (0..names.len()).filter(|&at| is_wanted(names[at])).collect();
        columns[i] = match hits[..] {
            [at] => at,
            [] => return Err(missing(path, line, role, names, &wanted)),
            [a, b, ..] => {
                return Err(malformed(
                    path,
                    format!("line {line}"),
                    format!("two columns for the {role}: {:?} and {:?}", names[a], names[b]),
                    "one",
                    format!(
                        "name the one that counts in the column map, or rename the other: {role} = {:?}",
                        names[a]
                    ),
                ));
            }
        };
    }
    Ok(columns)
}

pub(super) fn missing(
    path: &Path,
    line: u64,
    role: &'static str,
    names: &[&str],
    wanted: &[&str],
) -> SteerError {
    let lower = |name: &str| name.trim().to_lowercase();
    let likeness = |name: &str| {
        let scores = wanted.iter().map(|want| strsim::jaro_winkler(&lower(name), &lower(want)));
        scores.fold(0.0, f64::max)
    };
    let short = names.iter().filter(|name| name.len() <= 64);
    let closest =
        short.max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|name| likeness(name) >= 0.75);
    let first = names.first().map_or("", |name| name.trim_start());
    let hint = if names.contains(&"A") && names.contains(&"B") && names.contains(&"matching") {
        Some(
            "this is the inference layout with answers A and B: read the file with not_matching beside it"
                .into(),
        )
    } else if names.len() == 1 && (first.contains('\t') || first.contains(';')) {
        Some("the columns seem to be separated by tabs or semicolons: separate them by commas".into())
    } else if first.starts_with('{') {
        Some("the file looks like JSONL: name it .jsonl or give the format".into())
    } else {
        None
    };
    SteerError::MissingColumn(Box::new(MissingColumn {
        path: path.to_owned(),
        line,
        role,
        found: names.iter().map(|&name| name.to_owned()).collect(),
        expected: wanted.iter().map(|&want| want.to_owned()).collect(),
        closest: closest.map(|&name| name.to_owned()),
        hint,
    }))
}

pub(super) fn ragged(lines: &Lines, line: u64, found: usize, headers: &[String]) -> SteerError {
    let cells = |n: usize| if n == 1 { "1 cell".to_owned() } else { format!("{n} cells") };
    let names: String = headers.join(", ").chars().take(200).collect();
    let hint = if found > headers.len() {
        "quote cells that contain commas"
    } else {
        "quote cells that contain line ends, and write empty cells too"
    };
    lines.error(format!("line {line}"), cells(found), format!("{} ({names})", cells(headers.len())), hint)
}

/// The three texts of an object; one key may serve twice.
fn texts(lines: &Lines, line: u64, members: &[(String, Value)], columns: [usize; 3]) -> Result<[String; 3]> {
    let mut texts = [String::new(), String::new(), String::new()];
    for (text, at) in texts.iter_mut().zip(columns) {
        let (key, value) = &members[at];
        let (found, hint) = match value {
            Value::Text(value) => {
                text.clone_from(value);
                continue;
            }
            Value::Messages => (
                "a list of messages",
                "conversational form is not read: write the user's text as prompt and the assistant's last text as \
                 chosen and rejected",
            ),
            Value::Other(what) => (*what, "every cell is a text"),
        };
        return Err(lines.error(format!("line {line}, key {key:?}"), found, "a string", hint));
    }
    Ok(texts)
}
