//! Packing: several texts with shared beginnings in one batch of rows, without padding.

use std::ops::Range;
use steerkit_kernels::attention::Run;

/// A run of rows that attend causally to themselves and fully to their ancestors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// The segment this one continues; always an earlier one.
    pub parent: Option<usize>,
    /// Position of the first row in its text.
    pub position: usize,
}

/// A token whose log-probability is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scored {
    /// The row that predicts it.
    pub row: usize,
    /// The token.
    pub target: u32,
}

/// Rows of a packed batch: a forest of segments, and which tokens are scored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pack {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// The forest, parents first, in row order.
    pub segments: Vec<Segment>,
    /// Tokens to score; several may share a row.
    pub scored: Vec<Scored>,
}

/// Where one preference pair lies in a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairSpan {
    /// The rows that its prompt begins with, when it shares them with other pairs.
    pub shared: Range<usize>,
    /// Its own rows: the rest of the prompt, chosen without its last token, rejected without its last.
    pub rows: Range<usize>,
    /// Its chosen tokens in `Pack::scored`.
    pub chosen: Range<usize>,
    /// Its rejected tokens in `Pack::scored`.
    pub rejected: Range<usize>,
}

impl Pack {
    /// Rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Appends `tokens` as a continuation of `parent` (or a new text) and returns the segment's index.
    ///
    /// # Panics
    /// When `parent` belongs to a text older than the newest one: a text's rows stand together.
    pub fn push(&mut self, parent: Option<usize>, tokens: &[u32]) -> usize {
        assert!(parent.is_none_or(|p| self.root(p) == self.root(self.segments.len() - 1)));
        let position = parent.map_or(0, |p| self.segments[p].position + self.segments[p].len);
        self.segments.push(Segment { start: self.tokens.len(), len: tokens.len(), parent, position });
        self.tokens.extend_from_slice(tokens);
        self.segments.len() - 1
    }

    /// Packs a preference pair behind one shared prompt and scores every token of both responses; the first
    /// is predicted from the prompt's last row. `prompt` and both responses must hold at least one token.
    pub fn push_pair(&mut self, prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> PairSpan {
        self.push_pair_behind(None, prompt, chosen, rejected)
    }

    /// Packs pairs `[prompt, chosen, rejected]` as one text: what all prompts begin with, a system prompt say, has
    /// its rows once. Otherwise as [`Self::push_pair`].
    pub fn push_pairs(&mut self, pairs: &[[&[u32]; 3]]) -> Vec<PairSpan> {
        let shared = shared_prefix(pairs);
        let trunk = match pairs {
            [[prompt, ..], _, ..] if shared > 0 => Some(self.push(None, &prompt[..shared])),
            _ => None,
        };
        pairs
            .iter()
            .map(|[prompt, chosen, rejected]| {
                let own = &prompt[if trunk.is_some() { shared } else { 0 }..];
                self.push_pair_behind(trunk, own, chosen, rejected)
            })
            .collect()
    }

    fn push_pair_behind(
        &mut self,
        trunk: Option<usize>,
        prompt: &[u32],
        chosen: &[u32],
        rejected: &[u32],
    ) -> PairSpan {
        let first_row = self.len();
        let shared = trunk.map_or(first_row..first_row, |t| {
            self.segments[t].start..self.segments[t].start + self.segments[t].len
        });
        let p = self.push(trunk, prompt);
        let chosen_scored = self.push_response(p, chosen);
        let rejected_scored = self.push_response(p, rejected);
        PairSpan { shared, rows: first_row..self.len(), chosen: chosen_scored, rejected: rejected_scored }
    }

    /// Appends `response` behind segment `prompt` and scores each of its tokens; its last token is only a
    /// target, so it gets no row. Returns the range of the new entries of `scored`.
    pub fn push_response(&mut self, prompt: usize, response: &[u32]) -> Range<usize> {
        let first = self.scored.len();
        let last_prompt_row = self.segments[prompt].start + self.segments[prompt].len - 1;
        let own = self.len();
        self.push(Some(prompt), &response[..response.len() - 1]);
        self.scored.extend(
            response.iter().enumerate().map(|(i, &target)| Scored {
                row: if i == 0 { last_prompt_row } else { own + i - 1 },
                target,
            }),
        );
        first..self.scored.len()
    }

    /// Position of each row in its text.
    pub fn positions(&self) -> Vec<usize> {
        self.segments.iter().flat_map(|s| s.position..s.position + s.len).collect()
    }

    /// For each segment the number of its text, counted from 0.
    pub fn texts(&self) -> Vec<usize> {
        let mut texts = 0;
        let mut number = |segment: &Segment| {
            texts += usize::from(segment.parent.is_none());
            texts - 1
        };
        self.segments.iter().map(&mut number).collect()
    }

    fn root(&self, mut segment: usize) -> usize {
        while let Some(parent) = self.segments[segment].parent {
            segment = parent;
        }
        segment
    }

    /// What each segment's rows see.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let rows = |i: usize| self.segments[i].start..self.segments[i].start + self.segments[i].len;
        let visible = |i: usize| {
            let mut path = vec![rows(i)];
            let mut at = i;
            while let Some(parent) = self.segments[at].parent {
                path.push(rows(parent));
                at = parent;
            }
            path.reverse();
            path
        };
        (0..self.segments.len())
            .filter(|&i| self.segments[i].len > 0)
            .map(|i| Run { rows: rows(i), keys: visible(i), tree: self.root(i) })
            .collect()
    }
}

