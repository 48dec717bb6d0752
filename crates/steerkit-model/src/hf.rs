//! Hugging Face folders: `config.json` and safetensors weights, in one file or in shards with an index.

use crate::{
    ModelError, Result,
    source::{Source, TensorInfo, hex, read_text},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};
use steerkit_kernels::BlockFormat;

/// Bytes of a `config.json` or another small JSON file.
pub(crate) const MAX_JSON: u64 = 1 << 20;
/// Bytes of an index; the largest list some ten thousand tensors.
const MAX_INDEX: u64 = 1 << 25;
/// Bytes of a safetensors header, as the format's own reader has it.
const MAX_HEADER: u64 = 100_000_000;
/// Tensors of one file.
const MAX_TENSORS: usize = 1 << 17;
/// Dimensions of a tensor.
const MAX_DIMS: usize = 8;
/// Element types that are weights here.
const DTYPES: [&str; 3] = ["F32", "F16", "BF16"];

/// A model folder in the layout of the Hugging Face Hub.
#[derive(Clone, Debug)]
pub struct HfFolder {
    path: PathBuf,
    /// The contents of `config.json`.
    pub config: Json,
    tensors: BTreeMap<String, TensorInfo>,
    config_sha256: String,
    weight_files: Vec<Source>,
}

impl HfFolder {
    /// Reads the folder's `config.json` and the directory of its weights: `model.safetensors.index.json` with
    /// its shards, or `model.safetensors`.
    ///
    /// # Errors
    /// The file system's (a missing file is named), and [`ModelError::Malformed`] where a file breaks its
    /// format.
    pub fn open(folder: &Path) -> Result<Self> {
        let config_path = folder.join("config.json");
        let text = read_text(&config_path, MAX_JSON)?;
        let config_sha256 = hex(&Sha256::digest(text.as_bytes()));
        let config = Json::parse(&config_path, &text)?;
        let index_path = folder.join("model.safetensors.index.json");
        let single = folder.join("model.safetensors");
        let mut tensors = BTreeMap::new();
        let mut weight_files = Vec::new();
        if single.exists() || !index_path.exists() {
            let source = Source::open(&single)?;
            tensors.extend(read_safetensors(&source)?.into_iter().map(|t| (t.name.clone(), t)));
            weight_files.push(source);
        } else {
            let index = Index::read(&index_path)?;
            for file in index.files() {
                let source = Source::open(&folder.join(&file))?;
                for t in read_safetensors(&source)? {
                    index.expect(&t.name, &file)?;
                    tensors.insert(t.name.clone(), t);
                }
                weight_files.push(source);
            }
            index.all_found(|name| tensors.contains_key(name))?;
        }
        Ok(Self { path: folder.to_owned(), config, tensors, config_sha256, weight_files })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// SHA-256 over the lines `digest  name` of `config.json` and the weight files in order of their names, as
    /// `sha256sum config.json *.safetensors | sha256sum` gives it for names in that order.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{}  config.json\n", self.config_sha256));
        for file in &self.weight_files {
            let name = file.path().file_name().unwrap_or_default().to_string_lossy();
            hash.update(format!("{}  {name}\n", file.sha256()));
        }
        hex(&hash.finalize())
    }
}

/// A JSON object of a file, with getters that name file and field. `null` counts as not there.
#[derive(Clone, Debug)]
pub struct Json {
    path: Arc<Path>,
    /// `a.b.` for the object `b` inside `a`.
    prefix: String,
    fields: Map<String, Value>,
}

