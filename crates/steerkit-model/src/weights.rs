//! The frozen weights, by role.

use steerkit_kernels::Matrix;

/// One block.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Gain of the norm before attention `[d]`.
    pub attn_norm: Vec<f32>,
    /// Query, key and value projections stacked `[(n + 2k)·h, d]`.
    pub qkv: Matrix,
    /// Output projection of attention `[d, n·h]`.
    pub attn_out: Matrix,
    /// Gain of the norm before the MLP `[d]`.
    pub ffn_norm: Vec<f32>,
    /// Gate and up projections stacked `[2f, d]`.
    pub gate_up: Matrix,
    /// Down projection `[d, f]`.
    pub down: Matrix,
}

/// All weights of a decoder.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Token embedding `[v, d]`.
    pub embed: Matrix,
    /// Blocks from the bottom.
    pub layers: Vec<LayerWeights>,
    /// Gain of the last norm `[d]`.
    pub final_norm: Vec<f32>,
    /// Output head `[v, d]`; shares the embedding's bytes when tied.
    pub head: Matrix,
}
