//! `steerkit demo`.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use steerkit::demo::{Demo, DemoEvent};
use steerkit::eval::SurfacePoint;
use steerkit::report::Comparison;
use steerkit::train::EvalPoint;
use steerkit_model::{Model, OpenOptions};

use super::training::Watch;
use super::{model, train, vector};
use crate::args::DemoArgs;
use crate::failure::Outcome;
use crate::output::{Printer, Table, side_by_side, signed};
use crate::{memory, signals};

/// What `demo` prints as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    seconds: f64,
    eval: &'a [EvalPoint],
    surface: &'a [SurfacePoint],
    answers: &'a [Comparison],
    vector: &'a Path,
    report: &'a Path,
    phases: Vec<(&'static str, f64)>,
    peak_rss_mb: Option<f64>,
}

pub(crate) fn run(args: &DemoArgs, printer: Printer) -> Outcome {
    let cancel = signals::install()?;
    let path = match model::resolve(&args.model) {
        Err(_) if !args.offline => model::pull(&args.model, printer)?,
        resolved => resolved?,
    };
    let began = Instant::now();
    let model = Model::open(&path, &OpenOptions::default())?;
    let opened = began.elapsed().as_secs_f64();
    let mut watch = Watch::new(printer);
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let demo = steerkit::demo::run(
        &model,
        &args.model,
        &args.out,
        &command,
        &mut |event| match event {
            DemoEvent::Train(event) => watch.see(&event),
            DemoEvent::Answering { done, total } => watch.at("answering questions", done, total, ""),
            DemoEvent::Reading => watch.at("reading the answers", 0, 1, ""),
            _ => {}
        },
        &cancel,
    );
    drop(watch);
    let demo = demo?;
    let seconds = began.elapsed().as_secs_f64();
    show(&demo, seconds, printer)?;
    let (model, name) = (&args.model, vector::name_of_run(&args.out));
    printer.say(format_args!("next: steerkit chat --model {model} --steer {name}=1"));
    printer.result(&Shown {
        seconds,
        eval: &demo.eval,
        surface: &demo.surface,
        answers: &demo.answers,
        vector: &demo.vector,
        report: &demo.report,
        phases: std::iter::once(("open", opened)).chain(demo.phases.iter().copied()).collect(),
        peak_rss_mb: memory::peak_rss_mb(),
    })
}

fn show(demo: &Demo, seconds: f64, printer: Printer) -> Outcome {
    for comparison in &demo.answers {
        let heads: Vec<String> = comparison.answers.iter().map(|a| signed(a.multiplier)).collect();
        let texts: Vec<&str> = comparison.answers.iter().map(|a| a.text.as_str()).collect();
        printer.heading(&comparison.question)?;
        printer.line(side_by_side(&heads, &texts))?;
        printer.line("")?;
    }
    printer.heading("Held-out pairs: how much likelier the formal answer becomes than the casual one")?;
    printer.line(train::eval_table(&demo.eval))?;
    printer.line("")?;
    printer.heading("Written answers")?;
    let mut table = Table::new(&["multiplier", "formality", "words", "distinct-3", "perplexity"]);
    for p in &demo.surface {
        table.row(&[
            signed(p.multiplier),
            format!("{:+.2}", p.value),
            format!("{:.1}", p.words),
            format!("{:.2} ({:.2}x)", p.distinct_3, p.distinct_3_ratio),
            format!("{:.1} ({:.2}x)", p.perplexity, p.perplexity_ratio),
        ]);
    }
    printer.line(table)?;
    printer.line("")?;
    printer.line(format_args!("{seconds:.0} s; everything is in {}", demo.report.display()))?;
    Ok(())
}
