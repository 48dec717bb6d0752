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
    /// Pairs, CSV, JSONL or Parquet
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

/// Time reading prompts and writing texts
///
/// Every text has a prompt of its own; then all of them write token by token in one batch, text i under vector
/// i modulo --plans. With --against-plans, the batch is timed against the same batch with another number of
/// vectors, in alternating blocks of four steps.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit bench decode --model smollm2-135m --batch 16 --plans 16 --precision auto --json
  steerkit bench decode --model smollm2-135m --batch 16 --plans 16 --against-plans 0
      What steering costs.
  steerkit bench decode --model smollm2-135m --batch 32 --plans 32 --against-plans 1
      What many different vectors cost.")]
pub(crate) struct BenchDecode {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Texts in the batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub(crate) batch: usize,
    /// Different vectors in the batch; 0 is the plain model
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) plans: usize,
    /// Block after which the vectors are added, counted from 0 [default: the middle one]
    #[arg(long, value_name = "N")]
    pub(crate) layer: Option<usize>,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = positive)]
    pub(crate) prompt_tokens: usize,
    /// Tokens that each text writes
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(crate) tokens: usize,
    /// Compare with the batch under this many vectors instead
    #[arg(long, value_name = "K")]
    pub(crate) against_plans: Option<usize>,
    /// Pairs of blocks of a comparison
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = positive)]
    pub(crate) blocks: usize,
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
