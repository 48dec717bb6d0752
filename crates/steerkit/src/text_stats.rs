//! Statistics of generated texts, and the small estimators behind the figures of a report.
//!
//! Everything here is deterministic and needs no judge: word counts, distinct-n, repetition, the median and a
//! percentile bootstrap.

use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The words of a text: lower case, runs of letters, digits and inner apostrophes, curly apostrophes made straight.
///
/// A leading apostrophe stays when a letter follows (`'cause`), a closing quotation mark does not. Scripts
/// without spaces between words count each run of letters as one word.
pub fn words(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '\'';
    text.to_lowercase()
        .replace(['\u{2019}', '\u{02bc}'], "'")
        .split(|c| !is_part(c))
        .map(|run| run.trim_end_matches('\''))
        .filter(|run| run.chars().any(char::is_alphanumeric))
        .map(|run| {
            // Of several leading marks ('' as a quotation) at most one can belong to the word.
            let bare = run.trim_start_matches('\'');
            if run.len() == bare.len() + 1 { run.to_string() } else { bare.to_string() }
        })
        .collect()
}

/// Distinct-n of a set of texts (Li et al., arXiv 1510.03055): different word n-grams over all word n-grams, pooled.
///
/// 1 when nothing is ever repeated, near 0 for degenerate text. The value falls with the amount of text, so
/// compare only sets of about the same size. `None` when no text holds an n-gram (`n` is 0, or all are too short).
pub fn distinct_n(texts: &[impl AsRef<str>], n: usize) -> Option<f64> {
    let tokenized: Vec<Vec<String>> = texts.iter().map(|text| words(text.as_ref())).collect();
    let mut total = 0_usize;
    let mut seen: HashSet<&[String]> = HashSet::new();
    for gram in tokenized.iter().filter(|_| n > 0).flat_map(|text| text.windows(n.max(1))) {
        total += 1;
        seen.insert(gram);
    }
    (total > 0).then(|| seen.len() as f64 / total as f64)
}

/// The share of a text's word n-grams that already occurred earlier in the same text: 0 for fresh text, near 1
/// for a loop. `None` when the text is shorter than `n` words or `n` is 0.
pub fn repetition_share(text: &str, n: usize) -> Option<f64> {
    distinct_n(&[text], n).map(|distinct| 1.0 - distinct)
}

/// Mean number of words per text; `None` without texts.
pub fn mean_words(texts: &[impl AsRef<str>]) -> Option<f64> {
    mean(&texts.iter().map(|text| words(text.as_ref()).len() as f64).collect::<Vec<_>>())
}

/// Arithmetic mean; `None` for no values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Median: the middle value, or the mean of the two middle ones. `None` for no values; NaN sorts last.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// An estimate with, where there is one, its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The estimate itself, often a mean.
    pub value: f64,
    /// Lower and upper end of the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<(f64, f64)>,
}

impl From<f64> for Estimate {
    fn from(value: f64) -> Self {
        Self { value, interval: None }
    }
}

