//! The lines of a text file as checked UTF-8, with line numbers and byte offsets, and the hash of its bytes.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::parquet::{MAGIC, ParquetLines};
use crate::error::malformed;
use crate::files::{at, hex, sha256_of_file};
use crate::{Result, SteerError};

/// How much of the start is looked at to tell what a file is.
const HEAD: usize = 4096;

/// How the bytes encode text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Utf16Le,
    Utf16Be,
}

type Source = Box<dyn BufRead + Send>;

/// The lines of a file, one at a time: memory stays at one line.
pub(super) struct Lines {
    source: Chain<Cursor<Vec<u8>>, Source>,
    path: PathBuf,
    /// The lines are the rows of a Parquet file.
    parquet: bool,
    encoding: Encoding,
    head: Vec<u8>,
    hash: Sha256,
    max_line: usize,
    raw: Vec<u8>,
    /// 1-based number of the line that was read last.
    pub(super) number: u64,
    /// Offset of the first byte after it.
    offset: u64,
}

impl Lines {
    /// [`Self::new`] of a file; the rows of a Parquet file are lines of JSON.
    pub(super) fn open(path: &Path, max_line: usize) -> Result<Self> {
        let file = fs_err::File::open(path)?;
        let mut source = BufReader::with_capacity(1 << 16, file);
        if !source.fill_buf()?.starts_with(MAGIC) {
            return Self::new(Box::new(source), path, max_line);
        }
        let mut lines = Self::new(Box::new(ParquetLines::open(path)?), path, max_line)?;
        lines.parquet = true;
        Ok(lines)
    }

    /// Looks at the start of `source`: byte order marks choose the encoding; files that are no text at all are
    /// refused by name. Lines of more than `max_line` bytes are refused when they come.
    pub(super) fn new(mut source: Source, path: &Path, max_line: usize) -> Result<Self> {
        let mut head = Vec::with_capacity(HEAD);
        source
            .by_ref()
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(|error| unreadable(path, 1, error))?;
        refuse_other_files(&head, path)?;
        let (encoding, mark) = match head.as_slice() {
            [0xEF, 0xBB, 0xBF, ..] => (Encoding::Utf8, 3),
            [0xFF, 0xFE, ..] => (Encoding::Utf16Le, 2),
            [0xFE, 0xFF, ..] => (Encoding::Utf16Be, 2),
            _ => (Encoding::Utf8, 0),
        };
        let mut hash = Sha256::new();
        hash.update(&head[..mark]);
        let rest = Cursor::new(head[mark..].to_vec());
        Ok(Self {
            source: rest.chain(source),
            path: path.to_owned(),
            parquet: false,
            encoding,
            head: head[mark..].to_vec(),
            hash,
            max_line,
            raw: Vec::new(),
            number: 0,
            offset: mark as u64,
        })
    }

    /// The file, for errors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the lines are the rows of a Parquet file.
    pub(super) fn are_parquet(&self) -> bool {
        self.parquet
    }

    /// The first character of the file that is no white space, as far as its start tells.
    pub(super) fn first_char(&self) -> Option<char> {
        let bytes = self.head.iter().filter(|&&byte| self.encoding == Encoding::Utf8 || byte != 0);
        bytes.map(|&byte| char::from(byte)).find(|c| !c.is_ascii_whitespace())
    }

    /// Reads the next line without its end (`\n` or `\r\n`) into `line`; false at the end of the file.
    pub(super) fn next(&mut self, line: &mut String) -> Result<bool> {
        line.clear();
        let start = self.offset;
        if !self.raw_line()? {
            return Ok(false);
        }
        match self.encoding {
            Encoding::Utf8 => match std::str::from_utf8(&self.raw) {
                Ok(text) => line.push_str(text),
                Err(error) => return Err(self.not_utf8(start, error)),
            },
            Encoding::Utf16Le => self.decode_utf16(start, u16::from_le_bytes, line)?,
            Encoding::Utf16Be => self.decode_utf16(start, u16::from_be_bytes, line)?,
        }
        if let Some(at) = line.find('\0') {
            let width = if self.encoding == Encoding::Utf8 { 1 } else { 2 };
            let before = if width == 1 { at } else { 2 * line[..at].encode_utf16().count() };
            return Err(self.null(start + before as u64));
        }
        if line.ends_with('\n') {
            line.pop();
            if line.ends_with('\r') {
                line.pop();
            }
        }
        Ok(true)
    }

    /// Reads what is left and gives the SHA-256 of the whole file in lower-case hex.
    pub(super) fn finish(mut self) -> Result<String> {
        if self.parquet {
            return sha256_of_file(&self.path).map_err(|error| at(&self.path, error).into());
        }
        loop {
            let bytes = self.source.fill_buf()?;
            if bytes.is_empty() {
                return Ok(hex(&self.hash.finalize()));
            }
            self.hash.update(bytes);
            let n = bytes.len();
            self.source.consume(n);
        }
    }

