//! `steerkit vector`, and finding a vector by name.

use std::path::{Path, PathBuf};

use serde::Serialize;
use steerkit::interop::{self, ImportOptions};
use steerkit::vector::VectorSummary;

use super::{algebra, gate, transfer};
use crate::args::VectorCommand;
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, number};

/// Where runs lie unless `--out` says otherwise.
const RUNS: &str = "runs";

pub(crate) fn run(command: VectorCommand, printer: Printer) -> Outcome {
    match command {
        VectorCommand::Inspect { vector } => inspect(&vector, printer),
        VectorCommand::Convert(args) => algebra::convert(&args, printer),
        VectorCommand::Combine(args) => algebra::combine(&args, printer),
        VectorCommand::Compare(args) => algebra::compare(&args, printer),
        VectorCommand::Calibrate(args) => algebra::calibrated(&args, printer),
        VectorCommand::TransferCheck(args) => transfer::run(&args, printer),
        VectorCommand::Gate(args) => gate::run(&args, printer),
    }
}

/// The file of a vector: a path, or a name that stands for `NAME.safetensors`, `NAME/vector.safetensors` or
/// `runs/NAME/vector.safetensors`, whichever is there first.
pub(crate) fn find(name: &str) -> Outcome<PathBuf> {
    let given = Path::new(name);
    let candidates = [
        given.to_owned(),
        PathBuf::from(format!("{name}.safetensors")),
        given.join("vector.safetensors"),
        Path::new(RUNS).join(name).join("vector.safetensors"),
    ];
    if let Some(found) = candidates.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    let tried: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
    let failure = Failure::input(format_args!("no vector {name:?}: found none of {}", tried.join(", ")));
    Err(match nearest(name, &known()) {
        Some(near) => failure.hint(format_args!("did you mean {near:?}?")),
        None => failure.hint("train one: steerkit train --model MODEL --data PAIRS"),
    })
}

/// What [`find`] finds the vector of the run in `folder` by.
pub(crate) fn name_of_run(folder: &Path) -> String {
    folder.strip_prefix(RUNS).unwrap_or(folder).display().to_string()
}

/// Names of the vectors below the present folder.
fn known() -> Vec<String> {
    let names = |folder: &str, name: &dyn Fn(&Path) -> Option<String>| -> Vec<String> {
        let entries = fs_err::read_dir(folder).into_iter().flatten();
        entries.filter_map(|entry| name(&entry.ok()?.path())).collect()
    };
    let mut known = names(RUNS, &|path| {
        let is_run = path.join("vector.safetensors").is_file();
        is_run.then(|| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
    });
    known.extend(names(".", &|path| {
        let is_vector = path.extension().is_some_and(|end| end == "safetensors");
        is_vector.then(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
    }));
    known.sort_unstable();
    known
}

/// The candidate most like `word`, if any is alike.
pub(crate) fn nearest<'a>(word: &str, candidates: &'a [String]) -> Option<&'a str> {
    let scored = candidates.iter().map(|c| (strsim::jaro_winkler(word, c), c));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.8).map(|(_, c)| c.as_str())
}

#[derive(Serialize)]
struct Inspected<'a> {
    path: &'a Path,
    #[serde(flatten)]
    summary: VectorSummary,
}

fn inspect(name: &str, printer: Printer) -> Outcome {
    let path = find(name)?;
    let imported = interop::import(&path, &ImportOptions::default())?;
    for warning in &imported.warnings {
        printer.warn(warning);
    }
    imported.vectors.iter().try_for_each(|vector| show(&path, vector.summary(), printer))
}

fn show(path: &Path, summary: VectorSummary, printer: Printer) -> Outcome {
    for warning in &summary.warnings {
        printer.warn(warning);
    }
    printer.heading(format_args!("{} ({})", summary.provenance.name, path.display()))?;
    for (what, value) in facts(&summary) {
        printer.line(format_args!("  {what:<18}{value}"))?;
    }
    printer.result(&Inspected { path, summary })
}

/// What people want to know, in reading order; what the file does not say is left out.
fn facts(summary: &VectorSummary) -> Vec<(&'static str, String)> {
    let made = &summary.provenance;
    let dose = match (made.residual_norm, summary.relative_norm) {
        (Some(residual), Some(relative)) => {
            format!(" ({:.3} of the residual stream's {})", relative, number(residual.into()))
        }
        _ => String::new(),
    };
    let objective = serde_json::to_string(&made.objective).unwrap_or_default();
    let mut facts = vec![
        ("layer", format!("after block {}", summary.layer)),
        ("width", summary.d_model.to_string()),
        ("norm", format!("{}{dose}", number(summary.norm.into()))),
        ("largest number", number(summary.max_abs.into())),
        ("method", made.method.clone()),
        ("tokens", made.token_scope.to_string()),
    ];
    let mut push = |what, value: Option<String>| facts.extend(value.map(|value| (what, value)));
    push(
        "unit dose",
        made.calibration.as_ref().map(|c| format!("{} times ({} nats)", number(c.multiplier.into()), c.kl)),
    );
    push(
        "gate",
        made.gate.as_ref().map(|g| {
            format!(
                "open from cosine {:.3} (F1 {:.2} on {} and {} prompts)",
                g.threshold, g.f1, g.positives, g.negatives
            )
        }),
    );
    push("behaviour", made.behaviour.clone());
    push("objective", (!made.objective.is_empty()).then_some(objective));
    push(
        "model",
        made.base_model.as_ref().map(|m| format!("{} ({}, {} blocks)", m.name, m.architecture, m.n_layers)),
    );
    push("model file", made.base_model.as_ref().map(|m| format!("sha256 {}", m.file_sha256)));
    push("system prompt", made.system_prompt.as_ref().map(|text| format!("{text:?}")));
    push("data", made.data.as_ref().map(|data| format!("{} pairs, sha256 {}", data.count, data.sha256)));
    push("seed", made.seed.map(|seed| seed.to_string()));
    push("steps", made.steps.map(|steps| steps.to_string()));
    push(
        "made by",
        (!made.steerkit_version.is_empty()).then(|| format!("steerkit {}", made.steerkit_version)),
    );
    facts
}
