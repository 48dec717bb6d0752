//! Measuring the speed of whole training steps.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use steerkit_model::prompting::Prompting;
use steerkit_model::{DecoderConfig, Model};

use crate::Result;
use crate::data::Dataset;
use crate::objective::Direction;
use crate::recipe::{Draft, Recipe};
use crate::text_stats::median;
use crate::train::{Batch, Event, Order, RunData, Start, TokenPair, TokenSet, train_tokens};

/// What a run of steps measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainSpeed {
    /// Median seconds of a step after the first: a batch from the cache, forward, backward, optimiser.
    pub seconds_per_step: f64,
    /// The same over the packed rows of a step: median over the steps after the first.
    pub seconds_per_token: f64,
    /// Seconds that filling the cache took, once.
    pub setup_seconds: f64,
    /// Mean packed rows of a step: prompt, chosen less one, rejected less one.
    pub tokens_per_step: f64,
    /// Mean tokens of a step whose log-probability is computed.
    pub scored_rows_per_step: f64,
    /// Matrix products of a step, forward and backward through the blocks above the layer and the head, over its
    /// seconds, in 10^9 operations per second.
    pub gflops: f64,
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct TrainBench<'a> {
    /// The block after which the vector is added.
    pub layer: usize,
    /// Pairs per step.
    pub batch: usize,
    /// Steps.
    pub steps: usize,
    /// Arithmetic, as a recipe names it.
    pub precision: &'a str,
    /// An empty folder for the run's files.
    pub folder: &'a Path,
}

/// Times training steps over `data` in file order, d = -1 and +1 in turn, from the first row again when they run out.
///
/// # Errors
/// Those of [`train_tokens`].
pub fn train_speed(
    model: &Model,
    data: &Dataset,
    bench: &TrainBench<'_>,
    cancel: &AtomicBool,
) -> Result<TrainSpeed> {
    let pairs = tokens(model, data, bench.batch * bench.steps)?;
    let batches = batches(pairs.len(), bench);
    let (rows, scored): (Vec<usize>, Vec<usize>) = batches
        .iter()
        .map(|batch| {
            let pairs = || batch.pairs.iter().map(|item| &pairs[item.0]);
            (
                pairs().map(TokenPair::rows).sum::<usize>(),
                pairs().map(|p| p.chosen.len() + p.rejected.len()).sum::<usize>(),
            )
        })
        .unzip();
    let order = Some(Order { batches, steps_per_epoch: bench.steps });
    let train = TokenSet {
        rows: (0..pairs.len()).collect(),
        sha256: data.sha256.clone(),
        pairs,
        ..TokenSet::default()
    };
    let data = RunData { train, order, ..RunData::default() };

    let began = Instant::now();
    let mut setup = 0.0;
    let mut seconds = Vec::new();
    train_tokens(
        Start::New,
        model,
        &recipe(bench)?,
        &data,
        &mut |event: Event<'_>| match event {
            Event::Caching { .. } if seconds.is_empty() => setup = began.elapsed().as_secs_f64(),
            Event::Step { record, .. } => seconds.push(record.seconds),
            _ => {}
        },
        cancel,
    )?;
    Ok(summary(model.config(), bench.layer, setup, &seconds, &rows, &scored))
}

fn recipe(bench: &TrainBench<'_>) -> Result<Recipe> {
    let mut draft = Draft::parse(
        "preset = \"paper\"\nmodel = \"bench\"\n[data]\ntrain = \"bench\"\n[cache]\nenabled = false\n\
         [eval]\nmultipliers = []\nevery_epochs = 0\n",
    );
    draft.set_text("out", &bench.folder.to_string_lossy());
    draft.set_text("precision", bench.precision);
    draft.set("layer", &bench.layer.to_string());
    draft.set("batch", &bench.batch.to_string());
    draft.set("steps", &bench.steps.to_string());
    draft.set("checkpoint.every_steps", &bench.steps.to_string());
    draft.resolve()
}

/// The first `n` pairs as tokens, prompted as a recipe does by default.
fn tokens(model: &Model, data: &Dataset, n: usize) -> Result<Vec<TokenPair>> {
    let prompting = Prompting::new(model.tokenizer()?, model.chat_template()?);
    let pair = |p: &crate::PreferencePair| {
        let tokens = prompting.pair(&p.prompt, &p.chosen, &p.rejected)?;
        Ok(TokenPair { prompt: tokens.prompt, chosen: tokens.chosen, rejected: tokens.rejected })
    };
    data.pairs.iter().take(n).map(pair).collect()
}

fn batches(n: usize, bench: &TrainBench<'_>) -> Vec<Batch> {
    let direction = |step: usize| if step.is_multiple_of(2) { Direction::Away } else { Direction::Toward };
    (0..bench.steps)
        .map(|step| Batch {
            pairs: (0..bench.batch).map(|i| ((step * bench.batch + i) % n, direction(step))).collect(),
            epoch: 1,
            ends_epoch: false,
        })
        .collect()
}

fn summary(
    config: &DecoderConfig,
    layer: usize,
    setup_seconds: f64,
    seconds: &[f64],
    rows: &[usize],
    scored: &[usize],
) -> TrainSpeed {
    let first = usize::from(seconds.len() > 1);
    let over = |f: &dyn Fn(usize) -> f64| {
        median(&(first..seconds.len()).map(f).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let mean = |counts: &[usize]| counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    TrainSpeed {
        seconds_per_step: over(&|i| seconds[i]),
        seconds_per_token: over(&|i| seconds[i] / rows[i] as f64),
        setup_seconds,
        tokens_per_step: mean(rows),
        scored_rows_per_step: mean(scored),
        gflops: over(&|i| step_flops(config, layer, rows[i], scored[i]) / seconds[i] / 1e9),
    }
}

/// Operations of the matrix products of one step: two per weight and row forward, as many backward.
fn step_flops(config: &DecoderConfig, layer: usize, rows: usize, scored: usize) -> f64 {
    let (d, h) = (config.d_model, config.head_dim);
    let attention = d * h * (config.n_heads + 2 * config.n_kv_heads) + config.n_heads * h * d;
    let block = attention + 3 * d * config.d_ff;
    let blocks = block * (config.n_layers - 1 - layer) * rows;
    4.0 * (blocks as f64 + (d * config.vocab) as f64 * scored as f64)
}
