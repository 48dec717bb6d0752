//! What `train` and `demo` show while a run goes on.

use std::time::Instant;

use steerkit::train::{EvalPoint, Event};

use crate::memory;
use crate::output::{Printer, Progress, number, signed};

/// Turns the events of a run into progress and lines on stderr.
pub(crate) struct Watch {
    printer: Printer,
    began: Instant,
    task: Option<(String, Progress)>,
    last_loss: f64,
    norm: f64,
    first_step: bool,
}

impl Watch {
    pub(crate) fn new(printer: Printer) -> Self {
        Self {
            printer,
            began: Instant::now(),
            task: None,
            last_loss: f64::NAN,
            norm: f64::NAN,
            first_step: true,
        }
    }

    /// One run of many: steps are progress, not lines of their own.
    pub(crate) fn quiet(printer: Printer) -> Self {
        Self { first_step: false, ..Self::new(printer) }
    }

    pub(crate) fn see(&mut self, event: &Event<'_>) {
        match event {
            Event::Note(note) => {
                self.task = None;
                self.printer.say(format_args!("note: {note}"));
            }
            Event::Memory { bytes } => {
                self.task = None;
                let mb = *bytes as f64 / 1e6;
                let whole =
                    memory::rss_mb().map_or(String::new(), |now| format!(", {:.0} MB with it", now + mb));
                self.printer.say(format_args!("training takes about {mb:.0} MB beside the model{whole}"));
            }
            Event::Layer { layer, half_spread, done, total } => {
                self.task = None;
                self.printer.say(format_args!(
                    "layer {layer:<3} half-spread {:<7} ({done} of {total})",
                    number(*half_spread)
                ));
            }
            Event::Caching { split, done, total } => {
                self.at(&format!("reading {split} pairs"), *done, *total, "");
            }
            Event::Step { record, total } => {
                self.last_loss = record.loss;
                self.norm = record.norm;
                let detail = format!("loss {:.4}", record.loss);
                if self.first_step {
                    self.first_step = false;
                    self.task = None;
                    let left = record.seconds * (total - record.step) as f64;
                    self.printer.say(format_args!(
                        "{} s per step, about {left:.0} s for the rest",
                        number(record.seconds)
                    ));
                }
                self.at("training", record.step, *total, &detail);
            }
            Event::Eval { step, epoch, split, points } => {
                self.task = None;
                self.printer.say(format_args!(
                    "epoch {epoch}, step {step}: loss {:.4}, norm {}, {split} {}  [{:.1} s]",
                    self.last_loss,
                    number(self.norm),
                    points.iter().map(margin).collect::<Vec<_>>().join(", "),
                    self.began.elapsed().as_secs_f64()
                ));
            }
            _ => {}
        }
    }

    /// Shows that `done` of `total` units of `what` are behind us.
    pub(crate) fn at(&mut self, what: &str, done: usize, total: usize, detail: &str) {
        if self.task.as_ref().is_none_or(|(name, _)| name != what) {
            // The old bar goes before the new one is drawn.
            self.task = None;
            self.task = Some((what.to_owned(), Progress::steps(self.printer, what, total)));
        }
        if let Some((_, progress)) = &mut self.task {
            progress.at(done as u64, detail);
        }
    }
}

fn margin(point: &EvalPoint) -> String {
    format!("margin {:+.2} ({:.0}%) at {}", point.margin, 100.0 * point.accuracy, signed(point.multiplier))
}
