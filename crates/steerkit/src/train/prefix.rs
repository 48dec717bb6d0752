//! Residual streams and reference log-probabilities that several runs share: one pass over the distinct pairs gives all
//! layers that are asked for.

use super::{
    Order, RunData, TokenPair,
    cache::{CachePolicy, CacheRequest, PairCache},
    observer::{Halt, Observer},
};
use crate::{
    Result,
    objective::PairLogps,
    recipe::{Precision, Recipe},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::AtomicBool},
};
use steerkit_model::{Model, ModelError};

/// What blocks 0 to L make of many pairs, for several L. A run whose [`RunData`] holds one takes its pairs from it; the
/// numbers are those that the run would compute by itself, bit for bit.
#[derive(Debug)]
pub struct Prefix {
    model_sha256: String,
    precision: Precision,
    /// How the rows are stored.
    stored: Precision,
    by_layer: BTreeMap<usize, Vec<Part>>,
}

/// Pairs that are there for the same layers.
#[derive(Debug)]
struct Part {
    cache: Arc<PairCache>,
    places: Arc<HashMap<TokenPair, usize>>,
}

/// Pairs that a run will ask for after one block.
pub(crate) struct Need<'a> {
    pub(crate) layer: usize,
    pub(crate) pairs: Vec<&'a TokenPair>,
}

impl Prefix {
    /// Runs the pairs of `data` that `recipe` trains on, and those it measures, once through the model and keeps what
    /// each of `layers` gives.
    ///
    /// # Errors
    /// Those of the model and of the cache's files; [`ModelError::Interrupted`] when `cancel` is set.
    pub fn of_layers(
        model: &Model,
        recipe: &Recipe,
        data: &RunData,
        layers: &[usize],
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Self> {
        let used = used(recipe, data);
        let sets = [&data.valid, &data.test].into_iter().flatten().flat_map(|set| &set.pairs);
        let pairs: Vec<&TokenPair> = used.iter().map(|&i| &data.train.pairs[i]).chain(sets).collect();
        let needs: Vec<Need<'_>> = layers.iter().map(|&layer| Need { layer, pairs: pairs.clone() }).collect();
        Self::build(model, recipe, &needs, observer, cancel)
    }

    /// Makes, or takes from the cache of `recipe`, what is needed. Precision, cache and rows per pass are the recipe's.
    pub(crate) fn build(
        model: &Model,
        recipe: &Recipe,
        needs: &[Need<'_>],
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Self> {
        let groups = by_layers(needs);
        let d = model.config().d_model;
        let mut policy = CachePolicy::of(recipe);
        let stored = policy.stored;
        let size = |(layers, pairs): (&Vec<usize>, &Vec<TokenPair>)| {
            layers.len() as u64 * PairCache::bytes(pairs, d, stored)
        };
        // All of it stays in memory, or none.
        policy.memory = if groups.iter().map(size).sum::<u64>() <= policy.memory { u64::MAX } else { 0 };
        let mut by_layer: BTreeMap<usize, Vec<Part>> = BTreeMap::new();
        for (layers, pairs) in &groups {
            let request = |&layer: &usize| CacheRequest {
                model,
                layer: Some(layer),
                precision: recipe.precision,
                split: "all",
                pairs,
                micro_batch_rows: recipe.micro_batch_rows,
            };
            let requests: Vec<_> = layers.iter().map(request).collect();
            let caches = PairCache::prepare_all(&requests, &policy, observer, cancel).map_err(ended)?;
            let places: HashMap<_, _> = pairs.iter().cloned().enumerate().map(|(i, p)| (p, i)).collect();
            let places = Arc::new(places);
            for (&layer, cache) in layers.iter().zip(caches) {
                let part = Part { cache: Arc::new(cache), places: Arc::clone(&places) };
                by_layer.entry(layer).or_default().push(part);
            }
        }
        let model_sha256 = model.identity().file_sha256.clone();
        Ok(Self { model_sha256, precision: recipe.precision, stored, by_layer })
    }

    /// Where the pairs of `request` lie, if all of them are there and stored in that way.
    pub(crate) fn find(
        &self,
        request: &CacheRequest<'_>,
        stored: Precision,
    ) -> Option<Vec<(Arc<PairCache>, usize)>> {
        let same_model = request.model.identity().file_sha256 == self.model_sha256;
        if !same_model || (request.precision, stored) != (self.precision, self.stored) {
            return None;
        }
        let parts = self.by_layer.get(&request.layer?)?;
        let place = |pair: &TokenPair| parts.iter().find_map(|part| part.place(pair));
        request.pairs.iter().map(place).collect()
    }

    /// Log-probabilities of a pair under the plain model, if it is there for any layer.
    pub(crate) fn reference(&self, pair: &TokenPair) -> Option<PairLogps> {
        let (cache, i) = self.by_layer.values().flatten().find_map(|part| part.place(pair))?;
        Some(cache.reference(i))
    }
}

impl Part {
    fn place(&self, pair: &TokenPair) -> Option<(Arc<PairCache>, usize)> {
        self.places.get(pair).map(|&i| (Arc::clone(&self.cache), i))
    }
}

/// The pairs of `data` that `recipe` trains on.
pub(crate) fn used(recipe: &Recipe, data: &RunData) -> Vec<usize> {
    let n = data.train.pairs.len();
    match recipe.method.is_extraction() {
        true => (0..n).collect(),
        false => data.order.as_ref().map_or_else(|| Order::new(n, recipe).used(), Order::used),
    }
}

/// The distinct pairs, put together by the layers that they are needed for.
fn by_layers(needs: &[Need<'_>]) -> BTreeMap<Vec<usize>, Vec<TokenPair>> {
    let mut layers_of: HashMap<&TokenPair, BTreeSet<usize>> = HashMap::new();
    let mut order = Vec::new();
    for need in needs {
        for &pair in &need.pairs {
            let layers = layers_of.entry(pair).or_insert_with(|| {
                order.push(pair);
                BTreeSet::new()
            });
            layers.insert(need.layer);
        }
    }
    let mut groups: BTreeMap<Vec<usize>, Vec<TokenPair>> = BTreeMap::new();
    for pair in order {
        let layers = layers_of[pair].iter().copied().collect();
        groups.entry(layers).or_default().push(pair.clone());
    }
    groups
}

/// A pass that ended early, as an error of its caller.
pub(crate) fn ended(halt: Halt) -> crate::SteerError {
    match halt {
        Halt::Cancelled => ModelError::Interrupted.into(),
        Halt::Failed(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(token: u32) -> TokenPair {
        TokenPair { prompt: vec![token], chosen: vec![1], rejected: vec![2] }
    }

    #[test]
    fn pairs_are_put_together_by_their_layers() {
        let [a, b, c] = [pair(5), pair(6), pair(7)];
        let needs = [
            Need { layer: 3, pairs: vec![&a, &b] },
            Need { layer: 1, pairs: vec![&a, &c, &a] },
            Need { layer: 3, pairs: vec![&c] },
        ];
        let groups: Vec<_> = by_layers(&needs).into_iter().collect();
        assert_eq!(groups, [(vec![1, 3], vec![a, c]), (vec![3], vec![b])]);
    }
}
