//! Conditional steering: a plan acts only on prompts that meet a condition (CAST, ICLR 2025, arXiv 2409.05907).
//!
//! The condition is a direction `c` in the residual stream after a block, made like any other vector. A prompt meets it
//! when the cosine of `c` and the mean of the prompt's rows there is at least a threshold. Position 0 is left out of the
//! mean: its norm is many times that of the others in many models. The published measure, `cos(h, tanh(P h))` with the
//! projection `P` onto `c`, has the same sign whichever way `h` points along `c`, and saturates at the norms of real
//! residual streams; the cosine keeps both, and is what is computed here.
//!
//! The gate is read once per text, from its prompt alone, before the text begins. So what a text is does not depend on
//! its batch, and an open gate gives the text of the plan without a gate.

use std::sync::Arc;

use serde::Serialize;
use steerkit_model::{Model, ModelError, Pack};

use crate::vector::GateCalibration;
use crate::{PromptShape, Result, SteerError, SteeringVector};

/// A prompt as tokens, with what a token scope must know of it.
pub type ShapedPrompt = (Vec<u32>, PromptShape);

/// A condition that a prompt meets or does not.
#[derive(Clone, Debug)]
pub struct Gate {
    vector: Arc<SteeringVector>,
    threshold: f32,
}

/// What a gate says of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// Cosine of the condition and the prompt, from -1 to 1.
    pub similarity: f32,
    /// Whether it is at least the threshold.
    pub open: bool,
}

impl Gate {
    /// The condition of `vector` at `threshold`, or at the one that its file holds.
    ///
    /// # Errors
    /// [`SteerError::NoThreshold`] when neither is there.
    pub fn new(vector: Arc<SteeringVector>, threshold: Option<f32>) -> Result<Self> {
        let own = vector.provenance.gate.as_ref().map(|gate| gate.threshold);
        match threshold.or(own).filter(|t| t.is_finite()) {
            Some(threshold) => Ok(Self { vector, threshold }),
            None => Err(SteerError::NoThreshold { name: vector.provenance.name.clone() }),
        }
    }

    /// The similarity from which on the gate is open.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// The condition.
    pub fn vector(&self) -> &SteeringVector {
        &self.vector
    }

    /// Reads the gate for one prompt.
    ///
    /// # Errors
    /// Those of [`similarity`].
    pub fn read(&self, model: &Model, prompt: &ShapedPrompt) -> Result<Reading> {
        let similarity = similarity(model, &self.vector, prompt)? as f32;
        Ok(Reading { similarity, open: similarity >= self.threshold })
    }
}

/// Cosine of a condition and of a prompt's mean row after the condition's block, over the tokens of the condition's
/// scope; 0 for rows without direction.
///
/// # Errors
/// A vector of another width or layer; those of the model.
pub fn similarity(model: &Model, condition: &SteeringVector, prompt: &ShapedPrompt) -> Result<f64> {
    let d_model = model.config().d_model;
    if condition.direction.len() != d_model {
        return Err(ModelError::Width { found: condition.direction.len(), d_model }.into());
    }
    let mean = mean_row(model, condition, prompt)?;
    let dot: f64 = mean.iter().zip(&condition.direction).map(|(m, &c)| m * f64::from(c)).sum();
    let norms = f64::from(condition.norm()) * mean.iter().map(|m| m * m).sum::<f64>().sqrt();
    Ok(if norms > 0.0 { dot / norms } else { 0.0 })
}

