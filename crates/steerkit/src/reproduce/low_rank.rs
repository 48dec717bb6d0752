//! DPO on an update of low rank: what a vector is compared with when no adapter is at hand.
//!
//! The residual stream after one block becomes `h + m·(α/r)·B·A·x`, with `x` the row over its root mean square (the input
//! that a projection behind a norm sees), `A` `[r, d]` drawn and `B` `[d, r]` zero at first, as LoRA has it (Hu et al.
//! 2021). Loss and settings are those of the paper's appendix F: DPO (Rafailov et al. 2023) with β 0.1, rank 8, α 16,
//! AdamW at 2e-4, weight decay 0.05, batches of 4, a cosine with 100 steps of warm-up. `m` is the multiplier of the paper's
//! figure 8: it scales the trained parameters.

use std::sync::atomic::Ordering;

use rand::seq::SliceRandom;
use steerkit_model::{Keep, Model, ModelError, Pack};

use super::measure::{Bench, Measured, read_json, write_json};
use super::vectors::Order;
use crate::Result;
use crate::eval::{Progress, Watch};
use crate::files::sha256;
use crate::objective::PairLogps;
use crate::optim::{AdamW, AdamWState, StepContext, Warmup};
use crate::train::order::{Stream, generator};
use crate::train::{Event, RunData, TokenPair};

const RANK: usize = 8;
const ALPHA: f64 = 16.0;
const BETA: f64 = 0.1;
const BATCH: usize = 4;

/// The trained update.
#[derive(Clone, Debug)]
struct Update {
    d: usize,
    /// `A` `[r, d]`, then `B` `[d, r]`.
    parameters: Vec<f32>,
}

/// Rows of a pair's pack after the block, over their root mean squares.
struct Rows {
    pack: Pack,
    /// Scored tokens of the chosen response; those of the rejected one follow.
    chosen: std::ops::Range<usize>,
    rejected: std::ops::Range<usize>,
    h_td: Vec<f32>,
    x_td: Vec<f32>,
}

impl Rows {
    fn of(model: &Model, layer: usize, pair: &TokenPair) -> Result<Self> {
        let mut pack = Pack::default();
        let span = pack.push_pair(&pair.prompt, &pair.chosen, &pair.rejected);
        let h_td = model.residual(&pack, layer)?;
        let d = model.config().d_model;
        let mut x_td = h_td.clone();
        for row in x_td.chunks_mut(d) {
            let square = row.iter().map(|x| x * x).sum::<f32>() / d as f32;
            let scale = 1.0 / (square + 1e-6).sqrt();
            row.iter_mut().for_each(|x| *x *= scale);
        }
        Ok(Self { pack, chosen: span.chosen, rejected: span.rejected, h_td, x_td })
    }

    fn logps(&self, logps: &[f32]) -> PairLogps {
        let sum = |range: &std::ops::Range<usize>| logps[range.clone()].iter().map(|&x| f64::from(x)).sum();
        PairLogps { chosen: sum(&self.chosen), rejected: sum(&self.rejected) }
    }
}

impl Update {
    fn new(d: usize, seed: u64) -> Self {
        use rand::Rng;
        let mut draw = generator(seed, Stream::Random);
        let bound = (d as f32).sqrt().recip();
        let mut parameters = vec![0.0; 2 * RANK * d];
        parameters[..RANK * d].iter_mut().for_each(|a| *a = draw.random_range(-bound..bound));
        Self { d, parameters }
    }

    fn split(&self) -> (&[f32], &[f32]) {
        self.parameters.split_at(RANK * self.d)
    }

    /// `A·x` of a row.
    fn down(&self, x: &[f32]) -> [f32; RANK] {
        let (a, _) = self.split();
        std::array::from_fn(|r| a[r * self.d..(r + 1) * self.d].iter().zip(x).map(|(a, x)| a * x).sum())
    }

