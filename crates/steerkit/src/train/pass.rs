//! Passes of pairs through the steered part of the model.

use super::{
    cache::PairCache,
    observer::{Halt, check},
};
use crate::objective::{Direction, Objective, PairLogps};
use std::{ops::Range, sync::atomic::AtomicBool};
use steerkit_model::{Keep, Model, Pack, pack::PairSpan};

/// A preference pair as token ids; the responses end in the end-of-text token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPair {
    /// The templated prompt, with the beginning-of-text token where the model wants one.
    pub prompt: Vec<u32>,
    /// The response with the target behaviour.
    pub chosen: Vec<u32>,
    /// The response with the opposite behaviour.
    pub rejected: Vec<u32>,
}

impl TokenPair {
    /// Rows of the pair in a pack.
    pub fn rows(&self) -> usize {
        (self.prompt.len() + self.chosen.len() + self.rejected.len()).saturating_sub(2)
    }

    /// Tokens of the prompt with the longer response.
    pub fn longest(&self) -> usize {
        self.prompt.len() + self.chosen.len().max(self.rejected.len())
    }
}

/// Pairs in one pack. Those whose residual stream gets the same multiple of `v` are one text: they share what
/// their prompts begin with.
pub(crate) struct Packed {
    pub(crate) pack: Pack,
    /// Where each pair lies, in the order given.
    pub(crate) spans: Vec<PairSpan>,
    /// The rows of each text and what scales `v` there.
    texts: Vec<(Range<usize>, f32)>,
}

impl Packed {
    /// Packs pairs, each with what scales `v` there.
    pub(crate) fn new(items: &[(&TokenPair, f32)]) -> Self {
        let (mut pack, mut texts) = (Pack::default(), Vec::new());
        let mut spans: Vec<Option<PairSpan>> = vec![None; items.len()];
        for first in 0..items.len() {
            if spans[first].is_some() {
                continue;
            }
            let scale = items[first].1;
            let same: Vec<usize> = (first..items.len()).filter(|&i| items[i].1 == scale).collect();
            let sides = |i: &usize| {
                let pair = items[*i].0;
                [&pair.prompt[..], &pair.chosen, &pair.rejected]
            };
            let start = pack.len();
            let of_text = pack.push_pairs(&same.iter().map(sides).collect::<Vec<_>>());
            for (i, span) in same.into_iter().zip(of_text) {
                spans[i] = Some(span);
            }
            texts.push((start..pack.len(), scale));
        }
        Self { pack, spans: spans.into_iter().flatten().collect(), texts }
    }

    /// Packs pairs of which none is steered.
    pub(crate) fn unsteered<'a>(pairs: impl IntoIterator<Item = &'a TokenPair>) -> Self {
        Self::new(&pairs.into_iter().map(|pair| (pair, 0.0)).collect::<Vec<_>>())
    }

    /// The rows of a pair, shared and own, from those of the pack.
    pub(crate) fn pair_rows(span: &PairSpan, rows_td: &[f32], d: usize) -> Vec<f32> {
        let rows = |range: &Range<usize>| &rows_td[range.start * d..range.end * d];
        [rows(&span.shared), rows(&span.rows)].concat()
    }

    /// The residual stream of the pack with the multiples of `v` added; `read` gives that of a pair alone.
    fn steered(
        &self,
        v: &[f32],
        mut read: impl FnMut(usize, &mut [f32]) -> std::io::Result<()>,
    ) -> std::io::Result<Vec<f32>> {
        let d = v.len();
        let mut h_td = vec![0f32; self.pack.len() * d];
        let mut pair_td = Vec::new();
        for (i, span) in self.spans.iter().enumerate() {
            let shared = span.shared.len() * d;
            pair_td.resize(shared + span.rows.len() * d, 0.0);
            read(i, &mut pair_td)?;
            h_td[span.shared.start * d..span.shared.end * d].copy_from_slice(&pair_td[..shared]);
            h_td[span.rows.start * d..span.rows.end * d].copy_from_slice(&pair_td[shared..]);
        }
        for (rows, scale) in &self.texts {
            let edit: Vec<f32> = v.iter().map(|x| scale * x).collect();
            for row in h_td[rows.start * d..rows.end * d].chunks_exact_mut(d) {
                row.iter_mut().zip(&edit).for_each(|(h, e)| *h += e);
            }
        }
        Ok(h_td)
    }

    /// `Σ scale · Σ rows` over the texts, in f64: what a gradient with respect to the rows means for `v`.
    fn add_gradient(&self, dh_td: &[f32], grad: &mut [f64]) {
        let d = grad.len();
        for (rows, scale) in &self.texts {
            let mut sum = vec![0f64; d];
            for row in dh_td[rows.start * d..rows.end * d].chunks_exact(d) {
                sum.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
            }
            grad.iter_mut().zip(&sum).for_each(|(g, s)| *g += f64::from(*scale) * s);
        }
    }
}

/// Rows of pairs that are steered alike, in one pack.
pub(crate) fn packed_rows<'a>(pairs: impl IntoIterator<Item = &'a TokenPair>) -> usize {
    Packed::unsteered(pairs).pack.len()
}

