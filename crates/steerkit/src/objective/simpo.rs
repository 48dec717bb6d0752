//! SimPO (arXiv 2405.14734): a length-normalised margin with a target, without reference model.

use super::logistic::{sigmoid, softplus};
use super::{Direction, PairFacts, PairLogps, PairLoss};
use serde::{Deserialize, Serialize};

/// `-log sigma((beta/|w|) log p(w) - (beta/|l|) log p(l) - gamma)` at `h + d·v`, with `w` the response that direction
/// `d` is to bring out and `l` the other one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimPo {
    /// Scale of the log-probabilities per token.
    pub beta: f64,
    /// Margin that is asked for.
    pub gamma: f64,
}

impl Default for SimPo {
    fn default() -> Self {
        Self { beta: 2.0, gamma: 1.0 }
    }
}

impl SimPo {
    /// Loss of one pair and its derivatives.
    pub fn loss(&self, policy: PairLogps, pair: &PairFacts, direction: Direction) -> PairLoss {
        let d = f64::from(direction.sign());
        let (of_chosen, of_rejected) =
            (d * self.beta / pair.chosen_tokens as f64, d * self.beta / pair.rejected_tokens as f64);
        let x = of_chosen * policy.chosen - of_rejected * policy.rejected - self.gamma;
        let slope = -sigmoid(-x);
        PairLoss { loss: softplus(-x), d_chosen: slope * of_chosen, d_rejected: -slope * of_rejected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::check_derivatives;

    const PAIR: PairFacts = PairFacts {
        reference: PairLogps { chosen: 0.0, rejected: 0.0 },
        prompt_tokens: 3,
        chosen_tokens: 4,
        rejected_tokens: 10,
    };

    /// By hand: x = 2·(-20/4) - 2·(-45/10) - 1 = -10 + 9 - 1 = -2, loss = ln(1 + e^2) = 2.126928011,
    /// d loss/d log p(w) = -(1 - sigma(-2)) · 2/4 = -0.880797078 · 0.5, d loss/d log p(l) = 0.880797078 · 0.2.
    #[test]
    fn a_number_derived_by_hand() {
        let got =
            SimPo::default().loss(PairLogps { chosen: -20.0, rejected: -45.0 }, &PAIR, Direction::Toward);
        assert!((got.loss - 2.126_928_011).abs() < 1e-9, "{got:?}");
        assert!((got.d_chosen + 0.440_398_539).abs() < 1e-9, "{got:?}");
        assert!((got.d_rejected - 0.176_159_416).abs() < 1e-9, "{got:?}");
    }

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        for direction in [Direction::Toward, Direction::Away] {
            check_derivatives(1, |seen| vec![SimPo::default().loss(seen[0], &PAIR, direction)]);
        }
    }
}
