//! What asking costs: an estimate before, a cap while it runs, a ledger after.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{AskError, Prompt};
use crate::Result;

/// Bytes of UTF-8 that count as one token where an endpoint has not reported any. English has four or more to a
/// token, so estimates err on the high side.
pub const BYTES_PER_TOKEN: usize = 3;
/// Tokens of a chat template around a system and a user message, for the estimate.
const TEMPLATE_TOKENS: u64 = 16;

/// Tokens of a text by the stated rule: one per [`BYTES_PER_TOKEN`] bytes, rounded up.
pub fn estimated_tokens(text: &str) -> u64 {
    text.len().div_ceil(BYTES_PER_TOKEN) as u64
}

/// Tokens read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Tokens of prompts.
    pub input: u64,
    /// Tokens of answers.
    pub output: u64,
}

impl Usage {
    /// The most that a call may take: its prompt by the stated rule, and an answer as long as allowed.
    pub fn bound(prompt: &Prompt, max_tokens: usize) -> Self {
        let texts = [Some(&prompt.system), Some(&prompt.user), prompt.begin.as_ref()];
        let input = texts.into_iter().flatten().map(|text| estimated_tokens(text)).sum::<u64>();
        Self { input: input + TEMPLATE_TOKENS, output: max_tokens as u64 }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_sub(other.input),
            output: self.output.saturating_sub(other.output),
        }
    }

    /// Both together.
    pub fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::plus)
    }
}

/// Prices in whatever currency the caller counts in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// For a million tokens of prompts.
    pub input: f64,
    /// For a million tokens of answers.
    pub output: f64,
}

impl Prices {
    /// What these tokens cost.
    pub fn of(&self, usage: Usage) -> f64 {
        (usage.input as f64 * self.input + usage.output as f64 * self.output) / 1e6
    }
}

/// What a run may spend at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cap {
    /// In the currency of the prices.
    pub cost: Option<f64>,
    /// Tokens, of prompts and answers together.
    pub tokens: Option<u64>,
}

/// What is expected before anything is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// Calls, without repetitions after failures.
    pub calls: usize,
    /// Answers that are in the store already.
    pub stored: usize,
    /// Tokens at most, by the rule of [`Usage::bound`].
    pub tokens: Usage,
    /// Their price.
    pub cost: f64,
}

/// What was asked and what it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Ledger {
    /// Calls made, repetitions after failures with them.
    pub calls: u64,
    /// Calls that brought an answer.
    pub answered: u64,
    /// Answers taken from the store.
    pub stored: u64,
    /// Calls whose tokens were not reported and are counted by the rule of the estimate: also those that broke off
    /// after they were sent, because an endpoint may bill them.
    pub estimated: u64,
    /// Tokens read and written.
    pub tokens: Usage,
    /// Their price.
    pub cost: f64,
}

/// Counts what is spent and stops before it is too much. Shared by the threads that ask.
#[derive(Debug, Default)]
pub struct Meter {
    prices: Prices,
    cap: Cap,
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    in_flight: Usage,
    calls_in_flight: u64,
}

/// How calls ended, for their price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    /// With an answer; what the endpoint reported, if anything.
    Answered(Option<Usage>),
    /// Without one, but the endpoint may have worked.
    Lost,
    /// Without one, before any work.
    Nothing,
    /// The call was not made after all.
    NotMade,
}

/// Room that a call in flight takes under the cap.
#[derive(Debug)]
#[must_use]
pub(super) struct Reservation {
    bound: Usage,
    calls: u64,
}

impl Meter {
    /// A meter that has counted nothing yet.
    pub fn new(prices: Prices, cap: Cap) -> Self {
        Self { prices, cap, ..Self::default() }
    }

    /// The prices.
    pub fn prices(&self) -> Prices {
        self.prices
    }

    /// What was spent so far.
    pub fn ledger(&self) -> Ledger {
        let state = self.state();
        Ledger { cost: self.prices.of(state.ledger.tokens), ..state.ledger }
    }

    /// Counts answers that came from the store.
    pub(super) fn stored(&self, answers: usize) {
        self.state().ledger.stored += answers as u64;
    }

