//! The vocabulary of a GGUF file as a tokeniser: byte-level BPE, or SentencePiece's BPE.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::{self, NormalizerWrapper, Prepend, Replace};
use tokenizers::tokenizer::AddedToken;

use super::sentencepiece::{Bpe, SPACE, kind};
use super::{Pieces, Tokenizer, digest, pretokenizer};
use crate::gguf::Gguf;
use crate::source::hex;
use crate::{ModelError, Result};

/// The kind of a vocabulary that only comes from a `tokenizer.model`: SentencePiece's unigram model.
pub(super) const UNIGRAM: &str = "unigram";

/// What the `tokenizer.ggml.*` keys of a GGUF file say.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// The file, for messages.
    pub path: PathBuf,
    /// `model`: the kind of tokeniser (`gpt2` is byte-level BPE, `llama` SentencePiece's).
    pub model: String,
    /// `pre`: the name of the pre-tokeniser.
    pub pre: Option<String>,
    /// `tokens`: the text of each id; its bytes as the printable characters of GPT-2, or SentencePiece's pieces.
    pub tokens: Vec<String>,
    /// `token_type`: one per token (1 normal, 3 control, 4 user-defined), or none at all.
    pub token_types: Vec<i32>,
    /// `scores`: one per piece of SentencePiece's.
    pub scores: Vec<f32>,
    /// `merges`: pairs `left right` in the order of their rank.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id` and `eom_token_id`: the end of a turn or message.
    pub end_of_turn: Vec<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`: whether SentencePiece puts a space before a text.
    pub space_prefix: Option<bool>,
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
            scores: meta.floats("tokenizer.ggml.scores")?.unwrap_or_default(),
            merges: texts("tokenizer.ggml.merges")?,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            end_of_turn: id("eot_token_id")?.into_iter().chain(id("eom_token_id")?).collect(),
            unknown: id("unknown_token_id")?,
            add_bos: meta.flag("tokenizer.ggml.add_bos_token")?,
            space_prefix: meta.flag("tokenizer.ggml.add_space_prefix")?,
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

    pub(super) fn check(&self) -> Result<()> {
        if !["gpt2", "llama", UNIGRAM].contains(&self.model.as_str()) {
            return Err(ModelError::Unsupported {
                path: self.path.clone(),
                what: "tokeniser".to_owned(),
                found: self.model.clone(),
                known: ["gpt2", "llama"].map(str::to_owned).to_vec(),
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
        if self.model != "gpt2" && (self.scores.len() != n || self.scores.iter().any(|s| s.is_nan())) {
            let found = format!("{} scores", self.scores.len());
            return Err(self.malformed("scores", found, format!("a number for each of the {n} tokens")));
        }
        let ids =
            [("bos_token_id", self.bos), ("eos_token_id", self.eos), ("unknown_token_id", self.unknown)];
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
    /// Of byte-level tokens with the same text the last one is used for encoding, of SentencePiece's the first; all of
    /// them decode.
    ///
    /// # Errors
    /// Another kind of tokeniser than byte-level BPE or SentencePiece's BPE, an unknown pre-tokeniser, ids outside the
    /// vocabulary, merges whose halves or whole are no tokens.
    pub fn from_vocab(vocab: GgufVocab) -> Result<Self> {
        vocab.check()?;
        match vocab.model.as_str() {
            "llama" => Self::sentencepiece(&vocab, Vec::new()),
            _ => Self::byte_level(&vocab),
        }
    }

    fn byte_level(vocab: &GgufVocab) -> Result<Self> {
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
        let mut inner = tokenizers::Tokenizer::new(vocab.bpe(pre.ignore_merges)?);
        if pre.nfc {
            inner.with_normalizer(Some(NFC)).map_err(failed)?;
        }
        inner.with_pre_tokenizer(Some(pre.build()));
        vocab.put_together(inner, pre.add_bos, sha256)
    }

    /// A SentencePiece tokeniser. A text is changed by `normalizers`; then a space is put before it, where the
    /// vocabulary wants that, and spaces become [`SPACE`].
    pub(super) fn sentencepiece(vocab: &GgufVocab, mut normalizers: Vec<NormalizerWrapper>) -> Result<Self> {
        let space_prefix = vocab.space_prefix.unwrap_or(true);
        let unigram = vocab.model == UNIGRAM;
        let mut inner = match unigram {
            true => tokenizers::Tokenizer::new(vocab.unigram()?),
            false => {
                // The model only finds the ids of added tokens; `Bpe` makes all others.
                let ids: Vocab = (0..).zip(&vocab.tokens).map(|(id, text)| (text.clone(), id)).collect();
                let lookup = BpeBuilder::new().vocab_and_merges(ids, Vec::new()).build();
                tokenizers::Tokenizer::new(lookup.map_err(failed)?)
            }
        };
        if space_prefix {
            normalizers.push(Prepend::new(SPACE.to_owned()).into());
        }
        normalizers.push(Replace::new(" ", SPACE).map_err(failed)?.into());
        inner.with_normalizer(Some(normalizers::Sequence::new(normalizers))).map_err(failed)?;
        let scores: Vec<u8> = vocab.scores.iter().flat_map(|x| x.to_le_bytes()).collect();
        let sha256 = digest(
            [vocab.model.as_str(), if space_prefix { "space" } else { "" }, &hex(&Sha256::digest(&scores))]
                .into_iter()
                .chain(vocab.tokens.iter().map(String::as_str)),
        );
        let mut tokenizer = vocab.put_together(inner, true, sha256)?;
        tokenizer.space_prefix = space_prefix;
        if !unigram {
            let kind = |id| if vocab.token_types.is_empty() { kind::NORMAL } else { vocab.kind(id) };
            let bpe = Bpe::new(&vocab.tokens, vocab.scores.clone(), kind, vocab.unknown);
            tokenizer.sentencepiece = Some(Arc::new(bpe));
        }
        Ok(tokenizer)
    }
}

impl GgufVocab {
    /// A tokeniser from its model: adds control and user-defined tokens, ends and the table of pieces.
    fn put_together(
        &self,
        mut inner: tokenizers::Tokenizer,
        add_bos: bool,
        sha256: String,
    ) -> Result<Tokenizer> {
        let ends: Vec<u32> = self.eos.into_iter().chain(self.end_of_turn.iter().copied()).collect();
        let mut control: Vec<bool> =
            (0..self.tokens.len()).map(|id| self.kind(id) == kind::CONTROL).collect();
        for &id in self.bos.iter().chain(&ends) {
            control[id as usize] = true;
        }
        let cut_out = |id: usize| control[id] || self.kind(id) == kind::USER_DEFINED;
        let tokens = || self.tokens.iter().map(String::as_str).enumerate();
        let added: Vec<AddedToken> = tokens()
            .filter(|&(id, text)| cut_out(id) && !text.is_empty())
            .map(|(id, text)| AddedToken::from(text, control[id]).normalized(false))
            .collect();
        let texts = tokens().map(|(id, text)| (text, cut_out(id)));
        let pieces = match self.model.as_str() {
            "gpt2" => Pieces::byte_level(texts),
            _ => Pieces::sentencepiece(texts),
        };
        inner.add_tokens(added).map_err(failed)?;
        let add_bos = self.add_bos.unwrap_or(add_bos) && self.bos.is_some();
        Ok(Tokenizer::assemble(inner, pieces, self.bos, self.eos, ends, add_bos, sha256))
    }

    /// SentencePiece's unigram model. Pieces that never come from text get a score that no path takes.
    fn unigram(&self) -> Result<Unigram> {
        let score = |id: usize| match self.kind(id) {
            kind::NORMAL => f64::from(self.scores[id]),
            _ => -1e6,
        };
        let pieces = self.tokens.iter().enumerate().map(|(id, text)| (text.clone(), score(id))).collect();
        let has_bytes = (0..self.tokens.len()).any(|id| self.kind(id) == kind::BYTE);
        let unknown = self.unknown.map(|id| id as usize);
        Unigram::from(pieces, unknown, has_bytes).map_err(|e| ModelError::Tokenize(e.to_string()))
    }
}

fn failed(error: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenize(error.to_string())
}
