//! What never changes while a vector is trained: the residual stream after block L, and the log-probabilities of
//! the plain model.
//!
//! One [`file`] holds both for a list of pairs, its rows in f32 or, where the recipe wants it, rounded to bf16 in half the
//! space. Its key covers model, tokens, layer, precision and format, so a file is either right or ignored.
//!
//! A run computes with the rows as they are stored, also when it has just made them, and so does the reference: a run that
//! finds the file gives the same bytes as the one that wrote it.

mod file;

use super::{
    observer::{Event, Halt, Observer, check},
    pass::{Packed, TokenPair, micro_batches, pair_logps},
    prefix::Prefix,
};
use crate::{
    checksum::crc32c,
    objective::PairLogps,
    ranks::{self, Shared},
    recipe::{Precision, Recipe},
};
use file::{
    EXTENSION, Entry, MAGIC, Writer, decode, encode, header_bytes, number_bytes, parse_entries, prune,
    read_bytes, round,
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::SystemTime,
};
use steerkit_model::{Keep, Model, Pass};

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
    /// Who shares the passes.
    pub(crate) ranks: Shared,
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
            ranks: None,
        }
    }

    /// Everything in memory, nothing kept.
    pub(crate) fn in_memory() -> Self {
        Self { folder: None, stored: Precision::F32, memory: u64::MAX, disk: 0, prefix: None, ranks: None }
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
    stored: Precision,
    entries: Vec<Entry>,
    rows: Rows,
    residual_norm: f64,
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

    /// One cache for each of `requests`, which differ in their ascending layers only; one without a layer stands alone.
    /// Those that the folder of `policy` does not have are made in one pass.
    pub(crate) fn prepare_all(
        requests: &[CacheRequest<'_>],
        policy: &CachePolicy,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Vec<Self>, Halt> {
        let path = |key: &[u8; 32]| {
            let name = format!("{}.{EXTENSION}", crate::files::hex(key));
            policy.folder.as_ref().map(|folder| folder.join(name))
        };
        let mut caches = Vec::new();
        for request in requests {
            let key = request.key(policy.stored);
            let found = path(&key).map(|path| Self::open(&path, &key, request, policy));
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
        }
        agree(&policy.ranks, &mut caches);
        let missing: Vec<_> = requests
            .iter()
            .zip(&caches)
            .filter(|(_, cache)| cache.is_none())
            .map(|(request, _)| {
                let key = request.key(policy.stored);
                (*request, key, path(&key).filter(|_| ranks::writes(&policy.ranks)))
            })
            .collect();
        if !missing.is_empty() {
            let mut built = Self::build(&missing, policy, observer, cancel)?.into_iter();
            caches.iter_mut().filter(|c| c.is_none()).for_each(|c| *c = built.next());
            if let Some(folder) = policy.folder.as_ref().filter(|_| ranks::writes(&policy.ranks)) {
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
        let d = request.width();
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
        let d = request.width();
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
        let layers: Vec<usize> = requests.iter().filter_map(|(request, ..)| request.layer).collect();
        let grow = |(request, key, path): &(CacheRequest<'_>, [u8; 32], Option<PathBuf>)| {
            Growing::new(request, *key, path.clone(), policy)
        };
        let mut growing = requests.iter().map(grow).collect::<Vec<_>>();
        growing.iter_mut().try_for_each(|g| g.create(all.len(), observer))?;
        let runs = micro_batches(all.iter().map(TokenPair::rows), micro_batch_rows);
        let pass = |run: &Range<usize>| {
            check(cancel)?;
            read_pairs(model, &layers, policy.stored, &all[run.clone()])
        };
        ranks::each(&policy.ranks, &runs, pass, |run, mut made| {
            for pair in &all[run.clone()] {
                for growing in &mut growing {
                    let reference = made.split_off(..16).expect("two numbers");
                    let rows = pair.rows() * growing.d * number_bytes(policy.stored);
                    let rows = made.split_off(..rows).expect("the rows of the pair");
                    let mut reference = PairLogps::from_numbers(ranks::from_bytes(reference));
                    growing.add(pair, rows, reference.next().expect("two numbers"), observer)?;
                }
            }
            observer.event(Event::Caching { split, done: run.end, total: all.len() });
            Ok(())
        })?;
        growing.into_iter().map(|growing| growing.finish(observer)).collect()
    }
}

/// For each pair and each of `layers`, its reference log-probabilities and its rows, as they are stored; the former once
/// where there are no layers.
fn read_pairs(
    model: &Model,
    layers: &[usize],
    stored: Precision,
    pairs: &[TokenPair],
) -> Result<Vec<u8>, Halt> {
    let Packed { pack, spans, .. } = Packed::unsteered(pairs);
    let mut residuals = match layers.is_empty() {
        true => Vec::new(),
        false => model.residuals(&pack, layers)?,
    };
    residuals.iter_mut().for_each(|h_td| round(stored, h_td));
    // Exact rows of every layer have the same scores; rounded ones have their own.
    let first = if stored == Precision::F32 { layers.len().saturating_sub(1) } else { 0 };
    let passes = layers.iter().zip(&residuals).skip(first);
    let passes = passes.map(|(&layer, h_td)| Pass::from_residual(layer, h_td, &pack));
    let plain = layers.is_empty().then(|| Pass::plain(&pack));
    let score = |pass: Pass<'_>| model.score_pass(&pass, Keep::Nothing);
    let scores = passes.chain(plain).map(score).collect::<Result<Vec<_>, _>>()?;
    let d = model.config().d_model;
    let mut bytes = Vec::new();
    for span in &spans {
        for i in 0..layers.len().max(1) {
            let logps = scores[i.saturating_sub(first)].logps();
            bytes.extend(ranks::to_bytes(pair_logps(logps, span).to_numbers()));
            if let Some(h_td) = residuals.get(i) {
                bytes.extend(encode(stored, &Packed::pair_rows(span, h_td, d)));
            }
        }
    }
    Ok(bytes)
}

/// A cache that any rank lacks is made by all.
fn agree(ranks: &Shared, caches: &mut [Option<PairCache>]) {
    let Some(ranks) = ranks else { return };
    let own = caches.iter().map(|cache| u8::from(cache.is_some())).collect();
    for found in ranks.exchange(own) {
        caches.iter_mut().zip(found).filter(|(_, found)| *found == 0).for_each(|(cache, _)| *cache = None);
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
        let d = request.width();
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
        bytes: &[u8],
        reference: PairLogps,
        observer: &mut dyn Observer,
    ) -> Result<(), Halt> {
        self.entries.push(Entry { first_row: self.rows, rows: pair.rows(), crc: crc32c(bytes), reference });
        self.rows += pair.rows();
        let mut rows_td = vec![0.0; pair.rows() * self.d];
        decode(self.stored, bytes, &mut rows_td);
        self.norms.add(pair, &rows_td, self.d);
        if self.keep {
            self.kept.extend_from_slice(bytes);
        }
        if let Some(w) = &mut self.writer
            && tolerate(w.body.write_all(bytes), self.keep, observer)?.is_none()
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
    /// Numbers that are kept of a row.
    fn width(&self) -> usize {
        if self.layer.is_some() { self.model.config().d_model } else { 0 }
    }

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
        let layer = self.layer.map_or("none".to_owned(), |layer| layer.to_string());
        part(format!("{:?} {layer} {stored:?}", self.precision).as_bytes());
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
