//! Sweeps: a grid of recipes as a list of jobs with stable ids, measured alike.
//!
//! A job is a vector or an adapter made by a recipe, or a prompt without either ([`crate::baseline`]). What jobs have
//! in common is computed once: one pass of the pairs gives the residual streams after all layers and the
//! log-probabilities of the plain model ([`crate::train::Prefix`]). Every job leaves its numbers in a file of its own, so a sweep that was
//! interrupted goes on where it stopped, one failed job does not lose the others, and shards of a sweep merge into the
//! bytes of one process; ranks ([`crate::ranks`]) share the jobs within one folder. What is chosen is chosen on validation pairs; while choosing, the test file is not opened.

mod job;
mod map;
mod page;
mod rows;
mod spec;
mod table;

pub use job::{Failed, Measured, Strength, VectorFacts};
pub use rows::Rows;
pub use spec::{By, Choose, Job, Measure, Spec, Split};
pub use table::{Chosen, Contrast, Group, JobRow, Point, Results, SplitTable};

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use steerkit_model::{ErrorKind, Model, ModelError};

use crate::data::Splits;
use crate::error::malformed;
use crate::files::write_atomic;
use crate::ranks::Ranks;
use crate::recipe::{LayerChoice, Recipe};
use crate::train::{Event, Need, Prefix, RunData, read_splits, used};
use crate::{Result, SteerError};
use job::{Bench, JobFiles, Once, hashes};

/// The copy of the sweep's file in its folder.
const SPEC: &str = "sweep.toml";

/// Which of a sweep's jobs a process runs: those whose number is `index` modulo `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// At least 1.
    pub count: usize,
}

/// What of a sweep a process runs.
#[derive(Clone, Debug, Default)]
pub enum Part {
    /// All jobs.
    #[default]
    All,
    /// One shard of several, whose folders are merged later.
    Shard(Shard),
    /// A rank's share, in the folder of all ranks; rank 0 writes the tables.
    Rank(Arc<dyn Ranks>),
}

impl Part {
    fn shard(&self) -> Shard {
        match self {
            Self::All => Shard { index: 0, count: 1 },
            Self::Shard(shard) => *shard,
            Self::Rank(ranks) => Shard { index: ranks.rank(), count: ranks.count() },
        }
    }
}

/// What happens in a sweep.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A job begins.
    Begin {
        /// The job.
        job: &'a Job,
        /// Jobs of this process behind it.
        done: usize,
        /// Jobs of this process in all, those that need not run left out.
        total: usize,
    },
    /// A job gave its numbers.
    Done {
        /// The job.
        job: &'a Job,
        /// What was measured.
        measured: &'a Measured,
    },
    /// A job failed; the others go on.
    Failed {
        /// The job.
        job: &'a Job,
        /// Why.
        error: &'a SteerError,
    },
    /// News from within a job, or from what jobs share.
    Run(Event<'a>),
}

/// Listens to a sweep.
pub type Watch<'a> = dyn FnMut(Progress<'_>) + 'a;

/// Opens the model of a recipe.
pub type Open<'a> = dyn FnMut(&Recipe) -> Result<Model> + 'a;

/// Runs the jobs of a sweep that have no numbers yet, measures what is to be reported, and writes the tables into `out`.
///
/// `name` stands in errors. Jobs that fail are in the table with their errors.
///
/// # Errors
/// A sweep whose jobs are not understood, before any is run; the file system's where results cannot be written;
/// [`ModelError::Interrupted`] when `cancel` is set: the finished jobs are kept.
pub fn run(
    spec: &Spec,
    name: &str,
    out: &Path,
    part: &Part,
    open: &mut Open<'_>,
    watch: &mut Watch<'_>,
    cancel: &AtomicBool,
) -> Result<Results> {
    let jobs = spec.jobs(name, out)?;
    fs_err::create_dir_all(out)?;
    write_spec(spec, out)?;
    let shard = part.shard();
    let own: Vec<&Job> = jobs.iter().skip(shard.index).step_by(shard.count).collect();
    let first = if spec.choose.is_some() { Split::Valid } else { spec.report_on };
    let mut round = Round { spec, out, open, watch, cancel };
    round.run(first, &own)?;
    barrier(part);
    if spec.choose.is_some() && spec.report_on == Split::Test {
        let results = table::results(spec, &jobs, out);
        let chosen = results.chosen_jobs();
        let of_chosen: Vec<&Job> = own.into_iter().filter(|job| chosen.contains(&job.id)).collect();
        // What is chosen is known when every job has been measured, in this process or in all shards.
        if results.is_complete(Split::Valid) {
            round.run(Split::Test, &of_chosen)?;
        }
        barrier(part);
    }
    match part {
        Part::Rank(ranks) if ranks.rank() > 0 => Ok(table::results(spec, &jobs, out)),
        _ => tabulate(spec, &jobs, out),
    }
}

