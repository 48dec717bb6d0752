//! The operations a decoder is made of, each beside its vector-Jacobian product.
//!
//! [`crate::decoder`] is written once over [`Backend`]. [`cpu::Cpu`] runs it on our own kernels,
//! `device::Device` (feature `device`) as tensor expressions on a GPU or, for tests, on the CPU.

pub(crate) mod cpu;
#[cfg(feature = "device")]
pub(crate) mod device;
mod pool;
#[cfg(test)]
#[cfg(feature = "device")]
mod tests;

use crate::Result;
use crate::config::Rope;
use crate::edit::Shift;
use std::ops::Range;
use steerkit_kernels::attention::{Heads, Run};
use steerkit_kernels::mlp::Activation;
use steerkit_kernels::rope::Turn;
use steerkit_kernels::{Matrix, rope::Angles};

/// Rows of numbers on some device, and what can be done with them. A tensor is `[rows, width]`, f32.
///
/// A VJP takes the gradient of the output and gives that of the input; weights are frozen and get none, but for the
/// small matrices of an adapter in training.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Rows of numbers.
    type Tensor: Send;
    /// A frozen matrix `[out, in]`.
    type Matrix: Send + Sync;
    /// A frozen gain `[d]`.
    type Gain: Send + Sync;
    /// Cosines and sines per row.
    type Angles;
    /// Which rows see which in a packed batch.
    type Runs;
    /// Keys and values of one text at one block.
    type Cache: Clone + Send + Sync + 'static;

    fn matrix(&self, matrix: &Matrix) -> Result<Self::Matrix>;
    fn gain(&self, gain: &[f32]) -> Result<Self::Gain>;
    fn angles(&self, angles: Angles, rope: &Rope) -> Result<Self::Angles>;
    fn runs(&self, runs: Vec<Run>) -> Result<Self::Runs>;
    fn upload(&self, data: &[f32], width: usize) -> Result<Self::Tensor>;
    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>>;
    /// Copies all of `x` to `out`.
    fn download_to(&self, x: &Self::Tensor, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.download(x)?);
        Ok(())
    }
    fn copy(&self, x: &Self::Tensor) -> Result<Self::Tensor>;
    /// Zeros in the shape of `x`.
    fn zeros_like(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Rows `tokens` of the embedding.
    fn embed(&self, embed: &Self::Matrix, tokens: &[u32]) -> Result<Self::Tensor>;

    /// Rows `rows` of `x`, some perhaps twice.
    fn select(&self, x: &Self::Tensor, rows: &[usize]) -> Result<Self::Tensor>;
    /// Scatters `dy` back into `t` rows, adding in order.
    fn select_vjp(&self, dy: &Self::Tensor, rows: &[usize], t: usize) -> Result<Self::Tensor>;

    /// `x · Wᵀ`.
    fn linear(&self, x: &Self::Tensor, w: &Self::Matrix) -> Result<Self::Tensor>;
    fn linear_vjp(&self, dy: &Self::Tensor, w: &Self::Matrix) -> Result<Self::Tensor>;
    /// The gradient of `W`, `dyᵀ · x`.
    fn linear_weight_vjp(&self, dy: &Self::Tensor, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// The normalised rows and the reciprocal of each row's root mean square.
    fn rms_norm(&self, x: &Self::Tensor, gain: &Self::Gain, eps: f32)
    -> Result<(Self::Tensor, Self::Tensor)>;
    /// Adds the gradient to `dx`.
    fn rms_norm_vjp(
        &self,
        x: &Self::Tensor,
        gain: &Self::Gain,
        rstd: &Self::Tensor,
        dy: &Self::Tensor,
        dx: &mut Self::Tensor,
    ) -> Result<()>;

    /// Normalises, in place, each run of as many numbers as `gain` has among `columns` of each row.
    fn rms_norm_columns(
        &self,
        x: &mut Self::Tensor,
        columns: Range<usize>,
        gain: &Self::Gain,
        eps: f32,
    ) -> Result<()>;
    /// `x`: the rows before the norm; `columns` of `dx` become their gradient.
    fn rms_norm_columns_vjp(
        &self,
        x: &Self::Tensor,
        columns: Range<usize>,
        gain: &Self::Gain,
        eps: f32,
        dx: &mut Self::Tensor,
    ) -> Result<()>;

    /// Turns queries and keys of `q | k | v`; its VJP turns back.
    fn rope(&self, qkv: &mut Self::Tensor, heads: Heads, angles: &Self::Angles, turn: Turn) -> Result<()>;

    fn attention(&self, qkv: &Self::Tensor, heads: Heads, runs: &Self::Runs) -> Result<Self::Tensor>;
    fn attention_vjp(
        &self,
        qkv: &Self::Tensor,
        heads: Heads,
        runs: &Self::Runs,
        dout: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    fn new_cache(&self) -> Self::Cache;
    /// A copy of the first `len` keys and values of `cache`, which holds as many or more.
    fn cache_prefix(&self, cache: &Self::Cache, len: usize) -> Result<Self::Cache>;
    /// Appends the keys and values of each text's rows to its cache, then attends over it.
    fn attention_cached(
        &self,
        qkv: &Self::Tensor,
        heads: Heads,
        texts: &mut [(Range<usize>, &mut Self::Cache)],
    ) -> Result<Self::Tensor>;

    /// `activation(gate) · up` of `gate | up`.
    fn gated(&self, activation: Activation, gate_up: &Self::Tensor) -> Result<Self::Tensor>;
    fn gated_vjp(
        &self,
        activation: Activation,
        gate_up: Self::Tensor,
        dy: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// `x += y`.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor) -> Result<()>;
    /// Adds `v` `[d]` to some rows.
    fn add_to_rows(&self, x: &mut Self::Tensor, rows: Range<usize>, v: &[f32]) -> Result<()>;
    /// Adds `bias` to every row.
    fn add_bias(&self, x: &mut Self::Tensor, bias: &Self::Gain) -> Result<()>;
    /// `x *= factor`; its own VJP.
    fn scale(&self, x: &mut Self::Tensor, factor: f32) -> Result<()>;
    /// Row `i` of `x` times `factors[i]`.
    fn scale_rows(&self, x: &mut Self::Tensor, factors: &[f32]) -> Result<()>;
    /// `x ← cap · tanh(x / cap)`; its VJP is a part of [`Self::log_probs_vjp`].
    fn softcap(&self, x: &mut Self::Tensor, cap: f32) -> Result<()>;
    /// Moves some rows along the unit vector `unit_d`.
    fn shift_rows(
        &self,
        x: &mut Self::Tensor,
        rows: Range<usize>,
        unit_d: &[f32],
        shift: Shift,
    ) -> Result<()>;

    /// `log softmax(logits)[target]` per row.
    fn log_probs(&self, logits: &Self::Tensor, targets: &[u32]) -> Result<Vec<f32>>;
    /// The gradient of logits before they were capped, where they were.
    fn log_probs_vjp(
        &self,
        logits: Self::Tensor,
        targets: &[u32],
        coef: &[f32],
        softcap: Option<f32>,
    ) -> Result<Self::Tensor>;
}