impl Json {
    /// Parses a file's text, which must be an object.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self> {
        let fields = parse_json::<Map<String, Value>>(path, text)?;
        Ok(Self { path: path.into(), prefix: String::new(), fields })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a field.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|v| !v.is_null())
    }

    /// Whether the field is there, be it null.
    pub fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// The names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// A whole number that is not negative.
    pub fn integer(&self, field: &str) -> Result<Option<u64>> {
        self.typed(field, "an integer that is not negative", Value::as_u64)
    }

    /// A real number.
    pub fn float(&self, field: &str) -> Result<Option<f64>> {
        self.typed(field, "a number", Value::as_f64)
    }

    /// A truth value.
    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        self.typed(field, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&self, field: &str) -> Result<Option<&str>> {
        self.typed(field, "a text", Value::as_str)
    }

    /// An object inside this one.
    pub fn object(&self, field: &str) -> Result<Option<Self>> {
        let fields = self.typed(field, "an object", Value::as_object)?;
        let prefix = format!("{}{field}.", self.prefix);
        Ok(fields.map(|f| Self { path: self.path.clone(), prefix, fields: f.clone() }))
    }

    /// The error for a field that must be there and is not.
    pub fn missing(&self, field: &str, expected: &str) -> ModelError {
        self.wrong(field, "no such field", expected)
    }

    /// The error for a field whose value cannot be used.
    pub fn wrong(&self, field: &str, found: impl Into<String>, expected: impl Into<String>) -> ModelError {
        ModelError::malformed(&self.path, format!("field \"{}{field}\"", self.prefix), found, expected)
    }

    fn typed<'a, T>(
        &'a self,
        field: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| {
            let text = value.to_string();
            let short: String = text.chars().take(60).collect();
            self.wrong(field, if short.len() < text.len() { short + "…" } else { short }, expected)
        })
    }
}

fn parse_json<'de, T: Deserialize<'de>>(path: &Path, text: &'de str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| json_error(path, &e))
}

/// serde's message without its position, which becomes the place.
fn json_error(path: &Path, e: &serde_json::Error) -> ModelError {
    let (line, column) = (e.line(), e.column());
    let text = e.to_string();
    let found = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    ModelError::malformed(path, format!("line {line}, column {column}"), found, "valid JSON of this layout")
}

/// `model.safetensors.index.json`: which file holds which tensor.
struct Index {
    path: PathBuf,
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Layout {
            weight_map: BTreeMap<String, String>,
        }
        let text = read_text(path, MAX_INDEX)?;
        let Layout { weight_map } = parse_json(path, &text)?;
        let index = Self { path: path.to_owned(), weight_map };
        match index.weight_map.iter().find(|(_, file)| !is_plain_name(file)) {
            None => Ok(index),
            Some((name, file)) => Err(ModelError::malformed(
                &index.path,
                format!("file of tensor \"{name}\""),
                format!("{file:?}"),
                "a plain file name inside the folder",
            )),
        }
    }

    /// The files, each once, in order of their names.
    fn files(&self) -> BTreeSet<String> {
        self.weight_map.values().cloned().collect()
    }

    /// Checks that the index has `tensor` in `file`.
    fn expect(&self, tensor: &str, file: &str) -> Result<()> {
        match self.weight_map.get(tensor) {
            Some(listed) if listed == file => Ok(()),
            listed => {
                let found = listed.map_or("no entry".to_owned(), |l| format!("\"{l}\""));
                let place = format!("file of tensor \"{tensor}\"");
                Err(ModelError::malformed(&self.path, place, found, format!("\"{file}\", which holds it")))
            }
        }
    }

    fn all_found(&self, found: impl Fn(&str) -> bool) -> Result<()> {
        match self.weight_map.iter().find(|(name, _)| !found(name)) {
            None => Ok(()),
            Some((name, file)) => {
                let place = format!("tensor \"{name}\"");
                let expected = format!("the tensor in \"{file}\"");
                Err(ModelError::malformed(&self.path, place, "no such tensor", expected))
            }
        }
    }
}

/// One normal path component, on every system.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let single = matches!((parts.next(), parts.next()), (Some(Component::Normal(p)), None) if p == name);
    single && !name.contains(['/', '\\', ':', '\0'])
}