/// The numbers of all ranks are there before any rank goes on.
fn barrier(part: &Part) {
    if let Part::Rank(ranks) = part {
        ranks.exchange(Vec::new());
    }
}

/// Puts the folders of shards together in `out`, and writes the tables. Every folder must be of the same sweep.
///
/// # Errors
/// A folder without a sweep, or with another one; the file system's.
pub fn merge(folders: &[PathBuf], out: &Path) -> Result<Results> {
    let mut same: Option<(PathBuf, String)> = None;
    for folder in folders {
        let path = folder.join(SPEC);
        if !path.is_file() {
            let hint = "name the folders that `sweep --shard` wrote to";
            return Err(malformed(folder, "folder", "no sweep.toml", "a sweep's folder", hint));
        }
        let text = fs_err::read_to_string(&path)?;
        match &same {
            Some((other, first)) if *first != text => {
                let expected = format!("that of {}", other.display());
                return Err(malformed(
                    &path,
                    "sweep",
                    "another sweep",
                    expected,
                    "merge shards of one sweep",
                ));
            }
            Some(_) => {}
            None => same = Some((path, text)),
        }
    }
    let Some((path, text)) = same else {
        return Err(malformed(out, "merge", "no folders", "one or more", "name the shards' folders"));
    };
    let name = path.display().to_string();
    let spec = Spec::parse(&text, &name)?;
    let jobs = spec.jobs(&name, out)?;
    fs_err::create_dir_all(out)?;
    write_spec(&spec, out)?;
    for job in &jobs {
        let to = JobFiles::new(out, job);
        for folder in folders {
            let from = JobFiles::new(folder, job);
            if from.folder != to.folder && from.folder.is_dir() {
                copy_folder(&from.folder, &to.folder)?;
            }
        }
    }
    tabulate(&spec, &jobs, out)
}

/// The sweep without what decides nothing, so that shards have equal files.
fn write_spec(spec: &Spec, out: &Path) -> Result<()> {
    let spec = Spec { out: None, ..spec.clone() };
    let text = toml::to_string(&spec).expect("a sweep is text, numbers and tables of them");
    Ok(write_atomic(&out.join(SPEC), text.as_bytes())?)
}

/// Copies a job's files; those that are there already stay.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else if !target.exists() {
            write_atomic(&target, &fs_err::read(&path)?)?;
        }
    }
    Ok(())
}

fn tabulate(spec: &Spec, jobs: &[Job], out: &Path) -> Result<Results> {
    let results = table::results(spec, jobs, out);
    let mut json = serde_json::to_string_pretty(&results).expect("text, numbers and lists of them");
    json.push('\n');
    let rows = results.table();
    let map = results.heat_map(spec);
    let files = [
        ("results.json", json),
        ("results.csv", rows.csv()),
        ("results.md", rows.markdown()),
        ("results.txt", rows.text()),
        ("heat-map.svg", map.svg()),
        ("report.html", page::page(&results, map).html()),
    ];
    for (name, text) in files {
        write_atomic(&out.join(name), text.as_bytes())?;
    }
    Ok(results)
}

/// Jobs being measured on one split.
struct Round<'a, 'o, 'w> {
    spec: &'a Spec,
    out: &'a Path,
    open: &'a mut Open<'o>,
    watch: &'a mut Watch<'w>,
    cancel: &'a AtomicBool,
}

/// Splits of data by the settings that they were read with.
type Read = HashMap<String, Arc<Splits>>;

