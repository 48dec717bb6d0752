//! What a run trains: one flat list of numbers, and what they mean to the model.

use super::{
    cache::Norms,
    observer::{Halt, check},
    pass::{Packed, TokenPair, micro_batches},
};
use crate::optim::norm;
use std::sync::atomic::AtomicBool;
use steerkit_model::{Model, lora::TrainableLora};

/// Pairs that the norms of layers above the lowest are measured on, at most.
const NORM_PAIRS: usize = 64;

/// What the numbers are.
#[derive(Clone, Debug)]
pub(crate) enum Trainee {
    /// A vector for each block, blocks ascending, `[layers · d]`.
    Vectors {
        /// The blocks.
        layers: Vec<usize>,
        /// Numbers of a vector.
        d: usize,
    },
    /// The factors of an adapter.
    Adapter(TrainableLora),
}

impl Trainee {
    /// One vector.
    pub(crate) fn vector(model: &Model, layer: usize) -> Self {
        Self::Vectors { layers: vec![layer], d: model.config().d_model }
    }

    /// The numbers of all.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Vectors { layers, d } => layers.len() * d,
            Self::Adapter(lora) => lora.len(),
        }
    }

    /// The blocks that are steered; none for an adapter, which changes all.
    pub(crate) fn layers(&self) -> &[usize] {
        match self {
            Self::Vectors { layers, .. } => layers,
            Self::Adapter(_) => &[],
        }
    }

    /// The highest block whose output never changes while training; none where the first one changes.
    pub(crate) fn constant_up_to(&self) -> Option<usize> {
        self.layers().first().copied()
    }

    /// Norm of each layer's vector.
    pub(crate) fn layer_norms(&self, params: &[f32]) -> Vec<f64> {
        match self {
            Self::Vectors { d, .. } => params.chunks_exact(*d).map(norm).collect(),
            Self::Adapter(_) => Vec::new(),
        }
    }

    /// Norm of all vectors together; of an adapter that of what it adds to the weights.
    pub(crate) fn norm(&self, params: &[f32]) -> f64 {
        match self {
            Self::Vectors { .. } => norm(params),
            Self::Adapter(lora) => lora.norm(params),
        }
    }
}

/// Median norms of the residual stream after `layers` over the first of `pairs`, position 0 left out.
pub(crate) fn residual_norms(
    model: &Model,
    layers: &[usize],
    pairs: &[TokenPair],
    micro_batch_rows: usize,
    cancel: &AtomicBool,
) -> Result<Vec<f64>, Halt> {
    if layers.is_empty() {
        return Ok(Vec::new());
    }
    let d = model.config().d_model;
    let pairs = &pairs[..pairs.len().min(NORM_PAIRS)];
    let mut norms: Vec<Norms> = layers.iter().map(|_| Norms::default()).collect();
    for run in micro_batches(pairs.iter().map(TokenPair::rows), micro_batch_rows) {
        check(cancel)?;
        let packed = Packed::unsteered(&pairs[run.clone()]);
        for (norms, h_td) in norms.iter_mut().zip(model.residuals(&packed.pack, layers)?) {
            for (pair, span) in pairs[run.clone()].iter().zip(&packed.spans) {
                norms.add(pair, &Packed::pair_rows(span, &h_td, d), d);
            }
        }
    }
    Ok(norms.into_iter().map(Norms::median).collect())
}
