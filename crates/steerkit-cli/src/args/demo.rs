//! `steerkit demo`.

use std::path::PathBuf;

use clap::Args;

/// Train a vector on a small model and show what it does
///
/// Fetches SmolLM2-135M-Instruct (98 MB) unless it is there, trains a formality vector from 64 pairs, measures it
/// on 40 held-out pairs, answers questions at -1, 0 and +1, and writes a report with everything in it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit demo
  steerkit demo --out /tmp/demo --json
  steerkit demo --model SmolLM2-135M-Instruct.Q4_1.gguf

Afterwards:
  steerkit chat --model smollm2-135m --steer demo=1")]
pub(crate) struct DemoArgs {
    /// Folder for report.html, vector.safetensors, metrics.jsonl and recipe.toml; what is in it is replaced
    #[arg(long, short, value_name = "DIR", default_value = "runs/demo")]
    pub(crate) out: PathBuf,
    /// The model: a .gguf file, a Hugging Face folder, or the name of a pulled model
    #[arg(long, short, value_name = "FILE|DIR|NAME", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// Fetch nothing; fail when the model is not there
    #[arg(long)]
    pub(crate) offline: bool,
}