impl Round<'_, '_, '_> {
    /// Runs those of `jobs` that have no numbers on `split` yet.
    fn run(&mut self, split: Split, jobs: &[&Job]) -> Result<()> {
        let mut read = Read::new();
        let mut by_model: BTreeMap<String, Vec<&Job>> = BTreeMap::new();
        let mut total = 0;
        for &job in jobs {
            let files = JobFiles::new(self.out, job);
            let splits = match splits(&mut read, job, split) {
                Ok(splits) => splits,
                Err(error) => {
                    self.failed(job, &error)?;
                    continue;
                }
            };
            if let Some(measured) = files.measured(split) {
                let same = measured.measure.same_numbers(&self.spec.measure);
                match measured.data == hashes(&splits) {
                    true if same => continue,
                    true => {}
                    false => files.clear()?,
                }
            }
            let Recipe { model, lora, precision, .. } = &job.recipe;
            by_model.entry(format!("{model} {lora:?} {precision:?}")).or_default().push(job);
            total += 1;
        }
        let mut done = 0;
        for jobs in by_model.values() {
            let model = match (self.open)(&jobs[0].recipe) {
                Ok(model) => model,
                Err(error) => {
                    jobs.iter().try_for_each(|job| self.failed(job, &error))?;
                    continue;
                }
            };
            self.of_model(split, &model, jobs, &read, (&mut done, total))?;
        }
        Ok(())
    }

    fn of_model(
        &mut self,
        split: Split,
        model: &Model,
        jobs: &[&Job],
        read: &Read,
        (done, total): (&mut usize, usize),
    ) -> Result<()> {
        let watch = &mut *self.watch;
        let mut tell = |event: Event<'_>| watch(Progress::Run(event));
        let mut once = Once { inner: &mut tell, seen: HashSet::new() };
        let mut ready = Vec::new();
        let mut broken = Vec::new();
        for &job in jobs {
            let splits = &read[&settings(job, split)];
            let data = known_layer(job, model)
                .and_then(|()| RunData::of_splits(model, &job.recipe, splits, &mut once));
            match data {
                Ok(data) => ready.push((job, splits, data)),
                Err(error) => broken.push((job, error)),
            }
        }
        let needs: Vec<Need<'_>> = ready.iter().filter_map(|(job, _, data)| need(job, data, split)).collect();
        let prefix = match ready.first() {
            Some((job, ..)) => Prefix::build(model, &job.recipe, &needs, &mut once, self.cancel)?,
            None => return broken.iter().try_for_each(|(job, error)| self.failed(job, error)),
        };
        let prefix = Arc::new(prefix);
        drop(needs);
        let seen = once.seen;
        broken.iter().try_for_each(|(job, error)| self.failed(job, error))?;
        let mut seen = Some(seen);
        for (job, splits, data) in &mut ready {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(ModelError::Interrupted.into());
            }
            (self.watch)(Progress::Begin { job, done: *done, total });
            data.prefix = Some(Arc::clone(&prefix));
            let files = JobFiles::new(self.out, job);
            let measure = &self.spec.measure;
            let bench = Bench { model, measure, split, splits, data, prefix: &prefix };
            let watch = &mut *self.watch;
            let mut tell = |event: Event<'_>| watch(Progress::Run(event));
            let mut once = Once { inner: &mut tell, seen: seen.take().unwrap_or_default() };
            let result = bench.run(job, &files, &mut once, self.cancel);
            seen = Some(once.seen);
            match result {
                Ok(measured) => {
                    files.finish(&measured)?;
                    (self.watch)(Progress::Done { job, measured: &measured });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    return Err(ModelError::Interrupted.into());
                }
                Err(error) => self.failed(job, &error)?,
            }
            *done += 1;
        }
        Ok(())
    }

    fn failed(&mut self, job: &Job, error: &SteerError) -> Result<()> {
        JobFiles::new(self.out, job).fail(&job.id, error)?;
        (self.watch)(Progress::Failed { job, error });
        Ok(())
    }
}

/// What decides which rows are read.
fn settings(job: &Job, split: Split) -> String {
    let data = toml::to_string(&job.recipe.data).expect("settings are text and numbers");
    format!("{}\n{data}", split.name())
}

/// The data of a job; the test file is opened only to report on it.
fn splits(read: &mut Read, job: &Job, split: Split) -> Result<Arc<Splits>> {
    let key = settings(job, split);
    if let Some(splits) = read.get(&key) {
        return Ok(Arc::clone(splits));
    }
    let splits = Arc::new(read_splits(&job.recipe, split == Split::Test)?);
    read.insert(key, Arc::clone(&splits));
    Ok(splits)
}

/// A layer that is not there fails its own job, and not the pass that all share.
fn known_layer(job: &Job, model: &Model) -> Result<()> {
    let n_layers = model.config().n_layers;
    match job.recipe.layer {
        LayerChoice::Block(layer) if layer >= n_layers => {
            Err(ModelError::UnknownLayer { layer, n_layers }.into())
        }
        _ => Ok(()),
    }
}

/// The pairs that a job will run through the blocks above its layer, where that is known.
fn need<'a>(job: &Job, data: &'a RunData, split: Split) -> Option<Need<'a>> {
    let LayerChoice::Block(layer) = job.recipe.layer else { return None };
    let measured = match split {
        Split::Valid => data.valid.as_ref(),
        Split::Test => data.test.as_ref(),
    };
    let measured = measured.filter(|_| job.baseline.is_none()).into_iter().flat_map(|set| &set.pairs);
    if !job.steers || job.adapts() {
        return None;
    }
    let train = used(&job.recipe, data).into_iter().map(|i| &data.train.pairs[i]);
    Some(Need { layer, pairs: train.chain(measured).collect() })
}
