//! The tokeniser of a Hugging Face model folder.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::DecoderWrapper;

use super::{Pieces, Tokenizer};
use crate::source::hex;
use crate::{ModelError, Result};

impl Tokenizer {
    /// The tokeniser of a folder with `tokenizer.json` and, where there are, `tokenizer_config.json` (BOS, EOS,
    /// whether BOS is added) and `generation_config.json` (further end tokens).
    ///
    /// # Errors
    /// No `tokenizer.json`, files that break their format, BOS or EOS that are no tokens.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = fs_err::read(&path)?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| ModelError::Malformed {
            path: path.clone(),
            place: "tokenizer".to_owned(),
            found: e.to_string(),
            expected: "a tokeniser that the tokenizers crate reads".to_owned(),
            hint: Some("fetch the file itself; a git-LFS pointer is no tokeniser".to_owned()),
        })?;
        let config = Json::read(folder.join("tokenizer_config.json"))?;
        let generation = Json::read(folder.join("generation_config.json"))?;
        let model = Json::read(folder.join("config.json"))?;

        let mut ends = generation.ids("eos_token_id")?;
        ends.extend(model.ids("eos_token_id")?);
        let first = |json: &Json, key| json.ids(key).map(|ids| ids.first().copied());
        let bos = match config.token(&inner, "bos_token")? {
            Some(id) => Some(id),
            None if config.has("bos_token") => None,
            None => first(&generation, "bos_token_id")?.or(first(&model, "bos_token_id")?),
        };
        let eos = config.token(&inner, "eos_token")?.or(ends.first().copied());

        let begins_with_bos = || {
            let ids = inner.encode("", true).ok()?;
            Some(ids.get_ids().first().copied() == bos)
        };
        let add_bos = bos.is_some()
            && match config.value.get("add_bos_token").and_then(Value::as_bool) {
                Some(add) => add,
                None => begins_with_bos().unwrap_or(false),
            };
        let pieces = pieces(&inner);
        Ok(Self::assemble(inner, pieces, bos, eos, ends, add_bos, hex(&Sha256::digest(&bytes))))
    }
}

/// A table of bytes where the decoder is byte-level, else the decoder itself.
fn pieces(inner: &tokenizers::Tokenizer) -> Pieces {
    if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
        return Pieces::Decoder;
    }
    let vocab = inner.get_vocab(true);
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let largest = vocab.values().max().map_or(0, |&id| id as usize + 1);
    // A file whose largest id is far beyond its number of tokens gets no table.
    if largest > 2 * vocab.len() + 65_536 {
        return Pieces::Decoder;
    }
    let mut tokens = vec![("", false); largest];
    for (text, &id) in &vocab {
        tokens[id as usize] = (text, added.contains_key(&id));
    }
    Pieces::byte_level(tokens.into_iter())
}

/// One of the small JSON files beside `tokenizer.json`.
struct Json {
    path: PathBuf,
    value: Value,
}

impl Json {
    /// The file, or an empty object where there is none.
    fn read(path: PathBuf) -> Result<Self> {
        if !path.exists() {
            return Ok(Self { path, value: Value::Null });
        }
        let bytes = fs_err::read(&path)?;
        match serde_json::from_slice(&bytes) {
            Ok(value @ Value::Object(_)) => Ok(Self { path, value }),
            Ok(_) => Err(malformed(&path, "top level", "another value", "an object")),
            Err(e) => {
                let place = format!("line {} column {}", e.line(), e.column());
                Err(malformed(&path, &place, &e.to_string(), "JSON"))
            }
        }
    }

    fn has(&self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    /// The id of a token that is given as a text or as an object with `content`.
    fn token(&self, inner: &tokenizers::Tokenizer, key: &str) -> Result<Option<u32>> {
        let text = match self.value.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => text,
            Some(other) => match other.get("content") {
                Some(Value::String(text)) => text,
                _ => return Err(malformed(&self.path, key, &other.to_string(), "a token's text")),
            },
        };
        match inner.token_to_id(text) {
            Some(id) => Ok(Some(id)),
            None => Err(malformed(&self.path, key, &format!("{text:?}"), "a token of tokenizer.json")),
        }
    }

    /// Ids given as a number or a list of numbers.
    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let values = match self.value.get(key) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let ids = values.iter().map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok()));
        match ids.collect() {
            Some(ids) => Ok(ids),
            None => Err(malformed(&self.path, key, "another value", "a token id or a list of them")),
        }
    }
}

fn malformed(path: &Path, place: &str, found: &str, expected: &str) -> ModelError {
    ModelError::Malformed {
        path: path.to_owned(),
        place: place.to_owned(),
        found: found.chars().take(200).collect(),
        expected: expected.to_owned(),
        hint: None,
    }
}
