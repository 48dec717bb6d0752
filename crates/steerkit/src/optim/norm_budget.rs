//! A norm budget instead of a learning rate.
//!
//! How far a vector moves the log-probabilities is mostly its norm. So the final norm is fixed in advance, as a
//! dose of the residual stream's, and the steps only choose the direction: the sum of the normalised descent
//! directions seen so far. There is no rate, warm-up or clip to guess.

use super::{StepContext, norm};
use serde::{Deserialize, Serialize};

/// Settings of the norm budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NormBudget {
    /// Final norm of the vector as a share of the median norm of the residual stream at its layer.
    pub dose: f64,
}

impl Default for NormBudget {
    fn default() -> Self {
        Self { dose: 0.095 }
    }
}

/// The sum of normalised descent directions.
#[derive(Clone, Debug, PartialEq)]
pub struct NormBudgetState {
    /// `sum_k g_k / |g_k|` `[d]`, g = -d loss / d v.
    pub sum: Vec<f64>,
}

impl NormBudgetState {
    /// Zeros.
    pub fn new(d: usize) -> Self {
        Self { sum: vec![0.0; d] }
    }
}

impl NormBudget {
    /// Step k of K: `S += g/|g|`, `v = R·(k/K)·S/|S|` with `R = dose · residual norm`. A zero gradient adds
    /// nothing to `S`.
    pub fn update(&self, state: &mut NormBudgetState, v: &mut [f32], grad: &[f32], at: StepContext) {
        let length = norm(grad);
        if length > 0.0 {
            for (s, &g) in state.sum.iter_mut().zip(grad) {
                *s -= f64::from(g) / length;
            }
        }
        let sum_norm = state.sum.iter().map(|s| s * s).sum::<f64>().sqrt();
        if sum_norm > 0.0 {
            let share = (at.step + 1) as f64 / at.total_steps as f64;
            let scale = self.dose * at.residual_norm * share / sum_norm;
            for (v, s) in v.iter_mut().zip(&state.sum) {
                *v = (scale * s) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_walks_to_the_dose_in_equal_steps() {
        let o = NormBudget { dose: 0.1 };
        let mut s = NormBudgetState::new(2);
        let mut v = [0.0f32; 2];
        let at = |step| StepContext { step, total_steps: 4, steps_per_epoch: 1, residual_norm: 50.0 };
        o.update(&mut s, &mut v, &[-3.0, 0.0], at(0));
        assert_eq!(v, [1.25, 0.0]);
        // S = (1, 1): along the diagonal, at half the budget of 5.
        o.update(&mut s, &mut v, &[0.0, -0.01], at(1));
        assert!((v[0] - 2.5 / 2f32.sqrt()).abs() < 1e-6 && v[0] == v[1]);
        o.update(&mut s, &mut v, &[0.0, 0.0], at(2));
        assert!((norm(&v) - 3.75).abs() < 1e-6);
        o.update(&mut s, &mut v, &[-1.0, -1.0], at(3));
        assert!((norm(&v) - 5.0).abs() < 1e-6);
    }
}
