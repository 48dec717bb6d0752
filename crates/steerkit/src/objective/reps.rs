//! Reference-free preference steering (RePS, arXiv 2505.20809): one side learns to bring a response out when the
//! vector is added, the other side to bring the other response out when the vector's direction is taken away.

use super::logistic::{sigmoid, softplus};
use super::{PairFacts, PairLogps, PairLoss, View};
use serde::{Deserialize, Serialize};

/// Positive side, at `h + a·v`: `-log sigma((b/|w|) log p(w) - (1/|l|) log p(l))` with `b = max(r(l) - r(w), 1)`
/// from the reference log-probabilities `r`. Negative side, at `h - max(v·h, 0)/|v|² · v`: the same with `w` and `l`
/// swapped. `w` is the chosen response, `l` the rejected one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reps {
    /// The factors `a`, one drawn per pair and step. The published ones are 2, 4, .., 20 for a vector that is then
    /// applied at such factors; the default has the same ratios around 1.
    pub factors: Vec<f32>,
    /// Whether the negative side takes part.
    pub negative: bool,
    /// What `|w|` and `|l|` count.
    pub length: LengthOf,
}

/// What the length of a response counts; the public code differs from the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LengthOf {
    /// Its own tokens.
    #[default]
    Response,
    /// Its own and the prompt's.
    Sequence,
}

impl Default for Reps {
    fn default() -> Self {
        let factors = (1..=10).map(|i| i as f32 * 0.2).collect();
        Self { factors, negative: true, length: LengthOf::default() }
    }
}

impl Reps {
    pub(super) fn views(&self, factor: f32) -> Vec<View> {
        match self.negative {
            true => vec![View::Added(factor), View::Nulled],
            false => vec![View::Added(factor)],
        }
    }

    pub(super) fn losses(&self, seen: &[PairLogps], pair: &PairFacts) -> Vec<PairLoss> {
        let prompt = if self.length == LengthOf::Sequence { pair.prompt_tokens } else { 0 };
        let chosen = 1.0 / (prompt + pair.chosen_tokens) as f64;
        let rejected = 1.0 / (prompt + pair.rejected_tokens) as f64;
        let margin = pair.reference.margin();
        let mut losses = Vec::with_capacity(seen.len());
        {
            let of_chosen = (-margin).max(1.0) * chosen;
            let x = of_chosen * seen[0].chosen - rejected * seen[0].rejected;
            let slope = -sigmoid(-x);
            losses.push(PairLoss {
                loss: softplus(-x),
                d_chosen: slope * of_chosen,
                d_rejected: -slope * rejected,
            });
        }
        if let Some(nulled) = seen.get(1) {
            let of_rejected = margin.max(1.0) * rejected;
            let x = of_rejected * nulled.rejected - chosen * nulled.chosen;
            let slope = -sigmoid(-x);
            losses.push(PairLoss {
                loss: softplus(-x),
                d_chosen: -slope * chosen,
                d_rejected: slope * of_rejected,
            });
        }
        losses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::check_derivatives;

    const PAIR: PairFacts = PairFacts {
        reference: PairLogps { chosen: -25.0, rejected: -22.0 },
        prompt_tokens: 6,
        chosen_tokens: 4,
        rejected_tokens: 10,
    };

    /// By hand: b = max(-22 + 25, 1) = 3, x = 3/4·(-20) - (-45)/10 = -10.5, loss = ln(1 + e^10.5) = 10.500027536,
    /// slope -(1 - sigma(-10.5)) = -0.999972464; other side: b = max(-3, 1) = 1, x = -45/10 + 20/4 = 0.5,
    /// loss = ln(1 + e^-0.5) = 0.474076984, slope -(1 - sigma(0.5)) = -0.377540669.
    #[test]
    fn numbers_derived_by_hand() {
        let at = PairLogps { chosen: -20.0, rejected: -45.0 };
        let got = Reps::default().losses(&[at, at], &PAIR);
        assert!((got[0].loss - 10.500_027_536).abs() < 1e-8, "{got:?}");
        assert!((got[0].d_chosen + 0.749_979_348).abs() < 1e-8, "{got:?}");
        assert!((got[0].d_rejected - 0.099_997_246).abs() < 1e-8, "{got:?}");
        assert!((got[1].loss - 0.474_076_984).abs() < 1e-9, "{got:?}");
        assert!((got[1].d_chosen - 0.094_385_167).abs() < 1e-9, "{got:?}");
        assert!((got[1].d_rejected + 0.037_754_067).abs() < 1e-9, "{got:?}");
        // Over the whole sequence: 3/10·(-20) + 45/16 = -3.1875.
        let whole = Reps { length: LengthOf::Sequence, negative: false, ..Reps::default() };
        let got = whole.losses(&[at], &PAIR);
        assert!((got[0].loss - (1.0 + 3.1875f64.exp()).ln()).abs() < 1e-12 && got.len() == 1);
    }

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        for margin in [-8.0, 0.0, 5.0] {
            let pair = PairFacts { reference: PairLogps { chosen: margin, rejected: 0.0 }, ..PAIR };
            check_derivatives(2, |seen| Reps::default().losses(seen, &pair));
        }
    }
}
