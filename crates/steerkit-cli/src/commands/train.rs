//! `steerkit train`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use steerkit::SteerError;
use steerkit::ranks::{self, Shared};
use steerkit::recipe::{Draft, Recipe};
use steerkit::train::{
    EvalPoint, Event, LayerOutcome, Order, Outcome as Run, RunData, Start, TokenPair, train_layers,
    train_tokens,
};
use steerkit_model::{LoraChoice, LoraMode, Model, OpenOptions};
use tempfile::TempDir;

use super::training::Watch;
use super::{model, vector};
use crate::args::{LayerArg, TrainArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, Table, number, signed};
use crate::{memory, signals};

/// What `train` prints as JSON.
#[derive(Serialize)]
struct Trained<'a> {
    /// The vectors' file.
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<&'a Path>,
    /// The adapter's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<&'a Path>,
    layer: usize,
    steps: usize,
    seconds: f64,
    norm: f64,
    relative_dose: Option<f64>,
    /// Where several were trained.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    layers: &'a [LayerOutcome],
    eval: Vec<Point>,
    peak_rss_mb: Option<f64>,
    /// What was expected before the first step.
    memory_estimate_mb: Option<f64>,
    /// Which pairs `eval` was measured on.
    split: &'a str,
    trained_pairs: usize,
}

#[derive(Serialize)]
struct Point {
    multiplier: f64,
    margin: f64,
    margin_se: f64,
    accuracy: f64,
    n: usize,
}

impl From<&EvalPoint> for Point {
    fn from(p: &EvalPoint) -> Self {
        let EvalPoint { multiplier, margin, margin_se, accuracy, n, .. } = *p;
        Self { multiplier, margin, margin_se, accuracy, n }
    }
}

pub(crate) fn run(args: &TrainArgs, printer: Printer) -> Outcome {
    let cancel = signals::install()?;
    let began = Instant::now();
    let mut recipe = resolve(args)?;
    let ranks = ranks::join()?;
    let thrown_away = follower_folder(&ranks, &mut recipe, args)?;
    let printer = if thrown_away.is_some() { Printer::new(false, true) } else { printer };
    let adapters = recipe.lora.iter().map(|text| {
        text.parse::<LoraChoice>().map_err(|why| Failure::usage(format_args!("adapter {text}: {why}")))
    });
    let adapters = adapters.collect::<Outcome<Vec<_>>>()?;
    let path = model::resolve(&recipe.model)?;
    let options = OpenOptions {
        device: args.device.choice(),
        long_context: args.device.long_context,
        ..recipe.open_options()
    };
    let model = Model::open_with_lora(&path, &adapters, LoraMode::Beside, &options)?;
    let start = match (args.resume, args.overwrite) {
        (true, _) => Start::Resume,
        (_, true) => Start::Overwrite,
        _ => Start::New,
    };
    let mut watch = Watch::new(printer);
    let mut estimate_mb = None;
    let mut observer = |event: Event<'_>| {
        if let Event::Memory { bytes } = event {
            estimate_mb = memory::rss_mb().map(|now| now + bytes as f64 / 1e6);
        }
        watch.see(&event);
    };
    if !args.each_layer.is_empty() {
        let mut layers = args.each_layer.clone();
        layers.sort_unstable();
        layers.dedup();
        let runs = train_layers(start, &model, &recipe, &layers, &mut observer, &cancel);
        drop(watch);
        let runs = runs.map_err(|error| explain(error, &recipe))?;
        let seconds = began.elapsed().as_secs_f64() / runs.len() as f64;
        return runs.iter().try_for_each(|run| show(run, &recipe, estimate_mb, seconds, printer));
    }
    let mut data = RunData::read(&model, &recipe, &mut observer)?;
    data.ranks = ranks.clone();
    preflight(&recipe, &data, printer);
    let run = train_tokens(start, &model, &recipe, &data, &mut observer, &cancel);
    drop(watch);
    let run = run.map_err(|error| explain(error, &recipe))?;
    ranks::leave();
    if ranks.is_some_and(|ranks| ranks.rank() > 0) {
        return Ok(());
    }
    show(&run, &recipe, estimate_mb, began.elapsed().as_secs_f64(), printer)
}

/// A rank that is not the first goes through the same run in a folder that is thrown away: what it would write is what
/// rank 0 writes.
fn follower_folder(ranks: &Shared, recipe: &mut Recipe, args: &TrainArgs) -> Outcome<Option<TempDir>> {
    let Some(ranks) = ranks else { return Ok(None) };
    if !args.each_layer.is_empty() {
        return Err(Failure::usage("--each-layer under several MPI ranks")
            .hint("a sweep over `layer` gives each rank layers of its own"));
    }
    let folder = (ranks.rank() > 0).then(tempfile::tempdir).transpose()?;
    if let Some(folder) = &folder {
        if args.resume && recipe.out.is_dir() {
            copy_files(&recipe.out, folder.path())?;
        }
        recipe.out = folder.path().into();
    }
    // Nobody changes the run's folder before all have read it.
    ranks.exchange(Vec::new());
    Ok(folder)
}

