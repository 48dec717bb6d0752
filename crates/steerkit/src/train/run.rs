//! One run, from its folder to its vector.

use super::{
    EvalPoint, Outcome, RunData, RunLock, Start, TokenPair, TokenSet,
    cache::{CachePolicy, CacheRequest, PairCache},
    checkpoint::Checkpoint,
    evaluate::Measured,
    layer::LayerSearch,
    memory::{Footprint, available},
    observer::{Event, Halt, Observer},
    order::{Batch, Order, factors},
    pass::Prepared,
};
use crate::{
    Result, SteerError,
    metrics::{EvalRecord, Metrics, Phase, Record, StepRecord},
    objective::Direction,
    optim::{OptimiserState, StepContext, norm},
    recipe::{LayerChoice, Method, Recipe},
    vector::{DataUse, Provenance, SteeringVector},
};
use fs_err as fs;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};
use steerkit_model::{Model, Positions};

/// A vector this many times as long as the residual stream has exploded.
const EXPLOSION: f64 = 100.0;
/// Training time between checkpoints.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(10);

/// What a run writes into its folder.
struct Layout {
    recipe: PathBuf,
    vector: PathBuf,
    last_finite: PathBuf,
    checkpoints: PathBuf,
    epoch_vectors: PathBuf,
    metrics: PathBuf,
}

impl Layout {
    fn new(folder: &Path) -> Self {
        Self {
            recipe: folder.join("recipe.toml"),
            vector: folder.join("vector.safetensors"),
            last_finite: folder.join("vector.last-finite.safetensors"),
            checkpoints: folder.join("checkpoints"),
            epoch_vectors: folder.join("vectors"),
            metrics: folder.join("metrics.jsonl"),
        }
    }

    fn holds_a_run(&self) -> bool {
        self.recipe.exists() || self.vector.exists() || Checkpoint::exists(&self.checkpoints)
    }

    fn clear(&self) -> io::Result<()> {
        for file in [&self.recipe, &self.vector, &self.last_finite, &self.metrics] {
            absent(fs::remove_file(file))?;
        }
        for folder in [&self.checkpoints, &self.epoch_vectors] {
            absent(fs::remove_dir_all(folder))?;
        }
        Ok(())
    }
}

/// Success when what was to go is not there.
fn absent(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// Trains; see [`super::train_tokens`].
pub(crate) fn run(
    start: Start,
    model: &Model,
    recipe: &Recipe,
    data: &RunData,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let folder = recipe.out.as_path();
    let layout = Layout::new(folder);
    fs::create_dir_all(folder)?;
    let _lock = RunLock::take(folder)?;
    let inputs = data.hashes(model);
    let checkpoint = match start {
        Start::New if layout.holds_a_run() => return Err(SteerError::RunExists { folder: folder.into() }),
        Start::New => None,
        Start::Overwrite => {
            layout.clear()?;
            None
        }
        Start::Resume => resumed(folder, &layout, recipe, &inputs, observer)?,
    };
    crate::files::write_atomic(&layout.recipe, recipe.to_toml().as_bytes())?;
    let done = checkpoint.as_ref().map_or(0, |c| c.step);
    let interrupted =
        |step: usize, total: usize| SteerError::Interrupted { step, total, folder: folder.into() };
    let order = match recipe.method.is_extraction() {
        true => Order::none(),
        false => data.order.clone().unwrap_or_else(|| Order::new(data.train.pairs.len(), recipe)),
    };
    let total = order.batches.len();
    let prepared = Run::prepare(model, recipe, data, order, checkpoint, inputs, observer, cancel);
    let mut run = match prepared {
        Ok(run) => run,
        Err(Halt::Cancelled) => return Err(interrupted(done, total)),
        Err(Halt::Failed(error)) => return Err(error),
    };
    match run.train(observer, cancel).and_then(|()| run.finish(observer, cancel)) {
        Ok(outcome) => Ok(outcome),
        Err(Halt::Cancelled) => {
            run.checkpoint(observer)?;
            Err(interrupted(run.step, total))
        }
        Err(Halt::Failed(error)) => Err(error),
    }
}

/// The checkpoint to go on from, if the folder's run is the one of `recipe` and `inputs`.
fn resumed(
    folder: &Path,
    layout: &Layout,
    recipe: &Recipe,
    inputs: &BTreeMap<String, String>,
    observer: &mut dyn Observer,
) -> Result<Option<Checkpoint>> {
    let mismatch = |differences: Vec<String>| match differences.is_empty() {
        true => Ok(()),
        false => Err(SteerError::ResumeMismatch { folder: folder.into(), differences }),
    };
    let same_recipe = |text: &str| {
        let before = crate::recipe::Draft::parse(text).resolve()?;
        mismatch(before.differences(recipe))
    };
    let Some((checkpoint, note)) = Checkpoint::read(&layout.checkpoints)? else {
        if layout.recipe.exists() {
            same_recipe(&fs::read_to_string(&layout.recipe)?)?;
        }
        observer.event(Event::Note("there is no checkpoint yet: the run starts from its beginning".into()));
        return Ok(None);
    };
    if let Some(note) = note {
        observer.event(Event::Note(note));
    }
    same_recipe(&checkpoint.recipe)?;
    let names: std::collections::BTreeSet<_> = checkpoint.inputs.keys().chain(inputs.keys()).collect();
    let side = |map: &BTreeMap<String, String>, name: &str| map.get(name).map_or("none".into(), Clone::clone);
    let differences = names
        .into_iter()
        .filter(|name| checkpoint.inputs.get(*name) != inputs.get(*name))
        .map(|name| format!("{name}: {} -> {}", side(&checkpoint.inputs, name), side(inputs, name)))
        .collect();
    mismatch(differences)?;
    Ok(Some(checkpoint))
}

/// A run that is ready to take steps.
struct Run<'a> {
    model: &'a Model,
    recipe: &'a Recipe,
    data: &'a RunData,
    layout: Layout,
    inputs: BTreeMap<String, String>,
    order: Order,
    /// The pairs that any step uses; the batches of `order` count in these.
    used: Vec<usize>,
    train: Prepared<'a>,
    /// Pairs of evaluations, prepared when they are first needed.
    measured: BTreeMap<&'static str, Prepared<'a>>,
    policy: CachePolicy,
    metrics: Metrics,
    vector: Vec<f32>,
    optimiser: OptimiserState,
    step: usize,
    evaluated: bool,
    saved: Instant,
}

