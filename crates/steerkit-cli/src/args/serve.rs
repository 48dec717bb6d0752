//! `steerkit serve`.

use std::path::PathBuf;

use clap::Args;

use super::common::{ModelArgs, positive};

/// Serve a model with vectors per request, over an OpenAI-compatible API
///
/// Every request brings its own vectors and scales, and all of them run in one batch. The playground is the page at
/// the address that is printed, the API's documentation is at /docs there. Ctrl-C or SIGTERM lets running answers end
/// for up to 30 s.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit serve --model smollm2-135m --vectors vectors
      Vectors are the .safetensors and .gguf files in the folder; new ones are seen within a second.
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -d '{
      \"messages\": [{\"role\": \"user\", \"content\": \"How do I store olive oil?\"}],
      \"steering\": {\"vectors\": [{\"name\": \"formality\", \"scale\": 1.5}]}}'
      Clients that cannot send a field of their own use the header 'X-Steer: formality=1.5'
      or the model's name 'base:formality=1.5'.
  STEERKIT_KEY=... steerkit serve --model smollm2-135m --host 0.0.0.0 --api-key-env STEERKIT_KEY
      For other machines, only with a key.

A scale of 0 is the plain model, bit for bit. An answer does not depend on what else is in the batch.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder of vectors that requests may name
    #[arg(long, value_name = "DIR")]
    pub(crate) vectors: Option<PathBuf>,
    /// Vector of requests that say only {"custom": {"steer_multiplier": X}}
    #[arg(long, value_name = "NAME", requires = "vectors")]
    pub(crate) default_vector: Option<String>,
    /// Address to listen on; others than this machine's own need --api-key-env
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Port; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Another name by which requests may call this server (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,
    /// Environment variable with the API key, or several separated by commas
    #[arg(long, value_name = "VAR")]
    pub(crate) api_key_env: Option<String>,
    /// Environment variable with the key that may upload and delete vectors
    #[arg(long, value_name = "VAR")]
    pub(crate) admin_key_env: Option<String>,
    /// Database of profiles, made where there is none [default: in memory]
    #[arg(long, value_name = "FILE")]
    pub(crate) profiles: Option<PathBuf>,
    /// Answers computed at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    pub(crate) max_batch: usize,
    /// Answers that may wait; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_queue: usize,
    /// Prompt tokens read at most between two tokens of a running answer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    pub(crate) prefill_chunk: usize,
    /// Tokens of ended answers that are kept for prompts that begin alike; 0 keeps none
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) prefix_cache: usize,
    /// A line on stderr for each request
    #[arg(long)]
    pub(crate) log_requests: bool,
}
