//! SPLIT (arXiv 2602.02343): language modelling on both sides of zero, and a hinge that keeps the two responses apart.

use super::{PairFacts, PairLogps, PairLoss, View};
use serde::{Deserialize, Serialize};

/// `chosen_weight · NLL(w) + hinge · max(theta - (NLL(l) - NLL(w)), 0)` at `h + v` and `rejected_weight · NLL(l)` at
/// `h - v`, with `NLL(y) = -log p(y)/|y|`, `w` the chosen and `l` the rejected response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Split {
    /// Weight of the chosen response at `+v`.
    pub chosen_weight: f64,
    /// Weight of the rejected response at `-v`.
    pub rejected_weight: f64,
    /// Weight of the hinge.
    pub hinge: f64,
    /// Nats per token that the two responses are to be apart.
    pub theta: f64,
}

impl Default for Split {
    fn default() -> Self {
        Self { chosen_weight: 1.0, rejected_weight: 0.6, hinge: 4.0, theta: 0.5 }
    }
}

impl Split {
    pub(super) fn views(&self) -> Vec<View> {
        vec![View::Added(1.0), View::Added(-1.0)]
    }

    pub(super) fn losses(&self, seen: &[PairLogps], pair: &PairFacts) -> Vec<PairLoss> {
        let (per_chosen, per_rejected) = (1.0 / pair.chosen_tokens as f64, 1.0 / pair.rejected_tokens as f64);
        let nll = |at: PairLogps| (-at.chosen * per_chosen, -at.rejected * per_rejected);
        let (chosen, rejected) = nll(seen[0]);
        let short = self.theta - (rejected - chosen);
        let hinge = if short > 0.0 { self.hinge } else { 0.0 };
        let toward = PairLoss {
            loss: self.chosen_weight * chosen + hinge * short,
            d_chosen: -(self.chosen_weight + hinge) * per_chosen,
            d_rejected: hinge * per_rejected,
        };
        let away = PairLoss {
            loss: self.rejected_weight * nll(seen[1]).1,
            d_chosen: 0.0,
            d_rejected: -self.rejected_weight * per_rejected,
        };
        vec![toward, away]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::check_derivatives;

    const PAIR: PairFacts = PairFacts {
        reference: PairLogps { chosen: 0.0, rejected: 0.0 },
        prompt_tokens: 6,
        chosen_tokens: 4,
        rejected_tokens: 10,
    };

    /// By hand: NLL(w) = 5, NLL(l) = 4.5, hinge 4·(0.5 + 0.5) = 4, so 5 + 4 = 9; away 0.6 · 3 = 1.8.
    #[test]
    fn a_number_derived_by_hand() {
        let at = PairLogps { chosen: -20.0, rejected: -45.0 };
        let away = PairLogps { chosen: -99.0, rejected: -30.0 };
        let got = Split::default().losses(&[at, away], &PAIR);
        assert!((got[0].loss - 9.0).abs() < 1e-12 && (got[1].loss - 1.8).abs() < 1e-12, "{got:?}");
        assert!((got[0].d_chosen + 1.25).abs() < 1e-12 && (got[0].d_rejected - 0.4).abs() < 1e-12, "{got:?}");
        assert!(got[1].d_chosen == 0.0 && (got[1].d_rejected + 0.06).abs() < 1e-12, "{got:?}");
        // 0.7 nats apart: the hinge rests.
        let apart = PairLogps { chosen: -20.0, rejected: -57.0 };
        let rest = PairLoss { loss: 5.0, d_chosen: -0.25, d_rejected: 0.0 };
        assert_eq!(Split::default().losses(&[apart, away], &PAIR)[0], rest);
    }

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        check_derivatives(2, |seen| Split::default().losses(seen, &PAIR));
    }
}
