//! Metrics as JSON lines.

use super::Record;
use fs_err as fs;
use std::{
    io::{self, Write},
    path::Path,
};

/// An append-only file of one JSON object per line.
pub struct JsonLines {
    file: fs::File,
}

impl JsonLines {
    /// Opens `path`, keeping of what it holds the whole lines whose record `keep` accepts, and returns these
    /// records. A half-written or foreign line ends what is kept.
    pub fn reopen(path: &Path, keep: impl Fn(&Record) -> bool) -> io::Result<(Self, Vec<Record>)> {
        let old = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        let kept: Vec<Record> =
            old.lines().map_while(|line| serde_json::from_str(line).ok()).filter(keep).collect();
        let text: String = kept.iter().map(line).collect();
        crate::files::write_atomic(path, text.as_bytes())?;
        let file = fs::OpenOptions::new().append(true).open(path)?;
        Ok((Self { file }, kept))
    }

    /// Appends one record.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        self.file.write_all(line(record).as_bytes())
    }

    /// Brings the file to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn line(record: &Record) -> String {
    let mut text = serde_json::to_string(record).expect("records hold only numbers and text");
    text.push('\n');
    text
}
