//! What never changes while a vector is trained: the residual stream after block L, and the log-probabilities of
//! the plain model.
//!
//! One file holds both for a list of pairs: a header of `MAGIC`, the key, then per pair its rows, the CRC-32C of its
//! numbers and the two reference log-probabilities, closed by the header's own CRC-32C; then the rows, f32.
//! Everything is little-endian. The key covers model, tokens, layer, precision and format, so a file is either
//! right or ignored.

use super::{
    observer::{Event, Halt, Observer, check},
    pass::{Packed, TokenPair, micro_batches, pair_logps},
};
use crate::{checksum::crc32c, objective::PairLogps, recipe::Precision};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::AtomicBool},
    time::SystemTime,
};
use steerkit_model::{Keep, Model, Pass};

/// Name and version of the format.
const MAGIC: &[u8; 8] = b"SKRESID1";
/// Bytes of a pair in the header.
const PAIR_BYTES: usize = 24;
/// The extension of cache files.
const EXTENSION: &str = "residuals";

/// Where and how much is kept.
#[derive(Clone, Debug)]
pub(crate) struct CachePolicy {
    /// Folder for files that later runs reuse; none to keep nothing.
    pub(crate) folder: Option<PathBuf>,
    /// Bytes above which the rows stay on disk.
    pub(crate) memory: u64,
    /// Bytes that the folder may hold; the longest unused files go first.
    pub(crate) disk: u64,
}

/// What is to be cached.
pub(crate) struct CacheRequest<'a> {
    pub(crate) model: &'a Model,
    /// The block after which the residual stream is kept; none to keep the reference log-probabilities only.
    pub(crate) layer: Option<usize>,
    pub(crate) precision: Precision,
    /// Name of the pairs in events.
    pub(crate) split: &'a str,
    pub(crate) pairs: &'a [TokenPair],
    pub(crate) micro_batch_rows: usize,
}

/// Residual streams and reference log-probabilities of a list of pairs.
#[derive(Debug)]
pub(crate) struct PairCache {
    d: usize,
    entries: Vec<Entry>,
    rows: Rows,
    residual_norm: f64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    first_row: usize,
    rows: usize,
    crc: u32,
    reference: PairLogps,
}

#[derive(Debug)]
enum Rows {
    Memory(Vec<f32>),
    Disk { file: Mutex<File>, body: u64 },
}

