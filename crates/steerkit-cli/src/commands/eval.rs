//! `steerkit eval`.

use std::time::Instant;

use serde::Serialize;
use steerkit::SteerError;
use steerkit::eval::{self, EvalSpec, Findings, Judging, Steering, Subject, Task, output};
use steerkit_model::Model;

use super::asking::{Who, with_asker};
use super::steering::{self, Applied};
use crate::args::{AnswerArgs, EvalArgs, ModelArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, Progress, Table};
use crate::signals;

pub(crate) fn run(args: &EvalArgs, printer: Printer) -> Outcome {
    if args.evaluation == "list" {
        return list(printer);
    }
    let spec = resolve(args)?;
    let Some(name) = &args.model else {
        return Err(Failure::usage("no model to evaluate").hint("name one with --model"));
    };
    let who = Who::judge(&args.judging)?;
    let cancel = signals::install()?;
    let vectors =
        args.steering.steer.iter().map(|s| Applied::load(s, &args.steering)).collect::<Outcome<Vec<_>>>()?;
    let model_args = ModelArgs {
        model: name.clone(),
        lora: args.lora.clone(),
        precision: args.precision,
        device: args.device,
    };
    let model = steering::open(&model_args, 16)?;
    let steerings = steerings(&spec, &vectors, &model, args.steering.force, printer)?;
    let system = steering::system_prompt(&args.steering, &vectors, printer);
    let system = if model.chat_template()?.is_none() { None } else { system };
    let subject = Subject {
        model: &model,
        prompting: steering::prompting(&model, system.clone())?,
        steerings,
        seed: spec.seed,
        limit: spec.limit,
        cancel: &cancel,
        judging: None,
    };
    let began = Instant::now();
    let findings = match who {
        None => measure(&spec, &subject, printer)?,
        Some(who) => {
            let (ask, beside) = (&args.judging.ask, args.out.as_ref().map(|out| out.join("replies.jsonl")));
            with_asker(&who, ask, beside, printer, |asker| {
                let judging = Some(Judging { asker, dry_run: ask.dry_run });
                measure(&spec, &Subject { judging, ..subject.clone() }, printer)
            })?
        }
    };
    let setting = setting(&model, &vectors, &subject, system, began.elapsed().as_secs_f64())?;
    let out = args.out.as_ref().filter(|_| !args.judging.ask.dry_run);
    if let Some(folder) = out {
        output::write(folder, &spec, &findings, &setting)?;
    }
    show(&findings, printer)?;
    if let Some(folder) = out {
        printer.say(format_args!("everything is in {}", folder.join("report.html").display()));
    }
    printer.result(&output::results(&spec, &findings, &setting))?;
    // The results are out; whether they are a measurement is another matter.
    findings.failure.map_or(Ok(()), |failure| Err(SteerError::from(failure).into()))
}

/// Runs the evaluation with a bar for each of its parts.
fn measure(spec: &EvalSpec, subject: &Subject<'_>, printer: Printer) -> Outcome<Findings> {
    let mut bar: Option<(String, Progress)> = None;
    let findings = eval::run(spec, subject, &mut |progress| {
        if bar.as_ref().is_none_or(|(what, _)| what != progress.what) {
            // The old bar goes before the new one is drawn.
            bar = None;
            bar = Some((progress.what.to_owned(), Progress::steps(printer, progress.what, progress.total)));
        }
        if let Some((_, bar)) = &mut bar {
            bar.at(progress.done as u64, "");
        }
    });
    drop(bar);
    Ok(findings?)
}

/// The evaluation with what the options change.
fn resolve(args: &EvalArgs) -> Outcome<EvalSpec> {
    let mut spec = EvalSpec::find(&args.evaluation)?;
    if !args.multipliers.is_empty() {
        spec.multipliers = args.multipliers.clone();
    }
    if args.steering.steer.is_empty() {
        if args.multipliers.iter().any(|&m| m != 0.0) {
            return Err(Failure::usage("--multipliers without a vector").hint("name one with --steer"));
        }
        spec.multipliers = vec![0.0];
    }
    spec.multipliers.push(0.0);
    // Minus zero is zero.
    spec.multipliers.iter_mut().for_each(|m| *m += 0.0);
    spec.multipliers.sort_by(f64::total_cmp);
    spec.multipliers.dedup();
    spec.limit = args.limit.or(spec.limit);
    spec.seed = args.seed.unwrap_or(spec.seed);
    if let (Some(path), Some(data)) = (&args.data, spec.task.data_mut()) {
        *data = Some(path.clone());
    }
    answering(args, &mut spec)?;
    Ok(spec)
}

