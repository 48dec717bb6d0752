//! What is evaluated: a model under several strengths of one plan.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use steerkit_model::{Model, ModelError, Prompting};

use super::judged::Judging;
use super::sentinel::check_effect;
use crate::{PromptShape, Result, SteeringPlan, SteeringVector};

/// A plan whose multipliers were all multiplied by one number.
#[derive(Clone, Debug)]
pub struct Steering {
    /// That number; 0 is the plain model.
    pub multiplier: f64,
    /// The plan, multiplied.
    pub plan: SteeringPlan,
}

impl Steering {
    /// One vector at each of the multipliers, added where it was trained.
    ///
    /// # Errors
    /// [`crate::SteerError::Multiplier`] for a multiplier that is not finite.
    pub fn of_vector(vector: &Arc<SteeringVector>, multipliers: &[f64]) -> Result<Vec<Self>> {
        let of = |&multiplier: &f64| {
            Ok(Self { multiplier, plan: SteeringPlan::new().add(Arc::clone(vector), multiplier as f32)? })
        };
        multipliers.iter().map(of).collect()
    }
}

/// How far an evaluation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being done.
    pub what: &'a str,
    /// Units behind us.
    pub done: usize,
    /// Units in all.
    pub total: usize,
}

/// Who wants to know how far an evaluation has come.
pub type Watch<'w> = dyn FnMut(Progress<'_>) + 'w;

/// A model, how it is asked, and the strengths of the plan.
#[derive(Clone)]
pub struct Subject<'a> {
    /// The model.
    pub model: &'a Model,
    /// How questions become prompts.
    pub prompting: Prompting<'a>,
    /// The strengths, ascending, each once; one of them is 0.
    pub steerings: Vec<Steering>,
    /// Seed of drawn questions, sampled texts and the bootstrap.
    pub seed: u64,
    /// Questions at most.
    pub limit: Option<usize>,
    /// Set to end the evaluation.
    pub cancel: &'a AtomicBool,
    /// Who judges answers, in the evaluations that have answers judged.
    pub judging: Option<Judging<'a>>,
}

impl Subject<'_> {
    /// The multipliers, ascending.
    pub fn multipliers(&self) -> Vec<f64> {
        self.steerings.iter().map(|steering| steering.multiplier).collect()
    }

    /// The place of the plain model among the strengths.
    pub fn plain(&self) -> usize {
        let at = self.steerings.iter().position(|steering| steering.multiplier == 0.0);
        at.expect("the plain model is one of the strengths")
    }

    /// What the plan must know of the prompt of `len` tokens that asks `question`.
    pub(super) fn shape(&self, question: &str, len: usize) -> Result<PromptShape> {
        match self.steerings.iter().find(|steering| steering.plan.needs_user()) {
            Some(steering) => steering.plan.shape(&self.prompting, question, len),
            None => Ok(PromptShape { len, last_user: 0..0 }),
        }
    }

    /// Refuses a plan that leaves the model as it is.
    pub(super) fn check_effect(&self, prompt: &[u32], shape: &PromptShape) -> Result<()> {
        for steering in self.steerings.iter().filter(|steering| steering.multiplier != 0.0) {
            let edits = steering.plan.edits(self.model.config(), shape)?;
            check_effect(self.model, &steering.plan, &edits, prompt)?;
        }
        Ok(())
    }

    /// An error when somebody asked the evaluation to end.
    pub(super) fn go_on(&self) -> Result<()> {
        match self.cancel.load(Ordering::Relaxed) {
            true => Err(ModelError::Interrupted.into()),
            false => Ok(()),
        }
    }

    /// The places of at most `limit` of `n` questions: drawn with the seed, in their order.
    pub(crate) fn drawn(&self, n: usize) -> Vec<usize> {
        super::stats::draw(n, self.limit.unwrap_or(n), self.seed)
    }
}
