//! The gradient of a small matrix that is trained.

use super::{View, product};
use crate::shared::for_rows;

/// Rows of the gradient per task.
const ROWS: usize = 32;
/// Rows of the batch that are summed in one chain.
const CHAIN: usize = 256;

/// The gradient of `W` in [`super::linear`]: `dw[rows, cols] = dyᵀ · x` with `dy` `[t, rows]` and `x` `[t, cols]`, over
/// all threads. Rows of the batch are summed in their order, in chains of 256 that are added in order.
///
/// # Panics
/// When `dy` or `x` has not `t` rows, or `dw` another shape.
pub fn linear_weight_vjp(dy: &[f32], x: &[f32], t: usize, dw: &mut [f32]) {
    let (rows, cols) = (dy.len() / t, x.len() / t);
    assert_eq!((dy.len(), x.len(), dw.len()), (t * rows, t * cols, rows * cols));
    let of_rows = |first: usize, dw: &mut [f32]| {
        for start in (0..t).step_by(CHAIN) {
            let n = CHAIN.min(t - start);
            let dy = View { data: &dy[start * rows + first..], row_stride: 1, col_stride: rows };
            let x = View { data: &x[start * cols..], row_stride: cols, col_stride: 1 };
            product(dw.len() / cols, cols, n, 1.0, dy, x, start > 0, dw, cols);
        }
    };
    let whole = rows / ROWS * ROWS;
    let (tasks, rest) = dw.split_at_mut(whole * cols);
    for_rows(tasks, ROWS * cols, 1, |i, dw| of_rows(i * ROWS, dw));
    if !rest.is_empty() {
        of_rows(whole, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn is_the_sum_of_outer_products_on_any_number_of_threads() {
        for (t, rows, cols) in [(1, 1, 1), (3, 5, 2), (300, 70, 16), (520, 16, 33)] {
            let (dy, x) = (noise(1, t * rows), noise(2, t * cols));
            let got = |threads| {
                crate::parallel::set_threads(threads);
                let mut dw = vec![f32::NAN; rows * cols];
                linear_weight_vjp(&dy, &x, t, &mut dw);
                dw
            };
            let one = got(1);
            assert_eq!(got(3), one);
            for (i, got) in one.iter().enumerate() {
                let (r, c) = (i / cols, i % cols);
                let want: f64 =
                    (0..t).map(|k| f64::from(dy[k * rows + r]) * f64::from(x[k * cols + c])).sum();
                assert!((f64::from(*got) - want).abs() < 1e-4, "{got} {want}");
            }
        }
    }
}
