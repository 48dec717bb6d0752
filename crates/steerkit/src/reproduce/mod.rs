//! The paper's experiments by name: made, measured and set beside the paper's numbers.
//!
//! An [`Experiment`] is data (`experiments/ID.toml`): panels, the axes of each, a line for every combination, and the
//! paper's numbers. [`run`] makes the vectors that its lines name and measures them with the machinery of training and
//! evaluation; every vector and every measurement has a file of its own in the folder, named by a hash of what decides it,
//! so that a run that was interrupted goes on where it stopped. [`write()`] gives tables, figures and a page.

mod cost;
mod experiment;
mod measure;
mod output;
mod pairs;
mod prompted;
mod results;
mod setup;
mod vectors;

pub use experiment::{Axis, Experiment, Kind, Line, Measure, Pairs, Panel, Weighted};
pub use output::{lead, results, tables, write};
pub use results::{AxisValues, CellResult, PanelResults, Reproduction, Span};
pub use setup::{Need, Session, Setup, check, needs};

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use steerkit_model::{Model, ModelError};

use crate::eval;
use crate::files::sha256_of_file;
use crate::objective::PairLogps;
use crate::train::Event;
use crate::{Result, SteeringVector};
use measure::{Bench, MARGIN, Measured, read_json, write_json};
use results::Quantity;
use setup::Models;
use vectors::Order;

/// What happens in an experiment.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A line begins: its vectors are made, or it is measured.
    Begin {
        /// What, in a few words.
        what: String,
        /// Steps behind us.
        done: usize,
        /// Steps in all.
        total: usize,
    },
    /// News of a training.
    Training(Event<'a>),
    /// News of a measurement.
    Measuring(eval::Progress<'a>),
}

/// Listens to an experiment.
pub type Watch<'a> = dyn FnMut(Progress<'_>) + 'a;

/// Runs an experiment into `out`. What lies there already is not made again.
///
/// # Errors
/// What is missing, before anything is made; those of training, of evaluation and of the file system;
/// [`ModelError::Interrupted`] when the session's `cancel` is set: finished vectors and measurements are kept.
pub fn run(
    experiment: &Experiment,
    setup: &Setup,
    session: &Session<'_>,
    out: &Path,
    watch: &mut Watch<'_>,
) -> Result<Reproduction> {
    let judge = session.judging.map(|judging| judging.asker.responder.identity());
    check(experiment, &needs(experiment, setup, judge.as_deref()))?;
    fs_err::create_dir_all(out)?;
    let began = Instant::now();
    let models = Models::new(setup, session.options);
    let steps = |panel: &Panel| match panel.kind {
        Kind::Complexity | Kind::Prediction => (1 + setup.also.len()) * panel.lines.len(),
        Kind::Steered => 2 * panel.lines.len(),
        Kind::Data | Kind::Cost => panel.lines.len(),
    };
    let total = experiment.panels.iter().map(steps).sum();
    let mut course =
        Course { setup, session, out, models, watch, place: (0, total), done: Reproduction::default() };
    for panel in &experiment.panels {
        let results = course.panel(panel)?;
        course.done.panels.push(results);
    }
    let mut done = course.done;
    if setup.quick {
        done.notes.insert(
            0,
            "a quick run: few pairs, steps and questions show that it runs, and not what it finds".into(),
        );
    }
    done.seconds = began.elapsed().as_secs_f64();
    Ok(done)
}

/// What a line adds to the model.
enum Made {
    /// Vectors with their weights; none for the plain model.
    Vectors(Vec<(f64, Arc<SteeringVector>)>),
    /// An adapter, and what the reader should know of it.
    Adapter(PathBuf, String),
}

/// An experiment that is being run.
struct Course<'a, 'w> {
    setup: &'a Setup,
    session: &'a Session<'a>,
    out: &'a Path,
    models: Models<'a>,
    watch: &'a mut Watch<'w>,
    /// Steps done, and in all.
    place: (usize, usize),
    done: Reproduction,
}

impl Course<'_, '_> {
    fn panel(&mut self, panel: &Panel) -> Result<PanelResults> {
        match panel.kind {
            Kind::Steered => self.steered(panel),
            Kind::Data => self.data(panel),
            Kind::Cost => self.costs(panel),
            Kind::Complexity => self.complexity(panel),
            Kind::Prediction => self.prediction(panel),
        }
    }

    /// Tells what begins, and stops when somebody asked for it.
    fn begin(&mut self, what: String) -> Result<()> {
        if self.session.cancel.load(Ordering::Relaxed) {
            return Err(ModelError::Interrupted.into());
        }
        let (done, total) = self.place;
        (self.watch)(Progress::Begin { what, done, total });
        self.place.0 += 1;
        Ok(())
    }

    fn note(&mut self, note: Option<String>) {
        if let Some(note) = note.filter(|note| !self.done.notes.contains(note)) {
            self.done.notes.push(note);
        }
    }

