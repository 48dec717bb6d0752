//! GGUF metadata: typed values that stay in the file's bytes until they are asked for.

use crate::{ModelError, Result, source::Source};
use std::{collections::HashMap, ops::Range, path::Path};

/// Elements of an array that a getter hands out; the largest vocabularies hold some 300,000.
const MAX_ELEMENTS: usize = 1 << 22;
/// Distance to which tensors are aligned when the file names none.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The metadata: keys with typed values. A getter returns `None` for a key that is not there and an error
/// that names file, key, found and expected type for a value of another type.
#[derive(Clone, Debug)]
pub struct Meta {
    pub(super) source: Source,
    pub(super) values: HashMap<String, Value>,
}

/// A value as it lies in the file.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) kind: Kind,
    /// Element type and number of elements of an array.
    pub(super) array: Option<(Kind, usize)>,
    /// The payload: a number, a string without its length, an array's elements.
    pub(super) bytes: Range<usize>,
}

impl Value {
    fn type_name(&self) -> String {
        match self.array {
            Some((element, len)) => format!("array of {len} {}", element.name()),
            None => self.kind.name().to_owned(),
        }
    }
}

impl Meta {
    /// The file.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// All keys, sorted.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.values.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    /// The type of a value in words (`u32`, `array of 3 string`).
    pub fn type_name(&self, key: &str) -> Option<String> {
        self.values.get(key).map(Value::type_name)
    }

    /// A whole number that is not negative, of any integer type.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        const WANTED: &str = "an integer that is not negative";
        let Some((value, bytes)) = self.scalar(key) else { return Ok(None) };
        match value.kind.read_integer(bytes) {
            Some(x) if value.array.is_none() => {
                u64::try_from(x).map(Some).map_err(|_| self.wrong(key, x.to_string(), WANTED))
            }
            _ => Err(self.wrong(key, value.type_name(), WANTED)),
        }
    }

    /// A real number (f32 or f64).
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some((value, bytes)) = self.scalar(key) else { return Ok(None) };
        match value.kind.read_float(bytes) {
            Some(x) if value.array.is_none() => Ok(Some(x)),
            _ => Err(self.wrong(key, value.type_name(), "f32 or f64")),
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some((value, bytes)) = self.scalar(key) else { return Ok(None) };
        match value.kind {
            Kind::Bool => Ok(Some(bytes[0] != 0)),
            _ => Err(self.wrong(key, value.type_name(), "bool")),
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some((value, bytes)) = self.scalar(key) else { return Ok(None) };
        if value.kind != Kind::String {
            return Err(self.wrong(key, value.type_name(), "string"));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(e) => Err(self.not_utf8(key, value.bytes.start + e.valid_up_to())),
        }
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(raw) = self.byte_texts(key)? else { return Ok(None) };
        let texts: Result<Vec<&str>> = raw
            .into_iter()
            .enumerate()
            .map(|(i, t)| {
                std::str::from_utf8(t).map_err(|e| {
                    let offset = t.as_ptr() as usize - self.source.bytes().as_ptr() as usize;
                    self.not_utf8(&format!("{key}[{i}]"), offset + e.valid_up_to())
                })
            })
            .collect();
        texts.map(Some)
    }

    /// A list of texts that need not be UTF-8.
    pub fn byte_texts(&self, key: &str) -> Result<Option<Vec<&[u8]>>> {
        let Some((mut bytes, len)) = self.array(key, "string", |kind| kind == Kind::String)? else {
            return Ok(None);
        };
        let mut texts = Vec::with_capacity(len);
        for _ in 0..len {
            let (head, rest) = bytes.split_at(8);
            let n = u64::from_le_bytes(head.try_into().expect("eight bytes")) as usize;
            let (text, rest) = rest.split_at(n);
            texts.push(text);
            bytes = rest;
        }
        Ok(Some(texts))
    }

    /// A list of whole numbers of any integer type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let (wanted, element) = ("integers", |kind: Kind| kind.is_integer());
        let Some((bytes, _)) = self.array(key, wanted, element)? else { return Ok(None) };
        let kind = self.element_kind(key);
        let numbers: Option<Vec<i64>> = bytes
            .chunks_exact(kind.size().expect("integers have a fixed size"))
            .map(|b| kind.read_integer(b).and_then(|x| i64::try_from(x).ok()))
            .collect();
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.wrong(key, "a number above 2^63", "numbers below 2^63")),
        }
    }

    /// A list of real numbers (f32 or f64, rounded to f32).
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let is_float = |kind| matches!(kind, Kind::F32 | Kind::F64);
        let Some((bytes, _)) = self.array(key, "f32 or f64", is_float)? else { return Ok(None) };
        let kind = self.element_kind(key);
        let size = kind.size().expect("floats have a fixed size");
        Ok(Some(bytes.chunks_exact(size).filter_map(|b| kind.read_float(b)).map(|x| x as f32).collect()))
    }

    /// The error for a key that must be there and is not.
    pub fn missing(&self, key: &str, expected: &str) -> ModelError {
        self.wrong(key, "no such key", expected)
    }

    /// The error for a key whose value cannot be used.
    pub fn wrong(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> ModelError {
        ModelError::malformed(self.path(), format!("key \"{key}\""), found, expected)
    }

    fn not_utf8(&self, place: &str, offset: usize) -> ModelError {
        self.wrong(place, format!("a byte that is not UTF-8 at offset {offset}"), "UTF-8 text")
    }

    fn scalar(&self, key: &str) -> Option<(&Value, &[u8])> {
        let value = self.values.get(key)?;
        Some((value, &self.source.bytes()[value.bytes.clone()]))
    }

    /// The elements' bytes and number of an array whose element type passes `accept`.
    fn array(
        &self,
        key: &str,
        wanted: &str,
        accept: impl Fn(Kind) -> bool,
    ) -> Result<Option<(&[u8], usize)>> {
        let Some((value, bytes)) = self.scalar(key) else { return Ok(None) };
        match value.array {
            Some((_, len)) if len > MAX_ELEMENTS => {
                Err(self.wrong(key, format!("{len} elements"), format!("at most {MAX_ELEMENTS}")))
            }
            // An empty array names an element type too, but writers disagree on which.
            Some((element, len)) if accept(element) || len == 0 => Ok(Some((bytes, len))),
            _ => Err(self.wrong(key, value.type_name(), format!("array of {wanted}"))),
        }
    }

    /// The element type of an array that is there; `u8` for an empty one of another type.
    fn element_kind(&self, key: &str) -> Kind {
        match self.values.get(key).and_then(|v| v.array) {
            Some((kind, len)) if len > 0 => kind,
            _ => Kind::U8,
        }
    }

    /// `general.alignment`.
    pub(super) fn alignment(&self) -> Result<u64> {
        const KEY: &str = "general.alignment";
        const WANTED: &str = "a u32 that is a power of two";
        let Some((value, bytes)) = self.scalar(KEY) else { return Ok(DEFAULT_ALIGNMENT) };
        if value.kind != Kind::U32 {
            return Err(self.wrong(KEY, value.type_name(), WANTED));
        }
        match value.kind.read_integer(bytes).and_then(|x| u64::try_from(x).ok()) {
            Some(x) if x.is_power_of_two() => Ok(x),
            x => Err(self.wrong(KEY, x.unwrap_or_default().to_string(), WANTED)),
        }
    }
}

