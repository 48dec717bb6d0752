//! Text to token ids and back, for GGUF vocabularies and Hugging Face `tokenizer.json` files.
//!
//! Encoding goes through the `tokenizers` crate, but for SentencePiece's BPE, which is our own. Decoding uses a table of
//! bytes per id where it can, so that a stream of tokens can be shown without ever cutting a character in two.

mod folder;
mod gguf;
mod pretokenizer;
mod sentencepiece;
mod spm_file;
mod stream;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};
use tokenizers::tokenizer::{AddedVocabulary, Model, OffsetType, PreTokenizer};

use crate::source::hex;
use crate::{ModelError, Result};
use sentencepiece::Bpe;

pub use gguf::GgufVocab;
pub use stream::DecodeStream;

/// Texts of control tokens that end a turn, whatever the file's `eos` is.
const END_TEXTS: &[&str] = &[
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|endofturn|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<eos>",
    "</s>",
];

/// What a text that spells a control token, such as `<|im_end|>`, becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// The control token.
    Parse,
    /// Ordinary tokens that spell it.
    AsText,
}

/// Token ids of texts, and texts of token ids.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The added tokens with control tokens left in the text.
    added_as_text: AddedVocabulary,
    pieces: Pieces,
    /// In place of the model of `inner`.
    sentencepiece: Option<Arc<Bpe>>,
    /// Whether encoding puts a space before a text, which decoding takes away.
    space_prefix: bool,
    control: Vec<String>,
    bos: Option<u32>,
    eos: Option<u32>,
    ends: BTreeSet<u32>,
    add_bos: bool,
    vocab_size: usize,
    sha256: String,
}

impl Tokenizer {
    /// Puts a tokeniser together; `ends` are the ids that the file names as an end.
    fn assemble(
        inner: tokenizers::Tokenizer,
        pieces: Pieces,
        bos: Option<u32>,
        eos: Option<u32>,
        ends: impl IntoIterator<Item = u32>,
        add_bos: bool,
        sha256: String,
    ) -> Self {
        let mut added_as_text = inner.get_added_vocabulary().clone();
        added_as_text.set_encode_special_tokens(true);
        let decoder = inner.get_added_vocabulary().get_added_tokens_decoder();
        let control: Vec<String> = decoder
            .values()
            .filter(|token| token.special && !token.content.is_empty())
            .map(|token| token.content.clone())
            .collect();
        let named_ends = END_TEXTS
            .iter()
            .filter(|text| control.iter().any(|token| token == *text))
            .filter_map(|text| inner.token_to_id(text));
        let ends = ends.into_iter().chain(eos).chain(named_ends).collect();
        let vocab_size = pieces.len().unwrap_or_else(|| {
            let largest = decoder.keys().copied().max().map_or(0, |id| id as usize + 1);
            inner.get_vocab_size(true).max(largest)
        });
        Self {
            inner,
            added_as_text,
            pieces,
            sentencepiece: None,
            space_prefix: false,
            control,
            bos,
            eos,
            ends,
            add_bos,
            vocab_size,
            sha256,
        }
    }

    /// The ids of `text`; no BOS or EOS is added.
    ///
    /// # Errors
    /// A text that the vocabulary cannot spell.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let failed = |e: tokenizers::Error| ModelError::Tokenize(e.to_string());
        let added = match specials {
            Specials::Parse => self.inner.get_added_vocabulary(),
            Specials::AsText => &self.added_as_text,
        };
        let mut words = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(pre) = self.inner.get_pre_tokenizer() {
            pre.pre_tokenize(&mut words).map_err(failed)?;
        }
        let tokens = |word: &str| match &self.sentencepiece {
            Some(bpe) => Ok(bpe.tokens(word)),
            None => self.inner.get_model().tokenize(word),
        };
        words.tokenize(|word| tokens(word.get())).map_err(failed)?;
        Ok(words.into_encoding(None, 0, OffsetType::None).map_err(failed)?.get_ids().to_vec())
    }

    /// The ids of a text that comes in pieces, some of which must not be read for control tokens. Words may reach across
    /// pieces, so that with no control token spelt in an [`Specials::AsText`] piece the ids are those of the whole text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pieces<'a>(
        &self,
        pieces: impl IntoIterator<Item = (&'a str, Specials)>,
    ) -> Result<Vec<u32>> {
        let pieces: Vec<_> = pieces.into_iter().collect();
        let whole: String = pieces.iter().map(|&(text, _)| text).collect();
        let meant = pieces.iter().filter(|(_, specials)| *specials == Specials::Parse);
        if self.count_control(&whole) == meant.map(|(text, _)| self.count_control(text)).sum::<usize>() {
            return self.encode(&whole, Specials::Parse);
        }
        let mut ids = Vec::new();
        let mut words = String::new();
        for (text, specials) in pieces {
            let control = match specials {
                Specials::Parse => self.control_span(text),
                Specials::AsText => None,
            };
            let Some((from, to)) = control else {
                words.push_str(text);
                continue;
            };
            words.push_str(&text[..from]);
            ids.extend(self.encode(&words, Specials::AsText)?);
            ids.extend(self.encode(&text[from..to], Specials::Parse)?);
            words.clear();
            words.push_str(&text[to..]);
        }
        ids.extend(self.encode(&words, Specials::AsText)?);
        Ok(ids)
    }

    fn count_control(&self, text: &str) -> usize {
        self.control.iter().map(|token| text.matches(token.as_str()).count()).sum()
    }

    /// From the beginning of the first control token in `text` to the end of the last.
    fn control_span(&self, text: &str) -> Option<(usize, usize)> {
        let from = self.control.iter().filter_map(|token| text.find(token.as_str())).min()?;
        let to =
            self.control.iter().filter_map(|token| Some(text.rfind(token.as_str())? + token.len())).max()?;
        Some((from, to))
    }

    /// The text of `ids`, control tokens included, without the space that encoding puts before a text. Bytes that are
    /// no UTF-8, and ids outside the vocabulary, become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.pieces {
            Pieces::Bytes { .. } => {
                let mut bytes = Vec::new();
                for &id in ids {
                    bytes.extend_from_slice(self.pieces.bytes(id).unwrap_or(stream::REPLACEMENT.as_bytes()));
                }
                let prefix = usize::from(self.space_prefix && bytes.first() == Some(&b' '));
                String::from_utf8_lossy(&bytes[prefix..]).into_owned()
            }
            Pieces::Decoder => {
                self.inner.decode(ids, false).unwrap_or_else(|_| stream::REPLACEMENT.to_owned())
            }
        }
    }

    /// Decodes token after token.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a response.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether generation ends at this token: EOS, the end of a turn, or a control token known to mean one of them.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Whether the model wants BOS before a text.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// One more than the largest id. The embedding may have more rows, never fewer.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The text of one token; a token that is a part of a character gives U+FFFD.
    pub fn token_text(&self, id: u32) -> Option<String> {
        match self.pieces.bytes(id) {
            Some(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            None if self.pieces.len().is_some() => None,
            None => self.inner.id_to_token(id),
        }
    }

    /// The bytes of one token, which may be a part of a character.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.pieces.bytes(id).map(<[u8]>::to_vec).or_else(|| self.token_text(id).map(String::into_bytes))
    }

    /// Whether `text` spells a control token anywhere.
    pub fn spells_control(&self, text: &str) -> bool {
        self.control.iter().any(|token| text.contains(token.as_str()))
    }

    /// SHA-256, in hex, of what decides the ids: kind, pre-tokeniser, tokens and merges of a GGUF file, or the whole
    /// `tokenizer.json`.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bos, eos, add_bos, vocab_size, sha256, .. } = self;
        write!(f, "Tokenizer {{ vocab_size: {vocab_size}, bos: {bos:?}, eos: {eos:?}, ")?;
        write!(f, "add_bos: {add_bos}, sha256: {sha256} }}")
    }
}

