//! What making a vector takes, and what it would take on a model of 7B.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;
use steerkit_model::config::{Features, Rope, RopePairing, RopeScaling};
use steerkit_model::{DecoderConfig, Model};

use super::experiment::{Line, Panel};
use super::measure::{read_json, write_json};
use super::results::{PanelResults, Quantity};
use super::vectors::Order;
use super::{Course, Progress};
use crate::Result;
use crate::files::sha256;
use crate::recipe::{CacheSettings, Recipe};
use crate::train::{Event, RunData, Start, TokenPair, train_tokens};

/// Rank of the adapter that vectors are compared with, and its passes over the data: the paper's appendix F.
const LORA_RANK: usize = 8;
const LORA_EPOCHS: usize = 2;
/// What the 7B's vector is made with: the pairs of wealth-seeking, and the paper's epochs and pairs per step.
const PAPER_PAIRS: usize = 623;
const PAPER_EPOCHS: usize = 20;
const PAPER_BATCH: usize = 4;
/// The paper's block.
const PAPER_LAYER: usize = 15;

/// What making one vector took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    /// Wall-clock seconds, from the tokens of the pairs to the vector.
    seconds: f64,
    /// Bytes at the peak beside the model, by the estimate that training makes.
    bytes: u64,
    /// Operations of matrix products.
    operations: f64,
    /// Mean rows and scored tokens of a pair.
    rows: f64,
    scored: f64,
}

/// How much work a vector is: pairs that are read once, and pairs that go forward and backward.
#[derive(Clone, Copy, Debug)]
struct Work {
    read: f64,
    passes: f64,
    /// Mean rows and scored tokens of a pair.
    rows: f64,
    scored: f64,
}

impl Work {
    /// Of a recipe over pairs of tokens.
    fn of(recipe: &Recipe, pairs: &[TokenPair], trained: bool) -> Self {
        let n = pairs.len() as f64;
        let mean = |f: &dyn Fn(&TokenPair) -> usize| pairs.iter().map(|p| f(p) as f64).sum::<f64>() / n;
        let steps = match (recipe.steps, recipe.epochs) {
            (Some(steps), _) => (steps * recipe.batch) as f64,
            (None, epochs) => epochs.unwrap_or(1) as f64 * n,
        };
        Self {
            read: n,
            passes: if trained { steps } else { 0.0 },
            rows: mean(&TokenPair::rows),
            scored: mean(&|p| p.chosen.len() + p.rejected.len()),
        }
    }

    /// Operations of the matrix products, two per weight and row forward and as many backward: what is read goes through
    /// the whole model, what is trained through the blocks from `layer` on and back. Rows that pairs of a batch share
    /// count for each.
    fn operations(self, config: &DecoderConfig, layer: usize) -> f64 {
        let block = block_weights(config) as f64;
        let head = (config.d_model * config.vocab) as f64 * self.scored;
        let above = (config.n_layers - 1 - layer) as f64;
        let reading = 2.0 * (block * config.n_layers as f64 * self.rows + head);
        let training = 4.0 * (block * above * self.rows + head);
        self.read * reading + self.passes * training
    }
}

/// Numbers in the matrices of a block.
fn block_weights(c: &DecoderConfig) -> usize {
    c.d_model * (c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.d_ff)
}

/// Parameters of an adapter on the query and value projections of all blocks.
fn lora_parameters(c: &DecoderConfig) -> usize {
    let outputs = c.head_dim * (c.n_heads + c.n_kv_heads);
    c.n_layers * LORA_RANK * (2 * c.d_model + outputs)
}

/// Llama-2-7B.
fn seven_b() -> DecoderConfig {
    DecoderConfig {
        architecture: "llama".into(),
        n_layers: 32,
        d_model: 4096,
        n_heads: 32,
        n_kv_heads: 32,
        head_dim: 128,
        d_ff: 11_008,
        vocab: 32_000,
        context: 4096,
        norm_eps: 1e-5,
        rope: Rope { theta: 1e4, pairing: RopePairing::Halves, scaling: RopeScaling::None },
        features: Features::default(),
    }
}

