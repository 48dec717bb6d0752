//! What never changes while a vector is trained: the residual stream after block L, and the log-probabilities of
//! the plain model.
//!
//! One file holds both for a list of pairs: a header of `MAGIC`, the key, then per pair its rows, the CRC-32C of its
//! numbers and the two reference log-probabilities, closed by the header's own CRC-32C; then the rows, f32 or, where the
//! recipe wants it, rounded to bf16 in half the space. Everything is little-endian. The key covers model, tokens, layer,
//! precision and format, so a file is either right or ignored.
//!
//! A run computes with the rows as they are stored, also when it has just made them, and so does the reference: a run that
//! finds the file gives the same bytes as the one that wrote it.

use super::{
    observer::{Event, Halt, Observer, check},
    pass::{Packed, TokenPair, micro_batches, pair_logps},
    prefix::Prefix,
};
use crate::{
    checksum::crc32c,
    objective::PairLogps,
    recipe::{Precision, Recipe},
};
use half::bf16;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::SystemTime,
};
use steerkit_model::{Keep, Model};

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
    /// How the rows are stored.
    pub(crate) stored: Precision,
    /// Bytes above which the rows stay on disk.
    pub(crate) memory: u64,
    /// Bytes that the folder may hold; the longest unused files go first.
    pub(crate) disk: u64,
    /// What several runs made together; looked at first.
    pub(crate) prefix: Option<Arc<Prefix>>,
}

impl CachePolicy {
    /// What `recipe` wants.
    pub(crate) fn of(recipe: &Recipe) -> Self {
        Self {
            folder: if recipe.cache.enabled { cache_folder(recipe) } else { None },
            stored: recipe.cache.precision,
            memory: recipe.cache.memory_mb.saturating_mul(1_000_000),
            disk: recipe.cache.disk_mb.saturating_mul(1_000_000),
            prefix: None,
        }
    }
}

/// The folder of cached residual streams: the recipe's, else `residuals` below `$STEERKIT_HOME`, else below the
/// user's cache folder.
fn cache_folder(recipe: &Recipe) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let user = || variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|h| h.join(".cache")));
    let home = || variable("STEERKIT_HOME").or_else(|| user().map(|c| c.join("steerkit")));
    recipe.cache.folder.clone().or_else(|| home().map(|h| h.join("residuals")))
}

/// What is to be cached.
#[derive(Clone, Copy)]
pub(crate) struct CacheRequest<'a> {
    pub(crate) model: &'a Model,
    pub(crate) layer: usize,
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
    stored: Precision,
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
    /// As in a file.
    Memory(Vec<u8>),
    Disk {
        /// With a buffer for the bytes of a pair.
        file: Mutex<(File, Vec<u8>)>,
        body: u64,
    },
    /// For each pair, where it lies.
    Shared(Vec<(Arc<PairCache>, usize)>),
}

impl PairCache {
    /// Takes the pairs from what runs share or from the folder of `policy`, or runs them through the model.
    pub(crate) fn prepare(
        request: &CacheRequest<'_>,
        policy: &CachePolicy,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Self, Halt> {
        if let Some(shared) = policy.prefix.as_ref().and_then(|prefix| prefix.find(request, policy.stored)) {
            return Ok(Self::select(shared, request, policy.stored)?);
        }
        let mut made = Self::prepare_all(&[*request], policy, observer, cancel)?;
        Ok(made.pop().expect("one cache per request"))
    }

    /// One cache for each of `requests`, which differ in their ascending layers only. Those that the folder of `policy`
    /// does not have are made in one pass.
    pub(crate) fn prepare_all(
        requests: &[CacheRequest<'_>],
        policy: &CachePolicy,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Vec<Self>, Halt> {
        let (mut caches, mut missing) = (Vec::new(), Vec::new());
        for request in requests {
            let key = request.key(policy.stored);
            let name = format!("{}.{EXTENSION}", crate::files::hex(&key));
            let path = policy.folder.as_ref().map(|folder| folder.join(name));
            let found = path.as_ref().map(|path| Self::open(path, &key, request, policy));
            match found {
                Some(Ok(cache)) => {
                    caches.push(Some(cache));
                    continue;
                }
                Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => observer
                    .event(Event::Note(format!("cached residual streams are ignored and made again: {e}"))),
                _ => {}
            }
            caches.push(None);
            missing.push((*request, key, path));
        }
        if !missing.is_empty() {
            let mut built = Self::build(&missing, policy, observer, cancel)?.into_iter();
            caches.iter_mut().filter(|c| c.is_none()).for_each(|c| *c = built.next());
            if let Some(folder) = &policy.folder {
                prune(folder, policy.disk);
            }
        }
        Ok(caches.into_iter().flatten().collect())
    }

    /// The pairs of `request` from where they lie in other caches.
    fn select(
        sources: Vec<(Arc<Self>, usize)>,
        request: &CacheRequest<'_>,
        stored: Precision,
    ) -> io::Result<Self> {
        let d = request.model.config().d_model;
        let (mut entries, mut norms, mut rows_td) = (Vec::new(), Norms::default(), Vec::new());
        for ((cache, i), pair) in sources.iter().zip(request.pairs) {
            rows_td.resize(pair.rows() * d, 0f32);
            cache.read(*i, &mut rows_td)?;
            norms.add(pair, &rows_td, d);
            entries.push(cache.entries[*i]);
        }
        Ok(Self { d, stored, entries, rows: Rows::Shared(sources), residual_norm: norms.median() })
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
                let row = self.d * number_bytes(self.stored);
                decode(self.stored, &all[first_row * row..(first_row + rows) * row], out);
                Ok(())
            }
            Rows::Disk { file, body } => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let (file, bytes) = &mut *file;
                let row = self.d * number_bytes(self.stored);
                file.seek(SeekFrom::Start(body + (first_row * row) as u64))?;
                read_bytes(file, crc, rows * row, bytes)?;
                decode(self.stored, bytes, out);
                Ok(())
            }
            Rows::Shared(sources) => {
                let (cache, place) = &sources[i];
                cache.read(*place, out)
            }
        }
    }

