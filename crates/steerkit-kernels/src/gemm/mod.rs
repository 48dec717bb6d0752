//! Matrix products.
//!
//! The order of summation of one output element is fixed: one accumulator that starts at 0, inputs in order,
//! fused multiply-add. So a row's bits depend neither on how many rows there are, nor on how work is split,
//! nor on the processor's vector width. A reduction cut into blocks continues the chain through `c`, which
//! loses nothing.
//!
//! Weights stay in their stored format: a task expands the panel of `W` that it works on into a buffer of its
//! thread and uses it for all rows.

mod driver;
mod isa;
mod micro;
mod pack;
mod strided;
#[cfg(test)]
mod tests;

pub use isa::{Isa, with_isa};
pub use strided::product;

use crate::{Matrix, Precision};
use driver::Shape;

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

/// `y[t, rows] = x[t, cols] · Wᵀ`, over all threads.
///
/// # Panics
/// When `x` or `y` has not exactly that shape.
pub fn linear(w: &Matrix, x: &[f32], t: usize, y: &mut [f32], _precision: Precision) {
    let isa = Isa::current();
    let shape = Shape { t, n: w.rows(), k: w.cols(), n_step: 1, k_step: w.block_len() };
    driver::run(isa, shape, x, y, |at, nr, rows, out| pack::weight_rows(isa, w, at, nr, rows, out));
}

/// The VJP of [`linear`]: `dx[t, cols] = dy[t, rows] · W`, over all threads.
///
/// # Panics
/// When `dy` or `dx` has not exactly that shape.
pub fn linear_vjp(w: &Matrix, dy: &[f32], t: usize, dx: &mut [f32], _precision: Precision) {
    let isa = Isa::current();
    let shape = Shape { t, n: w.cols(), k: w.rows(), n_step: w.block_len(), k_step: 1 };
    driver::run(isa, shape, dy, dx, |at, nr, rows, out| pack::weight_cols(isa, w, at, nr, rows, out));
}
