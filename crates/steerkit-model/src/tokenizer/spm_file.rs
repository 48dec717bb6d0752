//! `tokenizer.model`: a SentencePiece model as a protocol buffer (`sentencepiece_model.proto`).

use std::path::Path;

use serde_json::Value;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Replace, Strip};

use super::gguf::UNIGRAM;
use super::sentencepiece::kind;
use super::{GgufVocab, Tokenizer};
use crate::hf::Json;
use crate::source::Source;
use crate::{ModelError, Result};

/// Pieces of a model; the largest vocabularies hold some 300,000.
const MAX_PIECES: usize = 1 << 22;

impl Tokenizer {
    /// The tokeniser of a `tokenizer.model`. `config` is the `tokenizer_config.json` beside it, which may add tokens.
    ///
    /// # Errors
    /// A file that breaks its format, another kind of model than BPE and unigram.
    pub(super) fn from_spm_file(path: &Path, config: Option<&Json>) -> Result<Self> {
        let source = Source::open(path)?;
        let mut file = SpmFile::read(path, source.bytes())?;
        if let Some(config) = config {
            file.add_tokens(config)?;
        }
        let normalizers = file.normalizers()?;
        file.vocab.check()?;
        Self::sentencepiece(&file.vocab, normalizers)
    }
}

/// What the file says.
struct SpmFile {
    vocab: GgufVocab,
    /// Rules that change a text's characters.
    charsmap: Vec<u8>,
    /// Whether runs of spaces become one, and those at both ends none.
    remove_extra_whitespaces: bool,
}

