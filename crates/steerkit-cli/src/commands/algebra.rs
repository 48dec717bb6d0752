//! `steerkit vector convert`, `combine`, `compare` and `calibrate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use steerkit::algebra::{self, Comparison};
use steerkit::eval::{EditedPrompt, calibrate, divergences};
use steerkit::interop::{self, ImportOptions};
use steerkit::report::HeatMap;
use steerkit::vector::Calibration;
use steerkit::{PromptShape, SteeringPlan, SteeringVector, files};
use steerkit_model::{Model, OpenOptions};

use super::{model, prompts, steering, vector};
use crate::args::{VectorCalibrate, VectorCombine, VectorCompare, VectorConvert};
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, Table, number};
use crate::signals;

/// Questions about everyday things, for what a vector does to any text.
const QUESTIONS: [&str; 8] = [
    "How should I store olive oil after opening the bottle?",
    "What is the difference between weather and climate?",
    "Can you help me plan a quiet weekend at home?",
    "Why do leaves change their colour in autumn?",
    "How do I ask a colleague for feedback?",
    "What should I know before adopting a cat?",
    "Tell me how a bicycle stays upright.",
    "Which book would you take on a long train journey?",
];
/// Tokens per answer when parts and whole are compared.
const TOKENS: usize = 20;

/// Reads the one vector that a file or name stands for.
fn load(name: &str) -> Outcome<(PathBuf, SteeringVector)> {
    let path = vector::find(name)?;
    let vector = steering::one_layer(&path)?;
    Ok((path, vector))
}

fn absent(path: &Path, overwrite: bool) -> Outcome {
    match path.exists() && !overwrite {
        true => Err(Failure::usage(format_args!("{}: the file is there already", path.display()))
            .hint("replace it with --overwrite")),
        false => Ok(()),
    }
}

#[derive(Serialize)]
struct Converted<'a> {
    from: &'a Path,
    format: &'static str,
    to: &'a Path,
    vectors: Vec<Part>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Part {
    layer: usize,
    d_model: usize,
    norm: f32,
}

pub(crate) fn convert(args: &VectorConvert, printer: Printer) -> Outcome {
    let from = vector::find(&args.from)?;
    absent(&args.to, args.overwrite)?;
    let options = ImportOptions { convention: args.source_convention, layer: args.layer };
    let imported = interop::import(&from, &options)?;
    let mut warnings = imported.warnings;
    warnings.extend(interop::export(&imported.vectors, &args.to)?);
    for warning in &warnings {
        printer.warn(warning);
    }
    let part = |v: &SteeringVector| Part { layer: v.layer, d_model: v.direction.len(), norm: v.norm() };
    let vectors: Vec<Part> = imported.vectors.iter().map(part).collect();
    for v in &vectors {
        printer.line(format_args!(
            "{}: after block {}, {} numbers, norm {:.3}",
            args.to.display(),
            v.layer,
            v.d_model,
            v.norm
        ))?;
    }
    let format = imported.format;
    printer.result(&Converted { from: &from, format, to: &args.to, vectors, warnings: &warnings })
}

#[derive(Serialize)]
struct Combined<'a> {
    vector: &'a Path,
    layer: usize,
    norm: f32,
    relative_dose: Option<f32>,
    terms: Vec<TermReport>,
    comparison: &'a Comparison,
    kl: Option<f64>,
}

#[derive(Serialize)]
struct TermReport {
    name: String,
    weight: f32,
    norm: f32,
    /// Mean KL(steered || plain) per token, in nats, of this term alone.
    kl: Option<f64>,
}

