//! How much of a prompt a step may read while texts are being continued.

use std::time::Duration;

/// Fewer rows at a time cost the most per row.
const LEAST: usize = 16;
/// Weight of a step's time in the averages.
const WEIGHT: f64 = 0.25;

/// Times of past steps, and what they say of the next one. Which rows are read together changes no bit.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a step that reads no prompt.
    quiet: Option<f64>,
    /// Seconds more for each row of a prompt beside it.
    row: Option<f64>,
}

impl Pace {
    /// Takes note of a step that continued texts and read so many rows of prompts.
    pub(super) fn note(&mut self, prompt_rows: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        match (prompt_rows, self.quiet) {
            (0, _) => average(&mut self.quiet, seconds),
            (rows, Some(quiet)) => average(&mut self.row, (seconds - quiet).max(0.0) / rows as f64),
            (_, None) => {}
        }
    }

    /// Rows of prompts that make the next step `factor` times as long as one without; at least a few, and [`LEAST`]
    /// while nothing is known.
    pub(super) fn rows(&self, factor: u32) -> usize {
        let rows = |(quiet, row): (f64, f64)| (f64::from(factor.max(1) - 1) * quiet / row) as usize;
        self.quiet.zip(self.row).map_or(LEAST, rows).max(LEAST)
    }
}

fn average(value: &mut Option<f64>, new: f64) {
    *value = Some(value.map_or(new, |old| old + WEIGHT * (new - old)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with steps of 20 ms, and so many for each row of a prompt.
    fn settled(row_ms: f64) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..50 {
            pace.note(0, Duration::from_millis(20));
            let rows = pace.rows(3);
            pace.note(rows, Duration::from_secs_f64((20.0 + row_ms * rows as f64) / 1e3));
        }
        pace
    }

    #[test]
    fn a_step_with_prompts_takes_its_multiple() {
        // 40 ms beside 20 are left for prompts.
        assert!((78..=80).contains(&settled(0.5).rows(3)), "{}", settled(0.5).rows(3));
        assert_eq!(settled(100.0).rows(3), LEAST);
        assert!(settled(0.0).rows(3) > 1_000_000, "rows that cost nothing");
        assert_eq!(Pace::default().rows(3), LEAST);
    }

    #[test]
    fn rows_that_become_slower_are_fewer() {
        let mut pace = settled(0.5);
        for _ in 0..20 {
            let rows = pace.rows(3);
            pace.note(rows, Duration::from_secs_f64((20.0 + rows as f64) / 1e3));
        }
        assert!((39..=42).contains(&pace.rows(3)), "{}", pace.rows(3));
    }
}