impl Course<'_, '_> {
    /// The paper's table of costs.
    pub(super) fn costs(&mut self, panel: &Panel) -> Result<PanelResults> {
        let mut rows = Vec::new();
        for line in &panel.lines {
            self.begin(format!("cost: {}", super::words(panel, line)))?;
            self.place.0 += 1;
            let (model, note) = self.models.of_line(line)?;
            self.note(note);
            self.identify(&model);
            let cost = self.cost(panel, line, &model, None)?;
            let parameters = model.config().d_model as f64;
            let share = 100.0 * parameters / model.parameters() as f64;
            rows.push([parameters, share, cost.seconds / 60.0].map(exact).to_vec());
        }
        let mut results =
            PanelResults::quantities(panel, "parameters, their share, and minutes on this machine", &rows);
        results.notes.push(
            "the paper's minutes are of an A100; ours are of this machine and vary by some per cent".into(),
        );
        Ok(results)
    }

    /// Each method beside BiPO, and a model of 7B.
    pub(super) fn complexity(&mut self, panel: &Panel) -> Result<PanelResults> {
        let mut rows = Vec::new();
        let mut bipo = None;
        let also = self.setup.also.len();
        for line in &panel.lines {
            self.begin(format!("cost: {}", super::words(panel, line)))?;
            self.place.0 += 1;
            let model = self.models.of_line(line)?.0;
            self.identify(&model);
            let config = model.config().clone();
            let lora = line.method() == "dpo-lora";
            let measured = match (lora, &bipo) {
                (true, Some((cost, _))) => Clone::clone(cost),
                _ => self.cost(panel, line, &model, None)?,
            };
            let total = model.parameters() as f64;
            drop(model);
            let error = match (lora, &bipo) {
                (true, Some((_, error))) => *error,
                _ => self.prediction_error(panel, line, &measured, also)?,
            };
            if line.method() == "bipo" {
                bipo = Some((measured.clone(), error));
            }
            rows.push(row(line, &config, total, &measured, error));
        }
        let what = "parameters, operations, time and memory of one vector";
        let mut results = PanelResults::quantities(panel, what, &rows);
        results.notes.push(match also {
            0 => "the error of the predicted time is that of a second run on the same model with half of the pairs: \
                  --also MODEL measures it on models of other sizes"
                .into(),
            n => format!("the error of the predicted time is the mean over {n} further models, each from this model's rate"),
        });
        results.notes.push(format!(
            "at 7B: Llama-2-7B's shape, block {PAPER_LAYER}, {PAPER_PAIRS} pairs as long as these; {PAPER_EPOCHS} epochs in steps \
             of {PAPER_BATCH} where a method trains; at the operations per second that were measured here"
        ));
        results.notes.push(
            "DPO-LoRA (rank 8 on queries and values, 2 epochs) is not trained here: its operations are counted, and its \
             time is theirs at BiPO's rate"
                .into(),
        );
        Ok(results)
    }

    /// How far the time of another run is from what the rate of `base` predicts, in per cent.
    fn prediction_error(&mut self, panel: &Panel, line: &Line, base: &Cost, also: usize) -> Result<f64> {
        let rate = base.operations / base.seconds;
        let mut errors = Vec::new();
        for slot in 1..=also {
            let line = Line { slot, ..line.clone() };
            let model = self.models.of_line(&line)?.0;
            self.identify(&model);
            let cost = self.cost(panel, &line, &model, None)?;
            errors.push((cost.operations / rate / cost.seconds - 1.0).abs());
        }
        if also == 0 {
            let model = self.models.of_line(line)?.0;
            let pairs = (base_pairs(self.setup.quick) / 2).max(1);
            let cost = self.cost(panel, line, &model, Some(pairs))?;
            errors.push((cost.operations / rate / cost.seconds - 1.0).abs());
        }
        Ok(100.0 * errors.iter().sum::<f64>() / errors.len() as f64)
    }

