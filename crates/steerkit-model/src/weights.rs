//! The frozen weights, by role.

use steerkit_kernels::Matrix;

/// A projection: `y = x·Wᵀ + bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub matrix: Matrix,
    /// `[out]`.
    pub bias: Option<Vec<f32>>,
    /// A low-rank addition, the adapters' factors side by side.
    pub low_rank: Option<LowRank>,
}

/// `W + B·A` without the sum being formed (LoRA, Hu et al. 2021); the adapter's scale is in `up`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `A`, `[r, in]`.
    pub down: Matrix,
    /// `B`, `[out, r]`.
    pub up: Matrix,
}

impl From<Matrix> for Linear {
    fn from(matrix: Matrix) -> Self {
        Self { matrix, bias: None, low_rank: None }
    }
}

/// One block. Which of the norms there are says [`crate::config::Features`].
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Gain of the norm before attention `[d]`.
    pub attn_norm: Option<Vec<f32>>,
    /// Query, key and value projections stacked `[(n + 2k)·h, d]`.
    pub qkv: Linear,
    /// Gains of the norms of queries and keys: `[h]` each, or `[n·h]` and `[k·h]`.
    pub qk_norms: Option<[Vec<f32>; 2]>,
    /// Output projection of attention `[d, n·h]`.
    pub attn_out: Linear,
    /// Gain of the norm after attention `[d]`.
    pub attn_post_norm: Option<Vec<f32>>,
    /// Gain of the norm before the MLP `[d]`.
    pub ffn_norm: Option<Vec<f32>>,
    /// Gate and up projections stacked `[2f, d]`.
    pub gate_up: Linear,
    /// Down projection `[d, f]`.
    pub down: Linear,
    /// Gain of the norm after the MLP `[d]`.
    pub ffn_post_norm: Option<Vec<f32>>,
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
