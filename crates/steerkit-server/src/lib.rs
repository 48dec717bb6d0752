//! Per-request steering of one model over an OpenAI-compatible API, and the playground page.
//!
//! One thread runs the model: every text in its batch has its own vectors, multipliers and operators. The threads of
//! the HTTP side only read requests and write replies. [`Server::bind`] opens everything, [`Server::run`] serves until
//! it is told to stop.

mod app;
mod ask;
mod assets;
mod complete;
mod engine;
mod error;
mod guard;
mod json;
mod metrics;
mod openapi;
mod params;
mod patient;
mod profiles;
mod registry;
mod reply;
mod server;
mod standing;
mod steering;
mod stored;
mod text;

pub use error::ServerError;
pub use guard::Keys;
pub use server::{Log, Options, Server};
