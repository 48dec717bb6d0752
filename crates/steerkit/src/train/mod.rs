//! Training a steering vector, vectors of several layers together, or an adapter.
//!
//! Blocks 0 to L do not see the vector, so they run once per pair (`cache`); every step runs only the blocks
//! above, forward and backward (`pass`). The order of the data is laid out before the first step (`order`),
//! sums are taken in the order of the examples, and the state is saved between steps (`checkpoint`): so the
//! same recipe gives the same bytes, interrupted or not, whatever the number of threads or the memory at hand.

pub(crate) mod cache;
mod checkpoint;
mod encode;
mod evaluate;
mod layer;
mod lock;
mod memory;
#[cfg(test)]
mod objective_goldens;
pub(crate) mod observer;
pub(crate) mod order;
pub(crate) mod pass;
mod prefix;
mod run;
mod score;
pub(crate) mod trainee;
#[cfg(test)]
mod trainee_goldens;

pub use encode::{RunData, TokenSet};
pub(crate) use encode::{prompting, read_splits};
pub use evaluate::{EvalPoint, Measured};
pub use lock::RunLock;
pub use observer::{Event, Observer};
pub use order::{Batch, Order};
pub use pass::TokenPair;
pub(crate) use pass::packed_rows;
pub use prefix::Prefix;
pub(crate) use prefix::{Need, used};
pub(crate) use score::{Added, plain_logps, steered_logps};

use crate::{
    Result, SteerError,
    recipe::{LayerChoice, Recipe},
    vector::SteeringVector,
};
use serde::Serialize;
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};
use steerkit_model::{Model, lora::TrainableLora};

/// What to do with a run folder that is not empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Refuse a folder that holds a run.
    #[default]
    New,
    /// Remove the run that the folder holds.
    Overwrite,
    /// Go on with the run that the folder holds; it must be of the same recipe, model and data.
    Resume,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The vectors, as saved: one for a layer, those of silent layers left out. None where an adapter was trained.
    pub vectors: Vec<SteeringVector>,
    /// The run's folder.
    pub folder: PathBuf,
    /// The file of the vectors, or the adapter's folder.
    pub file: PathBuf,
    /// The lowest block after which something is added; 0 for an adapter.
    pub layer: usize,
    /// What was trained for each block; nothing for an adapter.
    pub layers: Vec<LayerOutcome>,
    /// The adapter that was trained, with its numbers.
    pub adapter: Option<(TrainableLora, Vec<f32>)>,
    /// Optimiser steps done.
    pub steps: usize,
    /// Euclidean norm of all vectors together; of an adapter that of what it adds to the weights.
    pub norm: f64,
    /// Dose of all layers together: the root of the sum of their squares. None for an adapter.
    pub relative_dose: Option<f64>,
    /// Pairs trained on.
    pub trained_pairs: usize,
    /// Pairs of the last evaluation: `test`, else `valid`, else `train`.
    pub split: String,
    /// The last evaluation, one point per multiplier of the recipe.
    pub eval: Vec<EvalPoint>,
}

/// What was trained for one block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerOutcome {
    /// The block.
    pub layer: usize,
    /// Euclidean norm of its vector.
    pub norm: f64,
    /// Median norm of the residual stream there over the training pairs, position 0 excluded; of several layers, above
    /// the lowest over the first 64 pairs.
    pub residual_norm: f64,
    /// `norm / residual_norm`.
    pub relative_dose: f64,
}

/// Trains into a new folder: `vector.safetensors` (or `adapter/`), `recipe.toml`, `metrics.jsonl`, a TensorBoard
/// event file, `checkpoints/`, and with `epoch_vectors` the vector of every epoch in `vectors/`.
///
/// `model` must have been opened with the recipe's precision. Setting `cancel` ends the run after the micro-batch
/// at hand, with its state saved.
///
/// # Errors
/// [`crate::SteerError::Interrupted`] after `cancel`, [`crate::SteerError::Diverged`] when numbers leave the
/// finite range, and what reading data and writing files gives.
pub fn train(
    model: &Model,
    recipe: &Recipe,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    train_from(Start::New, model, recipe, observer, cancel)
}

/// As [`train`], with a choice of what to do with a folder that is not empty.
///
/// # Errors
/// As [`train`]; [`crate::SteerError::ResumeMismatch`] when the run to go on with is another one.
pub fn train_from(
    start: Start,
    model: &Model,
    recipe: &Recipe,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let data = RunData::read(model, recipe, observer)?;
    train_tokens(start, model, recipe, &data, observer, cancel)
}

/// Makes one vector for each of `layers`, each a run of its own in a folder `layer-N` of the recipe's. All layers come
/// from one pass of the pairs through the blocks below.
///
/// # Errors
/// As [`train_from`], and a recipe that does not make the vector of one layer.
pub fn train_layers(
    start: Start,
    model: &Model,
    recipe: &Recipe,
    layers: &[usize],
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Vec<Outcome>> {
    if let Err(message) = recipe.makes_one_vector() {
        let hint = Some("train it without --each-layer".into());
        return Err(SteerError::Recipe { place: "several runs".into(), message, hint });
    }
    let mut data = RunData::read(model, recipe, observer)?;
    let prefix = Prefix::of_layers(model, recipe, &data, layers, observer, cancel)?;
    data.prefix = Some(Arc::new(prefix));
    let run = |&layer: &usize| {
        let out = recipe.out.join(format!("layer-{layer}"));
        let recipe = Recipe { layer: LayerChoice::Block(layer), out, ..recipe.clone() };
        train_tokens(start, model, &recipe, &data, observer, cancel)
    };
    layers.iter().map(run).collect()
}

/// As [`train_from`], on pairs that are tokens already.
///
/// # Errors
/// As [`train_from`].
///
/// # Panics
/// When a split holds no pair, or a pair has an empty prompt or response.
pub fn train_tokens(
    start: Start,
    model: &Model,
    recipe: &Recipe,
    data: &RunData,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    run::run(start, model, recipe, data, observer, cancel)
}
