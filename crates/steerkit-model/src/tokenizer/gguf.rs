//! The vocabulary of a GGUF file as a byte-level BPE tokeniser.

use std::collections::HashSet;
use std::path::PathBuf;

use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::tokenizer::AddedToken;

use super::{Pieces, Tokenizer, digest, pretokenizer};
use crate::gguf::Gguf;
use crate::{ModelError, Result};

/// `tokenizer.ggml.token_type` of control tokens.
const CONTROL: i32 = 3;
/// Tokens that a user added: cut out of every text, but not control tokens.
const USER_DEFINED: i32 = 4;

/// What the `tokenizer.ggml.*` keys of a GGUF file say.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// The file, for messages.
    pub path: PathBuf,
    /// `model`: the kind of tokeniser (`gpt2` is byte-level BPE).
    pub model: String,
    /// `pre`: the name of the pre-tokeniser.
    pub pre: Option<String>,
    /// `tokens`: the text of each id; its bytes as the printable characters of GPT-2.
    pub tokens: Vec<String>,
    /// `token_type`: one per token (1 normal, 3 control, 4 user-defined), or none at all.
    pub token_types: Vec<i32>,
    /// `merges`: pairs `left right` in the order of their rank.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id` and `eom_token_id`: the end of a turn or message.
    pub end_of_turn: Vec<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
}

impl GgufVocab {
    /// Reads the keys; `None` where the file holds no tokeniser.
    ///
    /// # Errors
    /// Keys of a wrong type, texts that are not UTF-8.
    pub fn read(gguf: &Gguf) -> Result<Option<Self>> {
        let meta = &gguf.meta;
        let Some(model) = meta.text("tokenizer.ggml.model")? else { return Ok(None) };
        let texts = |key: &str| -> Result<Vec<String>> {
            Ok(meta.texts(key)?.unwrap_or_default().into_iter().map(str::to_owned).collect())
        };
        let id = |name: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{name}");
            let Some(id) = meta.integer(&key)? else { return Ok(None) };
            u32::try_from(id).map(Some).map_err(|_| meta.wrong(&key, id.to_string(), "an id below 2^32"))
        };
        let types = meta.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        Ok(Some(Self {
            path: gguf.path().to_owned(),
            model: model.to_owned(),
            pre: meta.text("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens: texts("tokenizer.ggml.tokens")?,
            token_types: types.into_iter().map(|kind| i32::try_from(kind).unwrap_or(0)).collect(),
            merges: texts("tokenizer.ggml.merges")?,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            end_of_turn: id("eot_token_id")?.into_iter().chain(id("eom_token_id")?).collect(),
            add_bos: meta.flag("tokenizer.ggml.add_bos_token")?,
        }))
    }

