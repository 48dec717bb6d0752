//! `steerkit reproduce`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::asking::JudgeArgs;
use super::common::{PrecisionArg, positive};
use super::train::{PresetArg, Setting};

/// Run an experiment of the paper by its name, and set its numbers beside the paper's
///
/// Vectors are made and measured by the machinery of train and eval, on this repository's own pairs unless --data-root or
/// --data names others. What an experiment needs is checked before it begins. Finished vectors and measurements are kept in
/// the folder: the same command goes on where it stopped.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  steerkit reproduce list
  steerkit reproduce fig1 --model smollm2-135m --quick
      Whether it runs, in a few minutes; not what it finds.
  steerkit reproduce t14 --model smollm2-135m --out runs/t14
  steerkit reproduce t5 --model qwen2.5-coder-1.5b --data mmlu=mmlu_test.jsonl
  steerkit reproduce fig1 --model llama-2-7b.gguf --preset paper --data-root BiPO/data --judge URL --judge-model NAME

The folder gets results.json, table.txt, .md, .csv and .tex, figures, report.html, and experiment.toml: the experiment
as it was run. docs/reproduce.md describes each one."
)]
pub(crate) struct ReproduceArgs {
    /// The experiment: t1 .. t15, fig1 .. fig9, curves, complexity, sensitivity; or `list`
    #[arg(value_name = "ID|list")]
    pub(crate) id: String,
    /// The model: a .gguf file, a Hugging Face folder, or the name of a pulled model
    #[arg(long, short, value_name = "FILE|DIR|NAME")]
    pub(crate) model: Option<String>,
    /// A further model, where an experiment has several (repeatable)
    #[arg(long, value_name = "FILE|DIR|NAME")]
    pub(crate) also: Vec<String>,
    /// A LoRA adapter trained by DPO, for fig8
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) adapter: Option<PathBuf>,
    /// Few pairs, steps and questions: whether it runs, not what it finds
    #[arg(long)]
    pub(crate) quick: bool,
    /// Folder with a folder of pairs for each behaviour
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) data_root: PathBuf,
    /// Where a set or benchmark lies: NAME=PATH, NAME being a behaviour, mmlu, truthfulqa or attacks (repeatable)
    #[arg(long, value_name = "NAME=PATH")]
    pub(crate) data: Vec<Place>,
    /// Test questions of each set at most [default: the paper's number, or all]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Tokens per answer at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = positive)]
    pub(crate) answer_tokens: usize,
    /// Seed of training, drawn questions and intervals
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Defaults of trained vectors [default: auto, and paper where the experiment is about its settings]
    #[arg(long, value_enum)]
    pub(crate) preset: Option<PresetArg>,
    /// Set any key of every vector's recipe (repeatable): --set optimiser.lr=1e-3
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<Setting>,
    /// Arithmetic of the large matrix products
    #[arg(long, value_enum, default_value_t)]
    pub(crate) precision: PrecisionArg,
    #[command(flatten)]
    pub(crate) device: super::common::DeviceArgs,
    #[command(flatten)]
    pub(crate) judging: JudgeArgs,
    /// The experiment's folder [default: runs/reproduce/ID, with -quick behind it for a quick run]
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// `NAME=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_lowercase(), path: path.into() })
            }
            _ => Err("expected NAME=PATH, such as mmlu=mmlu_test.jsonl".into()),
        }
    }
}