impl PairCache {
    /// Takes the pairs from the folder of `policy` or runs them through the model.
    pub(crate) fn prepare(
        request: &CacheRequest<'_>,
        policy: &CachePolicy,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Self, Halt> {
        let key = request.key();
        let path = policy.folder.as_ref().map(|f| f.join(format!("{}.{EXTENSION}", crate::files::hex(&key))));
        if let Some(path) = &path {
            match Self::open(path, &key, request, policy.memory) {
                Ok(cache) => return Ok(cache),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => observer
                    .event(Event::Note(format!("cached residual streams are ignored and made again: {e}"))),
            }
        }
        let cache = Self::build(request, &key, path.as_deref(), policy, observer, cancel)?;
        if let Some(folder) = &policy.folder {
            prune(folder, policy.disk);
        }
        Ok(cache)
    }

    /// Median norm of the residual stream over all rows but the first of each text, whose norm is far larger in
    /// many models.
    pub(crate) fn residual_norm(&self) -> f64 {
        self.residual_norm
    }

    /// Log-probabilities of pair `i` under the plain model.
    pub(crate) fn reference(&self, i: usize) -> PairLogps {
        self.entries[i].reference
    }

    /// Copies the rows of pair `i` to `out` `[t, d]`.
    pub(crate) fn read(&self, i: usize, out: &mut [f32]) -> io::Result<()> {
        let Entry { first_row, rows, crc, .. } = self.entries[i];
        match &self.rows {
            Rows::Memory(all) => {
                out.copy_from_slice(&all[first_row * self.d..(first_row + rows) * self.d]);
                Ok(())
            }
            Rows::Disk { file, body } => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(body + (first_row * self.d * 4) as u64))?;
                read_rows(&mut *file, crc, out)
            }
        }
    }

    /// Bytes of the rows of `pairs`.
    pub(crate) fn bytes(pairs: &[TokenPair], d: usize) -> u64 {
        pairs.iter().map(|p| p.rows() as u64).sum::<u64>() * d as u64 * 4
    }

    fn open(path: &Path, key: &[u8; 32], request: &CacheRequest<'_>, memory: u64) -> io::Result<Self> {
        let wrong =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let d = request.width();
        let file = fs_err::File::open(path)?.into_parts().0;
        let head_bytes = header_bytes(request.pairs.len());
        let body_bytes = Self::bytes(request.pairs, d);
        if file.metadata()?.len() != head_bytes as u64 + body_bytes {
            return Err(wrong("the length is not that of these pairs"));
        }
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let mut head = vec![0; head_bytes];
        reader.read_exact(&mut head)?;
        let (head, crc) = head.split_at(head_bytes - 4);
        if crc32c(head).to_le_bytes() != crc || !head.starts_with(MAGIC) || head[8..40] != key[..] {
            return Err(wrong("the header is damaged"));
        }
        let entries = parse_entries(&head[40..]);
        if entries.iter().zip(request.pairs).any(|(e, p)| e.rows != p.rows()) {
            return Err(wrong("the header is of other pairs"));
        }
        let keep = body_bytes <= memory;
        let mut rows = Vec::with_capacity(if keep { (body_bytes / 4) as usize } else { 0 });
        let mut norms = Norms::default();
        let mut buffer = Vec::new();
        for (entry, pair) in entries.iter().zip(request.pairs) {
            buffer.resize(entry.rows * d, 0.0);
            read_rows(&mut reader, entry.crc, &mut buffer).map_err(|e| wrong(&e.to_string()))?;
            norms.add(pair, &buffer, d);
            if keep {
                rows.extend_from_slice(&buffer);
            }
        }
        // The time of last use decides what is pruned; a folder that cannot be written to does not matter.
        file.set_modified(SystemTime::now()).ok();
        let rows = match keep {
            true => Rows::Memory(rows),
            false => Rows::Disk { file: Mutex::new(file), body: head_bytes as u64 },
        };
        Ok(Self { d, entries, rows, residual_norm: norms.median() })
    }

    fn build(
        request: &CacheRequest<'_>,
        key: &[u8; 32],
        path: Option<&Path>,
        policy: &CachePolicy,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Self, Halt> {
        let d = request.width();
        let keep = Self::bytes(request.pairs, d) <= policy.memory;
        let mut writer = match path.is_some() || !keep {
            true => tolerate(Writer::create(path, request.pairs.len()), keep, observer)?,
            false => None,
        };
        let (mut entries, mut kept, mut norms) = (Vec::new(), Vec::new(), Norms::default());
        let mut first_row = 0;
        for run in micro_batches(request.pairs.iter().map(TokenPair::rows), request.micro_batch_rows) {
            check(cancel)?;
            let pairs = &request.pairs[run.clone()];
            let Packed { pack, spans, .. } = Packed::unsteered(pairs);
            let h_td = match request.layer {
                Some(layer) => request.model.residual(&pack, layer)?,
                None => Vec::new(),
            };
            let pass = match request.layer {
                Some(layer) => Pass::from_residual(layer, &h_td, &pack),
                None => Pass::plain(&pack),
            };
            let scores = request.model.score_pass(&pass, Keep::Nothing)?;
            for (pair, span) in pairs.iter().zip(&spans) {
                let rows_td = Packed::pair_rows(span, &h_td, d);
                let bytes = le_bytes(&rows_td);
                let reference = pair_logps(scores.logps(), span);
                entries.push(Entry { first_row, rows: pair.rows(), crc: crc32c(&bytes), reference });
                first_row += pair.rows();
                norms.add(pair, &rows_td, d);
                if keep {
                    kept.extend_from_slice(&rows_td);
                }
                if let Some(w) = &mut writer
                    && tolerate(w.body.write_all(&bytes), keep, observer)?.is_none()
                {
                    writer = None;
                }
            }
            let (split, total) = (request.split, request.pairs.len());
            observer.event(Event::Caching { split, done: run.end, total });
        }
        let file = match writer {
            Some(writer) => tolerate(writer.finish(key, &entries, path), keep, observer)?,
            None => None,
        };
        let rows = match file {
            Some(file) if !keep => {
                Rows::Disk { file: Mutex::new(file), body: header_bytes(entries.len()) as u64 }
            }
            _ => Rows::Memory(kept),
        };
        Ok(Self { d, entries, rows, residual_norm: norms.median() })
    }
}

