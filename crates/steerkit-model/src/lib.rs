//! A frozen language model, ready to be steered: weights, tokeniser, chat template, a decoder with explicit
//! gradients to the residual stream, KV cache and sampling.
//!
//! The crate knows nothing of objectives; it gives log-probabilities of chosen tokens and their gradient with
//! respect to the residual stream after a block.

pub mod arch;
mod backend;
pub mod chat;
pub mod config;
mod decoder;
pub mod edit;
mod engine;
pub mod error;
mod footprint;
pub mod generate;
pub mod gguf;
pub mod hf;
pub mod hub;
pub mod load;
pub mod lora;
pub mod model;
pub mod pack;
pub mod pass;
pub mod prompting;
pub mod sample;
pub mod source;
pub mod tokenizer;
mod twins;
pub mod weights;

pub use chat::{ChatTemplate, Message};
pub use config::DecoderConfig;
pub use edit::{Edit, EditOp, EditedScores, Positions, Shift, TextEdits};
#[cfg(feature = "device")]
pub use engine::CandleDevice;
pub use engine::DeviceChoice;
pub use error::{ErrorKind, ModelError};
pub use generate::{
    Batcher, Completion, Event, Finish, Limits, NewToken, PrefixStats, PromptToken, Request, RequestId,
};
pub use load::{Loaded, ModelIdentity, load};
pub use lora::{LoraChoice, LoraMode};
pub use model::{Keep, Model, OpenOptions, Run, Scores, Sequence};
pub use pack::Pack;
pub use pass::{Gradients, Pass, Start};
pub use prompting::{DEFAULT_SYSTEM, LeadingSpace, PairTokens, Prompting};
pub use sample::{Choice, Sampler, Sampling, TokenLogprob};
pub use steerkit_kernels::Precision;
pub use steerkit_kernels::parallel::{self, set_threads, threads};
pub use steerkit_kernels::roofline;
pub use tokenizer::{DecodeStream, Specials, Tokenizer};

/// Results of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;
