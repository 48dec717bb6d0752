//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) in the operation order of PyTorch's.

use super::{Cosine, StepContext, Warmup};
use serde::{Deserialize, Serialize};

/// Settings of AdamW and its schedule. The defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Peak learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Longest gradient; longer ones are scaled down.
    pub clip: Option<f64>,
    /// Warm-up of the learning rate.
    pub warmup: Warmup,
    /// Epochs after which the cosine reaches 0, where that is not the end of the run.
    pub schedule_epochs: Option<usize>,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            lr: 5e-4,
            weight_decay: 0.05,
            betas: [0.9, 0.999],
            eps: 1e-8,
            clip: None,
            warmup: Warmup::Steps(100),
            schedule_epochs: None,
        }
    }
}

/// Moments of AdamW.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWState {
    /// Running mean of the gradient `[d]`.
    pub mean: Vec<f32>,
    /// Running mean of its square `[d]`.
    pub square: Vec<f32>,
    /// Updates done.
    pub updates: u64,
}

impl AdamWState {
    /// Zeros.
    pub fn new(d: usize) -> Self {
        Self { mean: vec![0.0; d], square: vec![0.0; d], updates: 0 }
    }
}

impl AdamW {
    /// The rate that step `at.step` uses.
    pub fn learning_rate(&self, at: StepContext) -> f64 {
        let total = self.schedule_epochs.map_or(at.total_steps, |e| e * at.steps_per_epoch);
        self.lr * Cosine { warmup: self.warmup.steps(total), total }.factor(at.step)
    }

    /// One update, all arithmetic on the vector in f32, scalars in f64 as PyTorch keeps them.
    pub fn update(&self, state: &mut AdamWState, v: &mut [f32], grad: &[f32], lr: f64) {
        state.updates += 1;
        let [b1, b2] = self.betas;
        let updates = state.updates as f64;
        let step_size = (lr / (1.0 - b1.powf(updates))) as f32;
        let root_correction = (1.0 - b2.powf(updates)).sqrt() as f32;
        let decay = (1.0 - lr * self.weight_decay) as f32;
        let (w1, b2, w2, eps) = ((1.0 - b1) as f32, b2 as f32, (1.0 - b2) as f32, self.eps as f32);
        let moments = state.mean.iter_mut().zip(&mut state.square);
        for ((v, &g), (mean, square)) in v.iter_mut().zip(grad).zip(moments) {
            *v *= decay;
            *mean += w1 * (g - *mean);
            *square = *square * b2 + w2 * g * g;
            *v -= step_size * *mean / (square.sqrt() / root_correction + eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torch.optim.AdamW(lr=0.1, weight_decay=0.05) on [1, -2, 0.5], gradients [.3, -.1, 0], [.2, .4, -1],
    /// [0, 0, .5], torch 2.15, default (single-tensor) path.
    #[test]
    fn golden_three_steps_of_torch() {
        let o = AdamW { lr: 0.1, ..AdamW::default() };
        let mut s = AdamWState::new(3);
        let mut v = [1.0f32, -2.0, 0.5];
        let want: [[f32; 3]; 3] = [
            [0.89500004, -1.89, 0.4975],
            [0.7934898, -1.9365004, 0.5694262],
            [0.71451384, -1.9700676, 0.5894431],
        ];
        for (g, want) in [[0.3f32, -0.1, 0.0], [0.2, 0.4, -1.0], [0.0, 0.0, 0.5]].iter().zip(want) {
            o.update(&mut s, &mut v, g, o.lr);
            for (got, want) in v.iter().zip(want) {
                assert!((got - want).abs() <= 2.0 * f32::EPSILON, "{got} {want}");
            }
        }
    }

    #[test]
    fn the_schedule_may_outlast_the_run() {
        let at = StepContext { step: 60, total_steps: 60, steps_per_epoch: 3, residual_norm: 1.0 };
        let o = AdamW { warmup: Warmup::Steps(3), ..AdamW::default() };
        assert_eq!(o.learning_rate(at), 0.0);
        let long = AdamW { schedule_epochs: Some(100), ..o };
        // 57 of 297 steps down the cosine: (1 + cos(0.19192 pi)) / 2.
        assert!((long.learning_rate(at) / 5e-4 - 0.911_838).abs() < 1e-5);
    }
}
