//! What a vector does to held-out pairs.

use crate::objective::PairLogps;
use serde::{Deserialize, Serialize};

/// What one multiplier does to a set of pairs.
///
/// With summed log-probabilities of the steered (`p`) and the plain model (`r`), the relative margin of a pair
/// is `(p_chosen - r_chosen) - (p_rejected - r_rejected)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalPoint {
    /// The vector is added this many times.
    pub multiplier: f64,
    /// Pairs measured.
    pub n: usize,
    /// Mean relative margin in nats; 0 at multiplier 0.
    pub margin: f64,
    /// Standard error of `margin`.
    pub margin_se: f64,
    /// Mean of `(p_chosen - r_chosen)/|chosen| - (p_rejected - r_rejected)/|rejected|` in nats per token.
    pub margin_per_token: f64,
    /// Share of pairs whose relative margin has the sign of the multiplier. At multiplier 0, where there is no
    /// relative margin: the share whose chosen response the plain model finds likelier than the rejected one.
    pub accuracy: f64,
    /// Mean `p_chosen - r_chosen` in nats.
    pub chosen: f64,
    /// Mean `p_rejected - r_rejected` in nats.
    pub rejected: f64,
}

/// Log-probabilities of one pair with and without steering, and the lengths of its responses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Of the steered model.
    pub policy: PairLogps,
    /// Of the plain model.
    pub reference: PairLogps,
    /// Tokens of the chosen response.
    pub chosen_tokens: usize,
    /// Tokens of the rejected response.
    pub rejected_tokens: usize,
}

impl EvalPoint {
    /// Sums up the pairs measured at `multiplier`; there is at least one.
    pub fn new(multiplier: f64, pairs: &[Measured]) -> Self {
        let n = pairs.len() as f64;
        let mean = |f: &dyn Fn(&Measured) -> f64| pairs.iter().map(f).sum::<f64>() / n;
        let ratio = |m: &Measured| m.policy.relative_to(m.reference);
        let margin = mean(&|m| ratio(m).margin());
        let variance = mean(&|m| (ratio(m).margin() - margin).powi(2)) * n / (n - 1.0).max(1.0);
        let right = |m: &Measured| match multiplier {
            0.0 => m.reference.margin() > 0.0,
            _ => ratio(m).margin() * multiplier > 0.0,
        };
        Self {
            multiplier,
            n: pairs.len(),
            margin,
            margin_se: (variance / n).sqrt(),
            margin_per_token: mean(&|m| {
                ratio(m).chosen / m.chosen_tokens as f64 - ratio(m).rejected / m.rejected_tokens as f64
            }),
            accuracy: pairs.iter().filter(|m| right(m)).count() as f64 / n,
            chosen: mean(&|m| ratio(m).chosen),
            rejected: mean(&|m| ratio(m).rejected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(pc: f64, pr: f64, rc: f64, rr: f64) -> Measured {
        Measured {
            policy: PairLogps { chosen: pc, rejected: pr },
            reference: PairLogps { chosen: rc, rejected: rr },
            chosen_tokens: 2,
            rejected_tokens: 4,
        }
    }

    /// Relative margins by hand: (−8 − −10) − (−12 − −8) = 6 and (−9 − −9) − (−5 − −7) = −2.
    #[test]
    fn two_pairs_by_hand() {
        let pairs = [measured(-8.0, -12.0, -10.0, -8.0), measured(-9.0, -5.0, -9.0, -7.0)];
        let up = EvalPoint::new(1.0, &pairs);
        assert_eq!((up.margin, up.accuracy, up.chosen, up.rejected), (2.0, 0.5, 1.0, -1.0));
        assert_eq!(up.margin_se, 4.0);
        // (2/2 + 4/4 + 0/2 − 2/4) / 2
        assert_eq!(up.margin_per_token, 0.75);
        assert_eq!(EvalPoint::new(-2.0, &pairs).accuracy, 0.5);
        let plain: Vec<Measured> = pairs.iter().map(|m| Measured { policy: m.reference, ..*m }).collect();
        let zero = EvalPoint::new(0.0, &plain);
        assert_eq!((zero.margin, zero.accuracy), (0.0, 0.0));
    }
}