/// The types a value can have, numbered as in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    pub(super) const ALL: [(Self, &str, Option<usize>); 13] = [
        (Self::U8, "u8", Some(1)),
        (Self::I8, "i8", Some(1)),
        (Self::U16, "u16", Some(2)),
        (Self::I16, "i16", Some(2)),
        (Self::U32, "u32", Some(4)),
        (Self::I32, "i32", Some(4)),
        (Self::F32, "f32", Some(4)),
        (Self::Bool, "bool", Some(1)),
        (Self::String, "string", None),
        (Self::Array, "array", None),
        (Self::U64, "u64", Some(8)),
        (Self::I64, "i64", Some(8)),
        (Self::F64, "f64", Some(8)),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Bytes of one value, where they do not depend on it.
    pub(super) fn size(self) -> Option<usize> {
        Self::ALL[self as usize].2
    }

    fn is_integer(self) -> bool {
        !matches!(self, Self::F32 | Self::F64 | Self::Bool | Self::String | Self::Array)
    }

    /// The number in `bytes`, which hold one value of this type; `None` for other types.
    fn read_integer(self, bytes: &[u8]) -> Option<i128> {
        Some(match self {
            Self::U8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::U16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::U32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::U64 => u64::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I64 => i64::from_le_bytes(bytes.try_into().ok()?).into(),
            _ => return None,
        })
    }

    /// The number in `bytes`, which hold one value of this type; `None` for other types.
    fn read_float(self, bytes: &[u8]) -> Option<f64> {
        match self {
            Self::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
            _ => None,
        }
    }
}
