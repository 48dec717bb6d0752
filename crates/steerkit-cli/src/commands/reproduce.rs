//! `steerkit reproduce`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use steerkit::eval::Judging;
use steerkit::recipe::Preset;
use steerkit::reproduce::{self, Experiment, Need, Progress as News, Reproduction, Session, Setup};
use steerkit::train::Event;
use steerkit_model::{ErrorKind, OpenOptions};

use super::asking::{Who, with_asker};
use super::training;
use crate::args::ReproduceArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, Progress, Table};
use crate::signals;

pub(crate) fn run(args: &ReproduceArgs, printer: Printer) -> Outcome {
    if args.id == "list" {
        return list(printer);
    }
    let experiment = Experiment::find(&args.id)?;
    let Some(model) = &args.model else {
        return Err(Failure::usage("no model to run the experiment on").hint("name one with --model"));
    };
    if args.judging.ask.dry_run {
        return Err(Failure::usage(
            "--dry-run belongs to eval and judge: the answers of an experiment are not known before",
        )
        .hint("limit what judging may cost with --token-cap or --max-cost"));
    }
    let setup = setup(args, model);
    let who = Who::judge(&args.judging)?;
    let judge = args.judging.judge.as_deref();
    let needs = reproduce::needs(&experiment, &setup, judge);
    for need in &needs {
        printer.say(format_args!("{}: {}", need.what, need.missing.as_ref().unwrap_or(&need.found)));
    }
    reproduce::check(&experiment, &needs)?;
    let suffix = if args.quick { "-quick" } else { "" };
    let default = || Path::new("runs/reproduce").join(format!("{}{suffix}", experiment.id));
    let out = args.out.clone().unwrap_or_else(default);
    let cancel = signals::install()?;
    let precision = match args.precision.name() {
        "bf16" => steerkit_model::Precision::Bf16,
        _ => steerkit_model::Precision::F32,
    };
    let options =
        OpenOptions { precision, device: args.device.choice(), long_context: args.device.long_context };
    let session = Session { options, judging: None, cancel: &cancel };
    let done = match who {
        None => measure(&experiment, &setup, &session, &out, printer)?,
        Some(who) => {
            let (ask, beside) = (&args.judging.ask, Some(out.join("replies.jsonl")));
            with_asker(&who, ask, beside, printer, |asker| {
                let judging = Some(Judging { asker, dry_run: false });
                measure(&experiment, &setup, &Session { judging, ..session }, &out, printer)
            })?
        }
    };
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    reproduce::write(&out, &experiment, &setup, &needs, &done, &command)?;
    show(&experiment, &setup, &needs, &done, &out, &command, printer)
}

fn setup(args: &ReproduceArgs, model: &str) -> Setup {
    let preset = args.preset.map(|preset| preset.name());
    let mut set: Vec<(String, String)> = args.set.iter().map(|s| (s.key.clone(), s.value.clone())).collect();
    if args.precision.name() != "f32" {
        // Of the vectors' recipes, and of the adapter's.
        let keys = ["precision", "dpo-lora.precision"];
        set.extend(keys.map(|key| (key.to_owned(), args.precision.name().to_owned())));
    }
    Setup {
        also: args.also.clone(),
        adapter: args.adapter.clone(),
        data_root: args.data_root.clone(),
        data: args.data.iter().map(|place| (place.name.clone(), place.path.clone())).collect(),
        quick: args.quick,
        limit: args.limit,
        seed: args.seed,
        preset: Preset::ALL.into_iter().find(|p| Some(p.name()) == preset).unwrap_or_default(),
        set,
        answer_tokens: args.answer_tokens,
        ..Setup::new(model)
    }
}

/// Runs the experiment with a line for each step.
fn measure(
    experiment: &Experiment,
    setup: &Setup,
    session: &Session<'_>,
    out: &Path,
    printer: Printer,
) -> Outcome<Reproduction> {
    let mut bar: Option<(String, Progress)> = None;
    let mut run: Option<training::Watch> = None;
    let done = reproduce::run(experiment, setup, session, out, &mut |news| match news {
        News::Begin { what, done, total } => {
            (bar, run) = (None, None);
            printer.say(format_args!("{} of {total}: {what}", done + 1));
        }
        // Notes and slow steps are shown; the rest would drown the lines.
        News::Training(event) if matches!(event, Event::Caching { .. } | Event::Step { .. }) => {
            run.get_or_insert_with(|| training::Watch::quiet(printer)).see(&event);
        }
        News::Measuring(progress) => {
            if bar.as_ref().is_none_or(|(what, _)| what != progress.what) {
                (bar, run) = (None, None);
                bar =
                    Some((progress.what.to_owned(), Progress::steps(printer, progress.what, progress.total)));
            }
            if let Some((_, bar)) = &mut bar {
                bar.at(progress.done as u64, "");
            }
        }
        _ => {}
    });
    drop((bar, run));
    done.map_err(|error| match error.kind() {
        ErrorKind::Interrupted => {
            Failure::new(ErrorKind::Interrupted, "interrupted; finished vectors and measurements are kept")
                .hint("the same command goes on where this one stopped")
        }
        _ => error.into(),
    })
}

fn show(
    experiment: &Experiment,
    setup: &Setup,
    needs: &[Need],
    done: &Reproduction,
    out: &Path,
    command: &str,
    printer: Printer,
) -> Outcome {
    for note in done.notes.iter().chain(done.panels.iter().flat_map(|panel| &panel.notes)) {
        printer.say(format_args!("note: {note}"));
    }
    for found in done.panels.iter().flat_map(reproduce::tables) {
        printer.heading(&found.title)?;
        let mut table = Table::new(&found.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>());
        found.texts().for_each(|row| table.row(&row));
        printer.line(table)?;
        printer.line("")?;
    }
    if !experiment.paper.is_empty() {
        printer.line(format_args!("the paper's numbers: {}", experiment.paper))?;
    }
    printer.say(format_args!("everything is in {}", out.join("report.html").display()));
    printer.result(&reproduce::results(experiment, setup, needs, done, command))?;
    match done.missing() {
        0 => Ok(()),
        n => Err(Failure::new(ErrorKind::Failed, format_args!("{n} cells have no number"))
            .hint("a judge that gave no score leaves them empty; results.json says which")),
    }
}

/// An experiment, as JSON shows it.
#[derive(Serialize)]
struct Known<'a> {
    id: &'a str,
    title: &'a str,
    paper: &'a str,
    about: &'a str,
    axes: Vec<Vec<&'a str>>,
}

fn list(printer: Printer) -> Outcome {
    let setup = Setup { data_root: PathBuf::from("data"), ..Setup::new("MODEL") };
    for experiment in Experiment::built_in() {
        let Experiment { id, title, paper, about, panels } = &experiment;
        printer.line(format_args!("{id:<12} {title}"))?;
        if !paper.is_empty() {
            printer.line(format_args!("             {paper}"))?;
        }
        let needs = reproduce::needs(&experiment, &setup, None);
        let needs: Vec<&str> =
            needs.iter().map(|need| need.what.as_str()).filter(|what| !what.starts_with("model ")).collect();
        printer.line(format_args!("             needs {}", needs.join(", ")))?;
        let axes = panels.iter().map(|panel| panel.axes.iter().map(|axis| axis.name()).collect()).collect();
        printer.result(&Known { id, title, paper, about, axes })?;
    }
    Ok(())
}
