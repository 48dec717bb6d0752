//! Statistics of evaluations: every comparison is over the same questions, so every one is paired.

use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use crate::text_stats::{Bootstrap, Estimate};

/// Resamples of an interval.
const RESAMPLES: usize = 2000;

/// The mean of one value per question with its 95% percentile bootstrap interval over questions. Of differences to the
/// plain model it is the paired bootstrap. NaN of nothing.
pub fn mean(values: &[f64], seed: u64) -> Estimate {
    let bootstrap = Bootstrap { resamples: RESAMPLES, seed, ..Bootstrap::default() };
    bootstrap.mean(values).unwrap_or(f64::NAN.into())
}

/// The mean difference `a - b` over questions with its paired bootstrap interval.
///
/// # Panics
/// When the two are not of one length.
pub fn mean_difference(a: &[f64], b: &[f64], seed: u64) -> Estimate {
    mean(&differences(a, b), seed)
}

/// `a - b`, question by question.
///
/// # Panics
/// When the two are not of one length.
pub fn differences(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len(), "one value per question on both sides");
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// Two-sided p value of the exact sign test: how likely at least as lopsided a split of the values above and below 0
/// is when both are equally likely. Zeros say nothing and are left out; 1 without any other value. Of differences of
/// right (1) and wrong (0) answers it is McNemar's exact test.
pub fn sign_test(values: &[f64]) -> f64 {
    let above = values.iter().filter(|&&x| x > 0.0).count();
    let below = values.iter().filter(|&&x| x < 0.0).count();
    let n = above + below;
    // Sum of C(n, i) / 2^n for i up to the smaller count, with each term from the one before, in logarithms.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for i in 0..=above.min(below) {
        tail += log_term.exp();
        log_term += ((n - i) as f64 / (i + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

/// The places, ascending, of `count` of `n` questions, drawn without replacement; all of them when there are no more.
pub fn draw(n: usize, count: usize, seed: u64) -> Vec<usize> {
    if count >= n {
        return (0..n).collect();
    }
    let mut places = index::sample(&mut ChaCha8Rng::seed_from_u64(seed), n, count).into_vec();
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy.stats.binomtest(k, n).pvalue: 1/10 0.021484375, 5/5 0.0625, 3/10 0.34375, 450/1000 0.0017305.
    #[test]
    fn sign_tests_by_scipy() {
        let values = |above: usize, below: usize| -> Vec<f64> {
            [vec![2.0; above], vec![-0.1; below], vec![0.0; 7]].concat()
        };
        for (above, below, want) in
            [(1, 9, 0.021484375), (5, 0, 0.0625), (3, 7, 0.34375), (450, 550, 0.001730535)]
        {
            let got = sign_test(&values(above, below));
            assert!((got / want - 1.0).abs() < 1e-5, "{above} {below}: {got}");
            assert_eq!(got, sign_test(&values(below, above)));
        }
        assert_eq!(sign_test(&values(4, 4)), 1.0);
        assert_eq!(sign_test(&values(0, 0)), 1.0);
    }

    #[test]
    fn paired_intervals_see_what_unpaired_ones_do_not() {
        // Questions differ by 100, the two systems by 1 on every question.
        let b: Vec<f64> = (0..50).map(|i| f64::from(i * 2)).collect();
        let a: Vec<f64> = b.iter().map(|x| x + 1.0).collect();
        assert_eq!(mean_difference(&a, &b, 3), Estimate { value: 1.0, interval: Some((1.0, 1.0)) });
        let (low, high) = mean(&a, 3).interval.unwrap();
        assert!(high - low > 10.0);
        assert!(mean(&[], 0).value.is_nan());
    }

    #[test]
    fn draws_are_reproducible() {
        assert_eq!(draw(3, 5, 1), [0, 1, 2]);
        let drawn = draw(100, 10, 1);
        assert_eq!(drawn, draw(100, 10, 1));
        assert_ne!(drawn, draw(100, 10, 2));
        assert!(drawn.len() == 10 && drawn.is_sorted() && drawn.iter().all(|&i| i < 100));
    }
}
