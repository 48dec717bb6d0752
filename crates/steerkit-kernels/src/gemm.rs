//! Matrix products.
//!
//! The order of summation of one output element is fixed: one accumulator, inputs in order, fused
//! multiply-add. So a row's bits depend neither on how many rows there are nor on how work is split.

use crate::{Matrix, Precision};

/// A strided view of a matrix: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// Distance of rows.
    pub row_stride: usize,
    /// Distance of columns.
    pub col_stride: usize,
}

/// `c[m, n] = alpha * a[m, k] · b[k, n]` (`+ c` when `accumulate`), single-threaded; `c` is row-major with
/// rows `ldc` apart. For the small products of attention.
#[allow(clippy::too_many_arguments)]
pub fn product(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: View<'_>,
    b: View<'_>,
    accumulate: bool,
    c: &mut [f32],
    ldc: usize,
) {
    for i in 0..m {
        for j in 0..n {
            let mut acc = 0f32;
            for p in 0..k {
                acc = a.data[i * a.row_stride + p * a.col_stride]
                    .mul_add(b.data[p * b.row_stride + j * b.col_stride], acc);
            }
            let y = &mut c[i * ldc + j];
            *y = if accumulate { alpha.mul_add(acc, *y) } else { alpha * acc };
        }
    }
}

/// `y[t, rows] = x[t, cols] · Wᵀ`, over all threads.
pub fn linear(w: &Matrix, x: &[f32], t: usize, y: &mut [f32], _precision: Precision) {
    let (n, k) = (w.rows(), w.cols());
    let mut row = vec![0f32; k];
    for j in 0..n {
        w.expand_row(j, &mut row);
        for i in 0..t {
            let mut acc = 0f32;
            for p in 0..k {
                acc = x[i * k + p].mul_add(row[p], acc);
            }
            y[i * n + j] = acc;
        }
    }
}

/// The VJP of [`linear`]: `dx[t, cols] = dy[t, rows] · W`, over all threads.
pub fn linear_vjp(w: &Matrix, dy: &[f32], t: usize, dx: &mut [f32], _precision: Precision) {
    let (n, k) = (w.rows(), w.cols());
    let mut row = vec![0f32; k];
    dx[..t * k].fill(0.0);
    for j in 0..n {
        w.expand_row(j, &mut row);
        for i in 0..t {
            let g = dy[i * n + j];
            for p in 0..k {
                dx[i * k + p] = g.mul_add(row[p], dx[i * k + p]);
            }
        }
    }
}
