//! How far raters agree beyond chance.

use serde::Serialize;

/// What a disagreement between two scores counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// Every disagreement the same.
    None,
    /// The square of the distance of the scores.
    Quadratic,
}

/// Cohen's kappa of two raters (Cohen 1960; weighted: Cohen 1968): `1 - observed / expected` disagreement, the expected
/// one from each rater's own shares of the scores. 1 is full agreement, 0 that of chance.
///
/// `None` without pairs, and where chance alone would agree always (both raters gave a single, the same score).
pub fn cohen_kappa(pairs: &[(u8, u8)], weights: Weights) -> Option<f64> {
    let weight = |a: u8, b: u8| match weights {
        Weights::None => f64::from(u8::from(a != b)),
        Weights::Quadratic => (f64::from(a) - f64::from(b)).powi(2),
    };
    let observed: f64 = pairs.iter().map(|&(a, b)| weight(a, b)).sum();
    let mut counts = [[0f64; 256]; 2];
    for &(a, b) in pairs {
        counts[0][usize::from(a)] += 1.0;
        counts[1][usize::from(b)] += 1.0;
    }
    let used = |rater: usize| {
        let counts = counts[rater];
        (0..=255u8).map(move |score| (score, counts[usize::from(score)])).filter(|(_, n)| *n > 0.0)
    };
    let expected: f64 = used(0).flat_map(|(a, n)| used(1).map(move |(b, m)| weight(a, b) * n * m)).sum();
    (expected > 0.0).then(|| 1.0 - observed * pairs.len() as f64 / expected)
}

/// What kind of numbers scores are, for [`krippendorff_alpha`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Names: scores agree or do not.
    Nominal,
    /// Ranks: the distance counts the values in between.
    Ordinal,
    /// Numbers: the square of their difference.
    Interval,
}

/// Krippendorff's alpha of any number of raters with missing scores (Krippendorff 2011, "Computing Krippendorff's
/// Alpha-Reliability").
///
/// `units`: the scores of each thing that was rated, whoever gave them; things with fewer than two do not count.
/// `None` when no thing has two, and when all counted scores are equal, which says nothing about agreement.
pub fn krippendorff_alpha(units: &[Vec<u8>], metric: Metric) -> Option<f64> {
    let mut coincidences = [[0f64; 256]; 256].to_vec();
    for unit in units.iter().filter(|unit| unit.len() > 1) {
        for (i, &a) in unit.iter().enumerate() {
            for (_, &b) in unit.iter().enumerate().filter(|(j, _)| *j != i) {
                coincidences[usize::from(a)][usize::from(b)] += 1.0 / (unit.len() - 1) as f64;
            }
        }
    }
    let totals: Vec<f64> = coincidences.iter().map(|row| row.iter().sum()).collect();
    let n: f64 = totals.iter().sum();
    let used: Vec<usize> = (0..256).filter(|&score| totals[score] > 0.0).collect();
    let distance = |a: usize, b: usize| match metric {
        Metric::Nominal => f64::from(u8::from(a != b)),
        Metric::Interval => (a as f64 - b as f64).powi(2),
        Metric::Ordinal => {
            let (low, high) = (a.min(b), a.max(b));
            let between: f64 = totals[low..=high].iter().sum();
            (between - (totals[a] + totals[b]) / 2.0).powi(2)
        }
    };
    let (mut observed, mut expected) = (0.0, 0.0);
    for &a in &used {
        for &b in used.iter().filter(|&&b| b != a) {
            observed += coincidences[a][b] * distance(a, b);
            expected += totals[a] * totals[b] * distance(a, b);
        }
    }
    (expected > 0.0).then(|| 1.0 - (n - 1.0) * observed / expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(cells: &[(u8, u8, usize)]) -> Vec<(u8, u8)> {
        cells.iter().flat_map(|&(a, b, n)| std::iter::repeat_n((a, b), n)).collect()
    }

    fn close(found: Option<f64>, published: f64, digits: i32) {
        let found = found.unwrap();
        assert!((found - published).abs() <= 0.5 * 10f64.powi(-digits) + 1e-12, "{found} {published}");
    }

    /// The 2x2 tables of the article "Cohen's kappa" in Wikipedia, and Artstein and Poesio (2008), table 1 and the
    /// three-class example after it, whose weighted kappas scikit-learn's tests hold.
    #[test]
    fn golden_cohen_kappa_published() {
        let kappa = |cells: &[(u8, u8, usize)]| cohen_kappa(&table(cells), Weights::None);
        close(kappa(&[(1, 1, 20), (1, 0, 5), (0, 1, 10), (0, 0, 15)]), 0.4, 4);
        close(kappa(&[(1, 1, 45), (1, 0, 15), (0, 1, 25), (0, 0, 15)]), 0.1304, 4);
        close(kappa(&[(1, 1, 25), (1, 0, 35), (0, 1, 5), (0, 0, 35)]), 0.2593, 4);
        close(kappa(&[(0, 0, 20), (0, 1, 20), (1, 0, 10), (1, 1, 50)]), 0.348, 3);
        let three = table(&[(0, 0, 46), (1, 0, 4), (1, 1, 40), (2, 2, 10)]);
        close(cohen_kappa(&three, Weights::None), 0.9315, 4);
        close(cohen_kappa(&three, Weights::Quadratic), 0.9541, 4);
    }

    #[test]
    fn kappa_without_meaning() {
        assert_eq!(cohen_kappa(&[], Weights::None), None);
        assert_eq!(cohen_kappa(&[(3, 3), (3, 3)], Weights::Quadratic), None);
        assert_eq!(cohen_kappa(&[(1, 4), (4, 1)], Weights::None), Some(-1.0));
        assert_eq!(cohen_kappa(&[(1, 1), (4, 4)], Weights::Quadratic), Some(1.0));
    }

    /// The example of Krippendorff (2011), section C: four observers, twelve units, missing values; its alphas are
    /// .743 (nominal), .815 (ordinal), .849 (interval).
    #[test]
    fn golden_krippendorff_alpha_published() {
        let observers = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."];
        let rows: Vec<Vec<char>> = observers.iter().map(|row| row.chars().collect()).collect();
        assert!(rows.iter().all(|row| row.len() == 12));
        let unit = |u: usize| rows.iter().filter_map(|row| row[u].to_digit(10)).map(|d| d as u8).collect();
        let units: Vec<Vec<u8>> = (0..12).map(unit).collect();
        close(krippendorff_alpha(&units, Metric::Nominal), 0.743, 3);
        close(krippendorff_alpha(&units, Metric::Ordinal), 0.815, 3);
        close(krippendorff_alpha(&units, Metric::Interval), 0.849, 3);
    }

    #[test]
    fn alpha_without_meaning() {
        assert_eq!(krippendorff_alpha(&[vec![1], vec![]], Metric::Nominal), None);
        assert_eq!(krippendorff_alpha(&[vec![2, 2], vec![2, 2]], Metric::Interval), None);
        assert_eq!(krippendorff_alpha(&[vec![1, 1], vec![4, 4]], Metric::Ordinal), Some(1.0));
    }
}
