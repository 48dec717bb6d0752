//! GGUF files: metadata and tensor directory, read with every length checked before it is believed.
//!
//! Layout (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): magic `GGUF`, `u32` version, `u64`
//! tensor count, `u64` key count, the keys with typed values, the tensor directory, padding to
//! `general.alignment`, tensor data. Versions 2 and 3, little-endian. Nothing is allocated from a number in
//! the file: values stay in the file's bytes and are decoded when asked for.

mod meta;

pub use meta::Meta;

use crate::{
    ModelError, Result,
    source::{Source, TensorInfo},
};
use meta::{Kind, Value};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
    path::Path,
    sync::Arc,
};
use steerkit_kernels::BlockFormat;

/// Keys a file may hold; real ones hold fewer than a hundred.
const MAX_KEYS: u64 = 1 << 16;
/// Tensors a file may hold; the largest mixtures of experts hold some ten thousand.
const MAX_TENSORS: u64 = 1 << 17;
/// Bytes of a key or of a tensor name.
const MAX_NAME: u64 = 256;
/// Arrays inside arrays.
const MAX_DEPTH: usize = 4;
/// Dimensions of a tensor.
const MAX_DIMS: u32 = 4;

/// A GGUF file.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// The metadata.
    pub meta: Meta,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Reads the file's metadata and tensor directory.
    ///
    /// # Errors
    /// The file system's, and [`ModelError::Malformed`] or [`ModelError::Unsupported`] naming the offset and
    /// the key or tensor where the file breaks the format.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_source(Source::open(path)?)
    }

    /// Reads metadata and directory from bytes already opened.
    ///
    /// # Errors
    /// Like [`Gguf::open`].
    pub fn from_source(source: Source) -> Result<Self> {
        let mut cursor = Cursor { path: source.path(), bytes: source.bytes(), at: 0 };
        cursor.magic_and_version()?;
        let n_tensors = cursor.count("tensor count", MAX_TENSORS)?;
        let n_keys = cursor.count("key count", MAX_KEYS)?;
        let values = cursor.entries(n_keys)?;
        let meta = Meta { source: source.clone(), values };
        let alignment = meta.alignment()?;
        let records = cursor.directory(n_tensors, alignment)?;
        let data_start = (cursor.at as u64).next_multiple_of(alignment);
        let tensors = place_tensors(&source, data_start, records)?;
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { meta, tensors, by_name })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.meta.source.path()
    }

    /// The file's bytes.
    pub fn source(&self) -> &Source {
        &self.meta.source
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// All tensors in the order of the directory.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
}

/// One line of the tensor directory.
struct Record {
    name: String,
    shape: Vec<usize>,
    format: BlockFormat,
    /// Bytes of the data.
    len: u64,
    /// Start of the data behind the directory.
    offset: u64,
    /// Where the line stands, for messages.
    at: usize,
}

