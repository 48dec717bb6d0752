//! Matrix products.
//!
//! The order of summation of one output element is fixed: chains of fused multiply-adds over 768 inputs, each
//! from 0, added in order. So a row's bits depend neither on how many rows there are, nor on how work is split,
//! nor on the processor's vector width; and a sum over 49,152 logits is as exact as PyTorch's (one chain over
//! all of them had eight times the error in SmolLM2's gradient).
//!
//! With [`Precision::Bf16`] both inputs are first rounded to bf16, to nearest even. Where the processor has
//! AMX or AVX512-BF16 the chain then takes two products at a time (`tdpbf16ps`, `vdpbf16ps`, which also treat
//! subnormals as 0); elsewhere it is the f32 chain of the rounded inputs. The order is fixed on each processor, so the promise
//! about rows, work and threads holds; that about vector widths is for f32 only.
//!
//! [`Precision::Int8`] is for [`linear_interleaved`] alone, which describes it; elsewhere its products are those in f32.
//!
//! Weights stay in their stored format: a task expands the panel of `W` that it works on into a buffer of its
//! thread and uses it for all rows.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod bf16;
mod driver;
mod few;
mod int8;
mod interleaved;
mod micro;
mod pack;
mod panel;
mod strided;
#[cfg(test)]
mod tests;
mod weights;

pub use few::linear_interleaved;
pub use interleaved::Interleaved;
pub(crate) use panel::{panel_width, times_panel};
pub use strided::product;
pub use weights::linear_weight_vjp;

use crate::isa::Isa;
use crate::{Matrix, Precision};
use driver::Shape;
use micro::Kernels;
use pack::{Operand, Store};

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
pub fn linear(w: &Matrix, x: &[f32], t: usize, y: &mut [f32], precision: Precision) {
    let shape = Shape { t, n: w.rows(), k: w.cols(), n_step: 1 };
    multiply(w, Operand::Rows, shape, x, y, precision);
}

/// The VJP of [`linear`]: `dx[t, cols] = dy[t, rows] · W`, over all threads.
///
/// # Panics
/// When `dy` or `dx` has not exactly that shape.
pub fn linear_vjp(w: &Matrix, dy: &[f32], t: usize, dx: &mut [f32], precision: Precision) {
    let shape = Shape { t, n: w.cols(), k: w.rows(), n_step: w.block_len() };
    multiply(w, Operand::Cols, shape, dy, dx, precision);
}

fn multiply(w: &Matrix, operand: Operand, shape: Shape, a: &[f32], c: &mut [f32], precision: Precision) {
    let isa = Isa::current();
    let f32_kernels = Kernels::wide(isa);
    let pack =
        |store| move |at, nr, rows: &mut _, out: &mut _| operand.pack(isa, w, store, at, nr, rows, out);
    if precision != Precision::Bf16 {
        return driver::run(f32_kernels, shape, a, c, pack(Store::F32));
    }
    bf16::with_rounded(isa, shape, a, |pairs, a| match pairs {
        Some(kernels) => {
            let cells = Shape { k: shape.k.div_ceil(2), ..shape };
            driver::run(kernels, cells, a, c, pack(Store::Bf16Pairs));
        }
        None => driver::run(f32_kernels, shape, a, c, pack(Store::Bf16)),
    });
}