fn copy_files(from: &Path, to: &Path) -> Outcome {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        match path.is_dir() {
            true => copy_files(&path, &target)?,
            false => drop(fs_err::copy(&path, &target)?),
        }
    }
    Ok(())
}

/// One line on what is ahead; memory and time follow when they are known.
fn preflight(recipe: &Recipe, data: &RunData, printer: Printer) {
    let pairs = &data.train.pairs;
    if recipe.method.is_extraction() {
        let (method, out) = (recipe.method.name(), recipe.out.display());
        return printer.say(format_args!("{method} of {} pairs, into {out}", pairs.len()));
    }
    let batches = Order::new(pairs.len(), recipe).batches;
    let passes: usize = batches.iter().map(|batch| batch.pairs.len()).sum();
    let tokens = pairs.iter().map(TokenPair::rows).sum::<usize>() as f64 / pairs.len().max(1) as f64;
    printer.say(format_args!(
        "{} pairs of {tokens:.0} packed tokens, {} steps of {} pairs, {passes} pair-passes, into {}",
        pairs.len(),
        batches.len(),
        recipe.batch.min(pairs.len()),
        recipe.out.display()
    ));
}

/// The recipe that file and options give together.
fn resolve(args: &TrainArgs) -> Outcome<Recipe> {
    let base = match &args.recipe {
        Some(path) => Some(path.clone()),
        None => resumed_recipe(args)?,
    };
    let mut draft = match &base {
        Some(path) => Draft::read(path)?,
        None => Draft::default(),
    };
    if base.is_none() {
        for (given, option) in [(args.model.is_some(), "--model"), (args.data.is_some(), "--data")] {
            if !given {
                return Err(Failure::usage(format_args!("no recipe, and no {option}")).hint(
                    "steerkit train --model smollm2-135m --data pairs.csv, or steerkit train RECIPE.toml",
                ));
            }
        }
    }
    set_options(&mut draft, args);
    let own_folder = base.as_deref().is_some_and(names_a_folder);
    match &args.out {
        Some(out) => draft.set_text("out", &out.to_string_lossy()),
        None if !own_folder => draft.set_text("out", &default_folder(args).to_string_lossy()),
        None => {}
    }
    for setting in &args.set {
        draft.set(&setting.key, &setting.value);
    }
    Ok(draft.resolve()?)
}

/// Of `--resume --out DIR` without anything else, the recipe that the folder holds.
fn resumed_recipe(args: &TrainArgs) -> Outcome<Option<PathBuf>> {
    let Some(out) = args.out.as_ref().filter(|_| args.resume && args.data.is_none()) else { return Ok(None) };
    let path = out.join("recipe.toml");
    match path.is_file() {
        true => Ok(Some(path)),
        false => Err(Failure::input(format_args!("{}: the folder holds no run to resume", out.display()))),
    }
}

fn set_options(draft: &mut Draft, args: &TrainArgs) {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let texts = [
        ("model", args.model.clone()),
        ("data.train", args.data.as_deref().map(text)),
        ("data.valid", args.valid.as_deref().map(text)),
        ("data.test", args.test.as_deref().map(text)),
        ("method", args.method.map(|m| m.0.name().to_owned())),
        ("preset", args.preset.map(|p| p.name().to_owned())),
        ("scope", args.scope.map(String::from)),
        ("precision", args.precision.map(|p| p.name().to_owned())),
        ("prompt.system", args.system.clone()),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            draft.set_text(key, &value);
        }
    }
    if !args.lora.is_empty() {
        let list = args.lora.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>();
        draft.set("lora", &format!("[{}]", list.join(", ")));
    }
    let counts =
        [("data.limit", args.limit), ("epochs", args.epochs), ("steps", args.steps), ("batch", args.batch)];
    for (key, value) in counts {
        if let Some(value) = value {
            draft.set(key, &value.to_string());
        }
    }
    match args.layer {
        Some(LayerArg::Auto) => draft.set_text("layer", "auto"),
        Some(LayerArg::Block(layer)) => draft.set("layer", &layer.to_string()),
        None => {}
    }
    if let Some(layers) = &args.layers {
        draft.set("layers", &format!("{layers:?}"));
    }
    if let Some(seed) = args.seed {
        draft.set("seed", &seed.to_string());
    }
    if let Some(multipliers) = &args.multipliers {
        draft.set("eval.multipliers", &format!("{multipliers:?}"));
    }
    for (key, on) in [("data.dedup", args.dedup), ("data.strict", args.strict)] {
        if on {
            draft.set(key, "true");
        }
    }
    if args.no_cache {
        draft.set("cache.enabled", "false");
    }
}

