//! What a run tells while it goes on, and how it is stopped.

use super::EvalPoint;
use crate::{SteerError, metrics::StepRecord};
use std::sync::atomic::{AtomicBool, Ordering};
use steerkit_model::ModelError;

/// Something that happened in a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Something a person should know.
    Note(String),
    /// What the run will take at its peak, beside the model.
    Memory {
        /// The estimate.
        bytes: u64,
    },
    /// A candidate layer was measured.
    Layer {
        /// The block.
        layer: usize,
        /// Half the difference of the margins at +1 and -1, in nats.
        half_spread: f64,
        /// Candidates measured, this one included.
        done: usize,
        /// Candidates in all.
        total: usize,
    },
    /// Residual streams and reference log-probabilities are being computed.
    Caching {
        /// Which pairs: `train`, `valid` or `test`.
        split: &'a str,
        /// Pairs done.
        done: usize,
        /// Pairs in all.
        total: usize,
    },
    /// An optimiser step was done.
    Step {
        /// What it measured.
        record: &'a StepRecord,
        /// Steps of the whole run.
        total: usize,
    },
    /// A set of pairs was measured.
    Eval {
        /// Steps done.
        step: usize,
        /// Passes over the data begun.
        epoch: usize,
        /// Which pairs.
        split: &'a str,
        /// What was measured, by multiplier.
        points: &'a [EvalPoint],
    },
    /// The state was saved.
    Checkpoint {
        /// Steps done.
        step: usize,
    },
}

/// Listens to a run. Closures of one [`Event`] are observers.
pub trait Observer {
    /// Called from the thread that trains, between passes through the model.
    fn event(&mut self, event: Event<'_>);
}

impl<F: FnMut(Event<'_>)> Observer for F {
    fn event(&mut self, event: Event<'_>) {
        self(event)
    }
}

/// Why a pass ended early.
#[derive(Debug)]
pub(crate) enum Halt {
    Cancelled,
    Failed(SteerError),
}

impl<E: Into<SteerError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Halt {
    /// Whether numbers left the finite range inside the model.
    pub(crate) fn non_finite(&self) -> Option<String> {
        match self {
            Self::Failed(SteerError::Model(e @ ModelError::NonFinite { .. })) => Some(e.to_string()),
            _ => None,
        }
    }
}

/// Ends a pass when the caller asked for it.
pub(crate) fn check(cancel: &AtomicBool) -> Result<(), Halt> {
    if cancel.load(Ordering::Relaxed) { Err(Halt::Cancelled) } else { Ok(()) }
}
