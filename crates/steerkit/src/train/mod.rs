//! Training.
mod evaluate;
mod lock;
mod order;
pub use evaluate::{EvalPoint, Measured};
pub use lock::RunLock;
pub use order::{Batch, Order};
