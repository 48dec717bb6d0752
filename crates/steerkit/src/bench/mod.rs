//! Measuring the speed of whole training steps and, in [`decode`], of writing.

pub mod decode;

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
use crate::train::{Batch, Event, Order, RunData, Start, TokenPair, TokenSet, packed_rows, train_tokens};

/// What a run of steps measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainSpeed {
    /// Median seconds of a step after the first: a batch from the cache, forward, backward, optimiser.
    pub seconds_per_step: f64,
    /// The same over the packed tokens of a step: median over the steps after the first.
    pub seconds_per_token: f64,
    /// Seconds that filling the cache took, once.
    pub setup_seconds: f64,
    /// Mean packed tokens of a step: each pair's prompt, chosen less one, rejected less one.
    pub tokens_per_step: f64,
    /// Mean rows that a step computes: the packed tokens, less what the pairs of the batch share.
    pub rows_per_step: f64,
    /// Mean tokens of a step whose log-probability is computed.
    pub scored_rows_per_step: f64,
    /// Matrix products of a step, forward and backward through the blocks above the layer and the head, over its
    /// seconds, in 10^9 operations per second.
    pub gflops: f64,
    /// Mean operations of those products in a step, in 10^9.
    pub gflop_per_step: f64,
    /// The share of operations that a step saves by computing shared rows once and only the scored rows after
    /// the last attention.
    pub saved: f64,
    /// Pages that the system mapped in a step, median over the second half of the steps; none where it does not tell.
    pub page_faults_per_step: Option<f64>,
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
    let work: Vec<Work> = batches.iter().map(|batch| Work::of(batch, &pairs)).collect();
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
    let (mut seconds, mut faults) = (Vec::new(), Vec::new());
    train_tokens(
        Start::New,
        model,
        &recipe(bench)?,
        &data,
        &mut |event: Event<'_>| match event {
            Event::Caching { .. } if seconds.is_empty() => setup = began.elapsed().as_secs_f64(),
            Event::Step { record, .. } => {
                seconds.push(record.seconds);
                faults.extend(page_faults());
            }
            _ => {}
        },
        cancel,
    )?;
    let steps: Vec<f64> = faults.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
    let page_faults_per_step = median(&steps[steps.len() / 2..]);
    Ok(TrainSpeed { page_faults_per_step, ..summary(model.config(), bench.layer, setup, &seconds, &work) })
}

/// Minor page faults of this process so far, where the system tells.
fn page_faults() -> Option<u64> {
    let stat = fs_err::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name in parentheses, which may hold spaces; `minflt` is the tenth.
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
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

/// What a step has to do.
struct Work {
    /// Packed tokens.
    tokens: usize,
    /// Rows through the blocks.
    rows: usize,
    /// Rows through the end of the last block.
    head_rows: usize,
    /// Rows of the head.
    scored: usize,
}

impl Work {
    fn of(batch: &Batch, pairs: &[TokenPair]) -> Self {
        let pairs = || batch.pairs.iter().map(|item| &pairs[item.0]);
        let scored = pairs().map(|p| p.chosen.len() + p.rejected.len()).sum();
        Self {
            tokens: pairs().map(TokenPair::rows).sum(),
            rows: packed_rows(pairs()),
            // The first tokens of both responses are predicted by one row.
            head_rows: scored - batch.pairs.len(),
            scored,
        }
    }

    /// Operations of the matrix products of the step: two per weight and row forward, as many backward.
    fn flops(&self, config: &DecoderConfig, layer: usize) -> f64 {
        let (d, h) = (config.d_model, config.head_dim);
        let qkv = d * h * (config.n_heads + 2 * config.n_kv_heads);
        let rest = config.n_heads * h * d + 3 * d * config.d_ff;
        let blocks = config.n_layers - 1 - layer;
        let narrow = rest * (self.rows - self.head_rows) * blocks.min(1);
        let blocks = (qkv + rest) * blocks * self.rows - narrow;
        4.0 * (blocks + d * config.vocab * self.scored) as f64
    }
}

fn summary(
    config: &DecoderConfig,
    layer: usize,
    setup_seconds: f64,
    seconds: &[f64],
    work: &[Work],
) -> TrainSpeed {
    let first = usize::from(seconds.len() > 1);
    let over = |f: &dyn Fn(usize) -> f64| {
        median(&(first..seconds.len()).map(f).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let mean = |count: &dyn Fn(&Work) -> f64| work.iter().map(count).sum::<f64>() / work.len() as f64;
    let flops = |w: &Work| w.flops(config, layer);
    let without_sharing = |w: &Work| Work { rows: w.tokens, head_rows: w.tokens, ..*w }.flops(config, layer);
    TrainSpeed {
        seconds_per_step: over(&|i| seconds[i]),
        seconds_per_token: over(&|i| seconds[i] / work[i].tokens as f64),
        setup_seconds,
        tokens_per_step: mean(&|w| w.tokens as f64),
        rows_per_step: mean(&|w| w.rows as f64),
        scored_rows_per_step: mean(&|w| w.scored as f64),
        gflops: over(&|i| flops(&work[i]) / seconds[i] / 1e9),
        gflop_per_step: mean(&|w| flops(w) / 1e9),
        saved: 1.0 - mean(&flops) / mean(&without_sharing),
        page_faults_per_step: None,
    }
}
