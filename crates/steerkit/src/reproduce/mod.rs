//! The paper's experiments by name: made, measured and set beside the paper's numbers.
//!
//! An [`Experiment`] is data (`experiments/ID.toml`): panels, the axes of each, a line for every combination, and the
//! paper's numbers. [`run`] makes the vectors that its lines name and measures them with the machinery of training and
//! evaluation; every vector and every measurement has a file of its own in the folder, named by a hash of what decides it,
//! so that a run that was interrupted goes on where it stopped. [`write`] gives tables, figures and a page.

mod cost;
mod experiment;
mod low_rank;
mod measure;
mod output;
mod results;
mod setup;
mod vectors;

pub use experiment::{Axis, Experiment, Kind, Line, Measure, Pairs, Panel, Weighted};
pub use output::{lead, results, tables, write};
pub use results::{AxisValues, CellResult, PanelResults, Reproduction, Span};
pub use setup::{Need, Session, Setup, check, needs};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use steerkit_model::ModelError;

use crate::eval;
use crate::train::Event;
use crate::{Result, SteeringVector};
use measure::{Bench, Measured};
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
    let total = experiment.panels.iter().map(|panel| 2 * panel.lines.len()).sum();
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
        let mut vectors = Vec::new();
        for line in &panel.lines {
            self.begin(format!("vector: {}", words(panel, line)))?;
            vectors.push(self.vectors(panel, line)?);
        }
        let mut measured = Vec::new();
        for (line, vectors) in panel.lines.iter().zip(vectors) {
            self.begin(format!("measurement: {}", words(panel, line)))?;
            let own = self.measured(panel, line, vectors)?;
            self.done.files.extend(own.files.clone());
            measured.push(own);
        }
        Ok(PanelResults::steered(panel, &measured, self.setup.seed))
    }

    /// The vectors of a line with their weights.
    fn vectors(&mut self, panel: &Panel, line: &Line) -> Result<Vec<(f64, Arc<SteeringVector>)>> {
        let method = match line.method() {
            "icl" | "none" | "dpo-lora" => return Ok(Vec::new()),
            "icl+bipo" => "bipo",
            method => method,
        };
        let model = self.models.of_vector(line)?;
        let mut all = Vec::new();
        for Weighted { set, weight } in line.parts() {
            let order = Order { setup: self.setup, panel, line, set: &set, method, out: self.out };
            let watch = &mut *self.watch;
            let mut tell = |event: Event<'_>| watch(Progress::Training(event));
            all.push((weight, order.vector(&model, &mut tell, self.session.cancel)?));
        }
        Ok(all)
    }

    fn measured(
        &mut self,
        panel: &Panel,
        line: &Line,
        vectors: Vec<(f64, Arc<SteeringVector>)>,
    ) -> Result<Measured> {
        let (model, note) = self.models.of_line(line)?;
        self.note(note);
        self.identify(&model);
        let order =
            Order { setup: self.setup, panel, line, set: &line.behaviour, method: "bipo", out: self.out };
        let recipe = order.recipe(&model)?;
        let bench = Bench {
            setup: self.setup,
            session: self.session,
            panel,
            line,
            model: &model,
            vectors,
            recipe: &recipe,
            out: self.out,
        };
        let watch = &mut *self.watch;
        let mut tell = |progress: eval::Progress<'_>| watch(Progress::Measuring(progress));
        if line.method() != "dpo-lora" {
            return bench.run(&mut tell);
        }
        let Some(adapter) = &self.setup.adapter else {
            return low_rank::run(&bench, &order, &mut tell);
        };
        let plain = bench.logps(&mut tell)?;
        let mut values = Vec::new();
        for &weight in &panel.multipliers {
            let adapted = self.models.adapted(adapter, weight as f32)?;
            let own = Bench { model: &adapted, vectors: Vec::new(), ..bench.clone() }.logps(&mut tell)?;
            values.push(own.iter().zip(&plain).map(|(a, &b)| Some(a.relative_to(b).margin())).collect());
        }
        let notes = vec![format!("the adapter is {}", adapter.display())];
        let what = "margin of the reference answers over the plain model's, nats";
        Ok(Measured::of(what, &panel.multipliers, values, notes, self.setup.seed))
    }

    fn identify(&mut self, model: &steerkit_model::Model) {
        let identity = model.identity();
        self.done.models.insert(identity.name.clone(), identity.file_sha256.clone());
    }

    /// Rows of data files.
    fn data(&mut self, panel: &Panel) -> Result<PanelResults> {
        let mut rows = Vec::new();
        for line in &panel.lines {
            self.begin(format!("counting {}", line.behaviour))?;
            self.place.0 += 1;
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
