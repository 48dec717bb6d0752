//! Text as tokens arrive.

use super::{Pieces, Tokenizer};

/// What stands for bytes that are no text.
pub(super) const REPLACEMENT: &str = "\u{FFFD}";

/// Decodes token after token; never cuts a character in two. The texts put together, [`DecodeStream::finish`]
/// included, are what [`Tokenizer::decode`] gives for all ids at once.
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    /// Bytes of a character that is not complete.
    pending: Vec<u8>,
    /// Whether a space that comes now is the one before the text.
    at_start: bool,
    /// For decoders that look at neighbouring tokens: the ids of the last text shown and those after it.
    ids: Vec<u32>,
    /// How many of `ids` have been shown.
    shown: usize,
}

impl<'t> DecodeStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, pending: Vec::new(), at_start: tokenizer.space_prefix, ids: Vec::new(), shown: 0 }
    }

    /// Takes the next token; gives the text that is now complete.
    pub fn push(&mut self, id: u32) -> Option<String> {
        match &self.tokenizer.pieces {
            Pieces::Bytes { .. } => {
                let bytes = self.tokenizer.pieces.bytes(id).unwrap_or(REPLACEMENT.as_bytes());
                let prefix = usize::from(self.at_start && bytes.first() == Some(&b' '));
                self.at_start &= bytes.is_empty();
                self.pending.extend_from_slice(&bytes[prefix..]);
                let complete = complete_len(&self.pending);
                let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
                self.pending.drain(..complete);
                Some(text).filter(|t| !t.is_empty())
            }
            Pieces::Decoder => {
                self.ids.push(id);
                self.advance(false)
            }
        }
    }

    /// The end of the text: what is left of an incomplete character becomes U+FFFD.
    pub fn finish(mut self) -> Option<String> {
        match &self.tokenizer.pieces {
            Pieces::Bytes { .. } => {
                Some(String::from_utf8_lossy(&self.pending).into_owned()).filter(|t| !t.is_empty())
            }
            Pieces::Decoder => self.advance(true),
        }
    }

    /// The difference that the unseen ids make after the seen ones.
    fn advance(&mut self, at_end: bool) -> Option<String> {
        let before = self.tokenizer.decode(&self.ids[..self.shown]);
        let after = self.tokenizer.decode(&self.ids);
        if after.ends_with(REPLACEMENT) && !at_end {
            return None;
        }
        let same = before.chars().zip(after.chars()).take_while(|(a, b)| a == b);
        let text = after[same.map(|(c, _)| c.len_utf8()).sum()..].to_owned();
        if text.is_empty() {
            return None;
        }
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Some(text)
    }
}

/// Length of the longest beginning that does not stop inside a character.
fn complete_len(bytes: &[u8]) -> usize {
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(_) => return bytes.len(),
            Err(e) => match e.error_len() {
                Some(bad) => done += e.valid_up_to() + bad,
                None => return done + e.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::complete_len;

    #[test]
    fn an_incomplete_character_waits() {
        assert_eq!(complete_len("é".as_bytes()), 2);
        assert_eq!(complete_len(&[b'a', 0xC3]), 1);
        assert_eq!(complete_len(&[0xF0, 0x9F, 0x98]), 0);
    }

    #[test]
    fn bytes_that_can_never_be_text_do_not_wait() {
        assert_eq!(complete_len(&[0xFF, b'a']), 2);
        assert_eq!(complete_len(&[0xC3, b'a', 0xE2, 0x82]), 2);
    }
}
