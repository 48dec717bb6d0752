//! `steerkit vector`.



use clap::{Args, Subcommand};

/// Look at steering vectors
#[derive(Debug, Args)]
pub(crate) struct VectorArgs {
    #[command(subcommand)]
    pub(crate) command: VectorCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VectorCommand {
    /// Show what a vector file holds: layer, norm, dose, and how it was made
    #[command(after_help = "\
Examples:
  steerkit vector inspect runs/demo/vector.safetensors
  steerkit vector inspect demo --json")]
    Inspect {
        /// A file, or the name of a run
        #[arg(value_name = "FILE|NAME")]
        vector: String,
    },
}
