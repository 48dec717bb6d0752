//! One run, from its folder to its vector.

mod layout;
mod made;
mod plan;

use super::{
    EvalPoint, LayerOutcome, Outcome, RunData, RunLock, Start, TokenPair, TokenSet,
    cache::{CachePolicy, CacheRequest, PairCache},
    checkpoint::Checkpoint,
    evaluate::Measured,
    observer::{Event, Halt, Observer},
    order::{Batch, Order, factors},
    pass::{BatchGradient, Prepared},
    trainee::{Trainee, residual_norms},
};
use crate::{
    Result, SteerError,
    metrics::{EvalRecord, Metrics, Phase, Record, StepRecord},
    objective::Direction,
    optim::{Optimiser, OptimiserState, StepContext, Update, norm},
    recipe::{Method, Recipe},
};
use fs_err as fs;
use layout::Layout;
use plan::{check_memory, trainee};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};
use steerkit_model::{Model, Positions};

/// A vector this many times as long as the residual stream has exploded.
const EXPLOSION: f64 = 100.0;
/// Training time between checkpoints.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(10);

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
    let layout = Layout::new(folder, recipe.method);
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
    /// Median norm of the residual stream at each layer.
    residual_norms: Vec<f64>,
    /// Pairs of evaluations, prepared when they are first needed.
    measured: BTreeMap<&'static str, Prepared<'a>>,
    policy: CachePolicy,
    metrics: Metrics,
    /// The numbers that are trained.
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
        let trainee = trainee(model, recipe, data, checkpoint.as_ref(), observer, cancel)?;
        let used = match recipe.method.is_extraction() {
            true => (0..data.train.pairs.len()).collect(),
            false => order.used(),
        };
        order.renumber(&used);
        let pairs: Vec<TokenPair> = used.iter().map(|&i| data.train.pairs[i].clone()).collect();
        let scopes = used.iter().map(|&i| recipe.scope.positions(&data.train.shape(i))).collect();
        let policy =
            CachePolicy { prefix: data.prefix.clone(), ranks: data.ranks.clone(), ..CachePolicy::of(recipe) };
        let bytes = check_memory(model, &trainee, recipe, &order, (&pairs, data), &policy)?;
        observer.event(Event::Memory { bytes });
        let train = prepare(model, trainee, recipe, &policy, "train", (pairs, scopes), observer, cancel)?;
        let inner = train.trainee.layers().get(1..).unwrap_or_default();
        let inner = residual_norms(model, inner, &train.pairs, recipe.micro_batch_rows, cancel)?;
        let lowest = train.trainee.constant_up_to().map(|_| train.cache.residual_norm());
        let residual_norms = lowest.into_iter().chain(inner).collect();
        let layout = Layout::new(&recipe.out, recipe.method);
        let (done, evaluated) = checkpoint.as_ref().map_or((0, true), |c| (c.step, c.evaluated));
        let metrics = Metrics::open(&recipe.out, |record| match record {
            Record::Step(r) => r.step <= done,
            Record::Eval(r) => r.phase == Phase::Epoch && (r.step < done || r.step == done && evaluated),
        })?;
        let (vector, optimiser) = match checkpoint {
            Some(checkpoint) => (checkpoint.vector, checkpoint.optimiser),
            None => {
                let (state, start) = recipe.optimiser.start(train.trainee.len(), recipe.seed);
                let start = match &train.trainee {
                    Trainee::Adapter(lora) => lora.start(recipe.seed),
                    _ if recipe.method.is_extraction() => vec![0.0; start.len()],
                    _ => start,
                };
                (start, state)
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
            residual_norms,
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
        let (mut vector, mut optimiser) = (self.vector.clone(), self.optimiser.clone());
        let (loss, margin, accuracy) = (got.loss, got.margin, got.accuracy);
        let update = self.update(got, &mut vector, &mut optimiser);
        let (norm, layer_norms) = self.checked_norms(&vector)?;
        (self.vector, self.optimiser) = (vector, optimiser);
        self.step += 1;
        Ok(StepRecord {
            step: self.step,
            epoch: batch.epoch,
            pairs: batch.pairs.len(),
            toward: batch.pairs.iter().filter(|p| p.1 == Direction::Toward).count(),
            loss,
            margin,
            accuracy,
            grad_norm: update.grad_norm,
            lr: update.lr,
            norm,
            layer_norms: if layer_norms.len() > 1 { layer_norms } else { Vec::new() },
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// One step of the optimiser, with the penalty of several layers.
    ///
    /// A norm budget counts each layer in the unit of its residual stream, so that the dose is one of all layers
    /// together.
    fn update(&self, got: BatchGradient, vector: &mut [f32], optimiser: &mut OptimiserState) -> Update {
        let at = StepContext {
            step: self.step,
            total_steps: self.order.batches.len(),
            steps_per_epoch: self.order.steps_per_epoch,
            residual_norm: self.residual_norms.first().copied().unwrap_or(0.0),
        };
        let (recipe, mut grad) = (self.recipe, got.grad);
        let d = vector.len() / self.residual_norms.len().max(1);
        let several = self.residual_norms.len() > 1;
        if several && matches!(recipe.optimiser, Optimiser::NormBudget(_)) {
            self.in_units(&mut grad);
            let update = recipe.optimiser.step(optimiser, vector, grad, at);
            self.in_units(vector);
            return update;
        }
        if let Some(penalty) = recipe.penalty {
            penalty.add_gradient(vector, d, &mut grad);
        }
        let update = recipe.optimiser.step(optimiser, vector, grad, at);
        if let (Some(penalty), Some(lr)) = (recipe.penalty, update.lr) {
            penalty.shrink(vector, d, lr);
        }
        update
    }

    /// Multiplies the numbers of each layer by its residual norm over that of the lowest layer.
    fn in_units(&self, numbers: &mut [f32]) {
        let d = numbers.len() / self.residual_norms.len();
        for (numbers, norm) in numbers.chunks_exact_mut(d).zip(&self.residual_norms) {
            let factor = (norm / self.residual_norms[0]) as f32;
            numbers.iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// The norm of what is trained, and that of each layer; an error where a number is not finite or exploded.
    fn checked_norms(&self, vector: &[f32]) -> Result<(f64, Vec<f64>)> {
        let (all, of_layers) = (self.train.trainee.norm(vector), self.train.trainee.layer_norms(vector));
        if !all.is_finite() || !norm(vector).is_finite() {
            return Err(self.diverged(format!("the norm is {all}")));
        }
        for (length, residual_norm) in of_layers.iter().zip(&self.residual_norms) {
            if *length > EXPLOSION * residual_norm {
                let what =
                    format!("the vector's norm is {length:.3e}, the residual stream's {residual_norm:.3e}");
                return Err(self.diverged(what));
            }
        }
        Ok((all, of_layers))
    }

    /// What follows the last step of an epoch: its vector is kept and measured, where the recipe asks for it.
    fn end_epoch(&mut self, observer: &mut dyn Observer, cancel: &AtomicBool) -> Result<(), Halt> {
        let epoch = self.order.batches[self.step - 1].epoch;
        if self.recipe.epoch_vectors && self.vector.iter().any(|&x| x != 0.0) {
            fs::create_dir_all(&self.layout.epoch_vectors)?;
            let end = if self.recipe.method == Method::DpoLora { "" } else { ".safetensors" };
            self.save(&self.layout.epoch_vectors.join(format!("epoch-{epoch:03}{end}")), &[])?;
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
        let vectors = self.save(&self.layout.made, &eval)?;
        self.metrics.sync()?;
        let trainee = &self.train.trainee;
        let norms = trainee.layer_norms(&self.vector).into_iter().zip(&self.residual_norms);
        let layers: Vec<LayerOutcome> = norms
            .zip(trainee.layers())
            .map(|((norm, &residual_norm), &layer)| LayerOutcome {
                layer,
                norm,
                residual_norm,
                relative_dose: norm / residual_norm,
            })
            .collect();
        let silent = layers.iter().filter(|l| l.norm == 0.0 && layers.len() > 1).map(|l| l.layer.to_string());
        let silent: Vec<String> = silent.collect();
        if !silent.is_empty() {
            let what = format!("layers that fell silent are left out: {}", silent.join(", "));
            observer.event(Event::Note(what));
        }
        Ok(Outcome {
            vectors,
            folder: self.recipe.out.clone(),
            file: self.layout.made.clone(),
            layer: trainee.constant_up_to().unwrap_or(0),
            adapter: match trainee {
                Trainee::Adapter(lora) => Some((lora.clone(), self.vector.clone())),
                Trainee::Vectors { .. } => None,
            },
            steps: self.step,
            norm: trainee.norm(&self.vector),
            relative_dose: (!layers.is_empty())
                .then(|| layers.iter().map(|l| l.relative_dose.powi(2)).sum::<f64>().sqrt()),
            layers,
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
            let (trainee, policy) = (self.train.trainee.clone(), &self.policy);
            let ready = prepare(self.model, trainee, self.recipe, policy, split, pairs, observer, cancel)?;
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
            layer: self.train.trainee.constant_up_to().unwrap_or(0),
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
        let saved = self.save(path, &[]).is_ok().then(|| path.clone());
        SteerError::Diverged { step: self.step + 1, what, saved }
    }
}

/// Runs the blocks that never change over `pairs`, or takes what they give from the cache.
#[allow(clippy::too_many_arguments, reason = "a struct would only repeat the names")]
fn prepare<'a>(
    model: &'a Model,
    trainee: Trainee,
    recipe: &Recipe,
    policy: &CachePolicy,
    split: &str,
    (pairs, scopes): (Vec<TokenPair>, Vec<Positions>),
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Prepared<'a>, Halt> {
    let micro_batch_rows = recipe.micro_batch_rows;
    let (precision, layer) = (recipe.precision, trainee.constant_up_to());
    let request = CacheRequest { model, layer, precision, split, pairs: &pairs, micro_batch_rows };
    let cache = PairCache::prepare(&request, policy, observer, cancel)?;
    let mut ready = Prepared::new(model, trainee, pairs, scopes, cache, micro_batch_rows);
    ready.ranks = policy.ranks.clone();
    Ok(ready)
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
