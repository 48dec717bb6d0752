//! The first principal component of differences, by power iteration.

use crate::recipe::PcaOf;

/// Rounds at most; each multiplies with all differences.
const ROUNDS: usize = 500;
/// Change of the direction below which it stands still.
const STILL: f64 = 1e-10;

/// The unit vector along which the rows of `differences` `[n, d]` vary most, signed so that the mean difference points
/// along it `[d]`; zeros when they do not vary.
///
/// Both responses of a pair around their own middle are plus and minus half the difference, so their component is
/// that of the second moments of the differences; around the mean difference it is that of their covariance.
pub(super) fn first_component(differences: &[f32], d: usize, of: PcaOf) -> Vec<f32> {
    let n = (differences.len() / d).max(1) as f64;
    let mut mean = vec![0f64; d];
    for row in differences.chunks_exact(d) {
        mean.iter_mut().zip(row).for_each(|(m, &x)| *m += f64::from(x) / n);
    }
    let centre = match of {
        PcaOf::Centre => vec![0f64; d],
        PcaOf::Difference => mean.clone(),
    };
    // The longest centred row is a start that has a part along every component it varies in.
    let centred =
        |row: &[f32]| -> Vec<f64> { row.iter().zip(&centre).map(|(&x, c)| f64::from(x) - c).collect() };
    let rows = || differences.chunks_exact(d).map(centred);
    let longest = rows().max_by(|a, b| square(a).total_cmp(&square(b)));
    let Some(mut u) = longest.and_then(unit) else { return vec![0.0; d] };
    for _ in 0..ROUNDS {
        let mut next = vec![0f64; d];
        for row in rows() {
            let p = product(&row, &u);
            next.iter_mut().zip(&row).for_each(|(s, x)| *s += p * x);
        }
        let Some(next) = unit(next) else { break };
        let change = u.iter().zip(&next).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        u = next;
        if change < STILL * STILL {
            break;
        }
    }
    let sign = if product(&mean, &u) < 0.0 { -1.0 } else { 1.0 };
    u.into_iter().map(|x| (sign * x) as f32).collect()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn square(a: &[f64]) -> f64 {
    product(a, a)
}

fn unit(x: Vec<f64>) -> Option<Vec<f64>> {
    let length = square(&x).sqrt();
    (length > 0.0).then(|| x.into_iter().map(|x| x / length).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Differences (3, 1), (3, -1), (-1, 0): second moments diag(19, 2), covariance diag(32/3, 2), so the first axis
    /// both times; the mean (5/3, 0) points along it.
    #[test]
    fn an_axis_by_hand() {
        for of in [PcaOf::Centre, PcaOf::Difference] {
            let u = first_component(&[3.0, 1.0, 3.0, -1.0, -1.0, 0.0], 2, of);
            assert!((u[0] - 1.0).abs() < 1e-6 && u[1].abs() < 1e-6, "{u:?}");
            let flipped = first_component(&[-3.0, 1.0, -3.0, -1.0, 1.0, 0.0], 2, of);
            assert!((flipped[0] + 1.0).abs() < 1e-6, "the sign follows the mean: {flipped:?}");
        }
    }

    /// Differences (1, 1), (1, -1) vary along the second axis around their mean, and equally along both around 0.
    #[test]
    fn centring_matters() {
        let u = first_component(&[1.0, 2.0, 1.0, -2.0], 2, PcaOf::Difference);
        assert!(u[0].abs() < 1e-6 && (u[1].abs() - 1.0).abs() < 1e-6, "{u:?}");
        assert_eq!(first_component(&[1.0, 1.0], 2, PcaOf::Difference), [0.0, 0.0]);
        assert_eq!(first_component(&[], 2, PcaOf::Centre), [0.0, 0.0]);
    }
}
