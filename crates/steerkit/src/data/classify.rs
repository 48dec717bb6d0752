//! Classifiers that look at almost nothing: where they tell the sides apart, a vector can learn length or a first
//! word in place of the behaviour.

use std::collections::HashMap;

use super::PreferencePair;
use super::grams::words;

/// A response and whether it is the chosen one, for all pairs.
fn responses(pairs: &[PreferencePair]) -> impl Iterator<Item = (&str, bool)> {
    pairs.iter().flat_map(|pair| [(pair.chosen.as_str(), true), (pair.rejected.as_str(), false)])
}

/// Calls a response chosen by its length alone.
pub(super) struct LengthClassifier {
    length: fn(&str) -> usize,
    threshold: usize,
    long_is_chosen: bool,
}

impl LengthClassifier {
    /// The threshold and direction with the most right calls on `pairs`; of equals the smallest threshold.
    pub(super) fn fit(pairs: &[PreferencePair], length: fn(&str) -> usize) -> Self {
        let mut points: Vec<(usize, bool)> =
            responses(pairs).map(|(text, chosen)| (length(text), chosen)).collect();
        points.sort_unstable();
        let total = points.len();
        // right calls of "at least the threshold is chosen" with everything at or over the threshold
        let mut right = pairs.len();
        let mut best = Self { length, threshold: 0, long_is_chosen: true };
        let mut most = right;
        for (i, &(size, chosen)) in points.iter().enumerate() {
            let new = i == 0 || points[i - 1].0 != size;
            for (calls, long_is_chosen) in [(right, true), (total - right, false)] {
                if new && calls > most {
                    most = calls;
                    best = Self { length, threshold: size, long_is_chosen };
                }
            }
            right = if chosen { right - 1 } else { right + 1 };
        }
        best
    }

    /// Share of right calls on the responses of `pairs`.
    pub(super) fn accuracy(&self, pairs: &[PreferencePair]) -> f64 {
        let call = |text: &str| ((self.length)(text) >= self.threshold) == self.long_is_chosen;
        let right = responses(pairs).filter(|&(text, chosen)| call(text) == chosen).count();
        right as f64 / (2 * pairs.len()) as f64
    }
}

/// Calls a response chosen by its first word alone.
pub(super) struct FirstWordClassifier {
    /// Chosen minus rejected responses that begin with the word.
    balance: HashMap<String, i64>,
}

impl FirstWordClassifier {
    /// The majority side of each first word of `pairs`.
    pub(super) fn fit(pairs: &[PreferencePair]) -> Self {
        let mut balance = HashMap::new();
        for (text, chosen) in responses(pairs) {
            if let Some(word) = words(text).into_iter().next() {
                *balance.entry(word).or_insert(0) += if chosen { 1 } else { -1 };
            }
        }
        Self { balance }
    }

    /// Share of right calls on the responses of `pairs`; a word that is new or even counts half.
    pub(super) fn accuracy(&self, pairs: &[PreferencePair]) -> f64 {
        let score = |(text, chosen): (&str, bool)| match words(text)
            .first()
            .and_then(|word| self.balance.get(word))
            .copied()
            .unwrap_or(0)
        {
            0 => 0.5,
            balance => f64::from((balance > 0) == chosen),
        };
        responses(pairs).map(score).sum::<f64>() / (2 * pairs.len()) as f64
    }
}