/// The tensors of a safetensors file in the order of their data: a `u64` header length, a JSON header, data
/// without holes (<https://github.com/huggingface/safetensors#format>).
///
/// # Errors
/// [`ModelError::Malformed`] or [`ModelError::Unsupported`] naming offset or tensor.
pub(crate) fn read_safetensors(source: &Source) -> Result<Vec<TensorInfo>> {
    const DAMAGED: &str = "the file is damaged or was cut short: download or convert it again";
    let (path, bytes) = (source.path(), source.bytes());
    let error =
        |place: &str, found: String, expected: &str| ModelError::malformed(path, place, found, expected);
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else {
        let found =
            if bytes.is_empty() { "an empty file".to_owned() } else { format!("{} bytes", bytes.len()) };
        return Err(error("header length", found, "8 bytes").advise(DAMAGED));
    };
    let header_len = u64::from_le_bytes(*head);
    if header_len > MAX_HEADER || header_len > rest.len() as u64 {
        let expected = format!("at most the {} bytes left and at most {MAX_HEADER}", rest.len());
        return Err(error("header length", header_len.to_string(), &expected).advise(DAMAGED));
    }
    let (header, data) = rest.split_at(header_len as usize);
    let header = std::str::from_utf8(header).map_err(|e| {
        error(&format!("offset {}", 8 + e.valid_up_to()), "a byte that is not UTF-8".to_owned(), "JSON")
    })?;
    let Header(mut entries) = serde_json::from_str(header).map_err(|e| json_error(path, &e))?;
    entries.sort_by_key(|e| e.1.data_offsets);
    refuse_duplicates(path, &entries)?;
    let shared: Arc<Path> = path.into();
    let mut at = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let (format, len) = entry.format_and_len(path, &name)?;
        let [start, end] = entry.data_offsets;
        let offsets = || format!("bytes {start} to {end}");
        let place = format!("data of tensor \"{name}\"");
        if start != at {
            let expected = format!("a start at {at}, where the tensor before it ends");
            return Err(error(&place, offsets(), &expected));
        }
        if end.checked_sub(start) != Some(len) {
            return Err(error(&place, offsets(), &format!("{len} bytes for {:?}", entry.shape)));
        }
        let bytes =
            usize::try_from(len).ok().and_then(|n| source.slice(8 + header.len() + start as usize, n));
        let Some(bytes) = bytes.filter(|_| end <= data.len() as u64) else {
            let expected = format!("a place inside the {} bytes of data", data.len());
            return Err(error(&place, offsets(), &expected).advise(DAMAGED));
        };
        tensors.push(TensorInfo { name, path: shared.clone(), shape: entry.shape, format, bytes });
        at = end;
    }
    if at != data.len() as u64 {
        let found = format!("{} bytes behind the last tensor", data.len() as u64 - at);
        return Err(error("end of the file", found, "no bytes that belong to no tensor"));
    }
    Ok(tensors)
}

fn refuse_duplicates(path: &Path, entries: &[(String, Entry)]) -> Result<()> {
    let mut names: Vec<&str> = entries.iter().map(|e| e.0.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|w| w[0] == w[1]) {
        None => Ok(()),
        Some(w) => {
            let found = format!("\"{}\" twice", w[0]);
            Err(ModelError::malformed(path, "header", found, "each tensor once"))
        }
    }
}

/// One tensor of a safetensors header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

impl Entry {
    /// The storage format and the number of bytes that dtype and shape make.
    fn format_and_len(&self, path: &Path, name: &str) -> Result<(BlockFormat, u64)> {
        let format = match self.dtype.as_str() {
            "F32" => BlockFormat::F32,
            "F16" => BlockFormat::F16,
            "BF16" => BlockFormat::BF16,
            other => {
                let what = format!("dtype of tensor \"{name}\"");
                return Err(ModelError::unsupported(path, &what, other, &DTYPES));
            }
        };
        let len = self.shape.iter().try_fold(format.block_bytes() as u64, |n, &d| n.checked_mul(d as u64));
        match len {
            Some(len) if self.shape.len() <= MAX_DIMS => Ok((format, len)),
            _ => {
                let place = format!("shape of tensor \"{name}\"");
                let expected = format!("at most {MAX_DIMS} dimensions and 2^64 bytes");
                Err(ModelError::malformed(path, place, format!("{:?}", self.shape), expected))
            }
        }
    }
}

/// A safetensors header as a list, so that a name that comes twice is seen.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else if entries.len() == MAX_TENSORS {
                        return Err(serde::de::Error::custom(format_args!(
                            "more than {MAX_TENSORS} tensors"
                        )));
                    } else {
                        let entry = map.next_value_seed(Named(&name))?;
                        entries.push((name, entry));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads an [`Entry`] and puts the tensor's name into the error.
struct Named<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        Entry::deserialize(deserializer)
            .map_err(|e| serde::de::Error::custom(format_args!("tensor \"{}\": {e}", self.0)))
    }
}