    /// Bytes of the rows of `pairs`.
    pub(crate) fn bytes(pairs: &[TokenPair], d: usize, stored: Precision) -> u64 {
        pairs.iter().map(|p| p.rows() as u64).sum::<u64>() * (d * number_bytes(stored)) as u64
    }

    fn open(
        path: &Path,
        key: &[u8; 32],
        request: &CacheRequest<'_>,
        policy: &CachePolicy,
    ) -> io::Result<Self> {
        let wrong =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let d = request.model.config().d_model;
        let file = fs_err::File::open(path)?.into_parts().0;
        let head_bytes = header_bytes(request.pairs.len());
        let stored = policy.stored;
        let body_bytes = Self::bytes(request.pairs, d, stored);
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
        let keep = body_bytes <= policy.memory;
        let mut rows = Vec::with_capacity(if keep { body_bytes as usize } else { 0 });
        let mut norms = Norms::default();
        let (mut bytes, mut rows_td) = (Vec::new(), Vec::new());
        for (entry, pair) in entries.iter().zip(request.pairs) {
            rows_td.resize(entry.rows * d, 0.0);
            let len = rows_td.len() * number_bytes(stored);
            read_bytes(&mut reader, entry.crc, len, &mut bytes).map_err(|e| wrong(&e.to_string()))?;
            decode(stored, &bytes, &mut rows_td);
            norms.add(pair, &rows_td, d);
            if keep {
                rows.extend_from_slice(&bytes);
            }
        }
        // The time of last use decides what is pruned; a folder that cannot be written to does not matter.
        file.set_modified(SystemTime::now()).ok();
        let rows = match keep {
            true => Rows::Memory(rows),
            false => Rows::Disk { file: Mutex::new((file, bytes)), body: head_bytes as u64 },
        };
        Ok(Self { d, stored, entries, rows, residual_norm: norms.median() })
    }

