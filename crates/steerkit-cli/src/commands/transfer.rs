//! `steerkit vector transfer-check`.

use std::path::Path;

use steerkit::data::{PreferencePair, ReadOptions, read};
use steerkit::report::ReportProvenance;
use steerkit::text_stats::Estimate;
use steerkit::train::Event;
use steerkit::transfer::{MarginPoint, Side, Transfer, TransferRequest, measure};
use steerkit::{SteeringVector, files};
use steerkit_model::{LoraChoice, LoraMode, Model, OpenOptions};

use super::training::Watch;
use super::{model, steering, vector};
use crate::args::VectorTransfer;
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, Table, number, side_by_side, signed};
use crate::signals;

/// Pairs in German whose questions are answered where no others are given.
const GERMAN: &str = include_str!("../../../../data/formality/german.jsonl");
/// Multipliers that questions are answered at.
const ANSWERED_AT: [f64; 3] = [-1.0, 0.0, 1.0];

pub(crate) fn run(args: &VectorTransfer, printer: Printer) -> Outcome {
    let cancel = signals::install()?;
    let path = vector::find(&args.vector)?;
    let vector = steering::one_layer(&path)?;
    let pairs = pairs(&args.data, args.limit)?;
    let translated = args.translated.as_deref().map(|file| self::pairs(file, args.limit)).transpose()?;
    let other_language = match &translated {
        Some(pairs) => pairs.clone(),
        None => GERMAN.lines().map(|line| serde_json::from_str(line).expect("read in a test")).collect(),
    };
    let asked = pairs.iter().take(args.questions).chain(&other_language);
    let questions: Vec<&str> = asked.map(|pair| pair.prompt.as_str()).collect();
    let request = TransferRequest {
        vector: &vector,
        pairs: &pairs,
        translated: translated.as_deref().unwrap_or_default(),
        multipliers: &args.multipliers,
        questions: &questions,
        answered_at: &ANSWERED_AT,
        max_tokens: args.max_tokens,
    };
    let side = |name: &str, adapters: &[LoraChoice], like: Option<f64>| -> Outcome<Side> {
        let model = open(args, name, adapters)?;
        check_shape(&vector, &model, name)?;
        printer.say(format_args!("measuring {name}"));
        let mut watch = Watch::new(printer);
        Ok(measure(&model, &request, like, &mut |event: Event<'_>| watch.see(&event), &cancel)?)
    };
    let from = side(&args.from, &[], None)?;
    let trained_on = vector.provenance.base_model.as_ref().map(|base| &base.file_sha256);
    if trained_on.is_some_and(|sha256| *sha256 != from.model.file_sha256) {
        printer.warn(format_args!("the vector was not trained on {}", args.from));
    }
    let to = side(&args.to, &args.to_lora, args.rescale.then_some(from.residual_norm))?;
    let transfer = Transfer::new(&vector, from, to);
    show(&transfer, args.questions, printer)?;
    if let Some(file) = &args.html {
        files::write_atomic(file, transfer.html(&provenance(&transfer, &path)?).as_bytes())?;
        printer.line(format_args!("\npage: {}", file.display()))?;
    }
    printer.result(&transfer)
}

fn pairs(file: &Path, limit: Option<usize>) -> Outcome<Vec<PreferencePair>> {
    Ok(read(file, &ReadOptions { limit, ..ReadOptions::default() })?.pairs)
}

fn open(args: &VectorTransfer, name: &str, adapters: &[LoraChoice]) -> Outcome<Model> {
    let options = OpenOptions {
        precision: args.precision.resolve(1),
        device: args.device.choice(),
        long_context: args.device.long_context,
    };
    Ok(Model::open_with_lora(&model::resolve(name)?, adapters, LoraMode::Beside, &options)?)
}

/// Refuses a model whose residual stream the vector cannot be added to.
fn check_shape(vector: &SteeringVector, model: &Model, name: &str) -> Outcome {
    let (found, config) = (vector.direction.len(), model.config());
    if found != config.d_model {
        return Err(Failure::input(format_args!(
            "{name} has a residual stream of {} numbers, the vector {found}: it cannot be transferred",
            config.d_model
        ))
        .hint(
            "vectors go between models of the same width only: fine-tunes and quantisations of one model",
        ));
    }
    Ok(())
}

fn show(transfer: &Transfer, questions: usize, printer: Printer) -> Outcome {
    let Transfer { from, to, .. } = transfer;
    printer.heading(format_args!("{} from {} to {}", transfer.vector, from.model.name, to.model.name))?;
    let mut facts = Table::new(&["", "own model", "other model"]);
    facts.row(&["residual norm".into(), number(from.residual_norm), number(to.residual_norm)]);
    facts.row(&["vector times".into(), number(from.factor), number(to.factor)]);
    let cosine = |side: &Side| format!("{:+.3}", side.mean_difference_cosine);
    facts.row(&["cosine with the mean difference".into(), cosine(from), cosine(to)]);
    printer.line(facts)?;
    printer.line(format_args!(
        "residual norms {:.3} : 1, effect of a multiplier {:.3} : 1",
        transfer.norm_ratio, transfer.strength
    ))?;
    for (heading, points) in [
        ("margins on the pairs, nats", [&from.margins, &to.margins]),
        ("margins in the other language, nats", [&from.translated, &to.translated]),
    ] {
        if !points[0].is_empty() {
            printer.line("")?;
            printer.heading(heading)?;
            printer.line(margins(points))?;
        }
    }
    // Of the other language's answers the page and JSON have all.
    for (own, other) in from.answers.iter().zip(&to.answers).take(questions + 2) {
        printer.line("")?;
        printer.heading(&own.question)?;
        let answers = || own.answers.iter().zip(&other.answers).flat_map(|(a, b)| [(a, "own"), (b, "other")]);
        let heads: Vec<String> =
            answers().map(|(a, whose)| format!("{} {whose}", signed(a.multiplier))).collect();
        let texts: Vec<&str> = answers().map(|(a, _)| a.text.as_str()).collect();
        for at in (0..heads.len()).step_by(2) {
            printer.line(side_by_side(&heads[at..at + 2], &texts[at..at + 2]))?;
        }
    }
    Ok(())
}

fn margins([own, other]: [&Vec<MarginPoint>; 2]) -> Table {
    let mut table = Table::new(&["multiplier", "own model", "accuracy", "other model", "accuracy"]);
    let shown = |Estimate { value, interval }: Estimate| match interval {
        Some((low, high)) => format!("{value:+.2} [{low:+.2}, {high:+.2}]"),
        None => format!("{value:+.2}"),
    };
    let share = |accuracy: Option<f64>| accuracy.map_or("-".into(), |a| format!("{:.0}%", 100.0 * a));
    for (a, b) in own.iter().zip(other) {
        table.row(&[
            signed(a.multiplier),
            shown(a.margin),
            share(a.accuracy),
            shown(b.margin),
            share(b.accuracy),
        ]);
    }
    table
}

fn provenance(transfer: &Transfer, vector: &Path) -> Outcome<ReportProvenance> {
    let models = [&transfer.from, &transfer.to].map(|s| (s.model.name.clone(), s.model.file_sha256.clone()));
    let vector = (vector.display().to_string(), files::sha256(&fs_err::read(vector)?));
    Ok(ReportProvenance {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        hashes: models.into_iter().chain([vector]).collect(),
        versions: vec![("steerkit".into(), env!("CARGO_PKG_VERSION").into())],
        ..ReportProvenance::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_german_questions_are_whole() {
        let pairs: Vec<PreferencePair> =
            GERMAN.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(pairs.len(), 20);
        assert!(pairs.iter().all(|p| !p.prompt.is_empty() && p.chosen != p.rejected));
    }
}
