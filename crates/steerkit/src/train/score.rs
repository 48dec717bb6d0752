//! Log-probabilities of pairs, with a vector and without.

use super::{
    Prefix, TokenPair,
    cache::{CachePolicy, CacheRequest, PairCache},
    observer::{Observer, check},
    pass::{Packed, Prepared, micro_batches, pair_logps},
    prefix::ended,
    trainee::Trainee,
};
use crate::{Result, objective::PairLogps, recipe::Recipe};
use std::sync::{Arc, atomic::AtomicBool};
use steerkit_model::{Model, Positions, lora::TrainableLora};

/// Log-probabilities of `pairs` under the plain model, from `prefix` where it has them all.
pub(crate) fn plain_logps(
    model: &Model,
    recipe: &Recipe,
    pairs: &[TokenPair],
    prefix: Option<&Prefix>,
    cancel: &AtomicBool,
) -> Result<Vec<PairLogps>> {
    let known = prefix.and_then(|prefix| pairs.iter().map(|pair| prefix.reference(pair)).collect());
    if let Some(known) = known {
        return Ok(known);
    }
    let mut all = Vec::with_capacity(pairs.len());
    for run in micro_batches(pairs.iter().map(TokenPair::rows), recipe.micro_batch_rows) {
        check(cancel).map_err(ended)?;
        let packed = Packed::unsteered(&pairs[run]);
        let logps = model.score(&packed.pack)?;
        all.extend(packed.spans.iter().map(|span| pair_logps(&logps, span)));
    }
    Ok(all)
}

/// What is added to the model, some number of times.
#[derive(Clone, Copy)]
pub(crate) enum Added<'a> {
    /// A vector after a block.
    Vector(usize, &'a [f32]),
    /// An adapter of these numbers.
    Adapter(&'a TrainableLora, &'a [f32]),
}

/// Log-probabilities of `pairs` with `multiplier` times what is `added`, for each of `multipliers`. `scopes` says where
/// a vector acts on each pair.
#[allow(clippy::too_many_arguments, reason = "a struct would only repeat the names")]
pub(crate) fn steered_logps(
    model: &Model,
    recipe: &Recipe,
    added: Added<'_>,
    (pairs, scopes): (Vec<TokenPair>, Vec<Positions>),
    prefix: Option<&Arc<Prefix>>,
    multipliers: &[f32],
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Vec<Vec<PairLogps>>> {
    let policy = CachePolicy { folder: None, prefix: prefix.cloned(), ..CachePolicy::of(recipe) };
    let (precision, micro_batch_rows) = (recipe.precision, recipe.micro_batch_rows);
    let (trainee, numbers) = match added {
        Added::Vector(layer, v) => (Trainee::vector(model, layer), v),
        Added::Adapter(lora, numbers) => (Trainee::Adapter(lora.clone()), numbers),
    };
    let layer = trainee.constant_up_to();
    let request =
        CacheRequest { model, layer, precision, split: "measured", pairs: &pairs, micro_batch_rows };
    let cache = PairCache::prepare(&request, &policy, observer, cancel).map_err(ended)?;
    let prepared = Prepared::new(model, trainee, pairs, scopes, cache, micro_batch_rows);
    let of = |&multiplier: &f32| {
        let items: Vec<_> = (0..prepared.pairs.len()).map(|i| (i, multiplier)).collect();
        prepared.score(&items, numbers, cancel).map_err(ended)
    };
    multipliers.iter().map(of).collect()
}