    /// Runs the pairs through the model once; each request gets the rows after its layer.
    fn build(
        requests: &[(CacheRequest<'_>, [u8; 32], Option<PathBuf>)],
        policy: &CachePolicy,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Vec<Self>, Halt> {
        let CacheRequest { model, split, pairs: all, micro_batch_rows, .. } = requests[0].0;
        let layers: Vec<usize> = requests.iter().map(|(request, ..)| request.layer).collect();
        let grow = |(request, key, path): &(CacheRequest<'_>, [u8; 32], Option<PathBuf>)| {
            Growing::new(request, *key, path.clone(), policy)
        };
        let mut growing = requests.iter().map(grow).collect::<Vec<_>>();
        growing.iter_mut().try_for_each(|g| g.create(all.len(), observer))?;
        for run in micro_batches(all.iter().map(TokenPair::rows), micro_batch_rows) {
            check(cancel)?;
            let pairs = &all[run.clone()];
            let Packed { pack, spans, .. } = Packed::unsteered(pairs);
            let mut residuals = model.residuals(&pack, &layers)?;
            residuals.iter_mut().for_each(|h_td| round(policy.stored, h_td));
            let mut scores = None;
            for ((growing, h_td), &layer) in growing.iter_mut().zip(&residuals).zip(&layers).rev() {
                // Exact rows of every layer have the same scores; rounded ones have their own.
                let scores = match &mut scores {
                    Some(scores) if policy.stored == Precision::F32 => scores,
                    scores => scores.insert(model.score_from(layer, h_td, &pack, Keep::Nothing)?),
                };
                for (pair, span) in pairs.iter().zip(&spans) {
                    let rows_td = Packed::pair_rows(span, h_td, growing.d);
                    growing.add(pair, &rows_td, pair_logps(scores.logps(), span), observer)?;
                }
            }
            observer.event(Event::Caching { split, done: run.end, total: all.len() });
        }
        growing.into_iter().map(|growing| growing.finish(observer)).collect()
    }
}

/// A cache being made.
struct Growing {
    d: usize,
    stored: Precision,
    key: [u8; 32],
    path: Option<PathBuf>,
    /// Whether the rows stay in memory.
    keep: bool,
    writer: Option<Writer>,
    entries: Vec<Entry>,
    kept: Vec<u8>,
    norms: Norms,
    rows: usize,
}

impl Growing {
    fn new(request: &CacheRequest<'_>, key: [u8; 32], path: Option<PathBuf>, policy: &CachePolicy) -> Self {
        let d = request.model.config().d_model;
        let stored = policy.stored;
        let keep = PairCache::bytes(request.pairs, d, stored) <= policy.memory;
        let (entries, kept, norms) = (Vec::new(), Vec::new(), Norms::default());
        Self { d, stored, key, path, keep, writer: None, entries, kept, norms, rows: 0 }
    }

    fn create(&mut self, pairs: usize, observer: &mut dyn Observer) -> Result<(), Halt> {
        if self.path.is_some() || !self.keep {
            self.writer = tolerate(Writer::create(self.path.as_deref(), pairs), self.keep, observer)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        pair: &TokenPair,
        rows_td: &[f32],
        reference: PairLogps,
        observer: &mut dyn Observer,
    ) -> Result<(), Halt> {
        let bytes = encode(self.stored, rows_td);
        self.entries.push(Entry { first_row: self.rows, rows: pair.rows(), crc: crc32c(&bytes), reference });
        self.rows += pair.rows();
        self.norms.add(pair, rows_td, self.d);
        if self.keep {
            self.kept.extend_from_slice(&bytes);
        }
        if let Some(w) = &mut self.writer
            && tolerate(w.body.write_all(&bytes), self.keep, observer)?.is_none()
        {
            self.writer = None;
        }
        Ok(())
    }

    fn finish(self, observer: &mut dyn Observer) -> Result<PairCache, Halt> {
        let Self { d, stored, key, path, keep, writer, entries, kept, norms, .. } = self;
        let file = match writer {
            Some(writer) => tolerate(writer.finish(&key, &entries, path.as_deref()), keep, observer)?,
            None => None,
        };
        let rows = match file {
            Some(file) if !keep => {
                let file = Mutex::new((file, Vec::new()));
                Rows::Disk { file, body: header_bytes(entries.len()) as u64 }
            }
            _ => Rows::Memory(kept),
        };
        Ok(PairCache { d, stored, entries, rows, residual_norm: norms.median() })
    }
}

impl CacheRequest<'_> {
    /// Hash of everything that decides the numbers.
    fn key(&self, stored: Precision) -> [u8; 32] {
        let identity = self.model.identity();
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(MAGIC);
        part(env!("CARGO_PKG_VERSION").as_bytes());
        part(identity.file_sha256.as_bytes());
        part(format!("{:?} {} {stored:?}", self.precision, self.layer).as_bytes());
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
struct Norms(Vec<f32>);

impl Norms {
    fn add(&mut self, pair: &TokenPair, rows_td: &[f32], d: usize) {
        // The first row of the pair is the first of its prompt; the responses follow the prompt.
        debug_assert_eq!(rows_td.len(), pair.rows() * d);
        self.0.extend(rows_td.chunks_exact(d).skip(1).map(|row| crate::optim::norm(row) as f32));
    }

    fn median(mut self) -> f64 {
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

/// Bytes of a stored number.
fn number_bytes(stored: Precision) -> usize {
    match stored {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}

/// Makes the rows what they will be when they are read back.
fn round(stored: Precision, rows_td: &mut [f32]) {
    match stored {
        Precision::F32 => {}
        Precision::Bf16 => rows_td.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
    }
}

fn encode(stored: Precision, rows_td: &[f32]) -> Vec<u8> {
    match stored {
        Precision::F32 => rows_td.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Precision::Bf16 => rows_td.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn decode(stored: Precision, bytes: &[u8], out: &mut [f32]) {
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
fn read_bytes(from: &mut impl Read, crc: u32, len: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.resize(len, 0);
    from.read_exact(bytes)?;
    match crc32c(bytes) == crc {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "the cached rows of a pair are damaged")),
    }
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
