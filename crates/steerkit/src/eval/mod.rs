//! What a vector does to the texts that a model writes.

mod answers;
mod disturbance;
mod perplexity;
mod sentinel;
mod surface;

pub use answers::{AnswerRequest, Answers, answer};
pub use disturbance::{EditedPrompt, calibrate, divergences, percentile};
pub use perplexity::perplexities;
pub use sentinel::check_effect;
pub use surface::{SurfacePoint, surface_points};