    /// The bytes up to and with the next line feed, into `raw`; false at the end of the file.
    fn raw_line(&mut self) -> Result<bool> {
        self.raw.clear();
        loop {
            let bytes = match self.source.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) => return Err(unreadable(&self.path, self.number + 1, error)),
            };
            if bytes.is_empty() {
                break;
            }
            let done = self.raw.len();
            let end = match self.encoding {
                Encoding::Utf8 => bytes.iter().position(|&byte| byte == b'\n'),
                Encoding::Utf16Le => end_of_utf16_line(&self.raw, bytes, [b'\n', 0]),
                Encoding::Utf16Be => end_of_utf16_line(&self.raw, bytes, [0, b'\n']),
            };
            let n = end.map_or(bytes.len(), |at| at + 1);
            if done + n > self.max_line {
                return Err(self.long_line());
            }
            self.raw.extend_from_slice(&bytes[..n]);
            self.hash.update(&bytes[..n]);
            self.source.consume(n);
            self.offset += n as u64;
            if end.is_some() {
                break;
            }
        }
        self.number += u64::from(!self.raw.is_empty());
        Ok(!self.raw.is_empty())
    }

    fn decode_utf16(&self, start: u64, unit: fn([u8; 2]) -> u16, line: &mut String) -> Result<()> {
        let (pairs, rest) = self.raw.as_chunks::<2>();
        let mut at = start;
        for c in char::decode_utf16(pairs.iter().map(|&pair| unit(pair))) {
            let c = c.map_err(|error| {
                let found = format!("the lone surrogate {:#06x}", error.unpaired_surrogate());
                self.error(
                    self.byte_place(at),
                    found,
                    "UTF-16 text",
                    "the file is damaged: save it again as UTF-8",
                )
            })?;
            at += 2 * c.len_utf16() as u64;
            line.push(c);
        }
        if !rest.is_empty() {
            return Err(self.error(
                self.byte_place(at),
                "half a UTF-16 unit",
                "an even number of bytes",
                "the file is cut short: fetch or save it again",
            ));
        }
        Ok(())
    }

    fn not_utf8(&self, start: u64, error: std::str::Utf8Error) -> SteerError {
        let at = error.valid_up_to();
        let byte = self.raw[at];
        let place = self.byte_place(start + at as u64);
        if error.error_len().is_none() {
            let hint = "the file is cut short: fetch or save it again";
            return self.error(place, "the start of a character", "its other bytes", hint);
        }
        let found = format!("the byte 0x{byte:02X}");
        let hint = match windows_1252(byte) {
            Some(c) if error.error_len() == Some(1) => format!(
                "the file looks like Windows-1252 or Latin-1, where this byte is \"{c}\": convert it with \
                 iconv -f WINDOWS-1252 -t UTF-8"
            ),
            _ => "save the file as UTF-8".to_owned(),
        };
        self.error(place, found, "UTF-8 text", hint)
    }

    fn null(&self, at: u64) -> SteerError {
        let zeros = self.head.iter().filter(|&&byte| byte == 0).count();
        let hint = if self.encoding == Encoding::Utf8 && 3 * zeros > self.head.len() {
            "the file looks like UTF-16 without byte order mark: save it as UTF-8"
        } else {
            "the file is damaged or no text: remove the byte or fetch the file again"
        };
        self.error(self.byte_place(at), "a NUL character", "text", hint)
    }

    fn long_line(&self) -> SteerError {
        self.error(
            format!("line {}", self.number + 1),
            format!("more than {} bytes", self.max_line),
            "a shorter line",
            "split the text, raise max_cell_bytes, or look for a missing line end",
        )
    }

    fn byte_place(&self, at: u64) -> String {
        format!("line {}, byte offset {at}", self.number)
    }

    /// An error in this file.
    pub(super) fn error(
        &self,
        place: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        hint: impl Into<String>,
    ) -> SteerError {
        malformed(&self.path, place, found, expected, hint)
    }
}

/// An error while line `number` was read: of the file system, or of a Parquet file's contents.
fn unreadable(path: &Path, number: u64, error: io::Error) -> SteerError {
    match error.kind() {
        io::ErrorKind::InvalidData => malformed(
            path,
            format!("row {number}"),
            error.to_string(),
            "a whole Parquet file, compressed with Snappy or not at all",
            "fetch the file again, or save it as JSONL",
        ),
        _ => error.into(),
    }
}

/// Index in `bytes` of the last byte of a UTF-16 line feed; `before` are the bytes of the line so far.
fn end_of_utf16_line(before: &[u8], bytes: &[u8], feed: [u8; 2]) -> Option<usize> {
    let byte = |i: usize| if i < before.len() { before[i] } else { bytes[i - before.len()] };
    let first = before.len() - before.len() % 2;
    let end = before.len() + bytes.len();
    (first..end.saturating_sub(1))
        .step_by(2)
        .find(|&i| [byte(i), byte(i + 1)] == feed)
        .map(|i| i + 1 - before.len())
}

/// Refuses what is no text but turns up under the name of a data file.
fn refuse_other_files(head: &[u8], path: &Path) -> Result<()> {
    const SIGNS: [(&[u8], &str, &str); 7] = [
        (b"version https://git-lfs", "a git-LFS pointer", "fetch the file itself: git lfs pull"),
        (b"\x1f\x8b", "gzip data", "decompress it first"),
        (b"\x28\xb5\x2f\xfd", "zstd data", "decompress it first"),
        (b"PK\x03\x04", "a zip archive or spreadsheet", "export it as CSV or JSONL"),
        (b"<!DOCTYPE", "an HTML page", "download the raw file"),
        (b"<html", "an HTML page", "download the raw file"),
        (b"\xff\xfe\0\0", "UTF-32 text", "save it as UTF-8"),
    ];
    match SIGNS.iter().find(|(sign, ..)| head.starts_with(sign)) {
        Some((_, found, hint)) => Err(malformed(path, "byte offset 0", *found, "CSV or JSONL text", *hint)),
        None => Ok(()),
    }
}

/// What a byte over 0x7F means in Windows-1252, for the bytes that are common in text.
fn windows_1252(byte: u8) -> Option<char> {
    match byte {
        0x80 => Some('€'),
        0x85 => Some('…'),
        0x91 => Some('‘'),
        0x92 => Some('’'),
        0x93 => Some('“'),
        0x94 => Some('”'),
        0x96 => Some('–'),
        0x97 => Some('—'),
        0xA0.. => Some(char::from(byte)),
        _ => None,
    }
}
