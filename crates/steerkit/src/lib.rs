//! placeholder
pub mod report;
pub mod surface;
pub mod text_stats;
