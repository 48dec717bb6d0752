//! `steerkit generate`.

use std::path::PathBuf;

use clap::Args;

use super::common::{GateSpec, ModelArgs, PromptArgs, SamplingArgs, multiplier, positive};

/// Answer prompts, with vectors added or without
///
/// The prompt becomes the user's turn of the model's chat template. Without --prompt and --prompts, the prompt is
/// read from stdin.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit generate --model smollm2-135m --prompt 'How do I store olive oil?'
  steerkit generate --model smollm2-135m --steer formality=1.5 --prompt 'How do I store olive oil?'
      formality stands for ./formality.safetensors or runs/formality/vector.safetensors.
  steerkit generate --model smollm2-135m --steer formality --multipliers -1,0,1 --prompt 'Hello'
      The same prompt at three strengths, side by side.
  steerkit generate --model smollm2-135m --steer a=1 --steer b=-0.5 --prompts questions.jsonl --json
      Two vectors at once; a line of JSON per answer: text, token ids, log-probabilities, plan.
  steerkit generate --model smollm2-135m --steer formality=1 --gate about-work --prompts questions.jsonl
      Steers only the prompts that meet the condition (see vector gate).

A multiplier of 0 is the plain model, bit for bit.")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The prompt
    #[arg(long, short, value_name = "TEXT", conflicts_with = "prompts")]
    pub(crate) prompt: Option<String>,
    /// Prompts to answer: JSONL, each line a text or an object with "prompt"
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) steering: PromptArgs,
    /// Answer each prompt once per number, with every --steer multiplied by it
    #[arg(
        long,
        value_name = "M,M,..",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "steer",
        value_parser = multiplier
    )]
    pub(crate) multipliers: Vec<f64>,
    /// Steer only prompts that meet a condition: a vector, and the cosine from which on they do [default: the vector's
    /// calibrated threshold]
    ///
    /// The prompt's mean residual stream after the condition's block decides, once per answer. See vector gate.
    #[arg(long, value_name = "FILE|NAME[:T]", requires = "steer")]
    pub(crate) gate: Option<GateSpec>,
    /// Give the prompt to the model as it stands, without the chat template
    #[arg(long, conflicts_with = "system")]
    pub(crate) raw: bool,
    /// Answers computed at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    pub(crate) batch: usize,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}
