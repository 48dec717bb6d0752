//! How far something has come: a bar on a terminal, a rare line elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Printer;

/// Without a terminal, at most one line in this time.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// The progress of one task of known length.
pub(crate) struct Progress {
    printer: Printer,
    what: String,
    total: u64,
    bar: Option<ProgressBar>,
    begun: Instant,
    last_line: Instant,
}

impl Progress {
    /// A task of `total` units, `what` in the user's words. `template` tells a bar how to show the units.
    fn new(printer: Printer, what: &str, total: u64, template: &str) -> Self {
        let now = Instant::now();
        let bar = printer.draws().then(|| {
            let style = ProgressStyle::with_template(template).expect("the templates are well formed");
            let bar = ProgressBar::new(total).with_style(style.progress_chars("=> "));
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self { printer, what: what.into(), total, bar, begun: now, last_line: now }
    }

    /// A task counted in steps, pairs or answers.
    pub(crate) fn steps(printer: Printer, what: &str, total: usize) -> Self {
        let template = "{msg:22} [{bar:30}] {pos}/{len}  {elapsed} elapsed, {eta} left{prefix}";
        Self::new(printer, what, total as u64, template)
    }

    /// A task counted in bytes.
    pub(crate) fn bytes(printer: Printer, what: &str, total: u64) -> Self {
        let template = "{msg:22} [{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}, {eta} left{prefix}";
        Self::new(printer, what, total, template)
    }

    /// `done` units are behind us; `detail` is shown after them.
    pub(crate) fn at(&mut self, done: u64, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_prefix(if detail.is_empty() { String::new() } else { format!("  {detail}") });
        } else if self.last_line.elapsed() >= BETWEEN_LINES && done < self.total {
            self.last_line = Instant::now();
            let share = 100.0 * done as f64 / self.total.max(1) as f64;
            let left = self.begun.elapsed().as_secs_f64() * (self.total - done) as f64 / done.max(1) as f64;
            let detail = if detail.is_empty() { String::new() } else { format!(", {detail}") };
            self.printer.say(format_args!("{}: {share:.0}%, about {left:.0} s left{detail}", self.what));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