/// How ids become text.
#[derive(Clone)]
enum Pieces {
    /// A table of the bytes of each id: `bytes[ends[id - 1]..ends[id]]`.
    Bytes { bytes: Vec<u8>, ends: Vec<u32> },
    /// The decoder of the `tokenizers` crate, which looks at neighbouring tokens.
    Decoder,
}

impl Pieces {
    /// A table from the texts of a byte-level vocabulary in the order of their ids; `raw` texts stand for themselves.
    fn byte_level<'a>(tokens: impl Iterator<Item = (&'a str, bool)>) -> Self {
        let alphabet = byte_of_char();
        Self::table(tokens, |(text, raw), bytes| {
            let start = bytes.len();
            let spelt = !raw
                && text.chars().all(|c| match alphabet.get(c as usize) {
                    Some(&Some(byte)) => {
                        bytes.push(byte);
                        true
                    }
                    _ => false,
                });
            if !spelt {
                bytes.truncate(start);
                bytes.extend_from_slice(text.as_bytes());
            }
        })
    }

    /// A table from the pieces of a SentencePiece vocabulary in the order of their ids; `raw` ones stand for themselves.
    fn sentencepiece<'a>(tokens: impl Iterator<Item = (&'a str, bool)>) -> Self {
        Self::table(tokens, |(text, raw), bytes| match sentencepiece::byte_of(text) {
            Some(byte) if !raw => bytes.push(byte),
            _ if raw => bytes.extend_from_slice(text.as_bytes()),
            _ => bytes.extend_from_slice(text.replace(sentencepiece::SPACE, " ").as_bytes()),
        })
    }

    /// A table; `push` adds the bytes of one id.
    fn table<T>(tokens: impl Iterator<Item = T>, push: impl Fn(T, &mut Vec<u8>)) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for token in tokens {
            push(token, &mut bytes);
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        Self::Bytes { bytes, ends }
    }

    fn bytes(&self, id: u32) -> Option<&[u8]> {
        let Self::Bytes { bytes, ends } = self else { return None };
        let end = *ends.get(id as usize)? as usize;
        let start = if id == 0 { 0 } else { ends[id as usize - 1] as usize };
        bytes.get(start..end)
    }

    fn len(&self) -> Option<usize> {
        match self {
            Self::Bytes { ends, .. } => Some(ends.len()),
            Self::Decoder => None,
        }
    }
}

/// The byte that each character of GPT-2's printable alphabet stands for, by code point: printable Latin-1 bytes stand
/// for themselves, the other 68 for U+0100 onwards in order.
fn byte_of_char() -> &'static [Option<u8>; 324] {
    static TABLE: OnceLock<[Option<u8>; 324]> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = [None; 324];
        let mut next = 256;
        for byte in 0..=255_u8 {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let at = if printable { byte as usize } else { next };
            next += usize::from(!printable);
            table[at] = Some(byte);
        }
        table
    })
}

/// SHA-256, in hex, of texts with their lengths.
fn digest<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut sha = Sha256::new();
    for text in texts {
        sha.update((text.len() as u64).to_le_bytes());
        sha.update(text);
    }
    hex(&sha.finalize())
}
