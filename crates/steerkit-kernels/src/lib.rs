//! CPU kernels for a frozen language model.
//!
//! Every operation stands beside its vector-Jacobian product. All of them work on plain row-major `f32`
//! slices; shapes are in names by suffix (`x_td` is `[t, d]`: b batch, t tokens, s cached tokens, d d_model,
//! n query heads, k key/value heads, h head dim, f ffn, v vocabulary). A wrong shape is a bug of the caller
//! and panics.
//!
//! Two promises hold for every kernel: a row's result depends on that row's inputs alone, not on how many
//! rows are computed with it; and no result depends on the number of threads.
//!
//! This is the only crate of the workspace with `unsafe` code and CPU detection.

pub mod attention;
pub mod blocks;
pub mod gemm;
pub mod isa;
pub mod kv;
pub mod logprob;
pub mod mapped;
mod math;
pub mod matrix;
pub mod mlp;
pub mod norm;
pub mod parallel;
pub mod rope;
pub mod rows;
mod shared;
#[cfg(test)]
mod testing;

pub use blocks::BlockFormat;
pub use matrix::{Bytes, Matrix};

/// The numeric mode of the large matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 inputs, f32 accumulation.
    #[default]
    F32,
    /// Inputs rounded to bf16 (nearest even), f32 accumulation.
    Bf16,
}
