//! What a run measures, written as JSON lines and as TensorBoard events.

mod jsonl;
mod tfevents;

pub use jsonl::JsonLines;
pub use tfevents::TfEvents;

use crate::train::EvalPoint;
use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`. Every field but `seconds` is the same in every run of the same recipe, seed and
/// build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Record {
    /// One optimiser step.
    Step(StepRecord),
    /// One multiplier of one evaluation.
    Eval(EvalRecord),
}

impl Record {
    /// Optimiser steps done when it was written.
    pub fn step(&self) -> usize {
        match self {
            Self::Step(r) => r.step,
            Self::Eval(r) => r.step,
        }
    }
}

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    /// Steps done, this one included.
    pub step: usize,
    /// Passes over the data begun, from 1.
    pub epoch: usize,
    /// Pairs of the batch.
    pub pairs: usize,
    /// How many of them were steered towards the chosen response (d = +1).
    pub toward: usize,
    /// Mean loss in nats, before the update.
    pub loss: f64,
    /// Mean of d times the relative margin in nats: positive when the vector does what it should.
    pub margin: f64,
    /// Share of pairs whose relative margin has the sign of d.
    pub accuracy: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate used; none for a norm budget.
    pub lr: Option<f64>,
    /// Norm of the vector after the update; of an adapter that of what it adds to the weights.
    pub norm: f64,
    /// Norm of each layer's vector, where several are trained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layer_norms: Vec<f64>,
    /// Wall-clock seconds the step took.
    pub seconds: f64,
}

/// One multiplier of one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalRecord {
    /// Optimiser steps done.
    pub step: usize,
    /// Passes over the data done.
    pub epoch: usize,
    /// Which evaluation it belongs to.
    pub phase: Phase,
    /// Which pairs: `valid`, `test` or `train`.
    pub split: String,
    /// What was measured.
    pub point: EvalPoint,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// When an evaluation takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// After an epoch.
    Epoch,
    /// After the last step.
    Final,
}

/// `metrics.jsonl` and the event file of a run folder.
pub struct Metrics {
    lines: JsonLines,
    events: TfEvents,
}

impl Metrics {
    /// Opens both in `folder`. Of an earlier part of the run the records that `keep` accepts stay; the event
    /// file is rewritten from them, so that neither holds a step twice.
    pub fn open(folder: &std::path::Path, keep: impl Fn(&Record) -> bool) -> std::io::Result<Self> {
        let (lines, kept) = JsonLines::reopen(&folder.join("metrics.jsonl"), keep)?;
        let mut metrics = Self { lines, events: TfEvents::create(folder)? };
        for record in &kept {
            metrics.events.record(record)?;
        }
        Ok(metrics)
    }

    /// Appends one record to both.
    pub fn write(&mut self, record: &Record) -> std::io::Result<()> {
        self.lines.append(record)?;
        self.events.record(record)
    }

    /// Brings both to the disk.
    pub fn sync(&mut self) -> std::io::Result<()> {
        self.lines.sync()?;
        self.events.sync()
    }
}