impl<'a> Run<'a> {
    #[allow(clippy::too_many_arguments, reason = "called once, with everything a run is made of")]
    fn prepare(
        model: &'a Model,
        recipe: &'a Recipe,
        data: &'a RunData,
        mut order: Order,
        checkpoint: Option<Checkpoint>,
        inputs: BTreeMap<String, String>,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Self, Halt> {
        let layer = match (&checkpoint, recipe.layer) {
            (Some(checkpoint), _) => checkpoint.layer,
            (None, LayerChoice::Block(layer)) => layer,
            (None, LayerChoice::Auto) => search(model, recipe, data, observer, cancel)?,
        };
        let used = match recipe.method.is_extraction() {
            true => (0..data.train.pairs.len()).collect(),
            false => order.used(),
        };
        order.renumber(&used);
        let pairs: Vec<TokenPair> = used.iter().map(|&i| data.train.pairs[i].clone()).collect();
        let scopes = used.iter().map(|&i| recipe.scope.positions(&data.train.shape(i))).collect();
        let policy = CachePolicy { prefix: data.prefix.clone(), ..CachePolicy::of(recipe) };
        let bytes = check_memory(model, layer, recipe, &order, (&pairs, data), &policy)?;
        observer.event(Event::Memory { bytes });
        let train = prepare(model, layer, recipe, &policy, "train", (pairs, scopes), observer, cancel)?;
        let d = model.config().d_model;
        let layout = Layout::new(&recipe.out);
        let (done, evaluated) = checkpoint.as_ref().map_or((0, true), |c| (c.step, c.evaluated));
        let metrics = Metrics::open(&recipe.out, |record| match record {
            Record::Step(r) => r.step <= done,
            Record::Eval(r) => r.phase == Phase::Epoch && (r.step < done || r.step == done && evaluated),
        })?;
        let (vector, optimiser) = match checkpoint {
            Some(checkpoint) => (checkpoint.vector, checkpoint.optimiser),
            None => {
                let (state, start) = recipe.optimiser.start(d, recipe.seed);
                (if recipe.method.is_extraction() { vec![0.0; d] } else { start }, state)
            }
        };
        Ok(Self {
            model,
            recipe,
            data,
            layout,
            inputs,
            order,
            used,
            train,
            measured: BTreeMap::new(),
            policy,
            metrics,
            vector,
            optimiser,
            step: done,
            evaluated,
            saved: Instant::now(),
        })
    }

    /// Takes the steps that are left.
    fn train(&mut self, observer: &mut dyn Observer, cancel: &AtomicBool) -> Result<(), Halt> {
        let total = self.order.batches.len();
        if self.recipe.method.is_extraction() {
            self.vector = crate::extract::extract(&self.train, self.recipe, cancel)?;
        }
        loop {
            if !self.evaluated {
                self.end_epoch(observer, cancel)?;
                self.evaluated = true;
                self.checkpoint(observer)?;
            }
            if self.step == total {
                return Ok(());
            }
            let batch = self.order.batches[self.step].clone();
            let record = self.take_step(&batch, cancel)?;
            self.evaluated = !batch.ends_epoch;
            observer.event(Event::Step { record: &record, total });
            self.metrics.write(&Record::Step(record))?;
            let due = match self.recipe.checkpoint.every_steps {
                Some(every) => self.step.is_multiple_of(every.max(1)),
                None => self.saved.elapsed() >= CHECKPOINT_PAUSE,
            };
            if due || self.step == total {
                self.checkpoint(observer)?;
            }
        }
    }

    fn take_step(&mut self, batch: &Batch, cancel: &AtomicBool) -> Result<StepRecord, Halt> {
        let began = Instant::now();
        let objective = &self.recipe.objective;
        let factors = factors(objective.factors(), self.recipe.seed, self.step, batch.pairs.len());
        let got = match self.train.gradient(&batch.pairs, &factors, &self.vector, objective, cancel) {
            Err(halt) => match halt.non_finite() {
                Some(what) => return Err(self.diverged(what).into()),
                None => return Err(halt),
            },
            Ok(got) => got,
        };
        let grad_norm = norm(&got.grad);
        for (what, value) in [("the loss", got.loss), ("the norm of the gradient", grad_norm)] {
            if !value.is_finite() {
                return Err(self.diverged(format!("{what} is {value}")).into());
            }
        }
        let residual_norm = self.train.cache.residual_norm();
        let at = StepContext {
            step: self.step,
            total_steps: self.order.batches.len(),
            steps_per_epoch: self.order.steps_per_epoch,
            residual_norm,
        };
        let (mut vector, mut optimiser) = (self.vector.clone(), self.optimiser.clone());
        let update = self.recipe.optimiser.step(&mut optimiser, &mut vector, got.grad, at);
        let length = norm(&vector);
        if !length.is_finite() || length > EXPLOSION * residual_norm {
            let what =
                format!("the vector's norm is {length:.3e}, the residual stream's {residual_norm:.3e}");
            return Err(self.diverged(what).into());
        }
        (self.vector, self.optimiser) = (vector, optimiser);
        self.step += 1;
        Ok(StepRecord {
            step: self.step,
            epoch: batch.epoch,
            pairs: batch.pairs.len(),
            toward: batch.pairs.iter().filter(|p| p.1 == Direction::Toward).count(),
            loss: got.loss,
            margin: got.margin,
            accuracy: got.accuracy,
            grad_norm: update.grad_norm,
            lr: update.lr,
            norm: length,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// What follows the last step of an epoch: its vector is kept and measured, where the recipe asks for it.
    fn end_epoch(&mut self, observer: &mut dyn Observer, cancel: &AtomicBool) -> Result<(), Halt> {
        let epoch = self.order.batches[self.step - 1].epoch;
        if self.recipe.epoch_vectors && self.vector.iter().any(|&x| x != 0.0) {
            fs::create_dir_all(&self.layout.epoch_vectors)?;
            let path = self.layout.epoch_vectors.join(format!("epoch-{epoch:03}.safetensors"));
            self.as_vector(&[]).save(&path)?;
        }
        let every = self.recipe.eval.every_epochs;
        if every == 0 || !epoch.is_multiple_of(every) {
            return Ok(());
        }
        let split = match (&self.data.valid, &self.data.test) {
            (Some(_), _) => "valid",
            (None, Some(_)) => "test",
            (None, None) => return Ok(()),
        };
        self.measure(split, &[-1.0, 1.0], Phase::Epoch, observer, cancel)?;
        Ok(())
    }

    /// The last evaluation, and the vector's file.
    fn finish(&mut self, observer: &mut dyn Observer, cancel: &AtomicBool) -> Result<Outcome, Halt> {
        let split = match (&self.data.test, &self.data.valid) {
            (Some(_), _) => "test",
            (None, Some(_)) => "valid",
            (None, None) => "train",
        };
        let multipliers = self.recipe.eval.multipliers.clone();
        let eval = match multipliers.is_empty() {
            true => Vec::new(),
            false => self.measure(split, &multipliers, Phase::Final, observer, cancel)?,
        };
        for point in eval.iter().filter(|p| p.multiplier > 0.0 && p.chosen < 0.0) {
            observer.event(Event::Note(format!(
                "the chosen responses became less likely at multiplier {} ({:.2} nats on average)",
                point.multiplier, point.chosen
            )));
        }
        let vector = self.as_vector(&eval);
        vector.save(&self.layout.vector)?;
        self.metrics.sync()?;
        let (length, residual_norm) = (norm(&self.vector), self.train.cache.residual_norm());
        Ok(Outcome {
            vector,
            folder: self.recipe.out.clone(),
            layer: self.train.layer,
            steps: self.step,
            norm: length,
            residual_norm,
            relative_dose: length / residual_norm,
            trained_pairs: self.used.len(),
            split: split.into(),
            eval,
        })
    }

    /// Measures the vector on a split at each multiplier and records it.
    fn measure(
        &mut self,
        split: &'static str,
        multipliers: &[f64],
        phase: Phase,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Vec<EvalPoint>, Halt> {
        let set: Option<&TokenSet> = match split {
            "valid" => self.data.valid.as_ref(),
            "test" => self.data.test.as_ref(),
            _ => None,
        };
        if let Some(set) = set
            && !self.measured.contains_key(split)
        {
            let scopes = (0..set.pairs.len()).map(|i| self.recipe.scope.positions(&set.shape(i))).collect();
            let pairs = (set.pairs.clone(), scopes);
            let (layer, policy) = (self.train.layer, &self.policy);
            let ready = prepare(self.model, layer, self.recipe, policy, split, pairs, observer, cancel)?;
            self.measured.insert(split, ready);
        }
        let ready = self.measured.get(split).unwrap_or(&self.train);
        let epoch = self.order.batches[..self.step].last().map_or(0, |b| b.epoch);
        let mut points = Vec::new();
        for &multiplier in multipliers {
            let began = Instant::now();
            let point = evaluate(ready, &self.vector, multiplier, cancel)?;
            let seconds = began.elapsed().as_secs_f64();
            let split = split.to_owned();
            let record = EvalRecord { step: self.step, epoch, phase, split, point: point.clone(), seconds };
            self.metrics.write(&Record::Eval(record))?;
            points.push(point);
        }
        observer.event(Event::Eval { step: self.step, epoch, split, points: &points });
        Ok(points)
    }

    fn checkpoint(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.metrics.sync()?;
        let checkpoint = Checkpoint {
            recipe: self.recipe.to_toml(),
            inputs: self.inputs.clone(),
            layer: self.train.layer,
            step: self.step,
            evaluated: self.evaluated,
            vector: self.vector.clone(),
            optimiser: self.optimiser.clone(),
        };
        checkpoint.write(&self.layout.checkpoints)?;
        self.saved = Instant::now();
        observer.event(Event::Checkpoint { step: self.step });
        Ok(())
    }

    /// The error of a run that left the finite numbers, with its last vector saved.
    fn diverged(&self, what: String) -> SteerError {
        let path = &self.layout.last_finite;
        let saved = self.as_vector(&[]).save(path).is_ok().then(|| path.clone());
        SteerError::Diverged { step: self.step + 1, what, saved }
    }

    /// The vector with where it came from.
    fn as_vector(&self, eval: &[EvalPoint]) -> SteeringVector {
        let recipe = self.recipe;
        let object = |value: Value| match value {
            Value::Object(fields) => fields,
            _ => serde_json::Map::new(),
        };
        let name = recipe.out.file_name().and_then(|n| n.to_str()).unwrap_or("vector");
        let identity = self.model.identity();
        let rows: Vec<usize> = self.used.iter().map(|&i| self.data.train.rows[i]).collect();
        let metrics = serde_json::json!({ "eval": eval });
        SteeringVector {
            direction: self.vector.clone(),
            layer: self.train.layer,
            provenance: Provenance {
                name: name.into(),
                method: recipe.method.name().into(),
                objective: match recipe.method.is_extraction() && recipe.method != Method::Grad0 {
                    true => serde_json::Map::new(),
                    false => {
                        object(serde_json::to_value(&recipe.objective).expect("numbers under text keys"))
                    }
                },
                token_scope: recipe.scope,
                base_model: Some(identity.clone()),
                system_prompt: Some(recipe.prompt.system.clone()).filter(|s| !s.is_empty()),
                chat_template_sha256: identity.template_sha256.clone(),
                data: Some(DataUse::new(self.data.train.sha256.clone(), &rows)),
                seed: Some(recipe.seed),
                steps: Some(self.step as u64),
                residual_norm: Some(self.train.cache.residual_norm() as f32),
                metrics: object(metrics),
                steerkit_version: env!("CARGO_PKG_VERSION").into(),
                ..Provenance::default()
            },
        }
    }
}

/// Runs the blocks up to `layer` over `pairs`, or takes them from the cache.
#[allow(clippy::too_many_arguments, reason = "a struct would only repeat the names")]
fn prepare<'a>(
    model: &'a Model,
    layer: usize,
    recipe: &Recipe,
    policy: &CachePolicy,
    split: &str,
    (pairs, scopes): (Vec<TokenPair>, Vec<Positions>),
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Prepared<'a>, Halt> {
    let micro_batch_rows = recipe.micro_batch_rows;
    let precision = recipe.precision;
    let request = CacheRequest { model, layer, precision, split, pairs: &pairs, micro_batch_rows };
    let cache = PairCache::prepare(&request, policy, observer, cancel)?;
    Ok(Prepared { model, layer, pairs, scopes, cache, micro_batch_rows })
}

/// What `multiplier` times the vector does to the pairs.
fn evaluate(
    ready: &Prepared<'_>,
    v: &[f32],
    multiplier: f64,
    cancel: &AtomicBool,
) -> Result<EvalPoint, Halt> {
    let items: Vec<(usize, f32)> = (0..ready.pairs.len()).map(|i| (i, multiplier as f32)).collect();
    let policy = match multiplier {
        0.0 => items.iter().map(|&(i, _)| ready.cache.reference(i)).collect(),
        _ => ready.score(&items, v, cancel)?,
    };
    let measured: Vec<Measured> = policy
        .into_iter()
        .zip(&ready.pairs)
        .enumerate()
        .map(|(i, (policy, pair))| Measured {
            policy,
            reference: ready.cache.reference(i),
            chosen_tokens: pair.chosen.len(),
            rejected_tokens: pair.rejected.len(),
        })
        .collect();
    Ok(EvalPoint::new(multiplier, &measured))
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
fn check_memory(
    model: &Model,
    layer: usize,
    recipe: &Recipe,
    order: &Order,
    (pairs, data): (&[TokenPair], &RunData),
    policy: &CachePolicy,
) -> Result<u64> {
    let config = model.config();
    if layer >= config.n_layers {
        return Err(steerkit_model::ModelError::UnknownLayer { layer, n_layers: config.n_layers }.into());
    }
    let size = |p: &TokenPair| (p.rows(), p.chosen.len() + p.rejected.len());
    let views = recipe.objective.most_views();
    let steered = |i: usize| (views * size(&pairs[i]).0, views * size(&pairs[i]).1);
    let steps = match recipe.method == Method::Grad0 {
        true => vec![(0..pairs.len()).map(steered).collect()],
        false => order.batches.iter().map(|b| b.pairs.iter().map(|p| steered(p.0)).collect()).collect(),
    };
    let mut sets = vec![pairs];
    sets.extend([&data.valid, &data.test].into_iter().flatten().map(|set| &set.pairs[..]));
    let in_memory =
        sets.iter().map(|set| PairCache::bytes(set, config.d_model)).filter(|&b| b <= policy.memory);
    let cached: u64 = in_memory.sum();
    let scored = pairs.iter().map(|p| size(p).1).sum();
    let beside = config.tile_bytes(scored, recipe.open_options().precision) as u64;
    let read = sets.iter().flat_map(|set| set.iter().map(size)).collect();
    let footprint = Footprint { config, layer, lasting: cached + beside, read, steps };
    footprint.check(recipe.micro_batch_rows, available())?;
    Ok(footprint.bytes(recipe.micro_batch_rows))
}
