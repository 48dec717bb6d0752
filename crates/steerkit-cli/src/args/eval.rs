//! `steerkit eval`.

use std::path::PathBuf;

use clap::Args;

use super::asking::{AnswerArgs, JudgeArgs};
use super::common::{ModelPrecision, PromptArgs, multiplier, positive};

/// Measure what vectors do: pairs, answer letters, benchmarks, damage to the text
///
/// An evaluation is one TOML file, or the name of one that comes with the program; `steerkit eval list` shows those.
/// Every --steer is multiplied by each of the multipliers; 0, the plain model, is always measured, and every difference
/// is taken question by question.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit eval list
  steerkit eval preference --model smollm2-135m --steer formality --data test.jsonl
  steerkit eval preference --model smollm2-135m --steer a=1 --steer b=0.5 --multipliers -1,0,1 --data test.jsonl
  steerkit eval my.toml --model smollm2-135m --steer formality --out runs/my-eval --json")]
pub(crate) struct EvalArgs {
    /// An evaluation's name, its TOML file, or `list`
    #[arg(value_name = "NAME|FILE.toml")]
    pub(crate) evaluation: String,
    /// The model: a .gguf file, a Hugging Face folder, or the name of a pulled model
    #[arg(long, short, value_name = "FILE|DIR|NAME")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) lora: super::common::LoraArgs,
    /// Arithmetic of the large matrix products
    #[arg(long, value_enum, default_value_t)]
    pub(crate) precision: ModelPrecision,
    #[command(flatten)]
    pub(crate) device: super::common::DeviceArgs,
    #[command(flatten)]
    pub(crate) steering: PromptArgs,
    /// Data file or folder, in place of the evaluation's own
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Measure at these multiples of every --steer, in place of the evaluation's own
    #[arg(long, value_name = "M,M,..", value_delimiter = ',', allow_hyphen_values = true, value_parser = multiplier)]
    pub(crate) multipliers: Vec<f64>,
    /// Questions at most, drawn with the seed [default: all]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Seed of drawn questions, sampled texts and intervals [default: the evaluation's]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) answering: AnswerArgs,
    #[command(flatten)]
    pub(crate) judging: JudgeArgs,
    /// Folder for results.json, tables, figures and report.html
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}
