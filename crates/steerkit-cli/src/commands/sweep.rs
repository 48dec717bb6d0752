//! `steerkit sweep`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use steerkit::SteerError;
use steerkit::ranks;
use steerkit::recipe::Recipe;
use steerkit::sweep::{self, Job, Measured, Part, Progress as News, Results, Spec};
use steerkit::train::Event;
use steerkit_model::{ErrorKind, LoraChoice, LoraMode, Model, hub};

use super::training::Watch;
use crate::args::{SweepArgs, SweepCommand};
use crate::failure::{Failure, Outcome};
use crate::output::Printer;
use crate::signals;

pub(crate) fn run(args: &SweepArgs, printer: Printer) -> Outcome {
    if let Some(SweepCommand::Merge { folders, out }) = &args.command {
        return show(&sweep::merge(folders, out)?, out, true, printer);
    }
    let Some(file) = &args.file else {
        return Err(Failure::usage("no sweep").hint("steerkit sweep recipes/compare.toml"));
    };
    let spec = Spec::read(file)?;
    let name = file.display().to_string();
    let out = args.out.clone().or_else(|| spec.out.clone()).unwrap_or_else(|| default_folder(file));
    if args.list {
        return list(&spec.jobs(&name, &out)?, printer);
    }
    let cancel = signals::install()?;
    let part = match (args.shard, ranks::join()?) {
        (None, None) => Part::All,
        (Some(shard), None) => Part::Shard(shard.0),
        (None, Some(ranks)) => Part::Rank(ranks),
        (Some(_), Some(_)) => {
            return Err(Failure::usage("--shard and several MPI ranks: both share out the jobs")
                .hint("leave --shard out under mpirun"));
        }
    };
    let mut screen = Screen::new(printer);
    let results = sweep::run(&spec, &name, &out, &part, &mut open, &mut |news| screen.see(&news), &cancel);
    drop(screen);
    let results = results.map_err(|error| match error.kind() {
        ErrorKind::Interrupted => {
            Failure::new(ErrorKind::Interrupted, "interrupted; the finished jobs are kept")
                .hint("the same command goes on where this one stopped")
        }
        _ => error.into(),
    })?;
    ranks::leave();
    match &part {
        Part::Rank(ranks) if ranks.rank() > 0 => Ok(()),
        _ => show(&results, &out, !matches!(part, Part::Shard(_)), printer),
    }
}

/// Opens the model of a recipe.
fn open(recipe: &Recipe) -> Result<Model, SteerError> {
    let adapter = |text: &String| {
        text.parse::<LoraChoice>().map_err(|why| SteerError::Recipe {
            place: format!("lora {text:?}"),
            message: why,
            hint: None,
        })
    };
    let adapters = recipe.lora.iter().map(adapter).collect::<Result<Vec<_>, _>>()?;
    let path = hub::resolve(&recipe.model)?;
    Ok(Model::open_with_lora(&path, &adapters, LoraMode::Beside, &recipe.open_options())?)
}

fn default_folder(file: &Path) -> PathBuf {
    Path::new("runs").join(file.file_stem().unwrap_or_else(|| "sweep".as_ref()))
}

#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    keys: &'a std::collections::BTreeMap<String, String>,
}

fn list(jobs: &[Job], printer: Printer) -> Outcome {
    for job in jobs {
        printer.line(format_args!("{}  {}", job.id, label(job)))?;
        printer.result(&Listed { id: &job.id, keys: &job.keys })?;
    }
    Ok(())
}

/// A job in a person's words.
fn label(job: &Job) -> String {
    let others = job.keys.iter().filter(|(key, value)| *key != "method" && *value != "-");
    let others: Vec<String> = others.map(|(key, value)| format!("{key} {value}")).collect();
    [vec![job.method.clone()], others].concat().join(", ")
}

/// What a sweep shows while it goes on: a line per job, with the time that is left.
struct Screen {
    printer: Printer,
    began: Instant,
    /// Jobs behind us when the first one began are not counted in the time that one takes.
    place: (usize, usize),
    run: Option<Watch>,
}

impl Screen {
    fn new(printer: Printer) -> Self {
        Self { printer, began: Instant::now(), place: (0, 0), run: None }
    }

    fn see(&mut self, news: &News<'_>) {
        match news {
            News::Begin { done, total, .. } => {
                if *done == 0 {
                    self.began = Instant::now();
                }
                self.place = (*done, *total);
                self.run = None;
            }
            News::Run(event) => {
                // Notes and slow steps are shown; the rest would drown the sweep's own lines.
                if matches!(event, Event::Note(_) | Event::Caching { .. } | Event::Step { .. }) {
                    self.run.get_or_insert_with(|| Watch::quiet(self.printer)).see(event);
                }
            }
            News::Done { job, measured } => self.line(job, &margins(measured)),
            News::Failed { job, error } => {
                self.run = None;
                self.printer.warn(format_args!("job {} ({}) failed: {error}", job.id, label(job)));
            }
            _ => {}
        }
    }

    fn line(&mut self, job: &Job, what: &str) {
        self.run = None;
        let (done, total) = (self.place.0 + 1, self.place.1);
        let left = self.began.elapsed().as_secs_f64() / done as f64 * total.saturating_sub(done) as f64;
        self.printer.say(format_args!(
            "{done} of {total}: {}: {what}  (about {} left)",
            label(job),
            duration(left)
        ));
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Mean margins of a job at its first strengths.
fn margins(measured: &Measured) -> String {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len().max(1) as f64;
    let point = |p: &sweep::Strength| format!("{:+.2}/{:+.2} at {}", mean(&p.toward), mean(&p.away), p.at);
    measured.points.iter().map(point).collect::<Vec<_>>().join(", ")
}

#[derive(Serialize)]
struct Swept<'a> {
    folder: &'a Path,
    failed: usize,
    missing: usize,
    #[serde(flatten)]
    results: &'a Results,
}

/// Prints the table; a failed job, or with `whole` a missing one, fails the command at its end.
fn show(results: &Results, out: &Path, whole: bool, printer: Printer) -> Outcome {
    let rows = results.table();
    let (split, table) = results.reported();
    printer.heading(format_args!("relative margins in nats on the {} pairs", split.name()))?;
    printer.line(rows.text())?;
    for chosen in &results.chosen {
        let pairs = |keys: &std::collections::BTreeMap<String, String>| {
            keys.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ")
        };
        let margin = chosen.two_sided.value;
        printer.line(format_args!(
            "chosen for {}: {} (two-sided {margin:.2} at {})",
            pairs(&chosen.keys),
            pairs(&chosen.choice),
            chosen.at
        ))?;
    }
    printer.line(format_args!("report: {}", out.join("report.html").display()))?;
    let failed = results.failures();
    let missing = table.missing;
    printer.result(&Swept { folder: out, failed: failed.len(), missing, results })?;
    match (failed.first(), missing) {
        (Some(first), _) => Err(Failure::new(
            ErrorKind::Failed,
            format_args!(
                "{} of {} jobs failed; the first: {}",
                failed.len(),
                table.jobs.len(),
                first.error.as_deref().unwrap_or_default()
            ),
        )
        .hint("run the sweep again to try them again; report.html has every error")),
        (None, n) if n > 0 && whole => {
            Err(Failure::new(ErrorKind::Failed, format_args!("{n} jobs were not run yet"))
                .hint("run their shards, or the sweep without --shard"))
        }
        _ => Ok(()),
    }
}