/// Splits items of the given rows into runs of at most `budget` rows, or of one item.
pub(crate) fn micro_batches(rows: impl IntoIterator<Item = usize>, budget: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (i, rows) in rows.into_iter().enumerate() {
        match runs.last_mut() {
            Some(run) if filled + rows <= budget => run.end = i + 1,
            _ => {
                runs.push(i..i + 1);
                filled = 0;
            }
        }
        filled += rows;
    }
    runs
}

/// Sums of the scored tokens of each pair, in order, in f64.
pub(crate) fn pair_logps(logps: &[f32], span: &PairSpan) -> PairLogps {
    let sum = |range: &Range<usize>| logps[range.clone()].iter().map(|&x| f64::from(x)).sum();
    PairLogps { chosen: sum(&span.chosen), rejected: sum(&span.rejected) }
}

/// A set of pairs that were run through blocks 0 to L once.
pub(crate) struct Prepared<'a> {
    pub(crate) model: &'a Model,
    pub(crate) layer: usize,
    pub(crate) pairs: Vec<TokenPair>,
    pub(crate) cache: PairCache,
    pub(crate) micro_batch_rows: usize,
}

/// Mean loss and gradient of a batch.
#[derive(Clone, Debug)]
pub(crate) struct BatchGradient {
    /// Mean loss in nats.
    pub(crate) loss: f64,
    /// Mean of d times the relative margin.
    pub(crate) margin: f64,
    /// Share of pairs with a positive d times relative margin.
    pub(crate) accuracy: f64,
    /// d mean loss / d v `[d]`.
    pub(crate) grad: Vec<f32>,
}

impl Prepared<'_> {
    /// Log-probabilities of `items` (pairs, and what scales `v` there), in their order.
    pub(crate) fn score(
        &self,
        items: &[(usize, f32)],
        v: &[f32],
        cancel: &AtomicBool,
    ) -> Result<Vec<PairLogps>, Halt> {
        let mut all = Vec::with_capacity(items.len());
        for run in micro_batches(items.iter().map(|i| self.pairs[i.0].rows()), self.micro_batch_rows) {
            check(cancel)?;
            let (packed, h_td) = self.steered(&items[run], v)?;
            let scores = self.model.score_from(self.layer, &h_td, &packed.pack, Keep::Nothing)?;
            all.extend(packed.spans.iter().map(|span| pair_logps(scores.logps(), span)));
        }
        Ok(all)
    }

    /// Mean loss of `batch` and its gradient with respect to `v`.
    ///
    /// With `h + d·v` in every row, d loss / d v is `d` times the sum over all rows of d loss / d h. Rows are summed
    /// in order, in f64. How the batch is cut into micro-batches decides which pairs share the rows of
    /// what their prompts begin with, and so the last bits of the gradient; the recipe fixes it.
    pub(crate) fn gradient(
        &self,
        batch: &[(usize, Direction)],
        v: &[f32],
        objective: &Objective,
        cancel: &AtomicBool,
    ) -> Result<BatchGradient, Halt> {
        let d = v.len();
        let (mut loss, mut margin, mut right) = (0.0, 0.0, 0usize);
        let mut grad = vec![0f64; d];
        let rows = batch.iter().map(|item| self.pairs[item.0].rows());
        for run in micro_batches(rows, self.micro_batch_rows) {
            check(cancel)?;
            let batch = &batch[run];
            let items: Vec<_> = batch.iter().map(|&(i, direction)| (i, direction.sign())).collect();
            let (packed, h_td) = self.steered(&items, v)?;
            let scores = self.model.score_from(self.layer, &h_td, &packed.pack, Keep::ForVjp)?;
            let mut coef = vec![0f32; scores.logps().len()];
            for (&(i, direction), span) in batch.iter().zip(&packed.spans) {
                let (policy, reference) = (pair_logps(scores.logps(), span), self.cache.reference(i));
                let pair = objective.loss(policy, reference, direction);
                coef[span.chosen.clone()].fill(pair.d_chosen as f32);
                coef[span.rejected.clone()].fill(pair.d_rejected as f32);
                let toward = f64::from(direction.sign()) * policy.relative_to(reference).margin();
                loss += pair.loss;
                margin += toward;
                right += usize::from(toward > 0.0);
            }
            drop(h_td);
            let dh_td = scores.vjp(&coef)?;
            packed.add_gradient(&dh_td, &mut grad);
        }
        let n = batch.len() as f64;
        let grad = grad.into_iter().map(|g| (g / n) as f32).collect();
        Ok(BatchGradient { loss: loss / n, margin: margin / n, accuracy: right as f64 / n, grad })
    }

    /// The packed pairs and their residual stream with `scale · v` added to every row.
    fn steered(&self, items: &[(usize, f32)], v: &[f32]) -> Result<(Packed, Vec<f32>), Halt> {
        let packed =
            Packed::new(&items.iter().map(|&(i, scale)| (&self.pairs[i], scale)).collect::<Vec<_>>());
        let h_td = packed.steered(v, |item, out| self.cache.read(items[item].0, out))?;
        Ok((packed, h_td))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_fill_up_and_keep_large_items_alone() {
        assert_eq!(micro_batches([3, 4, 5, 20, 1, 1], 8), [0..2, 2..3, 3..4, 4..6]);
        assert!(micro_batches([], 8).is_empty());
    }
}
