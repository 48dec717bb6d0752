//! Rows of any CSV, JSONL or Parquet file by the names of their columns.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::csv::CsvRows;
use super::encoding::Lines;
use super::read::{format_of, missing, ragged};
use super::{Format, jsonl};
use crate::Result;
use crate::error::malformed;

/// Largest cell in bytes.
const MAX_CELL: usize = 1 << 20;

/// The rows of a file.
#[derive(Clone, Debug)]
pub struct Records {
    /// The file.
    pub path: PathBuf,
    /// Its rows, in order.
    pub rows: Vec<Record>,
    /// SHA-256 of the file's bytes.
    pub sha256: String,
}

/// A row: its columns in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// 1-based line where it begins.
    pub line: u64,
    /// Names with values; texts in a CSV file.
    pub cells: Map<String, Value>,
}

/// Reads a whole file. `header` names the columns of a CSV file that has no header row.
///
/// # Errors
/// A file that cannot be read, breaks its format, or has no rows.
pub fn records(path: &Path, header: Option<&[&str]>) -> Result<Records> {
    let max_row = 4 * MAX_CELL;
    let mut lines = Lines::open(path, max_row)?;
    let rows = match format_of(&lines) {
        Format::Csv => csv_rows(&mut lines, header, max_row)?,
        Format::Jsonl => jsonl_rows(&mut lines)?,
    };
    if rows.is_empty() {
        return Err(malformed(path, "data", "no rows", "at least one row", "one row holds one question"));
    }
    Ok(Records { path: path.to_owned(), rows, sha256: lines.finish()? })
}

fn csv_rows(lines: &mut Lines, header: Option<&[&str]>, max_row: usize) -> Result<Vec<Record>> {
    let mut reader = CsvRows::new(MAX_CELL, max_row);
    let mut names: Vec<String> = Vec::new();
    match header {
        Some(header) => names.extend(header.iter().map(|&name| name.to_owned())),
        None => {
            reader.next(lines, &mut names)?;
        }
    }
    let (mut rows, mut cells) = (Vec::new(), Vec::new());
    while let Some(line) = reader.next(lines, &mut cells)? {
        if cells.len() != names.len() {
            return Err(ragged(lines, line, cells.len(), &names));
        }
        let cells = names.iter().cloned().zip(cells.drain(..).map(Value::String)).collect();
        rows.push(Record { line, cells });
    }
    Ok(rows)
}

fn jsonl_rows(lines: &mut Lines) -> Result<Vec<Record>> {
    let (mut rows, mut text) = (Vec::new(), String::new());
    while lines.next(&mut text)? {
        if text.trim().is_empty() {
            continue;
        }
        let line = lines.number;
        let cells = serde_json::from_str(&text).map_err(|error| jsonl::refuse(lines, line, &text, &error))?;
        rows.push(Record { line, cells });
    }
    Ok(rows)
}

impl Records {
    /// The value of the column `name` in a row; `role` says what it is for. Case and outer white space do not count.
    ///
    /// # Errors
    /// [`crate::SteerError::MissingColumn`], with the columns that are there.
    pub fn value<'r>(&self, row: &'r Record, role: &'static str, names: &[&str]) -> Result<&'r Value> {
        let alike = |found: &str| names.iter().any(|name| found.trim().eq_ignore_ascii_case(name.trim()));
        let hit = row.cells.iter().find(|(found, _)| alike(found)).map(|(_, value)| value);
        hit.ok_or_else(|| {
            let found: Vec<&str> = row.cells.keys().map(String::as_str).collect();
            missing(&self.path, row.line, role, &found, names)
        })
    }

    /// [`Self::value`] as a text.
    ///
    /// # Errors
    /// Those of [`Self::value`]; a value that is no text.
    pub fn text<'r>(&self, row: &'r Record, role: &'static str, names: &[&str]) -> Result<&'r str> {
        let value = self.value(row, role, names)?;
        value.as_str().ok_or_else(|| self.refused(row, role, value.to_string(), "a text"))
    }

    /// An error about a row.
    pub fn refused(
        &self,
        row: &Record,
        role: &str,
        found: impl Into<String>,
        expected: &str,
    ) -> crate::SteerError {
        let found: String = found.into().chars().take(80).collect();
        let hint = format!("mend the {role} of this row");
        malformed(&self.path, format!("line {}, {role}", row.line), found, expected, hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str, header: Option<&[&str]>) -> Result<Records> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        records(&path, header)
    }

    #[test]
    fn rows_by_the_names_of_their_columns() {
        let csv = read("a.csv", "Question,Answer\nWhy?,\"B, c\"\n", None).unwrap();
        assert_eq!(csv.text(&csv.rows[0], "answer", &["answer"]).unwrap(), "B, c");
        let bare = read("a.csv", "Why?,x\n", Some(&["question", "A"])).unwrap();
        assert_eq!((bare.rows[0].line, bare.text(&bare.rows[0], "choice", &["a"]).unwrap()), (1, "x"));
        let json =
            read("a.jsonl", "{\"q\": \"Why?\", \"n\": 2}\n\n{\"q\": \"x\", \"n\": 3}\n", None).unwrap();
        assert_eq!(json.rows[1].line, 3);
        assert_eq!(json.value(&json.rows[1], "answer", &["n"]).unwrap(), 3);
    }

    #[test]
    fn bad_rows_are_named() {
        let said = |result: Result<Records>| result.unwrap_err().to_string();
        assert!(said(read("a.csv", "", None)).contains("found no rows"));
        assert!(said(read("a.csv", "a,b\n1\n", None)).contains("line 2: found 1 cell, expected 2 cells"));
        assert!(said(read("a.jsonl", "{\"a\": 1},\n", None)).contains("line 1"));
        let csv = read("a.csv", "Questoin\nWhy?\n", None).unwrap();
        let error = csv.text(&csv.rows[0], "question", &["question"]).unwrap_err();
        assert!(error.to_string().contains("line 2: no question column: found \"Questoin\""), "{error}");
        assert!(error.hint().unwrap().contains("Questoin"));
    }
}
