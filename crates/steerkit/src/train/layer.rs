//! Choosing the layer.
//!
//! Candidates are 40, 45, 50 and 55% of the depth. At each, the mean difference of the responses' residual
//! streams (chosen minus rejected, averaged over a response's rows, then over pairs) is scaled to the usual dose;
//! the layer where it separates held-out pairs most wins. No gradient, and never the test set.

use super::{
    observer::{Event, Halt, Observer, check},
    order::{Stream, generator},
    pass::{Packed, TokenPair, micro_batches, pair_logps},
};
use crate::optim::{NormBudget, norm};
use rand::seq::SliceRandom;
use std::{collections::BTreeSet, sync::atomic::AtomicBool};
use steerkit_model::{Keep, Model};

/// Candidate layers as shares of the depth.
const DEPTHS: [f64; 4] = [0.40, 0.45, 0.50, 0.55];
/// Pairs that the mean difference is taken over, at most.
const TRAIN_PAIRS: usize = 64;
/// Pairs that a candidate is measured on, at most.
const VALID_PAIRS: usize = 32;

/// The search for a layer.
pub(crate) struct LayerSearch<'a> {
    pub(crate) model: &'a Model,
    pub(crate) train: &'a [TokenPair],
    pub(crate) valid: &'a [TokenPair],
    pub(crate) seed: u64,
    pub(crate) micro_batch_rows: usize,
}

impl LayerSearch<'_> {
    /// The best of the candidates; the lower one when two are equal.
    pub(crate) fn run(&self, observer: &mut dyn Observer, cancel: &AtomicBool) -> Result<usize, Halt> {
        let candidates = candidates(self.model.config().n_layers);
        let mut sample: Vec<&TokenPair> = self.train.iter().collect();
        sample.shuffle(&mut generator(self.seed, Stream::LayerSearch));
        sample.truncate(TRAIN_PAIRS);
        let valid = &self.valid[..self.valid.len().min(VALID_PAIRS)];
        let mut best = (candidates[0], f64::NEG_INFINITY);
        for (i, &layer) in candidates.iter().enumerate() {
            let v = self.mean_difference(&sample, layer, cancel)?;
            let half_spread = self.half_spread(valid, layer, &v, cancel)?;
            if half_spread > best.1 {
                best = (layer, half_spread);
            }
            observer.event(Event::Layer { layer, half_spread, done: i + 1, total: candidates.len() });
        }
        Ok(best.0)
    }

    /// The mean difference after block `layer`, scaled to the dose `[d]`.
    fn mean_difference(
        &self,
        pairs: &[&TokenPair],
        layer: usize,
        cancel: &AtomicBool,
    ) -> Result<Vec<f32>, Halt> {
        let d = self.model.config().d_model;
        let mut sum = vec![0f64; d];
        let mut norms: Vec<f64> = Vec::new();
        for run in micro_batches(pairs.iter().map(|p| p.rows()), self.micro_batch_rows) {
            check(cancel)?;
            let pairs = &pairs[run];
            let packed = Packed::unsteered(pairs.iter().copied());
            let h_td = self.model.residual(&packed.pack, layer)?;
            for (pair, span) in pairs.iter().zip(&packed.spans) {
                let rows_td = Packed::pair_rows(span, &h_td, d);
                let rows: Vec<&[f32]> = rows_td.chunks_exact(d).collect();
                let (rest, rejected) = rows.split_at(rows.len() - (pair.rejected.len() - 1));
                let chosen = &rest[rest.len() - (pair.chosen.len() - 1)..];
                if !chosen.is_empty() && !rejected.is_empty() {
                    for (side, sign) in [(chosen, 1.0), (rejected, -1.0)] {
                        let weight = sign / side.len() as f64;
                        for row in side {
                            sum.iter_mut().zip(*row).for_each(|(s, &x)| *s += weight * f64::from(x));
                        }
                    }
                }
                norms.extend(rows[1..].iter().map(|row| norm(row)));
            }
        }
        norms.sort_unstable_by(f64::total_cmp);
        let residual_norm = norms.get(norms.len() / 2).copied().unwrap_or(0.0);
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        let scale = NormBudget::default().dose * residual_norm / length;
        Ok(sum.into_iter().map(|x| (x * scale) as f32).collect())
    }

    /// Half the difference of the mean margins at `+v` and `-v`; the reference cancels.
    fn half_spread(
        &self,
        pairs: &[TokenPair],
        layer: usize,
        v: &[f32],
        cancel: &AtomicBool,
    ) -> Result<f64, Halt> {
        let mut total = 0.0;
        for run in micro_batches(pairs.iter().map(TokenPair::rows), self.micro_batch_rows) {
            let packed = Packed::unsteered(&pairs[run]);
            let h_td = self.model.residual(&packed.pack, layer)?;
            for sign in [1f32, -1.0] {
                check(cancel)?;
                let edited: Vec<f32> = h_td
                    .chunks_exact(v.len())
                    .flat_map(|row| row.iter().zip(v).map(move |(h, v)| h + sign * v))
                    .collect();
                let scores = self.model.score_from(layer, &edited, &packed.pack, Keep::Nothing)?;
                let margins = packed.spans.iter().map(|span| pair_logps(scores.logps(), span).margin());
                total += f64::from(sign) * margins.sum::<f64>();
            }
        }
        Ok(total / (2.0 * pairs.len() as f64))
    }
}

/// The blocks at [`DEPTHS`] of a model of `n_layers`, ascending, each once.
fn candidates(n_layers: usize) -> Vec<usize> {
    let at = |share: f64| ((share * n_layers as f64).round() as usize).min(n_layers.saturating_sub(2));
    DEPTHS.into_iter().map(at).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn candidates_lie_around_the_middle() {
        assert_eq!(super::candidates(30), [12, 14, 15, 17]);
        assert_eq!(super::candidates(32), [13, 14, 16, 18]);
        assert_eq!(super::candidates(4), [2]);
        assert_eq!(super::candidates(1), [0]);
    }
}
