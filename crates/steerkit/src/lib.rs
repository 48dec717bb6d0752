//! Steering vectors for frozen language models: preference data, vectors and plans, and what trains them.
//!
//! The library is synchronous and prints nothing.

pub mod data;
pub mod error;

pub use error::SteerError;

/// Results of this crate.
pub type Result<T, E = SteerError> = std::result::Result<T, E>;
