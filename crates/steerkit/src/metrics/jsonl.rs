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
        // Kept lines stay as they were written: reading and writing a number again may change its last digit.
        let mut text = String::new();
        let mut kept = Vec::new();
        for line in old.split_inclusive('\n').take_while(|line| line.ends_with('\n')) {
            let Ok(record) = serde_json::from_str(line) else { break };
            if keep(&record) {
                text.push_str(line);
                kept.push(record);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::StepRecord;

    fn record(step: usize) -> Record {
        Record::Step(StepRecord {
            step,
            epoch: 1,
            pairs: 4,
            toward: 4,
            loss: 0.1 + 0.2,
            margin: -0.094_663_147_131_601_97,
            accuracy: 0.5,
            grad_norm: 1.0,
            lr: None,
            norm: 1.0,
            layer_norms: Vec::new(),
            seconds: 0.0,
        })
    }

    #[test]
    fn a_resumed_run_keeps_whole_lines_of_its_past() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let (mut lines, kept) = JsonLines::reopen(&path, |_| true).unwrap();
        assert!(kept.is_empty());
        (1..=3).for_each(|step| lines.append(&record(step)).unwrap());
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"type\":\"st")).unwrap();
        let (mut lines, kept) = JsonLines::reopen(&path, |r| r.step() <= 2).unwrap();
        assert_eq!(kept.len(), 2);
        lines.append(&record(3)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    }
}
