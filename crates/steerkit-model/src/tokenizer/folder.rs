//! The tokeniser of a Hugging Face model folder.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::DecoderWrapper;

use super::{Pieces, Tokenizer};
use crate::hf::{Json, MAX_JSON};
use crate::source::{hex, read_text};
use crate::{ModelError, Result};

/// Bytes of a `tokenizer.json`; those of 256,000 tokens have about 35 MB.
const MAX_TOKENIZER: u64 = 1 << 28;

impl Tokenizer {
    /// The tokeniser of a folder with `tokenizer.json`, or else SentencePiece's `tokenizer.model`, and, where there are, `tokenizer_config.json` (BOS, EOS,
    /// whether BOS is added), `generation_config.json` and `config.json` (further end tokens).
    ///
    /// # Errors
    /// Neither of the two, files that break their format, BOS or EOS that are no tokens.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let spm = folder.join("tokenizer.model");
        if !path.exists() && spm.exists() {
            return Self::from_spm_file(&spm, optional(folder, "tokenizer_config.json")?.as_ref());
        }
        let text = read_text(&path, MAX_TOKENIZER)?;
        check_merges(&path, &text)?;
        let inner = tokenizers::Tokenizer::from_bytes(text.as_bytes()).map_err(|e| {
            let found = e.to_string().chars().take(200).collect::<String>();
            ModelError::malformed(&path, "top level", found, "a tokeniser as the tokenizers crate writes it")
                .advise("fetch the file itself; a git-LFS pointer is no tokeniser")
        })?;
        let config = optional(folder, "tokenizer_config.json")?;
        let others = [optional(folder, "generation_config.json")?, optional(folder, "config.json")?];

        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        for json in others.iter().flatten() {
            starts.extend(ids(json, "bos_token_id")?);
            ends.extend(ids(json, "eos_token_id")?);
        }
        // A tokenizer_config.json without a BOS means none, whatever the model's configuration repeats.
        let bos = match &config {
            Some(config) => token(config, &inner, "bos_token")?,
            None => starts.first().copied(),
        };
        let eos = config.as_ref().map(|c| token(c, &inner, "eos_token")).transpose()?.flatten();
        let eos = eos.or(ends.first().copied());

        let said = config.as_ref().map(|c| c.flag("add_bos_token")).transpose()?.flatten();
        let add_bos = bos.is_some()
            && said.unwrap_or_else(|| {
                let empty = inner.encode("", true);
                empty.is_ok_and(|ids| ids.get_ids().first().copied() == bos)
            });
        let pieces = pieces(&inner);
        let sha256 = hex(&Sha256::digest(text.as_bytes()));
        Ok(Self::assemble(inner, pieces, bos, eos, ends, add_bos, sha256))
    }
}

/// Refuses merges at which the tokenizers crate would panic: it copies the two halves into a buffer of the longest
/// token's size, and cuts the prefix of continued words off the right one.
fn check_merges(path: &Path, text: &str) -> Result<()> {
    let file = Json::parse(path, text)?;
    let Some(model) = file.object("model")? else { return Ok(()) };
    let Some(Value::Object(vocab)) = model.get("vocab") else { return Ok(()) };
    let Some(Value::Array(merges)) = model.get("merges") else { return Ok(()) };
    let longest = vocab.keys().map(String::len).max().unwrap_or(0);
    let prefix = model.text("continuing_subword_prefix")?.unwrap_or_default().len();
    // Older files have both halves in one text.
    let halves = |merge: &Value| match merge {
        Value::String(both) => both.split_once(' ').map(|(left, right)| (left.len(), right.len())),
        pair => Some((pair.get(0)?.as_str()?.len(), pair.get(1)?.as_str()?.len())),
    };
    let fits = |(left, right): (usize, usize)| right >= prefix && left + right - prefix <= longest;
    match merges.iter().position(|merge| !halves(merge).is_some_and(fits)) {
        Some(rank) => {
            let found = merges[rank].to_string().chars().take(80).collect::<String>();
            Err(model.wrong(&format!("merges[{rank}]"), found, "two tokens whose concatenation is a token"))
        }
        None => Ok(()),
    }
}

/// A table of bytes where the decoder is byte-level, else the decoder itself.
fn pieces(inner: &tokenizers::Tokenizer) -> Pieces {
    if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
        return Pieces::Decoder;
    }
    let vocab = inner.get_vocab(true);
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    // A file whose largest id is far beyond its number of tokens gets no table.
    if size > 2 * vocab.len() + 65_536 {
        return Pieces::Decoder;
    }
    let mut tokens = vec![("", false); size];
    for (text, &id) in &vocab {
        tokens[id as usize] = (text, added.contains_key(&id));
    }
    Pieces::byte_level(tokens.into_iter())
}

/// One of the small JSON files beside `tokenizer.json`.
fn optional(folder: &Path, name: &str) -> Result<Option<Json>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    // Lists of added tokens make tokenizer_config.json longer than others.
    Json::parse(&path, &read_text(&path, 4 * MAX_JSON)?).map(Some)
}

/// The id of a token that is given as a text or as an object with `content`.
fn token(config: &Json, inner: &tokenizers::Tokenizer, key: &str) -> Result<Option<u32>> {
    let text = match config.get(key) {
        None => return Ok(None),
        Some(Value::String(text)) => text,
        Some(other) => match other.get("content") {
            Some(Value::String(text)) => text,
            _ => return Err(config.wrong(key, "another type", "a token's text")),
        },
    };
    match inner.token_to_id(text) {
        Some(id) => Ok(Some(id)),
        None => Err(config.wrong(key, format!("{text:?}"), "a token of tokenizer.json")),
    }
}

/// Ids given as a number or a list of numbers.
fn ids(json: &Json, key: &str) -> Result<Vec<u32>> {
    let values = match json.get(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let ids = values.iter().map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok()));
    match ids.collect() {
        Some(ids) => Ok(ids),
        None => Err(json.wrong(key, "another value", "a token id or a list of them")),
    }
}