/// Tokens that all prompts begin with, but not the last token of any: it predicts that prompt's own responses.
fn shared_prefix(pairs: &[[&[u32]; 3]]) -> usize {
    let Some(([first, ..], others)) = pairs.split_first() else { return 0 };
    let common = |prompt: &[u32]| first.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    let bound = |prompt: &[u32]| common(prompt).min(prompt.len() - 1);
    others.iter().map(|[prompt, ..]| bound(prompt)).fold(first.len() - 1, usize::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_shares_its_prompt() {
        let mut pack = Pack::default();
        pack.push_pair(&[1, 2], &[3, 4, 5], &[6]);
        let span = pack.push_pair(&[7], &[8, 9], &[8, 1]);
        assert_eq!(pack.tokens, [1, 2, 3, 4, 7, 8, 8]);
        assert_eq!(span, PairSpan { shared: 4..4, rows: 4..7, chosen: 4..6, rejected: 6..8 });
        assert_eq!(pack.positions(), [0, 1, 2, 3, 0, 1, 1]);
        let scored: Vec<_> = pack.scored.iter().map(|s| (s.row, s.target)).collect();
        assert_eq!(scored, [(1, 3), (2, 4), (3, 5), (1, 6), (4, 8), (5, 9), (4, 8), (6, 1)]);
        let runs = pack.runs();
        assert_eq!(runs.len(), 5);
        assert_eq!(runs[4], Run { rows: 6..7, keys: vec![4..5, 6..7], tree: 3 });
    }

    #[test]
    fn pairs_share_what_their_prompts_begin_with() {
        let mut pack = Pack::default();
        pack.push(None, &[9]);
        let spans = pack.push_pairs(&[[&[1, 2, 3], &[4, 5], &[6]], [&[1, 2, 3, 7], &[4], &[8, 9]]]);
        assert_eq!(pack.tokens, [9, 1, 2, 3, 4, 3, 7, 8]);
        assert_eq!(pack.positions(), [0, 0, 1, 2, 3, 2, 3, 4]);
        assert_eq!(spans[0], PairSpan { shared: 1..3, rows: 3..5, chosen: 0..2, rejected: 2..3 });
        assert_eq!(spans[1], PairSpan { shared: 1..3, rows: 5..8, chosen: 3..4, rejected: 4..6 });
        let rows: Vec<_> = pack.scored.iter().map(|s| s.row).collect();
        assert_eq!(rows, [3, 4, 3, 6, 6, 7]);
        let runs = pack.runs();
        let last = Run { rows: 7..8, keys: vec![1..3, 5..7, 7..8], tree: 1 };
        assert_eq!(runs.last(), Some(&last));
        let mut alone = Pack::default();
        let span = alone.push_pair(&[1, 2, 3], &[4, 5], &[6]);
        assert_eq!(
            alone.push_pairs(&[[&[1, 2, 3], &[4, 5], &[6]]])[0].shared,
            4..4,
            "one pair shares nothing"
        );
        assert_eq!(span.shared, 0..0);
    }
}
