//! The file of a cache: a header of `MAGIC`, the key, then per pair its rows, the CRC-32C of its numbers and the two
//! reference log-probabilities, closed by the header's own CRC-32C; then the rows. Everything is little-endian.

use crate::{checksum::crc32c, objective::PairLogps, recipe::Precision};
use half::bf16;
use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Name and version of the format.
pub(super) const MAGIC: &[u8; 8] = b"SKRESID1";
/// Bytes of a pair in the header.
const PAIR_BYTES: usize = 24;
/// The extension of cache files.
pub(super) const EXTENSION: &str = "residuals";

/// What the header says of a pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) crc: u32,
    pub(super) reference: PairLogps,
}

/// A cache file being written.
pub(super) struct Writer {
    pub(super) body: BufWriter<tempfile::NamedTempFile>,
}

impl Writer {
    /// A temporary file beside `path` (or in the system's folder), with room for the header.
    pub(super) fn create(path: Option<&Path>, pairs: usize) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".steerkit-");
        let mut file = match path.and_then(Path::parent) {
            Some(folder) => {
                fs_err::create_dir_all(folder)?;
                builder.tempfile_in(folder)?
            }
            None => builder.tempfile()?,
        };
        file.write_all(&vec![0; header_bytes(pairs)])?;
        Ok(Self { body: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Writes the header, brings the file to the disk and gives it its name.
    pub(super) fn finish(self, key: &[u8; 32], entries: &[Entry], path: Option<&Path>) -> io::Result<File> {
        let mut file = self.body.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header(key, entries))?;
        match path {
            Some(path) => {
                file.as_file().sync_all()?;
                file.persist(path).map_err(|e| e.error)
            }
            None => Ok(file.into_file()),
        }
    }
}

pub(super) fn header_bytes(pairs: usize) -> usize {
    MAGIC.len() + 32 + pairs * PAIR_BYTES + 4
}

fn header(key: &[u8; 32], entries: &[Entry]) -> Vec<u8> {
    let mut head = Vec::with_capacity(header_bytes(entries.len()));
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(key);
    for e in entries {
        head.extend_from_slice(&(e.rows as u32).to_le_bytes());
        head.extend_from_slice(&e.crc.to_le_bytes());
        head.extend_from_slice(&e.reference.chosen.to_le_bytes());
        head.extend_from_slice(&e.reference.rejected.to_le_bytes());
    }
    head.extend_from_slice(&crc32c(&head).to_le_bytes());
    head
}

pub(super) fn parse_entries(bytes: &[u8]) -> Vec<Entry> {
    let mut first_row = 0;
    let (pairs, _) = bytes.as_chunks::<PAIR_BYTES>();
    let entry = |b: &[u8; PAIR_BYTES]| {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let double = |at: usize| f64::from_bits(u64::from(word(at)) | u64::from(word(at + 4)) << 32);
        let rows = word(0) as usize;
        first_row += rows;
        let reference = PairLogps { chosen: double(8), rejected: double(16) };
        Entry { first_row: first_row - rows, rows, crc: word(4), reference }
    };
    pairs.iter().map(entry).collect()
}

/// Bytes of a stored number.
pub(super) fn number_bytes(stored: Precision) -> usize {
    match stored {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}

/// Makes the rows what they will be when they are read back.
pub(super) fn round(stored: Precision, rows_td: &mut [f32]) {
    match stored {
        Precision::F32 => {}
        Precision::Bf16 => rows_td.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
    }
}

pub(super) fn encode(stored: Precision, rows_td: &[f32]) -> Vec<u8> {
    match stored {
        Precision::F32 => rows_td.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Precision::Bf16 => rows_td.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

pub(super) fn decode(stored: Precision, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * number_bytes(stored));
    match stored {
        Precision::F32 => {
            out.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        }
        Precision::Bf16 => {
            out.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, b)| *x = bf16::from_le_bytes(*b).to_f32());
        }
    }
}

/// Reads the `len` bytes of a pair's rows.
pub(super) fn read_bytes(from: &mut impl Read, crc: u32, len: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.resize(len, 0);
    from.read_exact(bytes)?;
    match crc32c(bytes) == crc {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "the cached rows of a pair are damaged")),
    }
}

/// Removes the longest unused cache files of `folder` until the rest holds at most `limit` bytes. Failures are
/// left for the next time.
pub(super) fn prune(folder: &Path, limit: u64) {
    let Ok(entries) = fs_err::read_dir(folder) else { return };
    let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == EXTENSION))
        .filter_map(|p| {
            let meta = p.metadata().ok()?;
            Some((meta.modified().ok()?, meta.len(), p))
        })
        .collect();
    files.sort();
    let mut total: u64 = files.iter().map(|f| f.1).sum();
    files.pop();
    for (_, bytes, path) in files {
        if total <= limit {
            break;
        }
        if fs_err::remove_file(path).is_ok() {
            total -= bytes;
        }
    }
}
