//! `steerkit bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::common::{ModelArgs, positive};

/// Measure the speed of this machine
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchTarget,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchTarget {
    Train(BenchTrain),
    Decode(BenchDecode),
    Load(BenchLoad),
}

/// Time whole training steps
///
/// A step is loading a batch from the cache, forward, backward and the optimiser. Rows are taken in file order;
/// the times are medians over the steps after the first. The one-off time to fill the cache is setup_seconds.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  steerkit bench train --model smollm2-135m --data train.csv --layer 15 --batch 4 --steps 12 --json")]
pub(crate) struct BenchTrain {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Pairs, CSV or JSONL
    #[arg(long, short, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Block after which the vector is added, counted from 0
    #[arg(long, short, value_name = "N")]
    pub(crate) layer: usize,
    /// Pairs per step
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    pub(crate) batch: usize,
    /// Steps
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = positive)]
    pub(crate) steps: usize,
}

/// Time reading a prompt and writing an answer
///
/// Prompt tokens are read in one pass, then every sequence writes token by token in one batch.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  steerkit bench decode --model smollm2-135m --sequences 8 --json")]
pub(crate) struct BenchDecode {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to write per sequence
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(crate) tokens: usize,
    /// Sequences in the batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub(crate) sequences: usize,
}

/// Time opening a model
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  steerkit bench load --model smollm2-135m --json")]
pub(crate) struct BenchLoad {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}