    /// Makes the vector of a line anew, all of it, and measures that; a measurement is made once.
    fn cost(&mut self, panel: &Panel, line: &Line, model: &Model, limit: Option<usize>) -> Result<Cost> {
        let method = line.method();
        let order = Order { setup: self.setup, panel, line, set: &line.behaviour, method, out: self.out };
        let mut recipe = order.recipe(model)?;
        recipe.cache = CacheSettings { enabled: false, ..recipe.cache };
        recipe.data.limit = limit.or(recipe.data.limit);
        let of = json!([recipe.to_toml(), model.identity().file_sha256, line.slot]);
        let name = format!("cost-{method}-{}", &sha256(of.to_string().as_bytes())[..10]);
        let file = self.out.join("jobs").join(format!("{name}.json"));
        if let Some(done) = read_json(&file) {
            return Ok(done);
        }
        recipe.out = self.out.join("cost").join(name);
        let watch = &mut *self.watch;
        let mut bytes = 0;
        let mut tell = |event: Event<'_>| {
            if let Event::Memory { bytes: found } = event {
                bytes = found;
            }
            watch(Progress::Training(event));
        };
        let data = RunData::read(model, &recipe, &mut tell)?;
        let began = Instant::now();
        train_tokens(Start::Overwrite, model, &recipe, &data, &mut tell, self.session.cancel)?;
        let seconds = began.elapsed().as_secs_f64();
        let work = Work::of(&recipe, &data.train.pairs, !recipe.method.is_extraction());
        let operations = work.operations(model.config(), order.layer(model)?);
        let cost = Cost { seconds, bytes, operations, rows: work.rows, scored: work.scored };
        write_json(&file, &cost)?;
        Ok(cost)
    }
}

/// Pairs of the run that rates are taken from, at least.
fn base_pairs(quick: bool) -> usize {
    if quick { 16 } else { 64 }
}

/// The quantities of a method.
fn row(line: &Line, config: &DecoderConfig, total: f64, cost: &Cost, error: f64) -> Vec<Quantity> {
    let (rows, scored) = (cost.rows, cost.scored);
    let large = seven_b();
    let rate = cost.operations / cost.seconds;
    let pairs = PAPER_PAIRS as f64;
    let extracts = matches!(line.method(), "caa" | "freeform");
    let at_batch = |c: &DecoderConfig, layer: usize| {
        let (rows, scored) = ((PAPER_BATCH as f64 * rows) as usize, (PAPER_BATCH as f64 * scored) as usize);
        match extracts {
            true => c.reading_bytes(rows, scored),
            false => c.gradient_bytes(layer + 1, 0, rows, scored),
        }
    };
    let work = |read: f64, passes: f64| Work { read, passes, rows, scored };
    // An adapter in all blocks: everything goes through all of them, forward and back.
    let lora = |c: &DecoderConfig, pairs: f64| {
        let passes = LORA_EPOCHS as f64 * pairs;
        work(pairs, 0.0).operations(c, 0) + passes * 2.0 * work(1.0, 0.0).operations(c, 0)
    };
    let (parameters, operations, seconds, bytes, at_large) = match line.method() {
        "dpo-lora" => {
            let own = lora(config, pairs);
            let bytes = at_batch(config, 0) as f64;
            (lora_parameters(config) as f64, own, own / rate, bytes, lora(&large, pairs))
        }
        _ => {
            let passes = if extracts { 0.0 } else { PAPER_EPOCHS as f64 * pairs };
            let at_large = work(pairs, passes).operations(&large, PAPER_LAYER);
            (config.d_model as f64, cost.operations, cost.seconds, cost.bytes as f64, at_large)
        }
    };
    let layer = if line.method() == "dpo-lora" { 0 } else { PAPER_LAYER };
    [
        parameters,
        100.0 * parameters / total,
        operations / 1e12,
        seconds,
        bytes / 1e6,
        error,
        at_large / 1e12,
        at_large / rate / 3600.0,
        at_batch(&large, layer) as f64 / 1e6,
    ]
    .map(exact)
    .to_vec()
}

fn exact(value: f64) -> Quantity {
    Quantity { value, interval: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_by_hand() {
        let c = DecoderConfig {
            n_layers: 3,
            d_model: 4,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 2,
            d_ff: 5,
            vocab: 7,
            ..seven_b()
        };
        // A block: q 16, k 8, v 8, output 16, MLP 60.
        assert_eq!(block_weights(&c), 108);
        let work = Work { read: 1.0, passes: 1.0, rows: 10.0, scored: 6.0 };
        let head = 4.0 * 7.0 * 6.0;
        assert_eq!(work.operations(&c, 1), 2.0 * (3240.0 + head) + 4.0 * (1080.0 + head));
        // A: 8 × 4 for queries and values each; B: 4 × 8 and 2 × 8.
        assert_eq!(lora_parameters(&c), 3 * (64 + 48));
        // The paper's share of a vector in Llama-2-7B, with embedding and head.
        let all = 32 * block_weights(&seven_b()) + 2 * 32_000 * 4096;
        assert!((100.0 * 4096.0 / all as f64 / 6.08e-5 - 1.0).abs() < 0.002);
    }
}