    /// First all vectors of a panel, then all measurements: so that a model that does not fit beside another is opened
    /// seldom.
    fn steered(&mut self, panel: &Panel) -> Result<PanelResults> {
        let mut made = Vec::new();
        for line in &panel.lines {
            self.begin(format!("vector: {}", words(panel, line)))?;
            made.push(self.made(panel, line)?);
        }
        let mut measured = Vec::new();
        for (line, made) in panel.lines.iter().zip(&made) {
            self.begin(format!("measurement: {}", words(panel, line)))?;
            let own = self.measured(panel, line, made)?;
            self.done.files.extend(own.files.clone());
            measured.push(own);
        }
        Ok(PanelResults::steered(panel, &measured, self.setup.seed))
    }

    /// What a line adds to the model.
    fn made(&mut self, panel: &Panel, line: &Line) -> Result<Made> {
        let method = match (line.method(), &self.setup.adapter) {
            ("icl" | "system-prompt" | "none", _) => return Ok(Made::Vectors(Vec::new())),
            ("dpo-lora", Some(path)) => {
                return Ok(Made::Adapter(path.clone(), format!("the adapter is {}", path.display())));
            }
            ("icl+bipo", _) => "bipo",
            (method, _) => method,
        };
        let model = self.models.of_vector(line)?;
        let mut all = Vec::new();
        for Weighted { set, weight } in line.parts() {
            let order = Order { setup: self.setup, panel, line, set: &set, method, out: self.out };
            let watch = &mut *self.watch;
            if line.pairs == Some(Pairs::Synthetic) {
                let mut tell = |progress: eval::Progress<'_>| watch(Progress::Measuring(progress));
                let note = order.write_synthetic(&model, &mut tell, self.session.cancel)?;
                self.note(Some(note));
            }
            let watch = &mut *self.watch;
            let mut tell = |event: Event<'_>| watch(Progress::Training(event));
            if order.is_adapter() {
                let (path, note) = order.adapter(&model, &mut tell, self.session.cancel)?;
                return Ok(Made::Adapter(path, note));
            }
            all.push((weight, order.vector(&model, &mut tell, self.session.cancel)?));
        }
        Ok(Made::Vectors(all))
    }

    fn measured(&mut self, panel: &Panel, line: &Line, made: &Made) -> Result<Measured> {
        let (model, note) = self.models.of_line(line)?;
        self.note(note);
        self.identify(&model);
        let Made::Adapter(adapter, note) = made else {
            return self.on(panel, line, &model, made, |bench, watch| bench.run(watch));
        };
        let file = self.on(panel, line, &model, made, |bench, _| bench.file())?;
        // The adapted model takes its place.
        drop(model);
        if let Some(done) = read_json(&file) {
            return Ok(done);
        }
        let mut logps = Vec::new();
        for &multiplier in &panel.multipliers {
            let model = self.models.adapted(adapter, (multiplier * panel.sign) as f32)?;
            logps.push(self.on(panel, line, &model, made, |bench, watch| bench.logps(watch))?);
        }
        let plain = panel.multipliers.iter().position(|&m| m == 0.0).expect("a panel has the plain model");
        let margins = |own: &Vec<PairLogps>| {
            own.iter().zip(&logps[plain]).map(|(a, &b)| Some(a.relative_to(b).margin())).collect()
        };
        let values = logps.iter().map(margins).collect();
        let mut measured =
            Measured::of(MARGIN, &panel.multipliers, values, vec![note.clone()], self.setup.seed);
        let test = self.setup.split_file(&line.behaviour, "test")?;
        measured.files.insert(test.display().to_string(), sha256_of_file(&test)?);
        write_json(&file, &measured)?;
        Ok(measured)
    }

    /// Does something with a line's bench on `model`.
    fn on<T>(
        &mut self,
        panel: &Panel,
        line: &Line,
        model: &Model,
        made: &Made,
        what: impl FnOnce(&Bench<'_>, &mut eval::Watch<'_>) -> Result<T>,
    ) -> Result<T> {
        let Self { setup, session, out, .. } = *self;
        let order = Order { setup, panel, line, set: &line.behaviour, method: "bipo", out };
        let recipe = order.recipe(model)?;
        let bench = Bench { setup, session, panel, line, model, made, recipe: &recipe, out };
        let watch = &mut *self.watch;
        what(&bench, &mut |progress: eval::Progress<'_>| watch(Progress::Measuring(progress)))
    }

    fn identify(&mut self, model: &Model) {
        let identity = model.identity();
        self.done.models.insert(identity.name.clone(), identity.file_sha256.clone());
    }

    /// Rows of data files.
    fn data(&mut self, panel: &Panel) -> Result<PanelResults> {
        let mut rows = Vec::new();
        for line in &panel.lines {
            self.begin(format!("counting {}", line.behaviour))?;
            let mut row = Vec::new();
            for split in &panel.quantities {
                let path = self.setup.split_file(&line.behaviour, split)?;
                let data = crate::data::read(&path, &crate::data::ReadOptions::default())?;
                row.push(Quantity { value: data.pairs.len() as f64, interval: None });
                self.done.files.insert(path.display().to_string(), data.sha256);
            }
            rows.push(row);
        }
        Ok(PanelResults::quantities(panel, "pairs", &rows))
    }
}

/// A line in a few words.
fn words(panel: &Panel, line: &Line) -> String {
    panel
        .axes
        .iter()
        .map(|&axis| line.at(axis, panel))
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}
