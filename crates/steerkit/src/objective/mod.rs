//! Training objectives: what a pair's log-probabilities under a steered model are worth.
//!
//! An objective sees summed log-probabilities only. It says how a pair is to be run ([`View`]) and returns, for each
//! run, a loss and its derivatives with respect to the two policy log-probabilities; the model turns these into a
//! gradient of the residual stream. A new objective is one file and one line in [`Objective`].

mod bipo;
mod logistic;
mod nll;
mod reps;
mod simpo;
mod split;

pub use bipo::Bipo;
pub use nll::Nll;
pub use reps::{LengthOf, Reps};
pub use simpo::SimPo;
pub use split::Split;

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

    pub(crate) fn to_numbers(self) -> [f64; 2] {
        [self.chosen, self.rejected]
    }

    /// Of a list of [`Self::to_numbers`].
    pub(crate) fn from_numbers(mut numbers: impl Iterator<Item = f64>) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || Some(Self { chosen: numbers.next()?, rejected: numbers.next()? }))
    }
}

/// What an objective knows of a pair before it is steered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairFacts {
    /// Log-probabilities under the plain model.
    pub reference: PairLogps,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the chosen response, its end included.
    pub chosen_tokens: usize,
    /// Tokens of the rejected response, its end included.
    pub rejected_tokens: usize,
}

/// How the residual stream `h` is edited in one run of a pair, at the positions of the run's token scope.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum View {
    /// `h + scale·v`.
    Added(f32),
    /// `h - max(v·h, 0)/|v|² · v`: what points along `v` is taken away. Nothing at `v = 0`.
    Nulled,
}

/// Loss of one run of a pair, and its derivatives.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    /// Bi-directional preference optimisation; with an anchor if wanted.
    Bipo(Bipo),
    /// Language modelling on the chosen response.
    Nll(Nll),
    /// Reference-free preference steering.
    Reps(Reps),
    /// SimPO's length-normalised margin.
    #[serde(rename = "simpo")]
    SimPo(SimPo),
    /// Language modelling on both sides with a hinge on the margin.
    Split(Split),
}

impl Objective {
    /// The runs that the loss of one pair needs. `factor` scales the vector where the objective draws factors.
    pub fn views(&self, direction: Direction, factor: f32) -> Vec<View> {
        match self {
            Self::Bipo(o) => o.views(direction),
            Self::Nll(_) | Self::SimPo(_) => vec![View::Added(factor * direction.sign())],
            Self::Reps(o) => o.views(factor),
            Self::Split(o) => o.views(),
        }
    }

    /// The losses of a pair's runs, in the order of [`Self::views`]; their sum is the pair's loss.
    ///
    /// # Panics
    /// When `seen` are not the log-probabilities of those runs.
    pub fn losses(&self, seen: &[PairLogps], pair: &PairFacts, direction: Direction) -> Vec<PairLoss> {
        assert_eq!(seen.len(), self.views(direction, 1.0).len(), "one result per run");
        match self {
            Self::Bipo(o) => o.losses(seen, pair, direction),
            Self::Nll(o) => vec![o.loss(seen[0], pair, direction)],
            Self::Reps(o) => o.losses(seen, pair),
            Self::SimPo(o) => vec![o.loss(seen[0], pair, direction)],
            Self::Split(o) => o.losses(seen, pair),
        }
    }

    /// The factors that the vector is scaled by while training, one drawn per pair and step.
    pub fn factors(&self) -> &[f32] {
        match self {
            Self::Reps(o) => &o.factors,
            _ => &[1.0],
        }
    }

    /// The largest number of runs that a pair takes.
    pub(crate) fn most_views(&self) -> usize {
        [Direction::Toward, Direction::Away].map(|d| self.views(d, 1.0).len()).into_iter().max().unwrap_or(1)
    }

    /// As a recipe names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bipo(_) => "bipo",
            Self::Nll(_) => "nll",
            Self::Reps(_) => "reps",
            Self::SimPo(_) => "simpo",
            Self::Split(_) => "split",
        }
    }

    /// The first number that makes no sense: its key, the number, and what is expected.
    pub(crate) fn fault(&self) -> Option<(&'static str, f64, &'static str)> {
        let positive = |key, x: f64| (!(x.is_finite() && x > 0.0)).then_some((key, x, "a number above 0"));
        let not_negative = |key, x: f64| (!(x.is_finite() && x >= 0.0)).then_some((key, x, "0 or more"));
        match self {
            Self::Bipo(o) => positive("beta", o.beta).or(not_negative("anchor", o.anchor)),
            Self::Nll(_) => None,
            Self::Reps(o) if o.factors.is_empty() => Some(("factors", 0.0, "at least one factor")),
            Self::Reps(o) => o.factors.iter().find_map(|&f| positive("factors", f64::from(f))),
            Self::SimPo(o) => positive("beta", o.beta).or(not_negative("gamma", o.gamma)),
            Self::Split(o) => [
                ("chosen_weight", o.chosen_weight),
                ("rejected_weight", o.rejected_weight),
                ("hinge", o.hinge),
                ("theta", o.theta),
            ]
            .into_iter()
            .find_map(|(key, x)| not_negative(key, x)),
        }
    }
}

#[cfg(test)]
mod testing {
    use super::{PairLogps, PairLoss};

    /// Central differences of the summed losses of `views` runs at a few points, against the derivatives.
    pub(super) fn check_derivatives(views: usize, losses: impl Fn(&[PairLogps]) -> Vec<PairLoss>) {
        let e = 1e-5;
        for k in 0..40 {
            let at = |i: usize| -2.0 - 40.0 * ((k * 7 + i * 13) as f64 * 0.618).fract();
            let seen: Vec<PairLogps> =
                (0..views).map(|i| PairLogps { chosen: at(2 * i), rejected: at(2 * i + 1) }).collect();
            let total = |seen: &[PairLogps]| losses(seen).iter().map(|l| l.loss).sum::<f64>();
            for (i, got) in losses(&seen).iter().enumerate() {
                let moved = |chosen: f64, rejected: f64| {
                    let mut seen = seen.clone();
                    seen[i].chosen += chosen;
                    seen[i].rejected += rejected;
                    total(&seen)
                };
                let by_chosen = (moved(e, 0.0) - moved(-e, 0.0)) / (2.0 * e);
                let by_rejected = (moved(0.0, e) - moved(0.0, -e)) / (2.0 * e);
                assert!((got.d_chosen - by_chosen).abs() < 1e-6, "{got:?} {by_chosen}");
                assert!((got.d_rejected - by_rejected).abs() < 1e-6, "{got:?} {by_rejected}");
            }
        }
    }
}
