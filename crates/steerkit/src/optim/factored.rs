//! AdamW on a direction and a factor, learned jointly (PrOSV, arXiv 2605.05983).
//!
//! With `v = f·w`, d loss / d f = `w·g` and d loss / d w = `f·g`. The direction begins as a random one.

use super::{AdamW, AdamWState, StepContext, Warmup, norm};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};

/// Settings of a factored vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FactoredAdamW {
    /// Peak learning rate of the direction.
    pub lr: f64,
    /// Peak learning rate of the factor.
    pub lr_factor: f64,
    /// The factor at the first step.
    pub factor: f64,
    /// The direction's norm at the first step.
    pub norm: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Longest gradient with respect to `v`; longer ones are scaled down.
    pub clip: Option<f64>,
}

impl Default for FactoredAdamW {
    fn default() -> Self {
        Self { lr: 0.08, lr_factor: 0.08, factor: 2.0, norm: 8.0, weight_decay: 0.0, clip: Some(1.0) }
    }
}

/// Direction, factor and their moments.
#[derive(Clone, Debug, PartialEq)]
pub struct FactoredState {
    /// The direction `w` `[d]`.
    pub direction: Vec<f32>,
    /// The factor `f`.
    pub factor: f32,
    /// Moments of the direction.
    pub of_direction: AdamWState,
    /// Moments of the factor.
    pub of_factor: AdamWState,
}

impl FactoredAdamW {
    /// The state before the first step: a random direction of `seed`.
    pub fn start(&self, d: usize, seed: u64) -> FactoredState {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        rng.set_stream(FACTORED_STREAM);
        let direction = super::random_direction(d, self.norm, &mut rng);
        FactoredState {
            direction,
            factor: self.factor as f32,
            of_direction: AdamWState::new(d),
            of_factor: AdamWState::new(1),
        }
    }

    /// One update of both; the rates fall linearly to 0.
    pub fn update(&self, state: &mut FactoredState, v: &mut [f32], grad: &[f32], at: StepContext) {
        let left = 1.0 - at.step as f64 / at.total_steps.max(1) as f64;
        let adam = AdamW {
            lr: self.lr,
            weight_decay: self.weight_decay,
            clip: None,
            warmup: Warmup::Steps(0),
            ..AdamW::default()
        };
        let of_factor: f64 =
            state.direction.iter().zip(grad).map(|(&w, &g)| f64::from(w) * f64::from(g)).sum();
        let of_direction: Vec<f32> = grad.iter().map(|g| state.factor * g).collect();
        adam.update(&mut state.of_direction, &mut state.direction, &of_direction, self.lr * left);
        let mut factor = [state.factor];
        adam.update(&mut state.of_factor, &mut factor, &[of_factor as f32], self.lr_factor * left);
        state.factor = factor[0];
        state.vector(v);
    }
}

/// The generator stream of the first direction.
const FACTORED_STREAM: u64 = 6;

impl FactoredState {
    /// Writes `f·w` to `v`.
    pub fn vector(&self, v: &mut [f32]) {
        v.iter_mut().zip(&self.direction).for_each(|(v, w)| *v = self.factor * w);
    }

    /// Norm of the direction.
    pub fn direction_norm(&self) -> f64 {
        norm(&self.direction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With one number, w = 3 and f = 2: g = 0.5 gives d/df = 1.5 and d/dw = 1. AdamW's first step moves each by its
    /// rate against the sign: w = 2.9, f = 1.5, v = 4.35. Half-way the rates are half.
    #[test]
    fn steps_by_hand() {
        let o = FactoredAdamW { lr: 0.1, lr_factor: 0.5, ..FactoredAdamW::default() };
        let mut state = FactoredState { direction: vec![3.0], factor: 2.0, ..o.start(1, 0) };
        let mut v = [6.0];
        let at = |step| StepContext { step, total_steps: 2, steps_per_epoch: 1, residual_norm: 1.0 };
        o.update(&mut state, &mut v, &[0.5], at(0));
        assert!((v[0] - 4.35).abs() < 1e-5, "{v:?}");
        o.update(&mut state, &mut v, &[0.5], at(1));
        assert!((state.direction[0] - 2.85).abs() < 1e-2 && (state.factor - 1.25).abs() < 2e-2, "{state:?}");
        assert_eq!(v[0], state.factor * state.direction[0]);
    }

    #[test]
    fn the_seed_gives_the_first_direction() {
        let o = FactoredAdamW::default();
        assert_eq!(o.start(5, 1), o.start(5, 1));
        assert_ne!(o.start(5, 1), o.start(5, 2));
        assert!((o.start(500, 1).direction_norm() - 8.0).abs() < 1e-4);
    }
}