/// How a bootstrap interval is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    /// How many resamples are drawn (1000 is plenty for a figure).
    pub resamples: usize,
    /// Coverage, between 0 and 1.
    pub level: f64,
    /// Seed of the ChaCha8 stream: the same values and seed give the same interval on every machine.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 1000 resamples, 95 %, seed 0.
    fn default() -> Self {
        Self { resamples: 1000, level: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// The mean of `values` with its percentile bootstrap interval (Efron 1979).
    ///
    /// `None` for no values. One value, or no resamples, gives no interval: there is nothing to resample.
    pub fn mean(&self, values: &[f64]) -> Option<Estimate> {
        let value = mean(values)?;
        if values.len() < 2 || self.resamples == 0 {
            return Some(value.into());
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let means = (0..self.resamples).map(|_| {
            let sum: f64 = (0..values.len()).map(|_| values[rng.random_range(0..values.len())]).sum();
            sum / values.len() as f64
        });
        Some(Estimate { value, interval: self.ends(means.collect()) })
    }

    /// The ratio of the means of `a` and `b`, which are of the same things in the same order: both are resampled alike.
    ///
    /// `None` where the mean of `b` is not above 0, or without values. No interval where that happens in a resample.
    pub fn ratio(&self, a: &[f64], b: &[f64]) -> Option<Estimate> {
        let n = a.len().min(b.len());
        let (of, over) = (mean(&a[..n])?, mean(&b[..n])?);
        if over <= 0.0 {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let ratios = (0..self.resamples).map(|_| {
            let sum = |(x, y): (f64, f64), i: usize| (x + a[i], y + b[i]);
            let (x, y) = (0..n).map(|_| rng.random_range(0..n)).fold((0.0, 0.0), sum);
            (y > 0.0).then(|| x / y)
        });
        let interval =
            if n < 2 { None } else { ratios.collect::<Option<Vec<_>>>().and_then(|r| self.ends(r)) };
        Some(Estimate { value: of / over, interval })
    }

    /// The percentile interval of resampled values; none of none.
    fn ends(&self, mut resampled: Vec<f64>) -> Option<(f64, f64)> {
        resampled.sort_by(f64::total_cmp);
        let tail = (1.0 - self.level.clamp(0.0, 1.0)) / 2.0;
        (!resampled.is_empty()).then(|| (quantile(&resampled, tail), quantile(&resampled, 1.0 - tail)))
    }
}

/// Quantile `q` (0 to 1) of sorted values by linear interpolation, as numpy's default.
///
/// # Panics
/// When `sorted` is empty.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = place.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_contractions_and_drop_quotation_marks() {
        assert_eq!(
            words("Don’t go, 'cause it's 5.5 (ok)"),
            ["don't", "go", "'cause", "it's", "5", "5", "ok"]
        );
        assert_eq!(words("'' ... ' --"), Vec::<String>::new());
        assert_eq!(words("''quoted'' dogs'"), ["quoted", "dogs"]);
    }

    #[test]
    fn distinct_counts_by_hand() {
        // "a b a b a": bigrams ab ba ab ba, two of them different.
        assert_eq!(distinct_n(&["a b a b a"], 2), Some(0.5));
        assert_eq!(repetition_share("a b a b a", 2), Some(0.5));
        // Pooled over texts, and no n-gram runs over the end of a text.
        assert_eq!(distinct_n(&["a b", "b a", "a b"], 2), Some(2.0 / 3.0));
        assert_eq!(distinct_n(&["a b"], 3), None);
        assert_eq!(distinct_n(&["a b"], 0), None);
        assert_eq!(distinct_n(&[] as &[&str], 3), None);
    }

    #[test]
    fn median_and_mean() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(mean(&[]), None);
        assert_eq!(mean_words(&["one two", "three"]), Some(1.5));
    }

    #[test]
    fn bootstrap_is_reproducible_and_near_the_normal_interval() {
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        let estimate = Bootstrap::default().mean(&values).unwrap();
        assert_eq!(estimate.value, 49.5);
        let (low, high) = estimate.interval.unwrap();
        // Standard error 28.866 / 10, so the normal interval is 49.5 -/+ 5.66.
        assert!((low - 43.84).abs() < 0.6 && (high - 55.16).abs() < 0.6, "{low} {high}");
        assert_eq!(Bootstrap::default().mean(&values), Some(estimate));
        assert_ne!(Bootstrap { seed: 1, ..Bootstrap::default() }.mean(&values), Some(estimate));
    }

    #[test]
    fn ratios_are_resampled_together() {
        let bootstrap = Bootstrap::default();
        let (a, b) = ([3.0, 6.0, 9.0], [1.0, 2.0, 3.0]);
        // b times 3: the ratio is 3 in every resample.
        assert_eq!(bootstrap.ratio(&a, &b), Some(Estimate { value: 3.0, interval: Some((3.0, 3.0)) }));
        assert_eq!(bootstrap.ratio(&a, &[1.0, -1.0, 0.0]), None);
        assert_eq!(bootstrap.ratio(&a, &[5.0, -1.0, -1.0]).unwrap().interval, None);
        assert_eq!(bootstrap.ratio(&[2.0], &[1.0]), Some(Estimate::from(2.0)));
        assert_eq!(bootstrap.ratio(&[], &[]), None);
    }

    #[test]
    fn bootstrap_of_few_values() {
        assert_eq!(Bootstrap::default().mean(&[]), None);
        assert_eq!(Bootstrap::default().mean(&[2.0]), Some(Estimate::from(2.0)));
        assert_eq!(Bootstrap::default().mean(&[2.0, 2.0]).unwrap().interval, Some((2.0, 2.0)));
        assert_eq!(quantile(&[0.0, 1.0], 0.25), 0.25);
    }
}
