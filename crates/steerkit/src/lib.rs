//! Bi-directional preference optimisation of steering vectors (BiPO, arXiv 2406.00045), and what grew from it.
//!
//! The library is synchronous and prints nothing.

pub mod bench;
mod checksum;
pub mod data;
pub mod demo;
pub mod error;
pub mod eval;
pub mod files;
pub mod metrics;
pub mod objective;
pub mod optim;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod surface;
pub mod text_stats;
pub mod train;
pub mod vector;

pub use data::{Dataset, PreferencePair};
pub use error::SteerError;
pub use plan::SteeringPlan;
pub use vector::SteeringVector;

/// Results of this crate.
pub type Result<T, E = SteerError> = std::result::Result<T, E>;
