//! Keys and values of texts that ended, for texts that begin alike.

use crate::{Edit, Model, Result, Sequence};
use std::collections::VecDeque;

/// Fewer tokens in common are read again: copying costs something too.
const WORTHWHILE: usize = 16;

/// What a prefix cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixStats {
    /// Prompt tokens that were looked up.
    pub queried: u64,
    /// Those of them that were not read again.
    pub found: u64,
}

/// Sequences that ended, the last used last. A text takes a copy of what it has in common with one of them, tokens and
/// edits; the bits are those of reading it.
pub(super) struct PrefixCache {
    sequences: VecDeque<Sequence>,
    /// Tokens held at most, over all sequences.
    capacity: usize,
    pub(super) stats: PrefixStats,
}

impl PrefixCache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { sequences: VecDeque::new(), capacity, stats: PrefixStats::default() }
    }

    /// A sequence under `edits` that has read the beginning of `prompt`, but not its last token.
    pub(super) fn begin(
        &mut self,
        model: &Model,
        prompt: &[u32],
        edits: &[Edit],
    ) -> Result<Option<Sequence>> {
        if self.capacity == 0 {
            return Ok(None);
        }
        self.stats.queried += prompt.len() as u64;
        let readable = &prompt[..prompt.len() - 1];
        let shared = self.sequences.iter().map(|s| s.shared_with(readable, edits)).enumerate();
        let Some((at, len)) = shared.max_by_key(|&(_, len)| len).filter(|&(_, len)| len >= WORTHWHILE) else {
            return Ok(None);
        };
        let found = self.sequences.remove(at).expect("it was found there");
        let sequence = model.continue_sequence(&found, len, edits.to_vec())?;
        self.sequences.push_back(found);
        self.stats.found += len as u64;
        Ok(Some(sequence))
    }

    /// Keeps a sequence, in place of those that it continues and of the longest unused ones.
    pub(super) fn keep(&mut self, sequence: Sequence) {
        if sequence.len() < WORTHWHILE || sequence.len() > self.capacity {
            return;
        }
        self.sequences.retain(|s| s.shared_with(sequence.tokens(), sequence.edits()) < s.len());
        self.sequences.push_back(sequence);
        while self.sequences.iter().map(Sequence::len).sum::<usize>() > self.capacity {
            self.sequences.pop_front();
        }
    }
}