impl CacheRequest<'_> {
    /// Numbers that are kept of a row.
    fn width(&self) -> usize {
        if self.layer.is_some() { self.model.config().d_model } else { 0 }
    }

    /// Hash of everything that decides the numbers.
    fn key(&self) -> [u8; 32] {
        let identity = self.model.identity();
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(MAGIC);
        part(env!("CARGO_PKG_VERSION").as_bytes());
        part(identity.file_sha256.as_bytes());
        let layer = self.layer.map_or("none".to_owned(), |layer| layer.to_string());
        part(format!("{:?} {layer}", self.precision).as_bytes());
        // The tokens stand for tokeniser, template, system prompt and data rows: whatever of these changes
        // matters only through them.
        for pair in self.pairs {
            for tokens in [&pair.prompt, &pair.chosen, &pair.rejected] {
                part(&tokens.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        hash.finalize().into()
    }
}

/// Norms of the rows that count.
#[derive(Default)]
pub(super) struct Norms(Vec<f32>);

impl Norms {
    pub(super) fn add(&mut self, pair: &TokenPair, rows_td: &[f32], d: usize) {
        if d == 0 {
            return;
        }
        // The first row of the pair is the first of its prompt; the responses follow the prompt.
        debug_assert_eq!(rows_td.len(), pair.rows() * d);
        self.0.extend(rows_td.chunks_exact(d).skip(1).map(|row| crate::optim::norm(row) as f32));
    }

    pub(super) fn median(mut self) -> f64 {
        self.0.sort_unstable_by(f32::total_cmp);
        let n = self.0.len();
        if n == 0 {
            return 0.0;
        }
        (f64::from(self.0[(n - 1) / 2]) + f64::from(self.0[n / 2])) / 2.0
    }
}

/// Lets a file that is only there for later runs fail with a note; one that this run needs must not.
fn tolerate<T>(
    result: io::Result<T>,
    optional: bool,
    observer: &mut dyn Observer,
) -> Result<Option<T>, Halt> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if optional => {
            observer.event(Event::Note(format!("residual streams are not kept for later runs: {e}")));
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// A cache file being written.
struct Writer {
    body: BufWriter<tempfile::NamedTempFile>,
}

impl Writer {
    /// A temporary file beside `path` (or in the system's folder), with room for the header.
    fn create(path: Option<&Path>, pairs: usize) -> io::Result<Self> {
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
    fn finish(self, key: &[u8; 32], entries: &[Entry], path: Option<&Path>) -> io::Result<File> {
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

fn header_bytes(pairs: usize) -> usize {
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

fn parse_entries(bytes: &[u8]) -> Vec<Entry> {
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

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn read_rows(from: &mut impl Read, crc: u32, out: &mut [f32]) -> io::Result<()> {
    let mut bytes = vec![0; out.len() * 4];
    from.read_exact(&mut bytes)?;
    if crc32c(&bytes) != crc {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the cached rows of a pair are damaged"));
    }
    let (values, _) = bytes.as_chunks::<4>();
    out.iter_mut().zip(values).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
    Ok(())
}

/// Removes the longest unused cache files of `folder` until the rest holds at most `limit` bytes. Failures are
/// left for the next time.
fn prune(folder: &Path, limit: u64) {
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