/// Whether a recipe file says where its run goes. A file that cannot be parsed is reported when it is resolved.
fn names_a_folder(path: &Path) -> bool {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("out"))
}

/// `runs/` and the name of the recipe or the data; `train.jsonl` goes by its folder.
fn default_folder(args: &TrainArgs) -> PathBuf {
    let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let source = args.recipe.as_deref().or(args.data.as_deref());
    let name = source.and_then(|path| match stem(path) {
        Some(name) if name == "train" => path.parent().and_then(stem).or(Some(name)),
        name => name,
    });
    Path::new("runs").join(name.filter(|name| name != "..").unwrap_or_else(|| "vector".into()))
}

/// An error of a run, with what to type next.
fn explain(error: SteerError, recipe: &Recipe) -> Failure {
    let out = recipe.out.display();
    let resume = format!("steerkit train --out {out} --resume");
    let hint = match &error {
        SteerError::Interrupted { .. } => Some(format!("resume with: {resume}")),
        SteerError::RunExists { .. } => Some(format!(
            "go on with it ({resume}), replace it (--overwrite), or choose another folder (--out)"
        )),
        _ => None,
    };
    match hint {
        // The library's hint says the same without the options.
        Some(hint) => Failure::new(error.kind(), &error).hint(hint),
        None => error.into(),
    }
}

fn show(run: &Run, recipe: &Recipe, estimate_mb: Option<f64>, seconds: f64, printer: Printer) -> Outcome {
    let peak_rss_mb = memory::peak_rss_mb();
    let (file, is_adapter) = (run.file.as_path(), run.layers.is_empty());
    let layers = if run.layers.len() > 1 { &run.layers[..] } else { &[] };
    printer.heading(format_args!("{} pairs of {}", run.eval.first().map_or(0, |p| p.n), run.split))?;
    printer.line(eval_table(&run.eval))?;
    printer.line("")?;
    if !layers.is_empty() {
        printer.line(layer_table(layers))?;
        printer.line("")?;
    }
    let dose = run.relative_dose.map_or(String::new(), |dose| format!(" ({dose:.3} of the residual stream)"));
    let place = match (is_adapter, layers.is_empty()) {
        (true, _) => "in all blocks".to_owned(),
        (_, true) => format!("after block {}", run.layer),
        _ => format!("after {} blocks", layers.len()),
    };
    printer.line(format_args!(
        "{place}, {} steps on {} pairs, norm {}{dose}, {seconds:.1} s{}",
        run.steps,
        run.trained_pairs,
        number(run.norm),
        peak_rss_mb.map_or(String::new(), |mb| format!(", peak memory {mb:.0} MB"))
    ))?;
    let (what, use_it) = match is_adapter {
        true => ("adapter", format!("--lora {}=0.5", file.display())),
        false => ("vector", format!("--steer {} --multipliers -1,0,1", vector::name_of_run(&run.folder))),
    };
    printer.line(format_args!("{what}: {}", file.display()))?;
    printer.say(format_args!("next: steerkit generate --model {} {use_it} --prompt '...'", recipe.model));
    printer.result(&Trained {
        vector: (!is_adapter).then_some(file),
        adapter: is_adapter.then_some(file),
        layer: run.layer,
        steps: run.steps,
        seconds,
        norm: run.norm,
        relative_dose: run.relative_dose,
        layers,
        eval: run.eval.iter().map(Point::from).collect(),
        memory_estimate_mb: estimate_mb,
        peak_rss_mb,
        split: &run.split,
        trained_pairs: run.trained_pairs,
    })
}

/// The norms of several layers.
fn layer_table(layers: &[LayerOutcome]) -> Table {
    let mut table = Table::new(&["layer", "norm", "dose"]);
    for l in layers {
        table.row(&[l.layer.to_string(), number(l.norm), format!("{:.3}", l.relative_dose)]);
    }
    table
}

/// Margin and accuracy at each multiplier.
pub(crate) fn eval_table(points: &[EvalPoint]) -> Table {
    let mut table = Table::new(&["multiplier", "margin", "± s.e.", "accuracy", "chosen", "rejected"]);
    for p in points {
        table.row(&[
            signed(p.multiplier),
            format!("{:.2}", p.margin),
            format!("{:.2}", p.margin_se),
            format!("{:.0}%", 100.0 * p.accuracy),
            format!("{:+.2}", p.chosen),
            format!("{:+.2}", p.rejected),
        ]);
    }
    table
}