pub(crate) fn combine(args: &VectorCombine, printer: Printer) -> Outcome {
    absent(&args.out, args.overwrite)?;
    let terms = algebra::parse_sum(&args.sum)?;
    let loaded = terms.iter().map(|t| Ok(load(&t.name)?.1)).collect::<Outcome<Vec<_>>>()?;
    let weighted: Vec<_> = terms.iter().map(|t| t.weight).zip(&loaded).collect();
    let name = args.out.file_stem().map_or("vector".into(), |stem| stem.to_string_lossy().into_owned());
    let mut result = algebra::combine(&name, &weighted)?;
    let others = |names: &[String]| names.iter().map(|n| Ok(load(n)?.1)).collect::<Outcome<Vec<_>>>();
    if !args.orthogonal_to.is_empty() {
        result = algebra::orthogonalised(&result, &others(&args.orthogonal_to)?.iter().collect::<Vec<_>>())?;
    }
    if !args.project_onto.is_empty() {
        result = algebra::projected(&result, &others(&args.project_onto)?.iter().collect::<Vec<_>>())?;
    }
    if let Some(norm) = args.norm {
        result = algebra::normalised(&result, norm)?;
    }
    let (kl, singles) = match &args.model {
        Some(model) => interference(args, model, &weighted, &result)?,
        None => (None, vec![None; terms.len()]),
    };
    interop::export(std::slice::from_ref(&result), &args.out)?;
    let names: Vec<String> = terms.iter().map(|t| t.name.clone()).chain([name]).collect();
    let comparison = Comparison::new(&names, &loaded.iter().chain([&result]).collect::<Vec<_>>());
    let reports: Vec<TermReport> = terms
        .into_iter()
        .zip(&loaded)
        .zip(singles)
        .map(|((t, v), kl)| TermReport {
            name: t.name,
            weight: t.weight,
            norm: t.weight.abs() * v.norm(),
            kl,
        })
        .collect();
    let mut table = Table::new(&["term", "weight", "norm", "mean KL"]);
    let shown = |kl: Option<f64>| kl.map_or("-".into(), |kl| format!("{kl:.4}"));
    for t in &reports {
        table.row(&[t.name.clone(), t.weight.to_string(), number(t.norm.into()), shown(t.kl)]);
    }
    table.row(&["result".into(), String::new(), number(result.norm().into()), shown(kl)]);
    printer.line(table)?;
    if let Some(kl) = kl {
        let sum: f64 = reports.iter().filter_map(|t| t.kl).sum();
        printer
            .line(format_args!("\nthe whole disturbs {:.2} times as much as its parts together", kl / sum))?;
    }
    printer.line("")?;
    printer.line(matrix(&comparison))?;
    printer.line(format_args!("\nvector: {} (after block {})", args.out.display(), result.layer))?;
    printer.result(&Combined {
        vector: &args.out,
        layer: result.layer,
        norm: result.norm(),
        relative_dose: result.relative_norm(),
        terms: reports,
        comparison: &comparison,
        kl,
    })
}

/// Mean divergence of the whole, and of each term alone.
fn interference(
    args: &VectorCombine,
    model: &str,
    terms: &[(f32, &SteeringVector)],
    whole: &SteeringVector,
) -> Outcome<(Option<f64>, Vec<Option<f64>>)> {
    let cancel = signals::install()?;
    let model = Model::open(&model::resolve(model)?, &OpenOptions::default())?;
    let prompts = questions(&model, whole, args.prompts.as_deref())?;
    let mean = |v: &SteeringVector, multiplier: f32| -> Outcome<Option<f64>> {
        let plan = SteeringPlan::new().add(Arc::new(v.clone()), multiplier)?;
        let edited = prompts.iter().map(|(tokens, shape)| {
            Ok(EditedPrompt { tokens: tokens.clone(), edits: plan.edits(model.config(), shape)? })
        });
        let edited = edited.collect::<Outcome<Vec<_>>>()?;
        let all = divergences(&model, &edited, TOKENS, &cancel)?;
        Ok(Some(all.iter().sum::<f64>() / all.len().max(1) as f64))
    };
    let singles = terms.iter().map(|(weight, v)| mean(v, *weight)).collect::<Outcome<Vec<_>>>()?;
    Ok((mean(whole, 1.0)?, singles))
}

