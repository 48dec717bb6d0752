//! Any CSV file with a header row, whole.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::csv::CsvRows;
use super::encoding::Lines;
use crate::Result;
use crate::error::malformed;

/// Largest cell.
const MAX_CELL: usize = 1 << 20;

/// A row with the line where it begins.
pub(crate) struct TableRow {
    pub(crate) line: u64,
    pub(crate) cells: Vec<String>,
}

/// A CSV file.
pub(crate) struct Table {
    path: PathBuf,
    headers: Vec<String>,
    pub(crate) rows: Vec<TableRow>,
}

impl Table {
    /// Reads a file; its rows are as long as its header.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = BufReader::new(fs_err::File::open(path)?);
        let mut lines = Lines::new(Box::new(file), path, 4 * MAX_CELL)?;
        let mut records = CsvRows::new(MAX_CELL, 4 * MAX_CELL);
        let mut headers = Vec::new();
        if records.next(&mut lines, &mut headers)?.is_none() {
            return Err(malformed(
                path,
                "line 1",
                "an empty file",
                "a header row",
                "the first row names the columns",
            ));
        }
        headers.iter_mut().for_each(|header| *header = header.trim().to_owned());
        let mut table = Self { path: path.to_owned(), headers, rows: Vec::new() };
        let mut cells = Vec::new();
        while let Some(line) = records.next(&mut lines, &mut cells)? {
            if cells.len() != table.headers.len() {
                let (found, expected) =
                    (format!("{} cells", cells.len()), format!("{} as in the header", table.headers.len()));
                let hint = "quote cells that contain commas or line breaks";
                return Err(malformed(path, format!("line {line}"), found, expected, hint));
            }
            table.rows.push(TableRow { line, cells: std::mem::take(&mut cells) });
        }
        Ok(table)
    }

    /// The column of the first of `names` that the header has, letters of any case.
    pub(crate) fn find(&self, names: &[&str]) -> Option<usize> {
        names.iter().find_map(|name| self.headers.iter().position(|header| header.eq_ignore_ascii_case(name)))
    }

    /// As [`Table::find`], where there must be one.
    pub(crate) fn column(&self, names: &[&str]) -> Result<usize> {
        self.find(names).ok_or_else(|| {
            let quoted = |names: &[&str]| -> String {
                let short =
                    names.iter().take(12).map(|n| format!("{:?}", n.chars().take(60).collect::<String>()));
                short.collect::<Vec<_>>().join(", ")
            };
            let headers: Vec<&str> = self.headers.iter().map(String::as_str).collect();
            let (found, expected) =
                (format!("the columns {}", quoted(&headers)), format!("one called {}", quoted(names)));
            malformed(&self.path, "header", found, expected, "name the column so in the first row")
        })
    }
}

/// A cell as CSV writes it.
pub(crate) fn csv_cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
