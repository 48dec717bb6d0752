//! CSV as in RFC 4180, strict where leniency would hide damage.
//!
//! The usual parsers take an unclosed quote as a cell that runs to the end of the file and accept text after a
//! closing quote; this one names the line.

use crate::Result;
use crate::data::encoding::Lines;

/// Where the parser stands in a cell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Plain,
    Quoted,
    /// After a quote in a quoted cell: its end, or the first half of a doubled quote.
    Closing,
}

/// Most columns of a file.
const MAX_COLUMNS: usize = 4096;

/// Reads records; the memory stays at one record of at most `max_row` bytes.
pub(super) struct CsvRows {
    max_cell: usize,
    max_row: usize,
    text: String,
    /// Line where the quoted cell at hand began.
    opened: u64,
}

impl CsvRows {
    pub(super) fn new(max_cell: usize, max_row: usize) -> Self {
        Self { max_cell, max_row, text: String::new(), opened: 0 }
    }

    /// Reads the next record into `cells`, skipping empty lines; gives the line where it begins, or `None` at the
    /// end of the file.
    pub(super) fn next(&mut self, lines: &mut Lines, cells: &mut Vec<String>) -> Result<Option<u64>> {
        cells.clear();
        loop {
            if !lines.next(&mut self.text)? {
                return Ok(None);
            }
            if !self.text.is_empty() {
                break;
            }
        }
        let first = lines.number;
        let mut cell = String::new();
        let mut state = State::Start;
        let mut bytes = 0;
        loop {
            bytes += self.text.len() + 1;
            state = self.line(lines, state, &mut cell, cells)?;
            if state != State::Quoted {
                cells.push(cell);
                return Ok(Some(first));
            }
            cell.push('\n');
            if bytes > self.max_row {
                return Err(self.too_long(lines, format!("a row of more than {} bytes", self.max_row)));
            }
            if !lines.next(&mut self.text)? {
                return Err(lines.error(
                    format!("line {}", self.opened),
                    "an opening quote that is never closed",
                    "a closing quote",
                    "a quote inside a cell is written twice: \"\"",
                ));
            }
        }
    }

    /// Parses one line; finished cells go to `cells`, the last stays in `cell`.
    fn line(
        &mut self,
        lines: &Lines,
        mut state: State,
        cell: &mut String,
        cells: &mut Vec<String>,
    ) -> Result<State> {
        for c in self.text.chars() {
            state = match (state, c) {
                (State::Start, '"') => {
                    self.opened = lines.number;
                    State::Quoted
                }
                (State::Quoted, '"') => State::Closing,
                (State::Closing, '"') => {
                    cell.push('"');
                    State::Quoted
                }
                (State::Start | State::Plain | State::Closing, ',') => {
                    cells.push(std::mem::take(cell));
                    if cells.len() == MAX_COLUMNS {
                        return Err(lines.error(
                            format!("line {}", lines.number),
                            format!("more than {MAX_COLUMNS} cells"),
                            "prompt, chosen and rejected",
                            "quote cells that contain commas",
                        ));
                    }
                    State::Start
                }
                (State::Closing, _) => {
                    return Err(lines.error(
                        format!("line {}", lines.number),
                        format!(
                            "{c:?} after the closing quote of the cell that opened in line {}",
                            self.opened
                        ),
                        "a comma or the end of the line",
                        "a quote inside a cell is written twice: \"\"",
                    ));
                }
                (State::Start | State::Plain, '\r') => {
                    return Err(lines.error(
                        format!("line {}", lines.number),
                        "a carriage return without line feed",
                        "line ends LF or CRLF",
                        "save the file with LF line ends, or quote the cell",
                    ));
                }
                (State::Quoted, _) => {
                    cell.push(c);
                    State::Quoted
                }
                (State::Start | State::Plain, _) => {
                    cell.push(c);
                    State::Plain
                }
            };
            if cell.len() > self.max_cell {
                return Err(self.too_long(lines, format!("a cell of more than {} bytes", self.max_cell)));
            }
        }
        Ok(state)
    }

    fn too_long(&self, lines: &Lines, found: String) -> crate::SteerError {
        let opened = if self.opened > 0 {
            format!("look for a quote that is never closed (the last one opened in line {})", self.opened)
        } else {
            "look for a missing comma or line end".to_owned()
        };
        let expected = format!("at most {} bytes a cell", self.max_cell);
        lines.error(
            format!("line {}", lines.number),
            found,
            expected,
            format!("{opened}, or raise max_cell_bytes"),
        )
    }
}
