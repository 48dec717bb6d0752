//! Which pairs each step sees, and in which direction.
//!
//! The order is a pure function of the number of pairs, the recipe and its seed, laid out before training. So a
//! resumed run needs no generator state: it lays the same order out again and goes on at its step.

use crate::{
    objective::Direction,
    recipe::{Directions, Recipe},
};
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha20Rng;

/// The pairs of one optimiser step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Each pair, and how it is steered.
    pub pairs: Vec<(usize, Direction)>,
    /// Passes over the data begun, from 1.
    pub epoch: usize,
    /// Whether a pass over the data ends with this batch.
    pub ends_epoch: bool,
}

/// All steps of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The steps.
    pub batches: Vec<Batch>,
    /// Steps per pass over the data, rounded up.
    pub steps_per_epoch: usize,
}

/// Generator streams of a seed, so that two uses never share numbers.
#[derive(Clone, Copy)]
pub(crate) enum Stream {
    Shuffle = 1,
    Direction = 2,
    Holdout = 3,
    LayerSearch = 4,
    Factor = 5,
    Random = 7,
    Shots = 11,
}

/// The generator of one use of the seed.
pub(crate) fn generator(seed: u64, stream: Stream) -> ChaCha20Rng {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

impl Order {
    /// Lays out a run over `n` pairs.
    ///
    /// Every pass over the data is shuffled anew. AdamW's last batch of a pass may be short, as in the authors'
    /// code; a norm budget weighs all steps alike, so its batches are all full and run on into the next pass.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn new(n: usize, recipe: &Recipe) -> Self {
        assert!(n > 0, "there is at least one pair to train on");
        let size = recipe.batch.min(n);
        let short_batches = !recipe.optimiser.weighs_steps_alike();
        let steps_per_epoch = n.div_ceil(size);
        let total = recipe.steps.unwrap_or_else(|| {
            let epochs = recipe.epochs.unwrap_or(1);
            if short_batches { epochs * steps_per_epoch } else { (epochs * n).div_ceil(size) }
        });
        let mut shuffle = generator(recipe.seed, Stream::Shuffle);
        let mut draw = generator(recipe.seed, Stream::Direction);
        let mut left: Vec<usize> = Vec::new();
        let mut epoch = 0;
        let batches = (0..total)
            .map(|_| {
                let mut pairs = Vec::with_capacity(size);
                let mut began = epoch;
                while pairs.len() < size && (pairs.is_empty() || !(short_batches && left.is_empty())) {
                    if left.is_empty() {
                        epoch += 1;
                        left = (0..n).collect();
                        left.shuffle(&mut shuffle);
                        left.reverse();
                    }
                    if pairs.is_empty() {
                        began = epoch;
                    }
                    pairs.extend(left.pop());
                }
                let directions = directions(recipe.directions, pairs.len(), &mut draw);
                let mut pairs: Vec<_> = pairs.into_iter().zip(directions).collect();
                if recipe.directions == Directions::Both {
                    pairs = pairs.into_iter().flat_map(|(i, d)| [(i, d), (i, d.flipped())]).collect();
                }
                Batch { pairs, epoch, ends_epoch: left.is_empty() || began != epoch }
            })
            .collect();
        Self { batches, steps_per_epoch }
    }

    /// No steps: for methods that look at every pair once.
    pub(crate) fn none() -> Self {
        Self { batches: Vec::new(), steps_per_epoch: 1 }
    }

    /// The pairs that any step uses, ascending.
    pub fn used(&self) -> Vec<usize> {
        let all = self.batches.iter().flat_map(|b| b.pairs.iter().map(|p| p.0));
        all.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// Replaces each pair by its place in `used`, which holds all of them in ascending order.
    pub(crate) fn renumber(&mut self, used: &[usize]) {
        for (pair, _) in self.batches.iter_mut().flat_map(|b| &mut b.pairs) {
            *pair = used.partition_point(|u| u < pair);
        }
    }
}

/// The factor of each of the `n` pairs of step `step`, drawn from `factors`.
pub(crate) fn factors(factors: &[f32], seed: u64, step: usize, n: usize) -> Vec<f32> {
    if let [only] = factors {
        return vec![*only; n];
    }
    let mut rng = generator(seed, Stream::Factor);
    // A place of its own for every step: a resumed run draws what an uninterrupted one draws.
    rng.set_word_pos((step as u128) << 24);
    (0..n).map(|_| factors[rng.random_range(0..factors.len())]).collect()
}

fn directions(rule: Directions, n: usize, draw: &mut ChaCha20Rng) -> Vec<Direction> {
    match rule {
        Directions::Toward => vec![Direction::Toward; n],
        Directions::Drawn => {
            vec![if draw.random::<bool>() { Direction::Toward } else { Direction::Away }; n]
        }
        Directions::Balanced => {
            let half = n.div_ceil(2);
            (0..n).map(|i| if i < half { Direction::Toward } else { Direction::Away }).collect()
        }
        Directions::Both => vec![Direction::Toward; n],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Draft;

    fn recipe(preset: &str, more: &[(&str, &str)]) -> Recipe {
        let mut draft = Draft::parse("model = \"m\"\nout = \"o\"\n[data]\ntrain = \"t\"\n");
        draft.set("preset", preset);
        more.iter().for_each(|(key, value)| draft.set(key, value));
        draft.resolve().unwrap()
    }

    #[test]
    fn passes_cover_every_pair_once() {
        let order = Order::new(10, &recipe("paper", &[("epochs", "3")]));
        let sizes: Vec<usize> = order.batches.iter().map(|b| b.pairs.len()).collect();
        assert_eq!(sizes, [4, 4, 2, 4, 4, 2, 4, 4, 2]);
        for pass in order.batches.chunks(3) {
            let mut seen: Vec<usize> = pass.iter().flat_map(|b| b.pairs.iter().map(|p| p.0)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
            assert!(pass[2].ends_epoch && !pass[0].ends_epoch && !pass[1].ends_epoch);
        }
        assert_ne!(order.batches[0].pairs, order.batches[3].pairs);
        for batch in &order.batches {
            assert!(batch.pairs.iter().all(|p| p.1 == batch.pairs[0].1), "one d per batch");
        }
        let toward = order.batches.iter().filter(|b| b.pairs[0].1 == Direction::Toward).count();
        assert!((1..9).contains(&toward), "{toward}");
    }

    #[test]
    fn a_norm_budget_has_full_balanced_batches() {
        let order = Order::new(20, &recipe("auto", &[]));
        assert_eq!(order.batches.len(), 8);
        for batch in &order.batches {
            assert_eq!(batch.pairs.len(), 16);
            let toward = batch.pairs.iter().filter(|p| p.1 == Direction::Toward).count();
            assert_eq!(toward, 8);
        }
        assert_eq!(order.used().len(), 20);
        let epochs: Vec<usize> = order.batches.iter().map(|b| b.epoch).collect();
        assert_eq!(epochs, [1, 2, 3, 4, 4, 5, 6, 7]);
        assert_eq!(Order::new(3, &recipe("auto", &[])).batches[0].pairs.len(), 3);
    }

    #[test]
    fn the_seed_decides() {
        let of = |seed| Order::new(30, &recipe("paper", &[("epochs", "2"), ("seed", seed)]));
        assert_eq!(of("1"), of("1"));
        assert_ne!(of("1"), of("2"));
    }
}
