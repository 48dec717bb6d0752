//! Packing: several texts with shared beginnings in one batch of rows, without padding.

use std::ops::Range;

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
    /// Its rows: prompt, chosen without its last token, rejected without its last.
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
    pub fn push(&mut self, parent: Option<usize>, tokens: &[u32]) -> usize {
        let position = parent.map_or(0, |p| self.segments[p].position + self.segments[p].len);
        self.segments.push(Segment { start: self.tokens.len(), len: tokens.len(), parent, position });
        self.tokens.extend_from_slice(tokens);
        self.segments.len() - 1
    }

    /// Packs a preference pair behind one shared prompt and scores every token of both responses; the first
    /// is predicted from the prompt's last row. `prompt` and both responses must hold at least one token.
    pub fn push_pair(&mut self, prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> PairSpan {
        let first_row = self.len();
        let p = self.push(None, prompt);
        let chosen_scored = self.push_response(p, chosen);
        let rejected_scored = self.push_response(p, rejected);
        PairSpan { rows: first_row..self.len(), chosen: chosen_scored, rejected: rejected_scored }
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
}