impl SpmFile {
    fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut vocab =
            GgufVocab { path: path.to_owned(), model: "llama".to_owned(), ..GgufVocab::default() };
        // Defaults of the format.
        let (mut kind_of_model, mut unknown, mut bos, mut eos) = (1, 0, 1, 2);
        let mut file =
            Self { vocab: GgufVocab::default(), charsmap: Vec::new(), remove_extra_whitespaces: true };
        let mut space_prefix = true;
        for field in Fields::new(path, bytes) {
            match field? {
                (1, Wire::Bytes(piece)) => {
                    let mut score = 0.0;
                    let mut kind = kind::NORMAL;
                    let mut text = "";
                    for field in Fields::new(path, piece) {
                        match field? {
                            (1, Wire::Bytes(bytes)) => {
                                text = std::str::from_utf8(bytes).map_err(|_| {
                                    let place = format!("piece {}", vocab.tokens.len());
                                    ModelError::malformed(
                                        path,
                                        place,
                                        "bytes that are not UTF-8",
                                        "UTF-8 text",
                                    )
                                })?;
                            }
                            (2, Wire::Fixed32(bits)) => score = f32::from_bits(bits),
                            (3, Wire::Varint(n)) => kind = i32::try_from(n).unwrap_or(0),
                            _ => (),
                        }
                    }
                    if vocab.tokens.len() == MAX_PIECES {
                        let expected = format!("at most {MAX_PIECES}");
                        return Err(ModelError::malformed(path, "pieces", "more", expected));
                    }
                    vocab.tokens.push(text.to_owned());
                    vocab.scores.push(score);
                    vocab.token_types.push(kind);
                }
                (2, Wire::Bytes(trainer)) => {
                    for field in Fields::new(path, trainer) {
                        match field? {
                            (3, Wire::Varint(n)) => kind_of_model = n,
                            // Ids are signed: -1 means none.
                            (40, Wire::Varint(n)) => unknown = n as i32,
                            (41, Wire::Varint(n)) => bos = n as i32,
                            (42, Wire::Varint(n)) => eos = n as i32,
                            _ => (),
                        }
                    }
                }
                (3, Wire::Bytes(normalizer)) => {
                    for field in Fields::new(path, normalizer) {
                        match field? {
                            (2, Wire::Bytes(map)) => file.charsmap = map.to_vec(),
                            (3, Wire::Varint(n)) => space_prefix = n != 0,
                            (4, Wire::Varint(n)) => file.remove_extra_whitespaces = n != 0,
                            _ => (),
                        }
                    }
                }
                _ => (),
            }
        }
        vocab.model = match kind_of_model {
            1 => UNIGRAM.to_owned(),
            2 => "llama".to_owned(),
            other => {
                let known = ["1 (unigram)", "2 (BPE)"];
                return Err(ModelError::unsupported(path, "model type", other.to_string(), &known));
            }
        };
        let id = |id: i32| u32::try_from(id).ok();
        (vocab.unknown, vocab.bos, vocab.eos) = (id(unknown), id(bos), id(eos));
        vocab.space_prefix = Some(space_prefix);
        Ok(Self { vocab, ..file })
    }

    /// The tokens that `tokenizer_config.json` adds, and its `add_bos_token`.
    fn add_tokens(&mut self, config: &Json) -> Result<()> {
        const FIELD: &str = "added_tokens_decoder";
        self.vocab.add_bos = config.flag("add_bos_token")?;
        let Some(added) = config.object(FIELD)? else { return Ok(()) };
        let mut tokens = Vec::new();
        for name in added.names() {
            let content = added.get(name).and_then(|t| t["content"].as_str());
            let (Ok(id), Some(content)) = (name.parse::<usize>(), content) else {
                return Err(added.wrong(name, "another value", "an id and a token with its content"));
            };
            let special = added.get(name).is_some_and(|t| t["special"] == Value::Bool(true));
            tokens.push((id, content.to_owned(), if special { kind::CONTROL } else { kind::USER_DEFINED }));
        }
        tokens.sort();
        let vocab = &mut self.vocab;
        for (id, content, kind) in tokens {
            match vocab.tokens.len() {
                n if id < n && vocab.tokens[id] == content => {
                    // The unknown token stays what it is.
                    if vocab.token_types[id] != kind::UNKNOWN {
                        vocab.token_types[id] = kind;
                    }
                }
                n if id == n => {
                    vocab.tokens.push(content);
                    vocab.scores.push(0.0);
                    vocab.token_types.push(kind);
                }
                n => {
                    let expected = format!("an id of the same token, or {n}, the next one");
                    return Err(added.wrong(&id.to_string(), format!("{content:?}"), expected));
                }
            }
        }
        Ok(())
    }

    fn normalizers(&self) -> Result<Vec<NormalizerWrapper>> {
        let mut steps: Vec<NormalizerWrapper> = Vec::new();
        if !self.charsmap.is_empty() {
            let map = Precompiled::from(&self.charsmap).map_err(|e| {
                ModelError::malformed(
                    &self.vocab.path,
                    "precompiled_charsmap",
                    e.to_string(),
                    "a character map",
                )
            })?;
            steps.push(map.into());
        }
        if self.remove_extra_whitespaces {
            let runs = Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), " ");
            steps.push(Strip::new(true, true).into());
            steps.push(runs.map_err(|e| ModelError::Tokenize(e.to_string()))?.into());
        }
        Ok(steps)
    }
}

/// A field's value.
enum Wire<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    /// Eight bytes, of which nothing here makes use.
    Fixed64,
}

/// The fields of one message, by number.
struct Fields<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    failed: bool,
}

impl<'a> Fields<'a> {
    fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, failed: false }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: u64) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(usize::try_from(n).ok()?)?;
        self.bytes = rest;
        Some(head)
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.take(8).map(|_| Wire::Fixed64)?,
            2 => {
                let n = self.varint()?;
                Wire::Bytes(self.take(n)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() || self.failed {
            return None;
        }
        let left = self.bytes.len();
        let field = self.field();
        self.failed = field.is_none();
        Some(field.ok_or_else(|| {
            let place = format!("{left} bytes before the end of a message");
            ModelError::malformed(self.path, place, "no protocol buffer field", "a SentencePiece model")
                .advise("fetch the file itself; a git-LFS pointer is no tokeniser")
        }))
    }
}