    /// The rows with `multiplier` times the update.
    fn apply(&self, rows: &Rows, multiplier: f64) -> Vec<f32> {
        let scale = (multiplier * ALPHA / RANK as f64) as f32;
        let (_, b) = self.split();
        let mut h_td = rows.h_td.clone();
        for (h, x) in h_td.chunks_mut(self.d).zip(rows.x_td.chunks(self.d)) {
            let low = self.down(x);
            for (h, b) in h.iter_mut().zip(b.chunks(RANK)) {
                *h += scale * b.iter().zip(&low).map(|(b, l)| b * l).sum::<f32>();
            }
        }
        h_td
    }

    /// Adds the gradient of the parameters, at multiplier 1, from that of the rows.
    fn back(&self, rows: &Rows, grad_td: &[f32], grad: &mut [f32]) {
        let scale = (ALPHA / RANK as f64) as f32;
        let (_, b) = self.split();
        let (grad_a, grad_b) = grad.split_at_mut(RANK * self.d);
        for (g, x) in grad_td.chunks(self.d).zip(rows.x_td.chunks(self.d)) {
            let low = self.down(x);
            let mut up = [0f32; RANK];
            for ((g, b), grad_b) in g.iter().zip(b.chunks(RANK)).zip(grad_b.chunks_mut(RANK)) {
                for r in 0..RANK {
                    grad_b[r] += scale * g * low[r];
                    up[r] += scale * g * b[r];
                }
            }
            for (r, up) in up.iter().enumerate() {
                let row = &mut grad_a[r * self.d..(r + 1) * self.d];
                row.iter_mut().zip(x).for_each(|(grad, x)| *grad += up * x);
            }
        }
    }

    /// Adds a pair's share of the loss's gradient; gives its loss.
    fn learn(
        &self,
        model: &Model,
        layer: usize,
        pair: &TokenPair,
        share: f64,
        grad: &mut [f32],
    ) -> Result<f64> {
        let rows = Rows::of(model, layer, pair)?;
        let plain = model.score_from(layer, &rows.h_td, &rows.pack, Keep::Nothing)?;
        let plain = rows.logps(plain.logps());
        let scores = model.score_from(layer, &self.apply(&rows, 1.0), &rows.pack, Keep::ForVjp)?;
        let logit = BETA * rows.logps(scores.logps()).relative_to(plain).margin();
        // d -log σ(z) / dz = -σ(-z).
        let pull = -(BETA / (1.0 + logit.exp()) * share) as f32;
        let mut coef = vec![0.0; scores.logps().len()];
        coef[rows.chosen.clone()].fill(pull);
        coef[rows.rejected.clone()].fill(-pull);
        self.back(&rows, &scores.vjp(&coef)?, grad);
        Ok((-logit).exp().ln_1p())
    }
}

