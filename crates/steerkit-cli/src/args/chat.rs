//! `steerkit chat`.

use clap::Args;

use super::common::{ModelArgs, PromptArgs, SamplingArgs};

/// Talk to a model and move its vectors while you talk
///
/// Commands inside: /steer NAME 1.5 sets a vector's multiplier, /steer lists them, /system TEXT, /reset,
/// /save FILE, /help, /quit. Without a terminal, each line of stdin is one turn.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit chat --model smollm2-135m
  steerkit chat --model smollm2-135m --steer formality=1 --temperature 0.7
  printf 'Hello!\\n/steer formality -1\\nHello!\\n' | steerkit chat --model smollm2-135m --steer formality=1")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) steering: PromptArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}
