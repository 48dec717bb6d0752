//! A pass of packed texts through the model, with what it changes there.

use crate::Pack;
use crate::lora::{AdditionGradients, Additions};

/// A pass that scores the pack's scored tokens.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The texts.
    pub pack: &'a Pack,
    /// Where it begins.
    pub start: Start<'a>,
    /// What is added to the residual stream after blocks above the start: block, and `[t, d]`. Blocks ascend.
    pub added: &'a [(usize, Vec<f32>)],
    /// What an adapter adds to the weights.
    pub adapter: Option<&'a Additions>,
}

/// Where a pass begins.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// At the tokens.
    Tokens,
    /// After a block, where the residual stream is given.
    Residual {
        /// The block.
        layer: usize,
        /// `[t, d]`.
        h_td: &'a [f32],
    },
}

impl<'a> Pass<'a> {
    /// The plain model from its tokens up.
    pub fn plain(pack: &'a Pack) -> Self {
        Self { pack, start: Start::Tokens, added: &[], adapter: None }
    }

    /// The blocks above `layer`, from the residual stream after it.
    pub fn from_residual(layer: usize, h_td: &'a [f32], pack: &'a Pack) -> Self {
        Self { start: Start::Residual { layer, h_td }, ..Self::plain(pack) }
    }

    /// The first block that is run.
    pub(crate) fn first_block(&self) -> usize {
        match self.start {
            Start::Tokens => 0,
            Start::Residual { layer, .. } => layer + 1,
        }
    }
}

/// Gradients of a weighted sum of a pass's log-probabilities.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// With respect to the residual stream where the pass began, `[t, d]`.
    pub start_td: Vec<f32>,
    /// With respect to what was added after each block of [`Pass::added`], `[t, d]` each.
    pub added_td: Vec<Vec<f32>>,
    /// With respect to the adapter's factors.
    pub adapter: AdditionGradients,
}
