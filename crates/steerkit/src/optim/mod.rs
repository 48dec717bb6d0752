//! Optimisers of a list of numbers, their learning-rate schedule, gradient clipping and penalties.

mod adamw;
mod clip;
mod factored;
mod norm_budget;
mod penalty;
mod schedule;

pub use adamw::{AdamW, AdamWState};
pub use clip::clip_by_norm;
pub use factored::{FactoredAdamW, FactoredState};
pub use norm_budget::{NormBudget, NormBudgetState};
pub use penalty::Penalty;
pub use schedule::{Cosine, Warmup};

use rand::Rng;
use serde::{Deserialize, Serialize};

/// The registry of optimisers; in a recipe `optimiser.kind` names the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Optimiser {
    /// PyTorch's AdamW with a cosine schedule.
    #[serde(rename = "adamw")]
    AdamW(AdamW),
    /// Normalised gradients under a fixed final norm.
    NormBudget(NormBudget),
    /// AdamW on a direction and a factor.
    #[serde(rename = "factored-adamw")]
    Factored(FactoredAdamW),
}

/// What an optimiser remembers between steps.
#[derive(Clone, Debug, PartialEq)]
pub enum OptimiserState {
    /// Of [`Optimiser::AdamW`].
    AdamW(AdamWState),
    /// Of [`Optimiser::NormBudget`].
    NormBudget(NormBudgetState),
    /// Of [`Optimiser::Factored`].
    Factored(FactoredState),
}

/// Numbers that steer an optimiser from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepContext {
    /// Steps done before this one.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// Steps per pass over the data; the unit of AdamW's schedule length.
    pub steps_per_epoch: usize,
    /// Typical norm of the residual stream at the layer; the unit of a dose.
    pub residual_norm: f64,
}

/// What one update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate used; none for a norm budget.
    pub lr: Option<f64>,
}

impl Optimiser {
    /// The state before the first step and the vector then, `[d]`.
    pub fn start(&self, d: usize, seed: u64) -> (OptimiserState, Vec<f32>) {
        let mut v = vec![0.0; d];
        let state = match self {
            Self::AdamW(_) => OptimiserState::AdamW(AdamWState::new(d)),
            Self::NormBudget(_) => OptimiserState::NormBudget(NormBudgetState::new(d)),
            Self::Factored(o) => {
                let state = o.start(d, seed);
                state.vector(&mut v);
                OptimiserState::Factored(state)
            }
        };
        (state, v)
    }

    /// Whether every step counts alike, whatever it measured.
    pub fn weighs_steps_alike(&self) -> bool {
        matches!(self, Self::NormBudget(_))
    }

    /// Moves `v` by one step along `grad` = d loss / d v.
    ///
    /// # Panics
    /// When `state` belongs to another optimiser, or widths differ.
    pub fn step(
        &self,
        state: &mut OptimiserState,
        v: &mut [f32],
        mut grad: Vec<f32>,
        at: StepContext,
    ) -> Update {
        match (self, state) {
            (Self::AdamW(o), OptimiserState::AdamW(s)) => {
                let grad_norm = clip_by_norm(&mut grad, o.clip);
                let lr = o.learning_rate(at);
                o.update(s, v, &grad, lr);
                Update { grad_norm, lr: Some(lr) }
            }
            (Self::NormBudget(o), OptimiserState::NormBudget(s)) => {
                let grad_norm = norm(&grad);
                o.update(s, v, &grad, at);
                Update { grad_norm, lr: None }
            }
            (Self::Factored(o), OptimiserState::Factored(s)) => {
                let grad_norm = clip_by_norm(&mut grad, o.clip);
                o.update(s, v, &grad, at);
                Update { grad_norm, lr: Some(o.lr) }
            }
            _ => panic!("the optimiser and its state are of one kind"),
        }
    }
}

/// A direction drawn uniformly from the sphere, of norm `length` `[d]`.
pub(crate) fn random_direction(d: usize, length: f64, rng: &mut impl Rng) -> Vec<f32> {
    // Box and Muller's transform of two uniform numbers; 1 - u is never 0.
    let mut normal = || {
        let (u, t): (f64, f64) = (rng.random(), rng.random());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * t).cos()
    };
    let x: Vec<f64> = (0..d).map(|_| normal()).collect();
    let scale = length / x.iter().map(|x| x * x).sum::<f64>().sqrt();
    x.into_iter().map(|x| (x * scale) as f32).collect()
}

/// Euclidean norm, summed in f64.
pub fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}
