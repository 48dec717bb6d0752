//! `steerkit data`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::asking::AskArgs;
use super::common::positive;

/// Check, convert and draft preference pairs
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    Check(DataCheck),
    Import(DataImport),
    Generate(DataGenerate),
}

/// Measure what pairs give away besides the behaviour
///
/// A vector learns whatever tells the two sides apart. This counts empty cells, repeats, prompts shared between
/// splits and responses that begin alike, and shows how far length or the first word alone would go. Exits
/// with 3 when a bar is not met.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit data check data/formality
      A folder with train, valid and test (.jsonl, .csv or .parquet).
  steerkit data check pairs.csv --json
  steerkit data check data/brevity --length-is-behaviour")]
pub(crate) struct DataCheck {
    /// A folder with train, valid and test files, or one file
    #[arg(value_name = "DIR|FILE")]
    pub(crate) path: PathBuf,
    /// Length is what the behaviour is about: show the length properties, but do not hold them against the data
    #[arg(long)]
    pub(crate) length_is_behaviour: bool,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
}

/// Convert pairs to JSONL
///
/// Reads the authors' CSV layout (question, matching, not_matching), any CSV, JSONL or Parquet whose columns you name, or
/// another project's layout, and writes one object with prompt, chosen and rejected per line. Rows are streamed; the file appears when it
/// is complete.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit data import power-seeking_train.csv pairs.jsonl
  steerkit data import export.csv pairs.jsonl --chosen-column good --rejected-column bad
  steerkit data import pairs.csv pairs.jsonl --dedup --limit 1000
  steerkit data import TruthfulQA.csv truthful.jsonl --layout truthfulqa")]
pub(crate) struct DataImport {
    /// The file to read
    #[arg(value_name = "FROM")]
    pub(crate) from: PathBuf,
    /// The JSONL file to write
    #[arg(value_name = "TO")]
    pub(crate) to: PathBuf,
    /// How the file holds its pairs
    #[arg(long, value_enum, default_value_t)]
    pub(crate) layout: LayoutArg,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
    /// Stop after N pairs
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Leave out repeated rows
    #[arg(long)]
    pub(crate) dedup: bool,
    /// Replace TO when it is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Draft pairs for a behaviour by another model
///
/// Asks for pairs about one everyday topic after another, drops what is empty, repeated, refused, one-sided or alike,
/// balances lengths, and writes train, valid and test with provenance.json beside them. Then it checks the set as
/// `data check` does. Drafts are drafts: read some of them before you train on them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit data generate --behavior \"answers with dry humour; the opposite is plain and serious\" --n 240 \\
      --endpoint http://localhost:8080/v1 --endpoint-model qwen --out data/humour
  steerkit data generate --behavior \"asks a question back\" --n 100 --local qwen2.5-7b.gguf --out data/asking")]
pub(crate) struct DataGenerate {
    /// What the chosen answers do and the rejected ones do not
    #[arg(long, value_name = "TEXT")]
    pub(crate) behavior: String,
    /// Pairs, over all splits
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) n: usize,
    /// Folder for the splits and provenance.json
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Address of an OpenAI-compatible endpoint, up to /v1
    #[arg(
        long,
        value_name = "URL",
        requires = "endpoint_model",
        conflicts_with = "local",
        required_unless_present = "local"
    )]
    pub(crate) endpoint: Option<String>,
    /// The endpoint's model
    #[arg(long, value_name = "NAME")]
    pub(crate) endpoint_model: Option<String>,
    /// Draft by a model in this process
    #[arg(long, value_name = "MODEL")]
    pub(crate) local: Option<String>,
    /// Keep answers that refuse: for behaviours that are about refusing
    #[arg(long)]
    pub(crate) keep_refusals: bool,
    /// Drop pairs with one answer more than R times as long as the other
    #[arg(long, value_name = "R", default_value_t = 2.0)]
    pub(crate) max_length_ratio: f64,
    /// Pairs that a call asks for
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub(crate) per_call: usize,
    /// Seed of the drafts and of the splits
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Replace the set that is in the folder
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// How a file holds its pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutArg {
    /// One pair per row or line; the columns can be named
    #[default]
    Pairs,
    /// Anthropic's model-written evaluations (JSONL, answers are letters)
    Anthropic,
    /// CAA's multiple-choice sets (a JSON array, answers are letters)
    Caa,
    /// TruthfulQA's CSV: every correct answer with every incorrect one
    Truthfulqa,
    /// HH-RLHF's JSONL of two transcripts
    Hh,
}

/// Where the pairs are in the file.
#[derive(Debug, Args)]
pub(crate) struct ColumnArgs {
    /// Layout of the file [default: by its extension]
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,
    /// Column or key of the prompt [default: prompt or question]
    #[arg(long, value_name = "NAME")]
    pub(crate) prompt_column: Option<String>,
    /// Column or key of the answer with the behaviour [default: chosen or matching]
    #[arg(long, value_name = "NAME")]
    pub(crate) chosen_column: Option<String>,
    /// Column or key of the answer with its opposite [default: rejected or not_matching]
    #[arg(long, value_name = "NAME")]
    pub(crate) rejected_column: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// A header row, then one pair per row
    Csv,
    /// One JSON object per line
    Jsonl,
}
