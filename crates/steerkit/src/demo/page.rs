//! The demonstration as a report.

use std::time::Instant;

use steerkit_model::Model;

use super::Demo;
use crate::Result;
use crate::files::sha256;
use crate::recipe::Recipe;
use crate::report::{Dose, HeldOutPoint, Report, ReportProvenance, RunFacts, TrainPoint};
use crate::surface::SurfaceMetric;
use crate::text_stats::Estimate;
use crate::train::{EvalPoint, Event, Outcome};

/// Half-width of a 95% interval in standard errors.
const Z95: f64 = 1.96;

/// Collects what training says.
pub(super) struct Page {
    command: String,
    began: Instant,
    training: Vec<TrainPoint>,
    held_out: Vec<HeldOutPoint>,
    pair_passes: u64,
    seconds: f64,
    notes: Vec<String>,
}

impl Page {
    pub(super) fn new(command: &str) -> Self {
        Self {
            command: command.to_owned(),
            began: Instant::now(),
            training: Vec::new(),
            held_out: Vec::new(),
            pair_passes: 0,
            seconds: 0.0,
            notes: Vec::new(),
        }
    }

    pub(super) fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Note(note) => self.notes.push(note.clone()),
            Event::Step { record, .. } => {
                self.pair_passes += record.pairs as u64;
                self.training.push(TrainPoint { pair_passes: self.pair_passes, loss: record.loss });
                self.seconds = self.began.elapsed().as_secs_f64();
            }
            Event::Eval { split: "valid", points, .. } => {
                if self.held_out.is_empty() {
                    self.held_out.extend(points.iter().map(origin));
                }
                self.held_out.extend(points.iter().map(|point| HeldOutPoint {
                    pair_passes: self.pair_passes,
                    multiplier: point.multiplier,
                    margin: margin(point),
                }));
            }
            _ => {}
        }
    }

    /// The whole report.
    pub(super) fn report(
        self,
        model: &Model,
        recipe: &Recipe,
        outcome: &Outcome,
        demo: &Demo,
    ) -> Result<Report> {
        let identity = model.identity();
        let held_out_pairs = outcome.eval.first().map_or(0, |point| point.n);
        Ok(Report {
            run: RunFacts {
                behavior: "formality".into(),
                method: "BiPO".into(),
                model: identity.name.clone(),
                layer: outcome.layer,
                n_layers: identity.n_layers,
                norm: outcome.norm,
                relative_dose: outcome.relative_dose,
                train_pairs: outcome.trained_pairs,
                held_out_pairs,
                pair_passes: self.pair_passes,
                seconds: self.seconds,
                seed: recipe.seed,
            },
            training: self.training,
            held_out: self.held_out,
            doses: doses(demo),
            surface: SurfaceMetric::Formality,
            answers: demo.answers.clone(),
            notes: self.notes,
            provenance: ReportProvenance {
                command: self.command,
                recipe: recipe.to_toml(),
                hashes: hashes(model, outcome, demo)?,
                versions: vec![("steerkit".into(), env!("CARGO_PKG_VERSION").into())],
            },
        })
    }
}

fn hashes(model: &Model, outcome: &Outcome, demo: &Demo) -> Result<Vec<(String, String)>> {
    let identity = model.identity();
    let mut hashes = vec![(identity.name.clone(), identity.file_sha256.clone())];
    hashes.extend(
        outcome.vectors[0].provenance.data.as_ref().map(|data| ("train.jsonl".into(), data.sha256.clone())),
    );
    hashes.push(("vector.safetensors".into(), sha256(&fs_err::read(&demo.vector)?)));
    Ok(hashes)
}

/// What was measured on pairs and on answers, multiplier by multiplier.
fn doses(demo: &Demo) -> Vec<Dose> {
    demo.eval
        .iter()
        .map(|point| {
            let surface = demo.surface.iter().find(|surface| surface.multiplier == point.multiplier);
            Dose {
                multiplier: point.multiplier,
                margin: Some(margin(point)),
                accuracy: Some(point.accuracy.into()),
                surface: surface.map(|s| Estimate { value: s.value, interval: s.interval }),
                perplexity: surface.map(|s| s.perplexity.into()),
                distinct_3: surface.map(|s| s.distinct_3.into()),
            }
        })
        .collect()
}

/// Before the first step the vector is zero, and so is every margin.
fn origin(point: &EvalPoint) -> HeldOutPoint {
    HeldOutPoint { pair_passes: 0, multiplier: point.multiplier, margin: 0.0.into() }
}

fn margin(point: &EvalPoint) -> Estimate {
    let half = Z95 * point.margin_se;
    Estimate { value: point.margin, interval: Some((point.margin - half, point.margin + half)) }
}