/// Trains the update and measures the test pairs at each multiplier.
pub(super) fn run(bench: &Bench<'_>, order: &Order<'_>, watch: &mut Watch<'_>) -> Result<Measured> {
    let (model, setup) = (bench.model, bench.setup);
    let layer = order.layer(model)?;
    let data = RunData::read(model, bench.recipe, &mut |_: Event<'_>| {})?;
    let pairs = &data.train.pairs;
    let epochs = bench.line.epochs.unwrap_or(bench.panel.epochs);
    let test = bench.pairs()?;
    let of = format!(
        "{} {} {layer} {epochs} {:?} {:?} {:?} {}",
        model.identity().file_sha256,
        data.train.sha256,
        data.train.rows,
        test.1,
        bench.panel.multipliers,
        setup.seed
    );
    let file = bench.out.join("jobs").join(format!("low-rank-{}.json", &sha256(of.as_bytes())[..12]));
    if let Some(done) = read_json(&file) {
        return Ok(done);
    }
    let update = train(bench, layer, pairs, epochs, watch)?;
    let mut values: Vec<Vec<Option<f64>>> = vec![Vec::new(); bench.panel.multipliers.len()];
    for pair in &test.0 {
        stop(bench)?;
        let rows = Rows::of(model, layer, pair)?;
        let at = |m: f64| -> Result<PairLogps> {
            let scores = model.score_from(layer, &update.apply(&rows, m), &rows.pack, Keep::Nothing)?;
            Ok(rows.logps(scores.logps()))
        };
        let plain = at(0.0)?;
        for (values, &m) in values.iter_mut().zip(&bench.panel.multipliers) {
            values.push(Some(at(m)?.relative_to(plain).margin()));
        }
    }
    let what = "margin of the reference answers over the plain model's, nats";
    let notes = vec![format!(
        "DPO-LoRA without --adapter is an update of rank {RANK} of the residual stream after block {layer}, trained here by DPO \
         for {epochs} epochs; an adapter of all blocks is another thing"
    )];
    let mut measured = Measured::of(what, &bench.panel.multipliers, values, notes, setup.seed);
    measured.layer = Some(layer);
    measured.files.insert(test.2, test.1);
    write_json(&file, &measured)?;
    Ok(measured)
}

fn stop(bench: &Bench<'_>) -> Result<()> {
    match bench.session.cancel.load(Ordering::Relaxed) {
        true => Err(ModelError::Interrupted.into()),
        false => Ok(()),
    }
}

fn train(
    bench: &Bench<'_>,
    layer: usize,
    pairs: &[TokenPair],
    epochs: usize,
    watch: &mut Watch<'_>,
) -> Result<Update> {
    let model = bench.model;
    let mut update = Update::new(model.config().d_model, bench.setup.seed);
    let steps_per_epoch = pairs.len().div_ceil(BATCH);
    let total_steps = epochs * steps_per_epoch;
    // A warm-up longer than a tenth of a short run would be all of it.
    let warmup = Warmup::Steps(100.min(total_steps / 10));
    let optimiser = AdamW { lr: 2e-4, warmup, ..AdamW::default() };
    let mut state = AdamWState::new(update.parameters.len());
    let mut shuffle = generator(bench.setup.seed, Stream::Shuffle);
    let mut step = 0;
    for _ in 0..epochs {
        let mut places: Vec<usize> = (0..pairs.len()).collect();
        places.shuffle(&mut shuffle);
        for batch in places.chunks(BATCH) {
            stop(bench)?;
            watch(Progress { what: "training the low-rank update", done: step, total: total_steps });
            let mut grad = vec![0.0; update.parameters.len()];
            for &i in batch {
                update.learn(model, layer, &pairs[i], 1.0 / batch.len() as f64, &mut grad)?;
            }
            let at = StepContext { step, total_steps, steps_per_epoch, residual_norm: 0.0 };
            let lr = optimiser.learning_rate(at);
            optimiser.update(&mut state, &mut update.parameters, &grad, lr);
            step += 1;
        }
    }
    Ok(update)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use steerkit_model::OpenOptions;

    fn model() -> Model {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/data/tiny-llama-gguf/tiny-llama-f32.gguf");
        Model::open(&path, &OpenOptions::default()).unwrap()
    }

    /// The gradient against central differences of the loss.
    #[test]
    fn gradients_agree_with_finite_differences() {
        let model = model();
        let pair = TokenPair { prompt: vec![5, 9, 31], chosen: vec![7, 40, 2], rejected: vec![60, 2] };
        let mut update = Update::new(model.config().d_model, 3);
        // B away from zero, so that A has a gradient.
        let n = update.parameters.len();
        for (i, x) in update.parameters[n / 2..].iter_mut().enumerate() {
            *x = 0.05 * ((i * 7 % 13) as f32 / 6.0 - 1.0);
        }
        let mut grad = vec![0.0; n];
        update.learn(&model, 1, &pair, 1.0, &mut grad).unwrap();
        let loss = |update: &Update| update.learn(&model, 1, &pair, 1.0, &mut vec![0.0; n]).unwrap();
        let mut seen = 0;
        for i in (0..n).step_by(n / 24) {
            let mut moved = update.clone();
            let h = 1e-2;
            moved.parameters[i] = update.parameters[i] + h;
            let up = loss(&moved);
            moved.parameters[i] = update.parameters[i] - h;
            let difference = (up - loss(&moved)) / f64::from(2.0 * h);
            let close = (difference - f64::from(grad[i])).abs();
            assert!(close < 2e-4 + 0.02 * difference.abs(), "{i}: {difference} {}", grad[i]);
            seen += usize::from(difference.abs() > 1e-3);
        }
        assert!(seen > 4, "{seen} gradients that are not 0");
    }
}
