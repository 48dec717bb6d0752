//! `report.html`: what a run did, as one page that opens without a network.
//!
//! [`Report`] is plain data, [`Report::html`] turns it into the page and [`Report::charts`] into single figures.
//! The page loads nothing; its one script sorts tables and may be absent; its charts are inline SVG; it follows the
//! reader's light or dark setting, prints, and fits a phone. Text that a model or a data file wrote is escaped, and
//! control characters in it are shown by name.

mod chart;
pub(crate) mod escape;
mod figures;
mod heat_map;
mod html;
mod lead;
mod number;
mod page;
mod png;
mod scale;
mod transfer;

pub use chart::{Axis, Chart, Point, Reference, Series, Spread};
pub use heat_map::HeatMap;
pub use page::{Page, PageTable, Section};
pub use scale::TickFormat;

use serde::{Deserialize, Serialize};

use crate::surface::SurfaceMetric;
use crate::text_stats::Estimate;

/// Everything that the page shows. Parts without data are left out of the page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// What was trained.
    pub run: RunFacts,
    /// The training curve, in order.
    #[serde(default)]
    pub training: Vec<TrainPoint>,
    /// Margins on held-out pairs during training, in order.
    #[serde(default)]
    pub held_out: Vec<HeldOutPoint>,
    /// What each multiplier does, from the lowest multiplier to the highest.
    #[serde(default)]
    pub doses: Vec<Dose>,
    /// What [`Dose::surface`] counts.
    #[serde(default)]
    pub surface: SurfaceMetric,
    /// Answers side by side.
    #[serde(default)]
    pub answers: Vec<Comparison>,
    /// Warnings and remarks, each a sentence, shown under the lead.
    #[serde(default)]
    pub notes: Vec<String>,
    /// How the run can be repeated and checked.
    #[serde(default)]
    pub provenance: ReportProvenance,
}

/// The facts at the head of the page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFacts {
    /// Name of the behaviour, such as `formality`.
    pub behavior: String,
    /// How the vector was made, as readers know it: `BiPO`, `CAA`.
    pub method: String,
    /// Name of the model.
    pub model: String,
    /// The vector is added after this block, counted from 0.
    pub layer: usize,
    /// Blocks of the model.
    pub n_layers: usize,
    /// Euclidean norm of the vector.
    pub norm: f64,
    /// Norm of the vector over the median norm of the residual stream at the layer.
    pub relative_dose: Option<f64>,
    /// Pairs trained on.
    pub train_pairs: usize,
    /// Pairs measured on, which the training never saw.
    pub held_out_pairs: usize,
    /// Pairs passed forward and backward in one direction, over the whole training.
    pub pair_passes: u64,
    /// Wall-clock seconds of the training.
    pub seconds: f64,
    /// Seed of the run.
    pub seed: u64,
}

/// One optimiser step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPoint {
    /// Pair-passes done, this step included.
    pub pair_passes: u64,
    /// Mean loss of the step's pairs in nats, before the update.
    pub loss: f64,
}

/// The margin on held-out pairs at one moment of the training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutPoint {
    /// Pair-passes done.
    pub pair_passes: u64,
    /// The vector was added this many times.
    pub multiplier: f64,
    /// Mean relative margin in nats.
    pub margin: Estimate,
}

/// What one multiplier does. Values that were not measured are `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dose {
    /// The vector is added this many times.
    pub multiplier: f64,
    /// Mean over held-out pairs of `(p_chosen - r_chosen) - (p_rejected - r_rejected)` in nats, summed
    /// log-probabilities of the steered (`p`) and the plain model (`r`); 0 at multiplier 0.
    pub margin: Option<Estimate>,
    /// Share of held-out pairs whose relative margin has the sign of the multiplier. At multiplier 0 the share that
    /// the plain model ranks rightly, which is another quantity: the table shows it, the chart leaves it out.
    pub accuracy: Option<Estimate>,
    /// Mean surface metric of the generated answers.
    pub surface: Option<Estimate>,
    /// Perplexity of the generated answers under the plain model.
    pub perplexity: Option<Estimate>,
    /// Distinct-3 of the generated answers ([`crate::text_stats::distinct_n`]).
    pub distinct_3: Option<Estimate>,
}

/// One question and what the model answers at several multipliers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// The question.
    pub question: String,
    /// The answers, shown from left to right.
    pub answers: Vec<Answer>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The multiplier it was generated at.
    pub multiplier: f64,
    /// Its text.
    pub text: String,
    /// Its beginning in pieces with what steering changed; none where it was not read again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shades: Vec<Shade>,
}

/// A piece of an answer: a token, or the tokens of a character.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shade {
    /// Its text.
    pub text: String,
    /// Its log-probability under the steered model less that under the plain one, in nats.
    pub change: f64,
}

/// How a run can be repeated and checked.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportProvenance {
    /// The command line.
    pub command: String,
    /// The resolved recipe, TOML.
    pub recipe: String,
    /// Names and SHA-256 sums of the model, data and vector files.
    #[serde(default)]
    pub hashes: Vec<(String, String)>,
    /// Names and versions of the programs, the machine, the date.
    #[serde(default)]
    pub versions: Vec<(String, String)>,
}

impl Report {
    /// The page.
    pub fn html(&self) -> String {
        html::page(self)
    }

    /// The figures that have data, in the order of the page: [`Chart::save`] writes one.
    pub fn charts(&self) -> Vec<Chart> {
        figures::all(self).into_iter().filter(|chart| !chart.is_empty()).collect()
    }

    /// What was measured at one multiplier.
    fn dose(&self, multiplier: f64) -> Option<&Dose> {
        self.doses.iter().find(|dose| dose.multiplier == multiplier)
    }
}

#[cfg(test)]
mod tests;
