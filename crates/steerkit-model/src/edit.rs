//! Edits of the residual stream: what steering comes down to inside the model.

use std::sync::Arc;

/// An edit of the residual stream after one block, at every position of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The block after which it acts, counted from 0 (`blocks.L.hook_resid_post`).
    pub layer: usize,
    /// What it does.
    pub op: EditOp,
}

/// What an edit does to a row `h` of the residual stream.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum EditOp {
    /// `h + v`; `v` is already scaled by the multiplier.
    Add(Arc<[f32]>),
}
