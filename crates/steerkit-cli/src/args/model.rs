//! `steerkit model`.

use clap::{Args, Subcommand};

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
    /// A short name (`steerkit model list` shows them) is one pinned file with a known checksum. org/name is
    /// fetched from the Hugging Face Hub.
    #[command(after_help = "\
Examples:
  steerkit model pull smollm2-135m
  steerkit model pull HuggingFaceTB/SmolLM2-135M-Instruct")]
    Pull {
        /// A short name, or org/name on the Hugging Face Hub
        name: String,
    },
    /// List the models that are here and those that can be pulled by a short name
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
