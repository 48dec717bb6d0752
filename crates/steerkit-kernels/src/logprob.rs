//! Log-probabilities of chosen tokens from rows of logits.

use crate::isa::multiversion;
use crate::math::{self, exp, sum_by};
use crate::shared::for_rows;

/// `log softmax(logits)[target]` per row of `logits_rv`.
pub fn log_probs(logits_rv: &[f32], v: usize, targets_r: &[u32], out_r: &mut [f32]) {
    assert_eq!(logits_rv.len(), targets_r.len() * v);
    for_rows(&mut out_r[..targets_r.len()], 1, 1, |i, out| {
        let row = &logits_rv[i * v..(i + 1) * v];
        out[0] = row[targets_r[i] as usize] - log_sum_exp(row);
    });
}

multiversion! {
    /// The largest of `row_v`, negative infinity when it is empty; NaN is passed over.
    pub fn max(row_v: &[f32]) -> f32 {
        math::max(row_v)
    }
}

multiversion! {
    /// `ln Σ e^x`.
    pub fn log_sum_exp(row_v: &[f32]) -> f32 {
        let top = math::max(row_v);
        top + sum_by(row_v.len(), |i| exp(row_v[i] - top)).ln()
    }
}

/// The VJP of [`log_probs`], in place: row `i` of `logits_rv` becomes
/// `coef[i] · (onehot(target) − softmax(logits))`. Logits that were capped by
/// [`softcap`](crate::rows::softcap) become the gradient of those before the cap: times `1 − (logit / cap)²`.
pub fn log_probs_vjp(
    logits_rv: &mut [f32],
    v: usize,
    targets_r: &[u32],
    coef_r: &[f32],
    softcap: Option<f32>,
) {
    assert_eq!(logits_rv.len(), targets_r.len() * v);
    assert_eq!(coef_r.len(), targets_r.len());
    for_rows(logits_rv, v, 1, |i, row| {
        let target = targets_r[i] as usize;
        match softcap {
            None => {
                softmax_row(row, -coef_r[i]);
                row[target] += coef_r[i];
            }
            Some(cap) => {
                let slope = 1.0 - (row[target] / cap).powi(2);
                capped_row(row, -coef_r[i], cap);
                row[target] += coef_r[i] * slope;
            }
        }
    });
}

multiversion! {
    fn capped_row(row: &mut [f32], scale: f32, cap: f32) {
        let top = max(row);
        let factor = scale / sum_by(row.len(), |i| exp(row[i] - top));
        for x in row.iter_mut() {
            let t = *x / cap;
            *x = exp(*x - top) * factor * (1.0 - t * t);
        }
    }
}

multiversion! {
    fn softmax_row(row: &mut [f32], scale: f32) {
        let top = math::max(row);
        for x in row.iter_mut() {
            *x = exp(*x - top);
        }
        let factor = scale / sum_by(row.len(), |i| row[i]);
        for x in row.iter_mut() {
            *x *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_vjp, noise};

    #[test]
    fn two_logits_by_hand() {
        let mut out = [0.0];
        log_probs(&[0.0, 3f32.ln()], 2, &[1], &mut out);
        assert!((out[0] - 0.75f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn vjp_matches_finite_differences() {
        let (r, v) = (3, 37);
        let (x, coef, targets) = (noise(1, r * v), noise(2, r), [0, 36, 5]);
        let mut dx = x.clone();
        log_probs_vjp(&mut dx, v, &targets, &coef, None);
        assert_vjp(&x, &coef, &dx, |x| {
            let mut out = vec![0.0; r];
            log_probs(x, v, &targets, &mut out);
            out
        });
    }

    #[test]
    fn vjp_of_capped_logits_matches_finite_differences() {
        let (r, v, cap) = (3, 37, 0.8);
        let (x, coef, targets) = (noise(1, r * v), noise(2, r), [0, 36, 5]);
        let capped = |x: &[f32]| {
            let mut y = x.to_vec();
            crate::rows::softcap(&mut y, cap);
            y
        };
        let mut dx = capped(&x);
        log_probs_vjp(&mut dx, v, &targets, &coef, Some(cap));
        assert_vjp(&x, &coef, &dx, |x| {
            let mut out = vec![0.0; r];
            log_probs(&capped(x), v, &targets, &mut out);
            out
        });
    }
}
