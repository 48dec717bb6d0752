//! Bi-directional preference optimisation (arXiv 2406.00045, Eq. 3; with d = +1 only, Eq. 2), and the same held by
//! an anchor.

use super::logistic::{sigmoid, softplus};
use super::{Direction, PairFacts, PairLogps, PairLoss, View};
use serde::{Deserialize, Serialize};

/// `-log sigma(d · beta · [(pc - rc) - (pr - rr)])` with policy log-probabilities `p`, reference
/// log-probabilities `r`, chosen `c` and rejected `r`; with an anchor, minus `anchor · pc/|c|` at `+v` whatever `d`
/// is. The anchor keeps the chosen response from becoming less likely while the margin grows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bipo {
    /// Strength of the preference per nat; the paper uses 0.1.
    pub beta: f64,
    /// Weight of the chosen response's mean log-probability per token at `+v`; 0 for none.
    pub anchor: f64,
}

impl Default for Bipo {
    fn default() -> Self {
        Self { beta: 0.1, anchor: 0.0 }
    }
}

impl Bipo {
    /// Loss of one pair and its derivatives.
    pub fn loss(&self, policy: PairLogps, reference: PairLogps, direction: Direction) -> PairLoss {
        let scale = f64::from(direction.sign()) * self.beta;
        let x = scale * policy.relative_to(reference).margin();
        let d_margin = -scale * sigmoid(-x);
        PairLoss { loss: softplus(-x), d_chosen: d_margin, d_rejected: -d_margin }
    }

    /// At `d·v`; and at `+v` for the anchor, where that is another run.
    pub(super) fn views(&self, direction: Direction) -> Vec<View> {
        match direction {
            Direction::Away if self.anchor != 0.0 => vec![View::Added(-1.0), View::Added(1.0)],
            _ => vec![View::Added(direction.sign())],
        }
    }

    pub(super) fn losses(&self, seen: &[PairLogps], pair: &PairFacts, direction: Direction) -> Vec<PairLoss> {
        let mut losses = vec![self.loss(seen[0], pair.reference, direction)];
        if self.anchor != 0.0 {
            let weight = self.anchor / pair.chosen_tokens as f64;
            if seen.len() == 2 {
                losses.push(PairLoss::default());
            }
            let last = losses.len() - 1;
            losses[last].loss -= weight * seen[last].chosen;
            losses[last].d_chosen -= weight;
        }
        losses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(chosen: f64, rejected: f64) -> PairLogps {
        PairLogps { chosen, rejected }
    }

    /// By hand: beta 0.1, (−20 − −25) − (−33 − −30) = 5 + 3 = 8, x = 0.8,
    /// loss = ln(1 + e^-0.8) = ln 1.449328964 = 0.371100666,
    /// d loss / d pc = −0.1 · (1 − sigma(0.8)) = −0.1 · 0.310025519 = −0.0310025519.
    #[test]
    fn a_number_derived_by_hand() {
        let got = Bipo::default().loss(pair(-20.0, -33.0), pair(-25.0, -30.0), Direction::Toward);
        assert!((got.loss - 0.371_100_666).abs() < 1e-9, "{got:?}");
        assert!((got.d_chosen + 0.031_002_551_9).abs() < 1e-10, "{got:?}");
        assert_eq!(got.d_rejected, -got.d_chosen);
    }

    #[test]
    fn an_unsteered_model_costs_ln_2() {
        let same = pair(-12.5, -40.0);
        for d in [Direction::Toward, Direction::Away] {
            let got = Bipo::default().loss(same, same, d);
            assert!((got.loss - std::f64::consts::LN_2).abs() < 1e-15);
            assert!((got.d_chosen + f64::from(d.sign()) * 0.05).abs() < 1e-15);
        }
    }

    /// By hand: two chosen tokens and anchor 3 add 1.5 · 20 = 30 to the loss and -1.5 to its derivative.
    #[test]
    fn the_anchor_is_always_at_plus_v() {
        let o = Bipo { beta: 0.1, anchor: 3.0 };
        let facts = PairFacts {
            reference: pair(-25.0, -30.0),
            prompt_tokens: 9,
            chosen_tokens: 2,
            rejected_tokens: 5,
        };
        assert_eq!(o.views(Direction::Toward), [View::Added(1.0)]);
        let toward = o.losses(&[pair(-20.0, -33.0)], &facts, Direction::Toward);
        assert!((toward[0].loss - 30.371_100_666).abs() < 1e-9);
        assert!((toward[0].d_chosen + 1.531_002_551_9).abs() < 1e-10);
        assert!((toward[0].d_rejected - 0.031_002_551_9).abs() < 1e-10);
        assert_eq!(o.views(Direction::Away), [View::Added(-1.0), View::Added(1.0)]);
        let away = o.losses(&[pair(-26.0, -29.0), pair(-20.0, -33.0)], &facts, Direction::Away);
        assert_eq!(away[0], Bipo::default().loss(pair(-26.0, -29.0), facts.reference, Direction::Away));
        assert_eq!(away[1], PairLoss { loss: 30.0, d_chosen: -1.5, d_rejected: 0.0 });
    }

    #[test]
    fn large_margins_stay_finite() {
        for margin in [-1e6, 1e6] {
            let got =
                Bipo { beta: 1.0, anchor: 0.0 }.loss(pair(margin, 0.0), pair(0.0, 0.0), Direction::Toward);
            assert!(got.loss.is_finite() && got.d_chosen.is_finite());
            assert_eq!(got.loss, (-margin).max(0.0));
        }
    }

    proptest! {
        #[test]
        fn derivatives_are_those_of_finite_differences(
            pc in -60f64..0.0, pr in -60f64..0.0, rc in -60f64..0.0, rr in -60f64..0.0,
            beta in 0.01f64..0.5, toward: bool,
        ) {
            let d = if toward { Direction::Toward } else { Direction::Away };
            let f = |pc, pr| Bipo { beta, anchor: 0.0 }.loss(pair(pc, pr), pair(rc, rr), d);
            let (at, e) = (f(pc, pr), 1e-4);
            let by_chosen = (f(pc + e, pr).loss - f(pc - e, pr).loss) / (2.0 * e);
            let by_rejected = (f(pc, pr + e).loss - f(pc, pr - e).loss) / (2.0 * e);
            prop_assert!((at.d_chosen - by_chosen).abs() < 1e-7);
            prop_assert!((at.d_rejected - by_rejected).abs() < 1e-7);
        }

        #[test]
        fn swapping_the_responses_flips_the_direction(
            pc in -60f64..0.0, pr in -60f64..0.0, rc in -60f64..0.0, rr in -60f64..0.0,
        ) {
            let o = Bipo::default();
            let one = o.loss(pair(pc, pr), pair(rc, rr), Direction::Toward);
            let other = o.loss(pair(pr, pc), pair(rr, rc), Direction::Away);
            prop_assert!((one.loss - other.loss).abs() < 1e-12);
            prop_assert!((one.d_chosen - other.d_rejected).abs() < 1e-12);
        }
    }
}