/// A position in the file's bytes.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn error(&self, at: usize, what: impl fmt::Display, found: String, expected: String) -> ModelError {
        ModelError::malformed(self.path, format!("offset {at}, {what}"), found, expected)
    }

    /// The next `len` bytes.
    fn take(&mut self, len: u64, what: fmt::Arguments<'_>) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(len) {
            Ok(n) if n <= left => {
                self.at += n;
                Ok(&self.bytes[self.at - n..self.at])
            }
            _ => {
                let found = format!("{left} bytes to the end of the file");
                Err(self
                    .error(self.at, what, found, format!("{len} bytes"))
                    .advise("the file is damaged or was cut short: download or convert it again"))
            }
        }
    }

    fn u32(&mut self, what: fmt::Arguments<'_>) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self, what: fmt::Arguments<'_>) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("eight bytes")))
    }

    fn magic_and_version(&mut self) -> Result<()> {
        let magic = self.bytes.get(..4).unwrap_or(self.bytes);
        if magic != b"GGUF" {
            let found = match magic {
                [] => "an empty file".to_owned(),
                _ => format!("\"{}\"", magic.escape_ascii()),
            };
            return Err(self
                .error(0, "magic", found, "\"GGUF\"".to_owned())
                .advise("a model is a .gguf file or a folder with config.json and .safetensors files"));
        }
        self.at = 4;
        let version = self.u32(format_args!("version"))?;
        let (found, advice) = match version {
            2 | 3 => return Ok(()),
            1 => ("1", "convert the model again with a current llama.cpp: version 1 ended in 2023"),
            _ if (1..=3).contains(&version.swap_bytes()) => {
                ("a big-endian file", "convert the model again without --bigendian")
            }
            _ => ("", "the file is newer than this program, or damaged"),
        };
        let found = if found.is_empty() { version.to_string() } else { found.to_owned() };
        Err(self.error(4, "GGUF version", found, "2 or 3, little-endian".to_owned()).advise(advice))
    }

    /// A number of things of which there may be at most `max`.
    fn count(&mut self, what: &str, max: u64) -> Result<u64> {
        let at = self.at;
        match self.u64(format_args!("{what}"))? {
            n if n <= max => Ok(n),
            n => Err(self.error(at, what, n.to_string(), format!("at most {max}"))),
        }
    }

    /// A length and that many bytes.
    fn string(&mut self, what: fmt::Arguments<'_>) -> Result<&'a [u8]> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// The name of a key or tensor.
    fn name(&mut self, what: fmt::Arguments<'_>) -> Result<&'a str> {
        let at = self.at;
        let bytes = self.string(what)?;
        if bytes.is_empty() || bytes.len() as u64 > MAX_NAME {
            let expected = format!("1 to {MAX_NAME} bytes");
            return Err(self.error(at, what, format!("{} bytes", bytes.len()), expected));
        }
        std::str::from_utf8(bytes).map_err(|_| {
            self.error(at, what, format!("\"{}\"", bytes.escape_ascii()), "UTF-8 text".to_owned())
        })
    }

    fn entries(&mut self, n_keys: u64) -> Result<HashMap<String, Value>> {
        let mut values = HashMap::new();
        for i in 0..n_keys {
            let at = self.at;
            let key = self.name(format_args!("name of key {i}"))?;
            let kind = self.kind(format_args!("type of \"{key}\""))?;
            let value = self.value(key, kind)?;
            if values.insert(key.to_owned(), value).is_some() {
                let found = format!("\"{key}\" a second time");
                return Err(self.error(at, "name of a key", found, "each key once".to_owned()));
            }
        }
        Ok(values)
    }

    fn kind(&mut self, what: fmt::Arguments<'_>) -> Result<Kind> {
        let at = self.at;
        let id = self.u32(what)?;
        let kind = usize::try_from(id).ok().and_then(|i| Kind::ALL.get(i));
        kind.map(|k| k.0)
            .ok_or_else(|| self.error(at, what, id.to_string(), "a type from 0 to 12".to_owned()))
    }

    fn value(&mut self, key: &str, kind: Kind) -> Result<Value> {
        let what = format_args!("value of \"{key}\"");
        if kind != Kind::Array {
            let bytes = self.payload(kind, key, what)?;
            return Ok(Value { kind, array: None, bytes });
        }
        let element = self.kind(what)?;
        let len = self.u64(what)?;
        let start = self.at;
        self.elements(element, len, key, 1)?;
        // Every element takes at least a byte of the file, so the number fits.
        Ok(Value { kind, array: Some((element, len as usize)), bytes: start..self.at })
    }

    /// Steps over one number or string and returns where it lies.
    fn payload(&mut self, kind: Kind, key: &str, what: fmt::Arguments<'_>) -> Result<Range<usize>> {
        let bytes = match kind.size() {
            Some(size) => self.take(size as u64, what)?,
            None => self.string(what)?,
        };
        if kind == Kind::Bool && bytes[0] > 1 {
            let found = bytes[0].to_string();
            return Err(self.error(self.at - 1, format!("bool \"{key}\""), found, "0 or 1".to_owned()));
        }
        Ok(self.at - bytes.len()..self.at)
    }

    /// Steps over the elements of an array that lies `depth` arrays deep.
    fn elements(&mut self, kind: Kind, len: u64, key: &str, depth: usize) -> Result<()> {
        let what = format_args!("array \"{key}\"");
        if let Some(size) = kind.size() {
            return self.take(len.saturating_mul(size as u64), what).map(|_| ());
        }
        if depth > MAX_DEPTH {
            let found = format!("more than {MAX_DEPTH} arrays inside each other");
            return Err(self.error(self.at, what, found, "flat arrays".to_owned()));
        }
        // A string or an inner array takes at least eight bytes, so a huge count is refused at once.
        if len > ((self.bytes.len() - self.at) / 8) as u64 {
            return self.take(len.saturating_mul(8), what).map(|_| ());
        }
        for _ in 0..len {
            if kind == Kind::String {
                self.string(what)?;
            } else {
                let element = self.kind(what)?;
                let len = self.u64(what)?;
                self.elements(element, len, key, depth + 1)?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, n_tensors: u64, alignment: u64) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut names = HashSet::new();
        for i in 0..n_tensors {
            let record = self.record(i)?;
            if !record.offset.is_multiple_of(alignment) {
                let what = format!("offset of tensor \"{}\"", record.name);
                let expected = format!("a multiple of the alignment {alignment}");
                return Err(self.error(record.at, what, record.offset.to_string(), expected));
            }
            if !names.insert(record.name.clone()) {
                let found = format!("\"{}\" a second time", record.name);
                return Err(self.error(record.at, "name of a tensor", found, "each tensor once".to_owned()));
            }
            records.push(record);
        }
        Ok(records)
    }

    fn record(&mut self, i: u64) -> Result<Record> {
        let at = self.at;
        let name = self.name(format_args!("name of tensor {i}"))?;
        let what = |field: &str| format!("{field} of tensor \"{name}\"");
        let n_dims = self.u32(format_args!("number of dimensions of tensor \"{name}\""))?;
        if n_dims == 0 || n_dims > MAX_DIMS {
            let expected = format!("1 to {MAX_DIMS}");
            return Err(self.error(at, what("number of dimensions"), n_dims.to_string(), expected));
        }
        let mut dims = Vec::with_capacity(MAX_DIMS as usize);
        for _ in 0..n_dims {
            dims.push(self.u64(format_args!("dimensions of tensor \"{name}\""))?);
        }
        let id = self.u32(format_args!("block format of tensor \"{name}\""))?;
        let offset = self.u64(format_args!("offset of tensor \"{name}\""))?;
        let format = BlockFormat::from_ggml(id)
            .ok_or_else(|| unsupported_format(self.path, &what("block format"), id))?;
        let sizes = || format!("{dims:?} in {}", format.name());
        // The file lists the fastest-varying dimension first.
        let shape: Option<Vec<usize>> = dims.iter().rev().map(|&d| usize::try_from(d).ok()).collect();
        let shape = shape.filter(|s| !s.contains(&0));
        let row = shape.as_ref().and_then(|s| format.row_bytes(s[s.len() - 1]));
        let Some((shape, row)) = shape.zip(row) else {
            let expected = format!("no zero, and rows of a multiple of {} numbers", format.block_len());
            return Err(self.error(at, what("dimensions"), sizes(), expected));
        };
        let rows = shape[..shape.len() - 1].iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let Some(len) = rows.and_then(|n| n.checked_mul(row)).filter(|&n| n <= self.bytes.len()) else {
            let expected = format!("at most the file's {} bytes", self.bytes.len());
            return Err(self.error(at, what("dimensions"), sizes(), expected));
        };
        Ok(Record { name: name.to_owned(), shape, format, len: len as u64, offset, at })
    }
}

fn unsupported_format(path: &Path, what: &str, id: u32) -> ModelError {
    let known: Vec<&str> = (0..64).filter_map(BlockFormat::from_ggml).map(BlockFormat::name).collect();
    let name =
        GGML_NAMES.iter().find(|n| n.0 == id).map_or_else(|| format!("number {id}"), |n| n.1.to_owned());
    ModelError::unsupported(path, what, name, &known)
}

/// Names of formats by number, for messages.
const GGML_NAMES: [(u32, &str); 34] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (31, "Q4_0_4_4"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (39, "MXFP4"),
];

/// Finds each tensor's bytes: inside the file and without overlap.
fn place_tensors(source: &Source, data_start: u64, records: Vec<Record>) -> Result<Vec<TensorInfo>> {
    let path: Arc<Path> = source.path().into();
    let file_len = source.bytes().len();
    let error = |r: &Record, found: String, expected: String| {
        let place = format!("offset {}, data of tensor \"{}\"", r.at, r.name);
        ModelError::malformed(&path, place, found, expected)
    };
    let mut by_offset: Vec<&Record> = records.iter().collect();
    by_offset.sort_by_key(|r| r.offset);
    for pair in by_offset.windows(2) {
        if pair[1].offset - pair[0].offset < pair[0].len {
            let found = format!("bytes shared with \"{}\"", pair[0].name);
            return Err(error(pair[1], found, "bytes of its own".to_owned()));
        }
    }
    let find = |r: &Record| {
        let start = data_start.checked_add(r.offset)?;
        source.slice(usize::try_from(start).ok()?, usize::try_from(r.len).ok()?)
    };
    records
        .iter()
        .map(|r| {
            let bytes = find(r).ok_or_else(|| {
                let found = format!("{} bytes at {} + {}", r.len, data_start, r.offset);
                error(r, found, format!("a place inside the file's {file_len} bytes"))
                    .advise("the file is damaged or was cut short: download or convert it again")
            })?;
            let (name, shape) = (r.name.clone(), r.shape.clone());
            Ok(TensorInfo { name, path: path.clone(), shape, format: r.format, bytes })
        })
        .collect()
}
