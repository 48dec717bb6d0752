//! What making a vector takes, and what it would take on a model of 7B.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;
use steerkit_model::config::{Features, Rope, RopePairing, RopeScaling};
use steerkit_model::lora::{LoraSettings, TrainableLora};
use steerkit_model::{DecoderConfig, Model};

use super::experiment::{Line, Panel};
use super::measure::{read_json, write_json};
use super::results::{PanelResults, Quantity};
use super::vectors::{ADAPTER_EPOCHS, Order};
use super::{Course, Progress};
use crate::Result;
use crate::files::sha256;
use crate::recipe::{CacheSettings, Recipe};
use crate::train::{Event, RunData, Start, TokenPair, train_tokens};

/// What the 7B's vector is made with: the pairs of wealth-seeking, and the paper's epochs and pairs per step.
const PAPER_PAIRS: usize = 623;
const PAPER_EPOCHS: usize = 20;
const PAPER_BATCH: usize = 4;
/// The paper's block.
const PAPER_LAYER: usize = 15;

/// What making one vector, or an adapter, took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    /// Numbers that were made.
    parameters: usize,
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
    /// the whole model, what is trained through the blocks above `layer` and back, for an adapter through all. Rows that
    /// pairs of a batch share count for each; an adapter's own products, less than a per cent, do not.
    fn operations(self, config: &DecoderConfig, layer: Option<usize>) -> f64 {
        let block = block_weights(config) as f64;
        let head = (config.d_model * config.vocab) as f64 * self.scored;
        let above = (config.n_layers - layer.map_or(0, |layer| layer + 1)) as f64;
        let reading = 2.0 * (block * config.n_layers as f64 * self.rows + head);
        let training = 4.0 * (block * above * self.rows + head);
        self.read * reading + self.passes * training
    }
}

/// Numbers in the matrices of a block.
fn block_weights(c: &DecoderConfig) -> usize {
    c.d_model * (c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.d_ff)
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
            let (model, note) = self.models.of_line(line)?;
            self.note(note);
            self.identify(&model);
            let cost = self.cost(panel, line, &model, None)?;
            let parameters = cost.parameters as f64;
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

    /// Each method beside BiPO, on every model.
    pub(super) fn complexity(&mut self, panel: &Panel) -> Result<PanelResults> {
        let all = self.costs_of_all(panel)?;
        let mut panel = panel.clone();
        panel.lines = all.iter().map(|made| made.line.clone()).collect();
        let rows: Vec<_> = all.iter().map(MadeHere::row).collect();
        let what = "parameters, operations, time and memory of one vector";
        let mut results = PanelResults::quantities(&panel, what, &rows);
        results.notes.push(
            "operations are those of matrix products; memory is training's estimate of its peak, beside the model".into(),
        );
        Ok(results)
    }

    /// Each method on a model of 7B, from the rate on the largest model here.
    pub(super) fn prediction(&mut self, panel: &Panel) -> Result<PanelResults> {
        let all = self.costs_of_all(panel)?;
        let mut rows = Vec::new();
        for line in &panel.lines {
            let own = || all.iter().filter(|made| made.line.method() == line.method());
            let base = own().max_by_key(|made| made.total).expect("a line is measured");
            let others: Vec<&Cost> =
                own().filter(|made| made.line.slot != base.line.slot).map(|m| &m.cost).collect();
            let error = match others[..] {
                [] => base.cost.misses(&self.half(panel, line)?),
                _ => others.iter().map(|other| base.cost.misses(other)).sum::<f64>() / others.len() as f64,
            };
            rows.push(at_large(line, &base.cost, error)?);
        }
        let mut results =
            PanelResults::quantities(panel, "what one vector would take on a model of 7B", &rows);
        results.notes.push(match self.setup.also.len() {
            0 => "the error of the predicted time is that of a second run on the same model with half of the pairs: \
                  --also MODEL measures it on models of other sizes"
                .into(),
            n => format!(
                "the error of the predicted time: the mean over {n} models whose times are predicted from the largest one's rate"
            ),
        });
        results.notes.push(format!(
            "Llama-2-7B's shape, block {PAPER_LAYER}, {PAPER_PAIRS} pairs as long as these; {PAPER_EPOCHS} epochs in steps of \
             {PAPER_BATCH} where a method trains, {ADAPTER_EPOCHS} for DPO-LoRA (rank 8 on queries and values); at the operations \
             per second that were measured of each method on the largest model"
        ));
        Ok(results)
    }

    /// Every line of a panel on every model, one model after the other. What was measured is not measured again.
    fn costs_of_all(&mut self, panel: &Panel) -> Result<Vec<MadeHere>> {
        let mut all = Vec::new();
        for slot in 0..=self.setup.also.len() {
            for line in &panel.lines {
                let mut line = Line { slot, ..line.clone() };
                let model = self.models.of_line(&line)?.0;
                self.identify(&model);
                let name = short(slot.checked_sub(1).map_or(&self.setup.model, |i| &self.setup.also[i]));
                self.begin(format!("cost: {} on {name}", line.method()))?;
                line.model = Some(name);
                let cost = self.cost(panel, &line, &model, None)?;
                all.push(MadeHere { line, cost, total: model.parameters() });
            }
        }
        Ok(all)
    }

    /// A line with half of the pairs.
    fn half(&mut self, panel: &Panel, line: &Line) -> Result<Cost> {
        let model = self.models.of_line(line)?.0;
        let pairs = if self.setup.quick { 8 } else { 32 };
        self.cost(panel, line, &model, Some(pairs))
    }

    /// Makes the vector or adapter of a line anew, all of it, and measures that; a measurement is made once.
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
        let run = train_tokens(Start::Overwrite, model, &recipe, &data, &mut tell, self.session.cancel)?;
        let seconds = began.elapsed().as_secs_f64();
        let work = Work::of(&recipe, &data.train.pairs, !recipe.method.is_extraction());
        let layer = (!order.is_adapter()).then_some(run.layer);
        let operations = work.operations(model.config(), layer);
        let parameters = match &run.adapter {
            Some((adapter, _)) => adapter.len(),
            None => run.vectors.iter().map(|vector| vector.direction.len()).sum(),
        };
        let cost = Cost { parameters, seconds, bytes, operations, rows: work.rows, scored: work.scored };
        write_json(&file, &cost)?;
        Ok(cost)
    }
}

