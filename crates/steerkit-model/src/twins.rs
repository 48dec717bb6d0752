//! Texts that begin alike are read once: runs with the same tokens after the same text part only after the first
//! block whose edits differ.

use crate::Edit;
use crate::engine::CachedRun;
use std::ops::Range;

/// Which runs of a pass share their rows with an earlier one, and up to which block. A row's bits do not depend
/// on its batch, so sharing changes none.
pub(crate) struct Twins {
    /// For each run: the earlier run that it is read with, and the block after which their edits first differ
    /// (the number of blocks when they never do).
    leader: Vec<Option<(usize, usize)>>,
}

impl Twins {
    /// Runs of more than one token are compared: prompts.
    pub(crate) fn of(runs: &[CachedRun<'_>], n_layers: usize) -> Self {
        let leader = |run: usize| {
            let alike = (0..run).filter(|&other| read_the_same(&runs[run], &runs[other]));
            let parting = |other: usize| first_difference(runs[run].edits, runs[other].edits, n_layers);
            // The first of those that stay together longest.
            alike.map(|other| (other, parting(other))).rev().max_by_key(|&(_, parting)| parting)
        };
        Self { leader: (0..runs.len()).map(leader).collect() }
    }

    /// Whether `run` has rows of its own in block `layer`.
    fn is_computed(&self, run: usize, layer: usize) -> bool {
        self.leader[run].is_none_or(|(_, parting)| layer > parting)
    }

    /// The runs with rows of their own in block `layer`, in order.
    pub(crate) fn computed(&self, layer: usize) -> impl Iterator<Item = usize> {
        (0..self.leader.len()).filter(move |&run| self.is_computed(run, layer))
    }

    /// The run whose rows in block `layer` are also those of `run`.
    pub(crate) fn source(&self, run: usize, layer: usize) -> usize {
        match self.leader[run] {
            Some((leader, parting)) if layer <= parting => self.source(leader, layer),
            _ => run,
        }
    }

    /// Whether some run gets rows of its own after block `layer`.
    pub(crate) fn part_after(&self, layer: usize) -> bool {
        self.leader.iter().flatten().any(|&(_, parting)| parting == layer)
    }

    /// The rows of each run in block `layer`; none for those that have none of their own.
    pub(crate) fn rows(&self, runs: &[CachedRun<'_>], layer: usize) -> Vec<Option<Range<usize>>> {
        let mut end = 0;
        let rows = |(run, cached): (usize, &CachedRun<'_>)| {
            self.is_computed(run, layer).then(|| {
                end += cached.tokens.len();
                end - cached.tokens.len()..end
            })
        };
        runs.iter().enumerate().map(rows).collect()
    }
}

fn read_the_same(a: &CachedRun<'_>, b: &CachedRun<'_>) -> bool {
    a.tokens.len() > 1 && a.tokens == b.tokens && a.cache.tokens == b.cache.tokens
}

/// The lowest layer at which `a` and `b` differ, `n_layers` when they are the same.
fn first_difference(a: &[Edit], b: &[Edit], n_layers: usize) -> usize {
    let at = |edits: &[Edit], layer: usize| -> Vec<Edit> {
        edits.iter().filter(|e| e.layer == layer).cloned().collect()
    };
    let mut layers: Vec<usize> = a.iter().chain(b).map(|e| e.layer).collect();
    layers.sort_unstable();
    layers.into_iter().find(|&layer| at(a, layer) != at(b, layer)).unwrap_or(n_layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EditOp;
    use crate::engine::KvCache;

    fn add(layer: usize, x: f32) -> Edit {
        Edit::new(layer, EditOp::Add(vec![x].into()))
    }

    #[test]
    fn runs_part_after_the_first_block_that_differs() {
        let edits = [vec![add(1, 1.0)], vec![add(1, 2.0)], vec![add(1, 1.0)], vec![add(1, 2.0), add(2, 1.0)]];
        let mut caches: Vec<KvCache> =
            edits.iter().map(|_| KvCache::new::<crate::backend::cpu::Cpu>(Vec::new())).collect();
        let runs: Vec<CachedRun<'_>> = edits
            .iter()
            .zip(&mut caches)
            .map(|(edits, cache)| CachedRun { cache, edits, tokens: &[5, 6, 7], wanted: 1 })
            .collect();
        let twins = Twins::of(&runs, 4);
        let computed = |layer: usize| twins.computed(layer).collect::<Vec<_>>();
        assert_eq!([computed(0), computed(1)], [[0], [0]]);
        assert_eq!(computed(2), [0, 1]);
        assert_eq!(computed(3), [0, 1, 3]);
        let sources = |layer: usize| (0..4).map(|run| twins.source(run, layer)).collect::<Vec<_>>();
        assert_eq!(sources(1), [0, 0, 0, 0]);
        assert_eq!(sources(2), [0, 1, 0, 1]);
        assert_eq!(sources(4), [0, 1, 0, 3]);
        assert_eq!((0..4).map(|l| twins.part_after(l)).collect::<Vec<_>>(), [false, true, true, false]);
        assert_eq!(twins.rows(&runs, 3), [Some(0..3), Some(3..6), None, Some(6..9)]);
    }

    #[test]
    fn other_tokens_or_another_past_share_nothing() {
        let cache = |tokens: &[u32]| {
            let mut cache = KvCache::new::<crate::backend::cpu::Cpu>(Vec::new());
            cache.tokens.extend_from_slice(tokens);
            cache
        };
        let mut caches = [cache(&[1]), cache(&[2]), cache(&[1]), cache(&[1])];
        let tokens: [&[u32]; 4] = [&[3, 4], &[3, 4], &[3, 5], &[3, 4]];
        let runs: Vec<CachedRun<'_>> = caches
            .iter_mut()
            .zip(tokens)
            .map(|(cache, tokens)| CachedRun { cache, edits: &[], tokens, wanted: 1 })
            .collect();
        assert_eq!(Twins::of(&runs, 4).computed(0).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
