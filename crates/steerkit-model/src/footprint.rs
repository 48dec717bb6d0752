//! What passes through the decoder take in memory on the CPU, beside the weights: the sizes of the tensors that are
//! alive at the worst moment.

use crate::config::{Norms, QkNorm};
use crate::decoder::{blocks_with_gates, head_rows_at_once};
use crate::DecoderConfig;

/// Bytes of a number.
const F32: usize = 4;

impl DecoderConfig {
    /// Numbers of a row of `q | k | v`.
    fn qkv(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Bytes that [`crate::Model::score_from`] takes at its peak to read `rows` packed rows of which `scored` tokens are
    /// scored, keeping nothing. [`crate::Model::residual`] takes no more.
    pub fn reading_bytes(&self, rows: usize, scored: usize) -> usize {
        let (d, f) = (self.d_model, self.d_ff);
        let attention = d + self.qkv() + self.n_heads * self.head_dim;
        let mlp = (2 * f + d).max(3 * f);
        F32 * (rows * (3 * d + attention.max(mlp)) + self.head_numbers(scored))
    }

    /// Bytes that [`crate::Model::score_from`] and the VJP of its scores take at their peak for `rows` packed rows after
    /// block `layer`, of which `scored` tokens are scored.
    ///
    /// The peak is at the end of the forward pass, or where its first VJP has computed again what was not kept.
    pub fn gradient_bytes(&self, layer: usize, rows: usize, scored: usize) -> usize {
        let (d, f) = (self.d_model, self.d_ff);
        let full = (self.n_layers - 1).saturating_sub(layer + 1);
        let with_gates = blocks_with_gates(rows, f).min(full);
        let (attention, mlp) = self.saved();
        // The last block's MLP has the rows of scored tokens only.
        let last = if layer + 1 < self.n_layers { rows * attention + scored * (mlp + 2 * f) } else { 0 };
        let saved = full * rows * (attention + mlp) + with_gates * rows * 2 * f + last;
        // The edited rows, the stream and its gradient, and the widest of what a block has beside what it keeps.
        let gates = if with_gates < full { 2 * f + d } else { d };
        let working = rows * (3 * d + f + gates);
        F32 * (saved + working + scored * d + self.head_numbers(scored))
    }

    /// Numbers of a row that a block keeps of its attention, and of its MLP without `gate | up`.
    fn saved(&self) -> (usize, usize) {
        let before = usize::from(self.features.norms != Norms::After);
        let after = usize::from(self.features.norms != Norms::Before);
        let sublayer = self.d_model + before + after * (self.d_model + 1);
        let raw = usize::from(self.features.qk_norm != QkNorm::None);
        (sublayer + (1 + raw) * self.qkv(), sublayer)
    }

    /// Numbers of the head's logits that are there at a time.
    fn head_numbers(&self, scored: usize) -> usize {
        head_rows_at_once(scored, self.vocab) * self.vocab
    }
}
