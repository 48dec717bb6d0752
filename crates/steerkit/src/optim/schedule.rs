//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

/// Length of the linear warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Warmup {
    /// This many steps.
    Steps(usize),
    /// This share of the schedule, rounded up as transformers' `warmup_ratio` is.
    Fraction(f64),
}

impl Warmup {
    /// The warm-up of a schedule of `total` steps, in steps.
    pub fn steps(self, total: usize) -> usize {
        match self {
            Self::Steps(n) => n,
            Self::Fraction(f) => (f * total as f64).ceil() as usize,
        }
    }
}

/// Linear warm-up from 0, then half a cosine down to 0: transformers' `get_cosine_schedule_with_warmup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cosine {
    /// Steps until the full rate.
    pub warmup: usize,
    /// Steps until 0 again.
    pub total: usize,
}

impl Cosine {
    /// The share of the full rate used by step `step` (from 0; the first step of a warm-up uses 0).
    pub fn factor(self, step: usize) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup.max(1) as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        let progress = (step - self.warmup) as f64 / span;
        (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lr_logged` of the official run (learning rate 0.05, warm-up 3 of 9 steps) is the rate of the next step.
    #[test]
    fn golden_the_rates_of_the_official_run() {
        let logged = [
            0.016666666666666666,
            0.03333333333333333,
            0.05,
            0.046650635094610975,
            0.037500000000000006,
            0.025,
            0.012500000000000006,
            0.0033493649053890325,
            0.0,
        ];
        let s = Cosine { warmup: 3, total: 9 };
        assert_eq!(s.factor(0), 0.0);
        for (i, want) in logged.into_iter().enumerate() {
            assert!((0.05 * s.factor(i + 1) - want).abs() < 1e-16, "step {}", i + 1);
        }
    }

    #[test]
    fn a_stop_before_the_end_is_still_near_the_peak() {
        // 100 epochs of 161 steps, stopped after 20: 90.9% of the peak.
        let s = Cosine { warmup: 100, total: 16_100 };
        assert!((s.factor(3219) - 0.909).abs() < 1e-3);
    }

    #[test]
    fn warm_up_as_a_share() {
        assert_eq!(Warmup::Fraction(0.1).steps(95), 10);
        assert_eq!(Warmup::Steps(100).steps(32), 100);
        assert_eq!(Cosine { warmup: 0, total: 0 }.factor(0), 1.0);
    }
}
