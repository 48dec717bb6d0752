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
pub mod roofline;
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
    /// Inputs rounded to 8 bits with a scale for every 32, integer products with the codes of quantised weights, f32
    /// between the blocks. Matrices without codes (F32, F16, BF16, MXFP4) and all VJPs are computed as [`F32`](Self::F32).
    Int8,
}

/// Texts written at the same time from which on bf16 on tiles is faster than f32 (`cargo bench`, `docs/benchmarks.md`).
const TEXTS_FOR_TILES: usize = 8;

impl Precision {
    /// The faster mode for writing `texts` texts at the same time on this processor: bf16 for many texts where there are AMX
    /// tiles, else f32. A wide tile costs the same for one row as for sixteen.
    pub fn fastest_for(texts: usize) -> Self {
        match isa::Isa::current() {
            isa::Isa::Amx if texts >= TEXTS_FOR_TILES => Self::Bf16,
            _ => Self::F32,
        }
    }

    /// The name in options and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}
