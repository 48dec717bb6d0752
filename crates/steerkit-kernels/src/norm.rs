//! RMS normalisation (Zhang & Sennrich 2019): `y = x · rstd · gain`, `rstd = (mean(x²) + eps)^-½`.

use crate::isa::multiversion;
use crate::math::sum_by;
use crate::shared::{Shared, for_rows};
use std::ops::Range;

const ROWS_PER_TASK: usize = 16;

/// Normalises each row of `x_td`; `rstd_t` keeps what the VJP needs.
pub fn rms_norm(x_td: &[f32], gain_d: &[f32], eps: f32, y_td: &mut [f32], rstd_t: &mut [f32]) {
    let d = gain_d.len();
    assert_eq!(x_td.len(), y_td.len());
    assert_eq!(rstd_t.len() * d, y_td.len());
    let rstd = Shared::new(rstd_t);
    for_rows(y_td, d, ROWS_PER_TASK, |i, y_d| {
        // SAFETY: one row, one task.
        let r = unsafe { rstd.part(i, 1) };
        r[0] = norm_row(&x_td[i * d..(i + 1) * d], gain_d, eps, y_d);
    });
}

multiversion! {
    fn norm_row(x_d: &[f32], gain_d: &[f32], eps: f32, y_d: &mut [f32]) -> f32 {
        let d = gain_d.len();
        let (x_d, y_d) = (&x_d[..d], &mut y_d[..d]);
        let rstd = 1.0 / (sum_by(d, |i| x_d[i] * x_d[i]) / d as f32 + eps).sqrt();
        for i in 0..d {
            y_d[i] = x_d[i] * rstd * gain_d[i];
        }
        rstd
    }
}

/// The VJP of [`rms_norm`], added to `dx_td`:
/// `dx += rstd·gain·dy − x·rstd³·Σ(gain·dy·x)/d`.
pub fn rms_norm_vjp(x_td: &[f32], gain_d: &[f32], rstd_t: &[f32], dy_td: &[f32], dx_td: &mut [f32]) {
    let d = gain_d.len();
    assert_eq!(x_td.len(), dx_td.len());
    assert_eq!(dy_td.len(), dx_td.len());
    assert_eq!(rstd_t.len() * d, dx_td.len());
    for_rows(dx_td, d, ROWS_PER_TASK, |i, dx_d| {
        let row = i * d..(i + 1) * d;
        norm_row_vjp(&x_td[row.clone()], gain_d, rstd_t[i], &dy_td[row], dx_d);
    });
}

multiversion! {
    fn norm_row_vjp(x_d: &[f32], gain_d: &[f32], rstd: f32, dy_d: &[f32], dx_d: &mut [f32]) {
        let d = gain_d.len();
        let (x_d, dy_d, dx_d) = (&x_d[..d], &dy_d[..d], &mut dx_d[..d]);
        let along = sum_by(d, |i| x_d[i] * dy_d[i] * gain_d[i]) * rstd * rstd * rstd / d as f32;
        for i in 0..d {
            dx_d[i] += rstd * gain_d[i] * dy_d[i] - along * x_d[i];
        }
    }
}

/// Normalises, in place, each run of `gain.len()` numbers among `columns` of the rows of `x`: the heads of queries
/// or keys, each with the same gain, or all of them together.
pub fn rms_norm_columns(x: &mut [f32], width: usize, columns: Range<usize>, gain: &[f32], eps: f32) {
    assert!(columns.len().is_multiple_of(gain.len()) && columns.end <= width);
    for_rows(x, width, ROWS_PER_TASK, |_, row| {
        for run in row[columns.clone()].chunks_exact_mut(gain.len()) {
            norm_run(run, gain, eps);
        }
    });
}

multiversion! {
    fn norm_run(x: &mut [f32], gain: &[f32], eps: f32) {
        let d = gain.len();
        let x = &mut x[..d];
        let rstd = 1.0 / (sum_by(d, |i| x[i] * x[i]) / d as f32 + eps).sqrt();
        for i in 0..d {
            x[i] = x[i] * rstd * gain[i];
        }
    }
}

/// The VJP of [`rms_norm_columns`], in place: the `columns` of `dx` become the gradient of those of `x`, the rows
/// before the norm.
pub fn rms_norm_columns_vjp(
    x: &[f32],
    width: usize,
    columns: Range<usize>,
    gain: &[f32],
    eps: f32,
    dx: &mut [f32],
) {
    assert_eq!(x.len(), dx.len());
    assert!(columns.len().is_multiple_of(gain.len()) && columns.end <= width);
    for_rows(dx, width, ROWS_PER_TASK, |i, dx_row| {
        let row = &x[i * width..(i + 1) * width][columns.clone()];
        let runs = row.chunks_exact(gain.len());
        for (x, dx) in runs.zip(dx_row[columns.clone()].chunks_exact_mut(gain.len())) {
            norm_run_vjp(x, gain, eps, dx);
        }
    });
}

multiversion! {
    fn norm_run_vjp(x: &[f32], gain: &[f32], eps: f32, dx: &mut [f32]) {
        let d = gain.len();
        let (x, dx) = (&x[..d], &mut dx[..d]);
        let rstd = 1.0 / (sum_by(d, |i| x[i] * x[i]) / d as f32 + eps).sqrt();
        let along = sum_by(d, |i| x[i] * dx[i] * gain[i]) * rstd * rstd * rstd / d as f32;
        for i in 0..d {
            dx[i] = rstd * gain[i] * dx[i] - along * x[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_vjp, noise};

    #[test]
    fn a_row_by_hand() {
        let (mut y, mut r) = ([0.0; 2], [0.0]);
        rms_norm(&[3.0, 4.0], &[1.0, 2.0], 0.0, &mut y, &mut r);
        let rstd = 1.0 / 12.5f32.sqrt();
        assert_eq!((y, r), ([3.0 * rstd, 4.0 * rstd * 2.0], [rstd]));
    }

    #[test]
    fn vjp_matches_finite_differences() {
        let (t, d) = (3, 21);
        let (x, gain, dy) = (noise(1, t * d), noise(2, d), noise(3, t * d));
        let forward = |x: &[f32]| {
            let (mut y, mut r) = (vec![0.0; t * d], vec![0.0; t]);
            rms_norm(x, &gain, 1e-5, &mut y, &mut r);
            (y, r)
        };
        let mut dx = vec![0.0; t * d];
        rms_norm_vjp(&x, &gain, &forward(&x).1, &dy, &mut dx);
        assert_vjp(&x, &dy, &dx, |x| forward(x).0);
    }

    #[test]
    fn columns_are_normalised_by_runs() {
        let (t, width, eps) = (3, 40, 1e-5);
        let (x, gain, dy) = (noise(1, t * width), noise(2, 12), noise(3, t * width));
        let forward = |x: &[f32]| {
            let mut y = x.to_vec();
            rms_norm_columns(&mut y, width, 4..28, &gain, eps);
            y
        };
        let y = forward(&x);
        let (mut run, mut r) = (vec![0.0; 12], [0.0]);
        rms_norm(&x[width + 16..width + 28], &gain, eps, &mut run, &mut r);
        assert_eq!(y[width + 16..width + 28], run);
        assert_eq!((&y[..4], &y[28..44]), (&x[..4], &x[28..44]));
        let mut dx = dy.clone();
        rms_norm_columns_vjp(&x, width, 4..28, &gain, eps, &mut dx);
        assert_vjp(&x, &dy, &dx, forward);
    }
}
