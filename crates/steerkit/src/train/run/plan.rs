//! What a run trains, and whether that fits into memory.

use crate::{
    Result, SteerError,
    recipe::{LayerChoice, Method, Recipe},
    train::{
        RunData, TokenPair,
        cache::{CachePolicy, PairCache},
        checkpoint::Checkpoint,
        layer::LayerSearch,
        memory::{Footprint, available},
        observer::{Event, Halt, Observer},
        order::Order,
        trainee::Trainee,
    },
};
use std::sync::atomic::AtomicBool;
use steerkit_model::{Model, ModelError, lora::TrainableLora};

/// What the recipe trains on this model; the layer may be one that was found before the run was interrupted.
pub(super) fn trainee(
    model: &Model,
    recipe: &Recipe,
    data: &RunData,
    checkpoint: Option<&Checkpoint>,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Trainee, Halt> {
    let config = model.config();
    if let Some(settings) = &recipe.adapter {
        if recipe.layer != LayerChoice::Auto {
            observer.event(Event::Note("an adapter changes all blocks: the layer is not used".into()));
        }
        return Ok(Trainee::Adapter(TrainableLora::new(config, settings)?));
    }
    let layers = match (checkpoint, recipe.layer) {
        _ if !recipe.layers.is_empty() => recipe.layers.clone(),
        (Some(checkpoint), _) => vec![checkpoint.layer],
        (None, LayerChoice::Block(layer)) => vec![layer],
        (None, LayerChoice::Auto) => vec![search(model, recipe, data, observer, cancel)?],
    };
    let n_layers = config.n_layers;
    match layers.iter().find(|&&layer| layer >= n_layers) {
        Some(&layer) => Err(ModelError::UnknownLayer { layer, n_layers }.into()),
        None => Ok(Trainee::Vectors { layers, d: config.d_model }),
    }
}

/// The layer that separates held-out pairs best.
fn search(
    model: &Model,
    recipe: &Recipe,
    data: &RunData,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<usize, Halt> {
    let Some(valid) = &data.valid else {
        return Err(SteerError::Recipe {
            place: "layer".into(),
            message: "\"auto\" needs held-out pairs to choose by".into(),
            hint: Some("name a layer, or set data.valid or data.holdout".into()),
        }
        .into());
    };
    let micro_batch_rows = recipe.micro_batch_rows;
    let (train, valid, seed) = (&data.train.pairs, &valid.pairs, recipe.seed);
    let layer = LayerSearch { model, train, valid, seed, micro_batch_rows }.run(observer, cancel)?;
    observer.event(Event::Note(format!("layer {layer} separates the held-out pairs best")));
    Ok(layer)
}

/// Refuses a run that would not fit into memory; gives the bytes it will take.
pub(super) fn check_memory(
    model: &Model,
    trainee: &Trainee,
    recipe: &Recipe,
    order: &Order,
    (pairs, data): (&[TokenPair], &RunData),
    policy: &CachePolicy,
) -> Result<u64> {
    let (config, layer) = (model.config(), trainee.constant_up_to());
    let adapted = match trainee {
        Trainee::Vectors { .. } => 0,
        Trainee::Adapter(lora) => lora.kept_per_row(),
    };
    let size = |p: &TokenPair| (p.rows(), p.chosen.len() + p.rejected.len());
    let views = recipe.objective.most_views();
    let steered = |i: usize| (views * size(&pairs[i]).0, views * size(&pairs[i]).1);
    let steps = match recipe.method == Method::Grad0 {
        true => vec![(0..pairs.len()).map(steered).collect()],
        false => order.batches.iter().map(|b| b.pairs.iter().map(|p| steered(p.0)).collect()).collect(),
    };
    let mut sets = vec![pairs];
    sets.extend([&data.valid, &data.test].into_iter().flatten().map(|set| &set.pairs[..]));
    let width = if layer.is_some() { config.d_model } else { 0 };
    let in_memory =
        sets.iter().map(|set| PairCache::bytes(set, width, policy.stored)).filter(|&b| b <= policy.memory);
    let cached: u64 = in_memory.sum();
    let scored = pairs.iter().map(|p| size(p).1).sum();
    let beside = config.tile_bytes(scored, recipe.open_options().precision) as u64;
    let read = sets.iter().flat_map(|set| set.iter().map(size)).collect();
    // Here, on the device, and their gradients.
    let added = 3 * config.d_model * trainee.layers().len().saturating_sub(1);
    let footprint = Footprint { config, layer, adapted, added, lasting: cached + beside, read, steps };
    footprint.check(recipe.micro_batch_rows, available())?;
    Ok(footprint.bytes(recipe.micro_batch_rows))
}
