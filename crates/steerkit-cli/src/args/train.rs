//! `steerkit train`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use steerkit::TokenScope;
use steerkit::recipe::Method;

use super::common::{DeviceArgs, PrecisionArg, multiplier, positive};

/// Train a steering vector from preference pairs
///
/// Reads pairs of a prompt, an answer with the behaviour and an answer with its opposite, and optimises one
/// vector against the frozen model (BiPO, arXiv 2406.00045). A run is described by a recipe (TOML), by options,
/// or by both; options win over the recipe, and what neither says comes from the preset. The run's folder gets
/// the vector, the resolved recipe, metrics and checkpoints.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit train --model smollm2-135m --data pairs.csv --layer 15
      Columns prompt, chosen, rejected (or question, matching, not_matching), CSV, JSONL or Parquet.
  steerkit train --model model.gguf --data train.csv --valid valid.csv --test test.csv --layer auto
      Chooses the best of four layers on the validation pairs, then measures on the test pairs.
  steerkit train --model model.gguf --data a.csv --preset paper --epochs 5 --set objective.beta=0.2
      The paper's settings, with two of them changed.
  steerkit train --model model.gguf --data a.csv --method caa --layer 15
      Another method on the same pairs; docs/methods.md says what each does.
  steerkit train --model model.gguf --data a.csv --method dpo-lora --set optimiser.lr=1e-3
      Not a vector but a LoRA adapter, for comparison; use it with --lora runs/a/adapter=0.5.
  steerkit train --model model.gguf --data a.csv --method mean-diff --each-layer 8,12,16 --out runs/layers
      One vector per layer: runs/layers/layer-8 and so on.
  steerkit train recipes/power.toml --seed 7
  steerkit train --out runs/pairs --resume
      Goes on where an interrupted run stopped, with the recipe in its folder.

Ctrl-C saves the run and prints the command that resumes it; a second Ctrl-C stops at once.")]
pub(crate) struct TrainArgs {
    /// A recipe (TOML)
    #[arg(value_name = "RECIPE")]
    pub(crate) recipe: Option<PathBuf>,
    /// The model: a .gguf file, a Hugging Face folder, or the name of a pulled model
    #[arg(long, short, value_name = "FILE|DIR|NAME")]
    pub(crate) model: Option<String>,
    /// A LoRA adapter on the model, a PEFT folder or a GGUF adapter, and how much of it [default weight: 1]; repeatable
    #[arg(long, value_name = "ADAPTER[=W]")]
    pub(crate) lora: Vec<String>,
    /// Pairs to train on, CSV, JSONL or Parquet; a folder is read as train, valid and test files
    #[arg(long, short, value_name = "FILE|DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Pairs to measure on while training and to choose the layer with [default: some training pairs held out]
    #[arg(long, value_name = "FILE")]
    pub(crate) valid: Option<PathBuf>,
    /// Pairs to measure the finished vector on
    #[arg(long, value_name = "FILE")]
    pub(crate) test: Option<PathBuf>,
    /// How the vector is made [default: bipo]
    #[arg(long, value_enum)]
    pub(crate) method: Option<MethodArg>,
    /// Tokens that the vector acts on: all, all-but-first, prompt, generated, last-prompt, first-K+last-K or last-user
    /// [default: the method's]
    #[arg(long, value_name = "SCOPE")]
    pub(crate) scope: Option<TokenScope>,
    /// Where the defaults come from [default: auto]
    #[arg(long, value_enum)]
    pub(crate) preset: Option<PresetArg>,
    /// Block after which the vector is added, counted from 0; auto tries four and keeps the best [default: auto]
    #[arg(long, short, value_name = "N|auto")]
    pub(crate) layer: Option<LayerArg>,
    /// Several blocks, with commas between: a vector for each, trained together into one file
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', conflicts_with = "layer")]
    pub(crate) layers: Option<Vec<usize>>,
    /// Make one vector for each of these blocks, in layer-N below the run's folder; one pass of the pairs serves them all
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', conflicts_with_all = ["layer", "layers"])]
    pub(crate) each_layer: Vec<usize>,
    /// Use the first N pairs after a shuffle with the seed
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Seed of the order of the pairs and of the directions [default: 42]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Arithmetic of the large matrix products [default: f32]
    #[arg(long, value_enum)]
    pub(crate) precision: Option<PrecisionArg>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Passes over the pairs
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "steps")]
    pub(crate) epochs: Option<usize>,
    /// Optimiser steps
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) steps: Option<usize>,
    /// Pairs per step
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) batch: Option<usize>,
    /// System prompt; empty for none
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Multipliers to measure the finished vector at, with commas between [default: -1,0,1]
    #[arg(long, value_name = "M,M,..", value_delimiter = ',', allow_hyphen_values = true, value_parser = multiplier)]
    pub(crate) multipliers: Option<Vec<f64>>,
    /// Set any key of the recipe (repeatable): --set optimiser.lr=1e-3
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<Setting>,
    /// Leave out repeated rows of the data
    #[arg(long)]
    pub(crate) dedup: bool,
    /// Refuse data with empty cells, repeated rows or prompts, or equal sides
    #[arg(long)]
    pub(crate) strict: bool,
    /// Keep no residual streams on disk for later runs
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// The run's folder [default: runs/ and the name of the recipe or the data]
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Go on with the interrupted run in the folder
    #[arg(long)]
    pub(crate) resume: bool,
    /// Replace the run in the folder
    #[arg(long, conflicts_with = "resume")]
    pub(crate) overwrite: bool,
}

/// A [`Method`] as an argument: the library's list of them is the only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MethodArg(pub(crate) Method);

impl ValueEnum for MethodArg {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: [MethodArg; Method::ALL.len()] = {
            let mut all = [MethodArg(Method::Bipo); Method::ALL.len()];
            let mut i = 0;
            while i < all.len() {
                all[i] = MethodArg(Method::ALL[i]);
                i += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()).help(self.0.summary()))
    }
}

/// Defaults of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PresetArg {
    /// A fixed dose and eight steps: nothing to tune
    Auto,
    /// The settings that the paper states
    Paper,
    /// What the authors' published code does
    Official,
}

impl PresetArg {
    /// As a recipe names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Paper => "paper",
            Self::Official => "official",
        }
    }
}

/// A block number or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerArg {
    Auto,
    Block(usize),
}

impl FromStr for LayerArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Block).map_err(|_| "expected a block number from 0, or auto".into()),
        }
    }
}

/// One `--set`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok(Self { key: key.trim().into(), value: value.trim().into() })
            }
            _ => Err("expected KEY=VALUE, such as objective.beta=0.2".into()),
        }
    }
}
