//! Language modelling: the plainest objective, and the default loss of PrOSV (arXiv 2605.05983).

use super::{Direction, PairFacts, PairLogps, PairLoss};
use serde::{Deserialize, Serialize};

/// `-log p(w)/|w|` at `h + d·v`, with `w` the response that direction `d` is to bring out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nll {}

impl Nll {
    /// Loss of one pair and its derivatives.
    pub fn loss(&self, policy: PairLogps, pair: &PairFacts, direction: Direction) -> PairLoss {
        match direction {
            Direction::Toward => {
                let weight = 1.0 / pair.chosen_tokens as f64;
                PairLoss { loss: -weight * policy.chosen, d_chosen: -weight, d_rejected: 0.0 }
            }
            Direction::Away => {
                let weight = 1.0 / pair.rejected_tokens as f64;
                PairLoss { loss: -weight * policy.rejected, d_chosen: 0.0, d_rejected: -weight }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: 20/4 nats per token towards, 33/5 away.
    #[test]
    fn a_number_derived_by_hand() {
        let pair = PairFacts {
            reference: PairLogps::default(),
            prompt_tokens: 3,
            chosen_tokens: 4,
            rejected_tokens: 5,
        };
        let policy = PairLogps { chosen: -20.0, rejected: -33.0 };
        let toward = Nll {}.loss(policy, &pair, Direction::Toward);
        assert_eq!(toward, PairLoss { loss: 5.0, d_chosen: -0.25, d_rejected: 0.0 });
        let away = Nll {}.loss(policy, &pair, Direction::Away);
        assert!((away.loss - 6.6).abs() < 1e-12 && away.d_chosen == 0.0 && away.d_rejected == -0.2);
    }
}
