//! Bi-directional preference optimisation of steering vectors (BiPO, arXiv 2406.00045), and what grew from it.
//!
//! The library is synchronous and prints nothing. From pairs to a steered answer:
//!
//! ```no_run
//! use std::{ops::ControlFlow, path::Path, sync::Arc, sync::atomic::AtomicBool};
//! use steerkit::{SteeringPlan, recipe::Draft, train::train};
//! use steerkit_model::{Model, OpenOptions, Prompting, Request};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let model = Model::open(Path::new("SmolLM2-135M-Instruct.Q4_1.gguf"), &OpenOptions::default())?;
//!
//!     let mut draft = Draft::default();
//!     draft.set_text("model", "SmolLM2-135M-Instruct.Q4_1.gguf");
//!     draft.set_text("data.train", "data/formality/train.jsonl");
//!     draft.set_text("layer", "15");
//!     draft.set_text("out", "runs/formality");
//!     let trained = train(&model, &draft.resolve()?, &mut |_: steerkit::train::Event<'_>| {}, &AtomicBool::new(false))?;
//!
//!     let prompting = Prompting::new(model.tokenizer()?, model.chat_template()?);
//!     let vector = Arc::new(trained.vectors[0].clone());
//!     let mut requests = Vec::new();
//!     for multiplier in [-1.0, 0.0, 1.0] {
//!         let plan = SteeringPlan::new().add(vector.clone(), multiplier)?;
//!         let prompt = prompting.prompt("How do I keep basil alive indoors?")?;
//!         let shape = steerkit::PromptShape { len: prompt.len(), ..Default::default() };
//!         let edits = plan.edits(model.config(), &shape)?;
//!         requests.push(Request { prompt, edits, max_tokens: 60, ..Request::default() });
//!     }
//!     for answer in model.generate(requests, 3, &mut |_| ControlFlow::Continue(()))? {
//!         println!("{}", answer.text);
//!     }
//!     Ok(())
//! }
//! ```

pub mod algebra;
pub mod ask;
pub mod baseline;
pub mod bench;
mod checksum;
pub mod data;
pub mod demo;
pub mod error;
pub mod eval;
pub mod extract;
pub mod files;
pub mod gate;
pub mod interop;
pub mod judge;
pub mod metrics;
pub mod objective;
pub mod operator;
pub mod optim;
pub mod plan;
pub mod ranks;
pub mod recipe;
pub mod refusal;
pub mod report;
pub mod reproduce;
pub mod scope;
pub mod surface;
pub mod sweep;
pub mod text_stats;
mod toml_text;
pub mod train;
pub mod transfer;
pub mod vector;

pub use data::{Dataset, PreferencePair};
pub use error::SteerError;
pub use gate::Gate;
pub use operator::Operator;
pub use plan::SteeringPlan;
pub use scope::{PromptShape, TokenScope};
pub use vector::SteeringVector;

/// Results of this crate.
pub type Result<T, E = SteerError> = std::result::Result<T, E>;