    /// Takes room for so many calls that use at most `bound` together. While other calls are in flight that may turn
    /// out smaller than they could have been, it waits for them.
    pub(super) fn reserve(&self, bound: Usage, calls: usize) -> Result<Reservation> {
        let calls = calls as u64;
        let mut state = self.state();
        loop {
            let after = state.ledger.tokens.plus(state.in_flight).plus(bound);
            let Some((cap, spent, next)) = self.over(after, state.ledger.tokens, bound) else {
                state.in_flight = state.in_flight.plus(bound);
                state.calls_in_flight += calls;
                state.ledger.calls += calls;
                return Ok(Reservation { bound, calls });
            };
            if state.calls_in_flight == 0 {
                return Err(AskError::Cap { cap, spent, next }.into());
            }
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The cap that `after` goes over, what was spent of it, and what the next call may take.
    fn over(&self, after: Usage, spent: Usage, next: Usage) -> Option<(String, String, String)> {
        if let Some(cap) = self.cap.tokens.filter(|&cap| after.total() > cap) {
            let [cap, spent, next] = [cap, spent.total(), next.total()].map(|n| format!("{n} tokens"));
            return Some((cap, spent, next));
        }
        let cap = self.cap.cost.filter(|&cap| self.prices.of(after) > cap)?;
        let [spent, next] = [spent, next].map(|usage| format!("{:.4}", self.prices.of(usage)));
        Some((format!("{cap}"), spent, next))
    }

    /// Gives the room back and counts what the call took.
    pub(super) fn settle(&self, Reservation { bound, calls }: Reservation, charge: Charge) {
        let mut state = self.state();
        state.in_flight = state.in_flight.minus(bound);
        state.calls_in_flight -= calls;
        let took = match charge {
            Charge::Answered(Some(reported)) => {
                state.ledger.answered += calls;
                reported
            }
            Charge::Answered(None) => {
                state.ledger.answered += calls;
                state.ledger.estimated += calls;
                bound
            }
            Charge::Lost => {
                state.ledger.estimated += calls;
                bound
            }
            Charge::Nothing => Usage::default(),
            Charge::NotMade => {
                state.ledger.calls -= calls;
                Usage::default()
            }
        };
        state.ledger.tokens = state.ledger.tokens.plus(took);
        drop(state);
        self.settled.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Usage = Usage { input: 100, output: 50 };

    #[test]
    fn the_estimate_by_hand() {
        assert_eq!(estimated_tokens(""), 0);
        assert_eq!(estimated_tokens("abcd"), 2);
        let prompt = Prompt { system: "abc".into(), user: "abcdef".into(), begin: None };
        assert_eq!(Usage::bound(&prompt, 50), Usage { input: 1 + 2 + TEMPLATE_TOKENS, output: 50 });
        let prices = Prices { input: 2.0, output: 10.0 };
        assert!((prices.of(Usage { input: 1_000_000, output: 100_000 }) - 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_cap_counts_calls_in_flight() {
        let meter = Meter::new(Prices::default(), Cap { tokens: Some(320), cost: None });
        let first = meter.reserve(CALL, 1).unwrap();
        let second = meter.reserve(CALL, 1).unwrap();
        // A third waits until one settles, and then there is room, because the first took less.
        std::thread::scope(|scope| {
            let third = scope.spawn(|| meter.reserve(CALL, 1).map(|r| meter.settle(r, Charge::Lost)));
            meter.settle(first, Charge::Answered(Some(Usage { input: 10, output: 5 })));
            assert!(third.join().unwrap().is_ok());
        });
        meter.settle(second, Charge::Nothing);
        let ledger = meter.ledger();
        assert_eq!(ledger.tokens, Usage { input: 110, output: 55 });
        assert_eq!((ledger.calls, ledger.answered, ledger.estimated), (3, 1, 1));
        let error = meter.reserve(Usage { input: 160, output: 0 }, 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "the cap of 320 tokens is reached: 165 tokens spent, the next call may take 160 tokens"
        );
    }

    #[test]
    fn the_cap_in_currency() {
        let meter = Meter::new(Prices { input: 10.0, output: 100.0 }, Cap { cost: Some(0.01), tokens: None });
        let call = meter.reserve(CALL, 1).unwrap();
        meter.settle(call, Charge::Answered(None));
        assert!((meter.ledger().cost - 0.006).abs() < 1e-12);
        assert!(meter.reserve(CALL, 1).unwrap_err().to_string().contains("0.0060 spent"));
    }
}