/// The mean of the prompt's rows that the condition looks at.
fn mean_row(model: &Model, condition: &SteeringVector, (tokens, shape): &ShapedPrompt) -> Result<Vec<f64>> {
    let d = model.config().d_model;
    let mut pack = Pack::default();
    pack.push(None, tokens);
    let rows_td = model.residual(&pack, condition.layer)?;
    let positions = condition.provenance.token_scope.positions(shape);
    let mut seen: Vec<usize> = (1..tokens.len()).filter(|&at| positions.contains(at)).collect();
    if seen.is_empty() {
        // A scope of generated tokens only, or a prompt of one token.
        seen.push(tokens.len() - 1);
    }
    let mut mean = vec![0f64; d];
    for &row in &seen {
        let row = &rows_td[row * d..(row + 1) * d];
        mean.iter_mut().zip(row).for_each(|(m, &x)| *m += f64::from(x) / seen.len() as f64);
    }
    Ok(mean)
}

/// The direction from prompts that do not meet a condition to those that do: the difference of their mean rows, after
/// the block and over the tokens that `blank` names.
///
/// # Errors
/// Those of the model.
///
/// # Panics
/// Without prompts on a side.
pub fn condition(
    model: &Model,
    blank: &SteeringVector,
    positive: &[ShapedPrompt],
    negative: &[ShapedPrompt],
) -> Result<Vec<f32>> {
    let mut difference = vec![0f64; model.config().d_model];
    for (prompts, sign) in [(positive, 1.0), (negative, -1.0)] {
        assert!(!prompts.is_empty(), "both sides have prompts");
        for prompt in prompts {
            let mean = mean_row(model, blank, prompt)?;
            let weight = sign / prompts.len() as f64;
            difference.iter_mut().zip(&mean).for_each(|(s, m)| *s += weight * m);
        }
    }
    Ok(difference.into_iter().map(|x| x as f32).collect())
}

/// The threshold with the highest F1 on similarities of prompts that meet the condition and of others: of those between
/// two neighbouring similarities, the one with the widest gap where several are equally good.
///
/// # Panics
/// Without similarities on a side.
pub fn best_threshold(positive: &[f64], negative: &[f64]) -> GateCalibration {
    assert!(!positive.is_empty() && !negative.is_empty(), "both sides have prompts");
    let mut all: Vec<f64> = positive.iter().chain(negative).copied().collect();
    all.sort_unstable_by(f64::total_cmp);
    // Below the lowest, everything passes.
    let lowest = (all[0] - 1e-3, 0.0);
    let between = all.windows(2).map(|w| ((w[0] + w[1]) / 2.0, w[1] - w[0]));
    let f1 = |threshold: f64| {
        let passed = |values: &[f64]| values.iter().filter(|&&x| x >= threshold).count() as f64;
        let (right, wrong) = (passed(positive), passed(negative));
        2.0 * right / (positive.len() as f64 + right + wrong)
    };
    let mut best = (f64::NEG_INFINITY, 0.0, 0.0);
    for (threshold, gap) in std::iter::once(lowest).chain(between) {
        let score = f1(threshold);
        if (score, gap) > (best.0, best.1) {
            best = (score, gap, threshold);
        }
    }
    GateCalibration {
        threshold: best.2 as f32,
        f1: best.0 as f32,
        positives: positive.len(),
        negatives: negative.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_by_hand() {
        // Apart: every threshold between 0.2 and 0.6 is right; the middle of the gap is taken.
        let apart = best_threshold(&[0.6, 0.8], &[0.1, 0.2]);
        assert!((apart.threshold - 0.4).abs() < 1e-6 && apart.f1 == 1.0, "{apart:?}");
        // At 0.45: 2 right, 1 wrong of 2 positives: F1 = 4/5. At 0.7: 1 right, 0 wrong: 2/3.
        let mixed = best_threshold(&[0.5, 0.9], &[0.6, 0.4]);
        assert!((mixed.threshold - 0.45).abs() < 1e-6 && (mixed.f1 - 0.8).abs() < 1e-6, "{mixed:?}");
        // Turned round: letting all pass is best, F1 = 2/3.
        let turned = best_threshold(&[0.1], &[0.9]);
        assert!(turned.threshold < 0.1 && (turned.f1 - 2.0 / 3.0).abs() < 1e-6, "{turned:?}");
    }
}