/// Prompts with what a token scope must know of them.
fn questions(
    model: &Model,
    vector: &SteeringVector,
    file: Option<&Path>,
) -> Outcome<Vec<(Vec<u32>, PromptShape)>> {
    let texts = match file {
        Some(file) => prompts::read(file)?,
        None => QUESTIONS.map(str::to_owned).to_vec(),
    };
    let prompting = steering::prompting(model, vector.provenance.system_prompt.clone())?;
    let plan = SteeringPlan::new().add(Arc::new(vector.clone()), 1.0)?;
    let prompt = |text: &String| {
        let tokens = prompting.prompt(text)?;
        let shape = plan.shape(&prompting, text, tokens.len())?;
        Ok((tokens, shape))
    };
    texts.iter().map(prompt).collect()
}

pub(crate) fn compare(args: &VectorCompare, printer: Printer) -> Outcome {
    let vectors = args.vectors.iter().map(|name| Ok(load(name)?.1)).collect::<Outcome<Vec<_>>>()?;
    let comparison = Comparison::new(&args.vectors, &vectors.iter().collect::<Vec<_>>());
    if let Some(svg) = &args.svg {
        let map = HeatMap {
            title: "cosines between vectors".into(),
            rows: comparison.names.clone(),
            columns: comparison.names.clone(),
            cells: comparison.cosines.clone(),
        };
        files::write_atomic(svg, map.svg().as_bytes())?;
    }
    printer.line(matrix(&comparison))?;
    printer.result(&comparison)
}

/// Layers, norms and cosines.
fn matrix(comparison: &Comparison) -> Table {
    let heads: Vec<String> = (1..=comparison.names.len()).map(|i| i.to_string()).collect();
    let heads = ["vector", "layer", "norm"].into_iter().chain(heads.iter().map(String::as_str));
    let mut table = Table::new(&heads.collect::<Vec<_>>());
    for (i, name) in comparison.names.iter().enumerate() {
        let mut row = vec![
            format!("{} {name}", i + 1),
            comparison.layers[i].to_string(),
            number(comparison.norms[i].into()),
        ];
        let shown = |c: &Option<f64>| c.map_or("-".into(), |c| format!("{c:+.3}"));
        row.extend(comparison.cosines[i].iter().map(shown));
        table.row(&row);
    }
    table
}

#[derive(Serialize)]
struct Calibrated<'a> {
    vector: &'a Path,
    #[serde(flatten)]
    calibration: &'a Calibration,
    relative_dose: Option<f32>,
}

pub(crate) fn calibrated(args: &VectorCalibrate, printer: Printer) -> Outcome {
    if !(args.kl.is_finite() && args.kl > 0.0) {
        return Err(Failure::usage(format_args!("found --kl {}, expected a number above 0", args.kl)));
    }
    let cancel: Arc<AtomicBool> = signals::install()?;
    let (path, vector) = load(&args.vector)?;
    let out = args.out.clone().unwrap_or(path);
    if out.extension().is_none_or(|e| e != "safetensors") {
        return Err(Failure::usage(format_args!(
            "{}: only safetensors files keep a unit dose",
            out.display()
        ))
        .hint("write one: --out NAME.safetensors"));
    }
    let model = steering::open(&args.model, 1)?;
    let plan = SteeringPlan::new().add(Arc::new(vector.clone()), 1.0)?;
    steering::warn(&plan, &model, false, printer)?;
    let prompts = questions(&model, &vector, args.prompts.as_deref())?;
    let shared = Arc::new(vector.clone());
    let found = calibrate(&model, &shared, &prompts, args.kl, args.tokens, &cancel)?;
    let mut vector = vector;
    vector.provenance.calibration = Some(found.clone());
    interop::export(std::slice::from_ref(&vector), &out)?;
    let relative_dose = vector.relative_norm().map(|r| r * found.multiplier);
    printer.line(format_args!(
        "unit dose {:.3}: 95% of the tokens diverge by {:.3} nats or less{}",
        found.multiplier,
        found.kl,
        relative_dose.map_or(String::new(), |d| format!(" ({d:.3} of the residual stream)"))
    ))?;
    printer.line(format_args!("vector: {}", out.display()))?;
    printer.result(&Calibrated { vector: &out, calibration: &found, relative_dose })
}