/// Sets what the options say about answers; an option that the evaluation has no use for is wrong use.
fn answering(args: &EvalArgs, spec: &mut EvalSpec) -> Outcome {
    let AnswerArgs { rubric, references, suffix, answer_tokens, show_answers, redact } = &args.answering;
    let mut unused = Vec::new();
    let mut judged = true;
    let mut note = |given: bool, option: &'static str| unused.extend(given.then_some(option));
    match &mut spec.task {
        Task::OpenEnded(task) => {
            task.rubric = rubric.clone().or(task.rubric.take());
            task.max_tokens = answer_tokens.unwrap_or(task.max_tokens);
            note(references.is_some(), "--references");
            note(suffix.is_some(), "--suffix");
            task.redact = (task.redact || *redact) && !show_answers;
        }
        Task::AttackSuccess(task) => {
            task.rubric = rubric.clone().unwrap_or_else(|| task.rubric.clone());
            task.references = references.clone().or(task.references.take());
            task.suffix = suffix.clone().or(task.suffix.take());
            task.max_tokens = answer_tokens.unwrap_or(task.max_tokens);
            task.redact = (task.redact || *redact) && !show_answers;
        }
        Task::OverRefusal(task) => {
            task.rubric = rubric.clone().unwrap_or_else(|| task.rubric.clone());
            task.references = references.clone().or(task.references.take());
            task.max_tokens = answer_tokens.unwrap_or(task.max_tokens);
            task.redact = (task.redact || *redact) && !show_answers;
            note(suffix.is_some(), "--suffix");
        }
        _ => {
            judged = false;
            note(rubric.is_some(), "--rubric");
            note(references.is_some(), "--references");
            note(suffix.is_some(), "--suffix");
            note(answer_tokens.is_some(), "--answer-tokens");
            note(*show_answers, "--show-answers");
            note(*redact, "--redact");
        }
    }
    note(args.judging.judge.is_some() && !judged, "--judge");
    match unused.first() {
        None => Ok(()),
        Some(option) => {
            Err(Failure::usage(format_args!("{option}: the evaluation {:?} has no use for it", spec.name))
                .hint("evaluations with a judge are open-ended, attack-success and over-refusal"))
        }
    }
}

/// The plan at every multiplier, after a look at the strongest.
fn steerings(
    spec: &EvalSpec,
    vectors: &[Applied],
    model: &Model,
    force: bool,
    printer: Printer,
) -> Outcome<Vec<Steering>> {
    let strongest =
        spec.multipliers.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0);
    steering::warn(&steering::plan(vectors, strongest)?, model, force, printer)?;
    let of = |&multiplier: &f64| Ok(Steering { multiplier, plan: steering::plan(vectors, multiplier)? });
    spec.multipliers.iter().map(of).collect()
}

fn setting(
    model: &Model,
    vectors: &[Applied],
    subject: &Subject<'_>,
    system: Option<String>,
    seconds: f64,
) -> Outcome<output::Setting> {
    let identity = model.identity();
    let mut hashes = vec![(identity.name.clone(), identity.file_sha256.clone())];
    for vector in vectors {
        hashes.push((vector.path.display().to_string(), steerkit::files::sha256_of_file(&vector.path)?));
    }
    let parts = vectors.iter().flat_map(|v| v.parts(1.0));
    let plan = parts.map(|part| serde_json::to_value(part).expect("text and numbers"));
    let names = vectors.iter().map(|v| format!("{} x {}", v.name, v.multiplier)).collect::<Vec<_>>();
    let facts = [
        ("Model", identity.name.clone()),
        ("Plan", if names.is_empty() { "plain model".into() } else { names.join(" + ") }),
        (
            "Multipliers",
            subject.multipliers().iter().map(|&m| crate::output::signed(m)).collect::<Vec<_>>().join(", "),
        ),
        ("Seed", subject.seed.to_string()),
        ("Time", format!("{seconds:.1} s")),
    ];
    Ok(output::Setting {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        facts: facts.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        hashes,
        plan: plan.collect(),
        system,
        seconds,
    })
}

fn show(findings: &Findings, printer: Printer) -> Outcome {
    for note in &findings.notes {
        printer.say(format_args!("note: {note}"));
    }
    for found in &findings.tables {
        printer.heading(&found.title)?;
        let mut table = Table::new(&found.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>());
        found.texts().for_each(|row| table.row(&row));
        printer.line(table)?;
        printer.line("")?;
    }
    printer.line(&findings.lead)
}

/// A built-in evaluation, as JSON shows it.
#[derive(Serialize)]
struct Known<'a> {
    name: &'a str,
    kind: &'a str,
    about: &'a str,
}

fn list(printer: Printer) -> Outcome {
    for spec in EvalSpec::built_in() {
        printer.line(format_args!("{:<15} {}\n    {}", spec.name, spec.task.kind(), spec.about))?;
        printer.result(&Known { name: &spec.name, kind: spec.task.kind(), about: &spec.about })?;
    }
    Ok(())
}
