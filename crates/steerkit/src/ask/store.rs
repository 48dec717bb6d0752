//! Every answer that was paid for, kept: a file of JSON lines that only grows.

use std::collections::HashMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::cost::Usage;
use crate::checksum::crc32c;
use crate::error::malformed;
use crate::files::at;
use crate::{Result, SteerError};

/// An answer with what it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// SHA-256 of everything that the answer depends on, lower-case hex.
    pub key: String,
    /// What was asked for, such as the name of a rubric.
    pub task: String,
    /// Who answered.
    pub model: String,
    /// The answer; `None` when this prompt was refused.
    pub reply: Option<String>,
    /// Why there is none, or that the answer was cut at its longest.
    pub note: Option<String>,
    /// Tokens it took, where the endpoint reported them.
    pub usage: Option<Usage>,
}

/// A line of the file: the record and the CRC-32C of its JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    crc: String,
    record: Record,
}

/// The answers of a file, and the file to add more. One process at a time holds it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: std::fs::File,
    records: HashMap<String, Record>,
    /// Whether the file ended in a torn line, which was cut off.
    torn: bool,
}

impl Store {
    /// Opens the file, or begins it. A last line that was not written to its end is cut off; its answer is asked for
    /// again.
    ///
    /// # Errors
    /// A damaged line before the last; a file that another process holds; the file system.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs::OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let (file, _) = file.into_parts();
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(SteerError::Locked { folder: path.to_owned() });
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(at(path, e).into()),
        }
        let bytes = fs::read(path)?;
        let mut store = Self { path: path.to_owned(), file, records: HashMap::new(), torn: false };
        let good = store.load(&bytes)?;
        if good < bytes.len() {
            store.torn = true;
            store.file.set_len(good as u64).map_err(|e| at(path, e))?;
        }
        store.file.seek(SeekFrom::End(0)).map_err(|e| at(path, e))?;
        Ok(store)
    }

    /// Takes up the lines and gives the bytes up to the end of the last whole one.
    fn load(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut good = 0;
        for (i, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
            match parse(line) {
                Some(record) => {
                    good += line.len();
                    self.records.insert(record.key.clone(), record);
                }
                None if good + line.len() == bytes.len() => break,
                None => {
                    let place = format!("line {}", i + 1);
                    let hint = "restore the file, or remove the line: its answer is asked for again";
                    let expected = "a stored answer with its checksum";
                    return Err(malformed(&self.path, place, "a damaged line", expected, hint));
                }
            }
        }
        Ok(good)
    }

    /// The answer with this key.
    pub fn get(&self, key: &str) -> Option<&Record> {
        self.records.get(key)
    }

    /// Answers in the file.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// No answers yet.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether the file ended in the middle of a line when it was opened.
    pub fn was_torn(&self) -> bool {
        self.torn
    }

    /// Adds an answer and brings it to the disk.
    ///
    /// # Errors
    /// The file system.
    pub fn append(&mut self, record: Record) -> Result<()> {
        let mut text = line(&record);
        text.push('\n');
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|e| at(&self.path, e))?;
        self.records.insert(record.key.clone(), record);
        Ok(())
    }
}

fn line(record: &Record) -> String {
    let text = serde_json::to_string(record).expect("a record is text and numbers");
    let crc = format!("{:08x}", crc32c(text.as_bytes()));
    serde_json::to_string(&Line { crc, record: record.clone() }).expect("a record is text and numbers")
}

/// The record of a line that is whole.
fn parse(bytes: &[u8]) -> Option<Record> {
    let bytes = bytes.strip_suffix(b"\n")?;
    let found: Line = serde_json::from_slice(bytes).ok()?;
    // Writing it again gives the bytes that the checksum was taken of.
    (line(&found.record).as_bytes() == bytes).then_some(found.record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str) -> Record {
        Record {
            key: key.into(),
            task: "formality".into(),
            model: "m".into(),
            reply: Some("{\"score\": 3}\n\"é\"".into()),
            note: None,
            usage: Some(Usage { input: 10, output: 3 }),
        }
    }

    fn stored(n: usize) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.jsonl");
        let mut store = Store::open(&path).unwrap();
        for i in 0..n {
            store.append(record(&i.to_string())).unwrap();
        }
        (folder, path)
    }

    #[test]
    fn answers_come_back() {
        let (_folder, path) = stored(2);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.get("1"), Some(&record("1")));
        assert_eq!((store.len(), store.get("2"), store.was_torn()), (2, None, false));
        assert!(matches!(Store::open(&path), Err(SteerError::Locked { .. })));
    }

    #[test]
    fn a_torn_last_line_is_dropped_wherever_it_was_cut() {
        let (_folder, path) = stored(2);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|&b| b == b'\n').unwrap() + 1;
        for end in first + 1..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let mut store = Store::open(&path).unwrap();
            assert_eq!((store.len(), store.was_torn()), (1, true), "cut at {end}");
            store.append(record("1")).unwrap();
            drop(store);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let (_folder, path) = stored(3);
        let text = std::fs::read_to_string(&path).unwrap();
        let changed = text.replacen("\"input\":10", "\"input\":11", 1);
        std::fs::write(&path, changed).unwrap();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("store.jsonl: line 1: found a damaged line"), "{error}");
    }
}