    fn malformed(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> ModelError {
        ModelError::Malformed {
            path: self.path.clone(),
            place: format!("tokenizer.ggml.{key}"),
            found: found.into(),
            expected: expected.into(),
            hint: Some("convert or download the file again".to_owned()),
        }
    }

    /// The name of the pre-tokeniser: a file that names none gets `default`.
    fn pre(&self) -> &str {
        self.pre.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
    }

    fn check(&self) -> Result<()> {
        if self.model != "gpt2" {
            return Err(ModelError::Unsupported {
                path: self.path.clone(),
                what: "tokeniser".to_owned(),
                found: self.model.clone(),
                known: vec!["gpt2".to_owned()],
            });
        }
        let n = self.tokens.len();
        if n == 0 || n > u32::MAX as usize {
            return Err(self.malformed("tokens", format!("{n} tokens"), "1 to 2^32-1 tokens"));
        }
        if !self.token_types.is_empty() && self.token_types.len() != n {
            let found = format!("{} types", self.token_types.len());
            return Err(self.malformed("token_type", found, format!("one for each of the {n} tokens")));
        }
        let ids = [("bos_token_id", self.bos), ("eos_token_id", self.eos)];
        let ends = self.end_of_turn.iter().map(|&id| ("eot_token_id", Some(id)));
        for (key, id) in ids.into_iter().chain(ends) {
            if let Some(id) = id.filter(|&id| id as usize >= n) {
                return Err(self.malformed(key, id.to_string(), format!("an id below {n}")));
            }
        }
        Ok(())
    }

    /// The two halves of a merge. A token may begin with a space, so the first character never separates.
    fn halves(merge: &str) -> Option<(&str, &str)> {
        let (at, _) = merge.char_indices().skip(1).find(|&(_, c)| c == ' ')?;
        Some((&merge[..at], &merge[at + 1..])).filter(|(_, right)| !right.is_empty())
    }

    /// The byte-level BPE model. Both halves of a merge and the whole have to be tokens; as the whole is longer than
    /// either half, merges cannot run in a circle.
    fn bpe(&self, ignore_merges: bool) -> Result<BPE> {
        let ids: Vocab = (0..).zip(&self.tokens).map(|(id, text)| (text.clone(), id)).collect();
        // The builder copies the whole into a buffer of the longest token's size before it looks it up.
        let longest = self.tokens.iter().map(String::len).max().unwrap_or(0);
        let fits = |(left, right): &(&str, &str)| left.len() + right.len() <= longest;
        let pairs = self.merges.iter().map(|merge| {
            let (left, right) = Self::halves(merge).filter(fits)?;
            Some((left.to_owned(), right.to_owned()))
        });
        let build = |pairs| {
            let builder = BpeBuilder::new().vocab_and_merges(ids, pairs).ignore_merges(ignore_merges);
            builder.build().ok()
        };
        pairs.collect::<Option<Vec<_>>>().and_then(build).ok_or_else(|| self.bad_merge())
    }

    /// The error for the first merge that is no pair of tokens.
    fn bad_merge(&self) -> ModelError {
        let tokens: HashSet<&str> = self.tokens.iter().map(String::as_str).collect();
        let is_bad = |merge: &&String| {
            let parts = Self::halves(merge)
                .map(|(left, right)| [left, right, &[left, right].concat()].map(str::to_owned));
            !parts.is_some_and(|parts| parts.iter().all(|part| tokens.contains(part.as_str())))
        };
        let bad = self.merges.iter().enumerate().find(|(_, merge)| is_bad(merge));
        let (rank, merge) = bad.map_or((0, ""), |(rank, merge)| (rank, merge.as_str()));
        let found = format!("{:?}", merge.chars().take(80).collect::<String>());
        self.malformed(&format!("merges[{rank}]"), found, "two tokens whose concatenation is a token")
    }

    fn kind(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(0)
    }
}

impl Tokenizer {
    /// The tokeniser of a GGUF file; `None` where the file holds none.
    ///
    /// # Errors
    /// As [`GgufVocab::read`] and [`Tokenizer::from_vocab`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Option<Self>> {
        GgufVocab::read(gguf)?.map(Self::from_vocab).transpose()
    }

    /// A tokeniser from the vocabulary of a GGUF file.
    ///
    /// Of tokens with the same text the last one is used for encoding; all of them decode.
    ///
    /// # Errors
    /// Another kind of tokeniser than byte-level BPE, an unknown pre-tokeniser, ids outside the vocabulary, merges
    /// whose halves or whole are no tokens.
    pub fn from_vocab(vocab: GgufVocab) -> Result<Self> {
        vocab.check()?;
        let pre = pretokenizer::named(vocab.pre()).ok_or_else(|| ModelError::Unsupported {
            path: vocab.path.clone(),
            what: "pre-tokeniser".to_owned(),
            found: vocab.pre().to_owned(),
            known: pretokenizer::names(),
        })?;

        let sha256 = digest(
            [vocab.model.as_str(), vocab.pre()]
                .into_iter()
                .chain(vocab.tokens.iter().map(String::as_str))
                .chain(vocab.merges.iter().map(String::as_str)),
        );
        let ends: Vec<u32> = vocab.eos.into_iter().chain(vocab.end_of_turn.iter().copied()).collect();
        let mut control: Vec<bool> = (0..vocab.tokens.len()).map(|id| vocab.kind(id) == CONTROL).collect();
        for &id in vocab.bos.iter().chain(&ends) {
            control[id as usize] = true;
        }
        let cut_out = |id: usize| control[id] || vocab.kind(id) == USER_DEFINED;
        let tokens = || vocab.tokens.iter().map(String::as_str).enumerate();
        let added: Vec<AddedToken> = tokens()
            .filter(|&(id, _)| cut_out(id))
            .map(|(id, text)| AddedToken::from(text, control[id]).normalized(false))
            .collect();
        let pieces = Pieces::byte_level(tokens().map(|(id, text)| (text, cut_out(id))));
        let mut inner = tokenizers::Tokenizer::new(vocab.bpe(pre.ignore_merges)?);
        if pre.nfc {
            inner.with_normalizer(Some(NFC)).map_err(|e| ModelError::Tokenize(e.to_string()))?;
        }
        inner.with_pre_tokenizer(Some(pre.build()));
        inner.add_tokens(added).map_err(|e| ModelError::Tokenize(e.to_string()))?;

        let add_bos = vocab.add_bos.unwrap_or(pre.add_bos) && vocab.bos.is_some();
        Ok(Self::assemble(inner, pieces, vocab.bos, vocab.eos, ends, add_bos, sha256))
    }
}