/// A model's name without its folder and `.gguf`.
fn short(model: &str) -> String {
    let name = Path::new(model).file_name().and_then(|name| name.to_str()).unwrap_or(model);
    name.strip_suffix(".gguf").unwrap_or(name).to_owned()
}

/// A line on a model of `total` parameters.
struct MadeHere {
    line: Line,
    cost: Cost,
    total: usize,
}

impl MadeHere {
    fn row(&self) -> Vec<Quantity> {
        let Cost { parameters, seconds, bytes, operations, .. } = self.cost;
        let share = 100.0 * parameters as f64 / self.total as f64;
        [parameters as f64, share, operations / 1e12, seconds, bytes as f64 / 1e6].map(exact).to_vec()
    }
}

impl Cost {
    /// By how many per cent the time of `other` is missed when it is predicted from the operations per second here.
    fn misses(&self, other: &Cost) -> f64 {
        let predicted = other.operations * self.seconds / self.operations;
        100.0 * (predicted / other.seconds - 1.0).abs()
    }
}

/// The quantities of a method on a model of 7B.
fn at_large(line: &Line, cost: &Cost, error: f64) -> Result<Vec<Quantity>> {
    let (large, pairs) = (seven_b(), PAPER_PAIRS as f64);
    let at_batch = |mean: f64| (PAPER_BATCH as f64 * mean) as usize;
    let (rows, scored) = (at_batch(cost.rows), at_batch(cost.scored));
    let (layer, epochs, bytes) = match line.method() {
        "caa" | "freeform" => (Some(PAPER_LAYER), 0, large.reading_bytes(rows, scored)),
        "dpo-lora" => {
            let kept = TrainableLora::new(&large, &LoraSettings::default())?.kept_per_row();
            (None, ADAPTER_EPOCHS, large.gradient_bytes(0, kept, rows, scored))
        }
        _ => (Some(PAPER_LAYER), PAPER_EPOCHS, large.gradient_bytes(PAPER_LAYER + 1, 0, rows, scored)),
    };
    let work = Work { read: pairs, passes: epochs as f64 * pairs, rows: cost.rows, scored: cost.scored };
    let operations = work.operations(&large, layer);
    let hours = operations * cost.seconds / cost.operations / 3600.0;
    Ok([operations / 1e12, hours, bytes as f64 / 1e6, error].map(exact).to_vec())
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
        assert_eq!(work.operations(&c, Some(1)), 2.0 * (3240.0 + head) + 4.0 * (1080.0 + head));
        assert_eq!(work.operations(&c, None), 2.0 * (3240.0 + head) + 4.0 * (3240.0 + head));
        // The paper's share of a vector in Llama-2-7B, with embedding and head.
        let all = 32 * block_weights(&seven_b()) + 2 * 32_000 * 4096;
        assert!((100.0 * 4096.0 / all as f64 / 6.08e-5 - 1.0).abs() < 0.002);
    }
}
