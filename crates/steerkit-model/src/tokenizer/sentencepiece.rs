//! SentencePiece's BPE (Kudo & Richardson 2018): of all neighbours whose concatenation is a piece, those of the
//! best-scored piece are joined, the leftmost first, until none are left. Characters that are no piece are spelt in
//! bytes.

use std::collections::{BinaryHeap, HashMap};

use tokenizers::tokenizer::Token;

/// What a piece is for, numbered as in `tokenizer.ggml.token_type` and in `sentencepiece_model.proto`.
pub(super) mod kind {
    /// Text.
    pub(crate) const NORMAL: i32 = 1;
    /// What stands for unknown text.
    pub(crate) const UNKNOWN: i32 = 2;
    /// A control token such as `<s>`.
    pub(crate) const CONTROL: i32 = 3;
    /// Cut out of every text, but no control token.
    pub(crate) const USER_DEFINED: i32 = 4;
    /// Used on the way to longer pieces, but never given.
    pub(crate) const UNUSED: i32 = 5;
    /// A byte, `<0x41>`.
    pub(crate) const BYTE: i32 = 6;
}

/// What stands for a space.
pub(super) const SPACE: &str = "\u{2581}";

/// The byte that a piece such as `<0x41>` stands for.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

/// A vocabulary of scored pieces.
#[derive(Clone, Debug)]
pub(super) struct Bpe {
    /// Pieces that make up text, with their ids.
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    unused: Vec<bool>,
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
}

/// A run of the text that is one piece so far.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    /// Neighbours; `NONE` at the ends.
    before: usize,
    after: usize,
}

const NONE: usize = usize::MAX;

/// Two neighbours that may become one piece.
#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both together: a pair is stale when one of them has grown.
    len: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Bpe {
    /// `kind(id)` is one of [`kind`].
    pub(super) fn new(
        pieces: &[String],
        scores: Vec<f32>,
        kind_of: impl Fn(usize) -> i32,
        unknown: Option<u32>,
    ) -> Self {
        let mut ids = HashMap::with_capacity(pieces.len());
        let mut bytes = Box::new([None; 256]);
        for (id, (at, piece)) in (0..).zip(pieces.iter().enumerate()) {
            match (kind_of(at), byte_of(piece)) {
                (kind::BYTE, Some(byte)) => bytes[byte as usize] = Some(id),
                (kind::NORMAL | kind::UNUSED, _) => {
                    ids.entry(piece.clone()).or_insert(id);
                }
                _ => (),
            }
        }
        let unused = (0..pieces.len()).map(|id| kind_of(id) == kind::UNUSED).collect();
        Self { ids, scores, unused, bytes, unknown }
    }

    /// The tokens of a text whose spaces are [`SPACE`].
    pub(super) fn tokens(&self, text: &str) -> Vec<Token> {
        // Where a joined piece is never given, the length of its left half.
        let mut halves = HashMap::new();
        let mut ids = Vec::new();
        for symbol in self.join(text, &mut halves) {
            self.give(&text[symbol.start..symbol.end], &halves, &mut ids);
        }
        ids.into_iter().map(|id| Token::new(id, String::new(), (0, 0))).collect()
    }

    /// Joins neighbours until none make a piece.
    fn join<'t>(&self, text: &'t str, halves: &mut HashMap<&'t str, usize>) -> Vec<Symbol> {
        let chars = text.char_indices().enumerate();
        let mut symbols: Vec<Symbol> = chars
            .map(|(i, (start, c))| {
                let end = start + c.len_utf8();
                let after = if end == text.len() { NONE } else { i + 1 };
                Symbol { start, end, before: if i == 0 { NONE } else { i - 1 }, after }
            })
            .collect();
        let mut queue: BinaryHeap<Pair> =
            (1..symbols.len()).filter_map(|right| self.pair(text, &symbols, right - 1, right)).collect();
        while let Some(Pair { left, right, len, .. }) = queue.pop() {
            let (l, r) = (symbols[left], symbols[right]);
            // One of the two has been joined to another: it is empty, or longer.
            if l.start == l.end || r.start == r.end || r.end - l.start != len {
                continue;
            }
            let whole = &text[l.start..r.end];
            if self.unused[self.ids[whole] as usize] {
                halves.insert(whole, l.end - l.start);
            }
            symbols[left] = Symbol { end: r.end, after: r.after, ..l };
            symbols[right].end = r.start;
            if r.after != NONE {
                symbols[r.after].before = left;
                queue.extend(self.pair(text, &symbols, left, r.after));
            }
            if l.before != NONE {
                queue.extend(self.pair(text, &symbols, l.before, left));
            }
        }
        symbols.retain(|s| s.start < s.end);
        symbols
    }

    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let whole = &text[symbols[left].start..symbols[right].end];
        let &id = self.ids.get(whole)?;
        Some(Pair { score: self.scores[id as usize], left, right, len: whole.len() })
    }

    /// The ids of one piece: its own, those of its halves where it is never given, or its bytes.
    fn give(&self, piece: &str, halves: &HashMap<&str, usize>, ids: &mut Vec<u32>) {
        match (self.ids.get(piece), halves.get(piece)) {
            (Some(&id), _) if !self.unused[id as usize] => ids.push(id),
            (_, Some(&half)) => {
                self.give(&piece[..half], halves, ids);
                self.give(&piece[half..], halves, ids);
            }
            _ => {
                let bytes: Option<Vec<u32>> = piece.bytes().map(|b| self.bytes[b as usize]).collect();
                ids.extend(bytes.unwrap_or_else(|| self.unknown.into_iter().collect()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces `a b c ab bc abc` where `abc` is never given, a byte, and `?` for the unknown.
    fn bpe(score_of_ab: f32) -> Bpe {
        let pieces = ["?", "<0x64>", "a", "b", "c", "ab", "bc", "abc"].map(str::to_owned);
        let scores = vec![0.0, 0.0, -9.0, -9.0, -9.0, score_of_ab, -2.0, -3.0];
        let kinds = [kind::UNKNOWN, kind::BYTE, 1, 1, 1, 1, 1, kind::UNUSED];
        Bpe::new(&pieces, scores, |id| kinds[id], Some(0))
    }

    fn ids(bpe: &Bpe, text: &str) -> Vec<u32> {
        bpe.tokens(text).iter().map(|t| t.id).collect()
    }

    #[test]
    fn the_best_score_is_joined_first() {
        assert_eq!(ids(&bpe(-1.0), "abc"), [5, 4]);
        assert_eq!(ids(&bpe(-2.5), "abc"), [2, 6]);
        // Equal scores: the leftmost first.
        assert_eq!(ids(&bpe(-2.0), "abc"), [5, 4]);
        assert_eq!(ids(&bpe(-1.0), "abcabbc"), [5, 4, 5, 6]);
    }

    #[test]
    fn characters_that_are_no_piece_are_bytes_or_unknown() {
        assert_eq!(ids(&bpe(-1.0), "dcx"), [1, 4, 0]);
        assert!(ids(&bpe(-1.0), "").is_empty());
    }
}
