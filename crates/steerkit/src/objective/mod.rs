//! Training objectives: what a pair's log-probabilities under a steered model are worth.
//!
//! An objective sees summed log-probabilities only. It returns the loss of one pair and the derivative of the
//! loss with respect to the two policy log-probabilities; the model turns these into a gradient of the
//! residual stream. A new objective is one file and one line in [`Objective`].

mod bipo;

pub use bipo::Bipo;

use serde::{Deserialize, Serialize};

/// Which way a vector is added while a loss is taken: the paper's d.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// `h + v`: the chosen response should become more likely.
    Toward,
    /// `h - v`: the rejected response should become more likely.
    Away,
}

impl Direction {
    /// `+1` or `-1`.
    pub fn sign(self) -> f32 {
        match self {
            Self::Toward => 1.0,
            Self::Away => -1.0,
        }
    }

    /// The other one.
    pub fn flipped(self) -> Self {
        match self {
            Self::Toward => Self::Away,
            Self::Away => Self::Toward,
        }
    }
}

/// Log-probabilities of the two responses of a pair in nats, each summed over the response's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairLogps {
    /// Of the chosen response.
    pub chosen: f64,
    /// Of the rejected response.
    pub rejected: f64,
}

impl PairLogps {
    /// `chosen - rejected`.
    pub fn margin(self) -> f64 {
        self.chosen - self.rejected
    }

    /// The pair minus `reference`, response by response: the log-ratios of policy to reference.
    pub fn relative_to(self, reference: Self) -> Self {
        Self { chosen: self.chosen - reference.chosen, rejected: self.rejected - reference.rejected }
    }
}

/// Loss of one pair, and its derivatives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// The loss in nats.
    pub loss: f64,
    /// d loss / d (policy log-probability of the chosen response).
    pub d_chosen: f64,
    /// d loss / d (policy log-probability of the rejected response).
    pub d_rejected: f64,
}

/// The registry of objectives; in a recipe `objective.kind` names the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Objective {
    /// Bi-directional preference optimisation.
    Bipo(Bipo),
}

impl Objective {
    /// Loss of one pair of log-probabilities taken at `h + d·v`.
    pub fn loss(&self, policy: PairLogps, reference: PairLogps, direction: Direction) -> PairLoss {
        match self {
            Self::Bipo(o) => o.loss(policy, reference, direction),
        }
    }
}
