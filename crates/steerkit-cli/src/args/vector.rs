//! `steerkit vector`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use steerkit::TokenScope;
use steerkit::interop::SourceConvention;

use steerkit_model::LoraChoice;

use super::common::{DeviceArgs, ModelArgs, ModelPrecision, multiplier, positive};

/// Look at, convert, combine and calibrate steering vectors
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
  steerkit vector inspect demo --json
  steerkit vector inspect vec_ep20_layer15.pt")]
    Inspect {
        /// A file, or the name of a run
        #[arg(value_name = "FILE|NAME")]
        vector: String,
    },
    Convert(VectorConvert),
    Combine(VectorCombine),
    Compare(VectorCompare),
    Calibrate(VectorCalibrate),
    TransferCheck(VectorTransfer),
    Gate(VectorGate),
}

/// Convert a vector file to another program's format
///
/// Reads safetensors (steerkit's, psyctl's, steering-lite's), GGUF control vectors (llama.cpp, repeng) and PyTorch files
/// with one tensor (the authors' .pt); writes what the extension of OUT names. PyTorch files are read by an interpreter
/// that knows a tensor and nothing else: nothing in a file is ever executed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit vector convert formality formality.gguf
      For llama.cpp: llama-cli --control-vector-scaled formality.gguf:1.0
  steerkit vector convert wealth_vec_ep20_layer15.pt wealth.safetensors
  steerkit vector convert happy.gguf happy.safetensors --layer 14 --source-convention cvector-generator")]
pub(crate) struct VectorConvert {
    /// The file to read, or the name of a run
    #[arg(value_name = "IN")]
    pub(crate) from: String,
    /// The file to write: .safetensors, .gguf or .pt
    #[arg(value_name = "OUT")]
    pub(crate) to: PathBuf,
    /// What the layer numbers of IN mean: block-output, cvector-generator, hidden-states or block-input
    #[arg(long, value_name = "CONVENTION", default_value = "block-output")]
    pub(crate) source_convention: SourceConvention,
    /// Take only this layer, or name the layer of a file that does not say
    #[arg(long, value_name = "N")]
    pub(crate) layer: Option<usize>,
    /// Replace OUT when it is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Add vectors up into a new one
///
/// Prints norms, cosines and the dose of the sum; with a model also how much the parts and the whole disturb it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit vector combine \"power + 0.5*wealth - halluc\" --out mix.safetensors
  steerkit vector combine power --orthogonal-to wealth --out pure-power.safetensors
  steerkit vector combine \"a + b\" --norm 16 --out ab.safetensors --model smollm2-135m")]
pub(crate) struct VectorCombine {
    /// Names or files with factors; spaces around + and -
    #[arg(value_name = "SUM", allow_hyphen_values = true)]
    pub(crate) sum: String,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Keep only what is at right angles to this vector (repeatable)
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) orthogonal_to: Vec<String>,
    /// Keep only what lies in the span of these vectors (repeatable)
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "orthogonal_to")]
    pub(crate) project_onto: Vec<String>,
    /// Bring the result to this norm
    #[arg(long, value_name = "NORM")]
    pub(crate) norm: Option<f64>,
    /// Measure on this model how much parts and whole change its predictions
    #[arg(long, short, value_name = "FILE|DIR|NAME")]
    pub(crate) model: Option<String>,
    /// Prompts for that, one JSON text or object per line [default: eight questions]
    #[arg(long, value_name = "FILE", requires = "model")]
    pub(crate) prompts: Option<PathBuf>,
    /// Replace the file when it is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Print and plot the cosines between vectors
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit vector compare power wealth hallucination
  steerkit vector compare runs/*/vector.safetensors --svg cosines.svg")]
pub(crate) struct VectorCompare {
    /// Files or names of runs, at least two
    #[arg(value_name = "FILE|NAME", required = true, num_args = 2..)]
    pub(crate) vectors: Vec<String>,
    /// Write the matrix as a picture
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// Find the multiplier at which a vector disturbs its model by a set amount
///
/// Answers prompts greedily and searches for the multiplier at which the 95th percentile over tokens of KL(steered ||
/// plain) is the target. The multiplier is stored in the vector's file as its unit dose: --calibrated counts in it, so
/// that vectors of different methods compare at equal disturbance.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit vector calibrate formality --model smollm2-135m
  steerkit generate --model smollm2-135m --steer formality=1 --calibrated --prompt '...'")]
pub(crate) struct VectorCalibrate {
    /// A file, or the name of a run
    #[arg(value_name = "FILE|NAME")]
    pub(crate) vector: String,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The divergence that counts as one, in nats
    #[arg(long, value_name = "NATS", default_value_t = 1.0)]
    pub(crate) kl: f64,
    /// Tokens per answer
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = positive)]
    pub(crate) tokens: usize,
    /// Prompts, one JSON text or object per line [default: eight questions]
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Write the calibrated vector here [default: into its file]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// Measure a vector on another model than the one it was trained on
///
/// Both models must have the same width. Prints how long the residual stream of each is at the vector's block, the
/// cosine of the vector with each model's own mean difference of activations, margins on held-out pairs at each
/// multiplier with 95% bootstrap intervals, and answers side by side; also on pairs in another language.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit vector transfer-check --from model-Q4_1.gguf --to model-Q8_0.gguf --vector formality \\
      --data data/formality/test.jsonl
  steerkit vector transfer-check --from base.gguf --to base.gguf --to-lora adapter --vector formality \\
      --data test.jsonl --rescale --html transfer.html")]
pub(crate) struct VectorTransfer {
    /// The model that the vector was trained on: a .gguf file, a Hugging Face folder, or the name of a pulled model
    #[arg(long, value_name = "FILE|DIR|NAME")]
    pub(crate) from: String,
    /// The other model
    #[arg(long, value_name = "FILE|DIR|NAME")]
    pub(crate) to: String,
    /// A LoRA adapter on the other model, and how much of it [default weight: 1]; repeatable
    #[arg(long, value_name = "ADAPTER[=W]")]
    pub(crate) to_lora: Vec<LoraChoice>,
    /// The vector: a file, or the name of a run
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) vector: String,
    /// Pairs of the vector's behaviour that it was not trained on, CSV, JSONL or Parquet
    #[arg(long, short, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Pairs in another language [default: only 20 questions in German, to be answered]
    #[arg(long, value_name = "FILE")]
    pub(crate) translated: Option<PathBuf>,
    /// Use the first N pairs of each file
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Multipliers to measure margins at
    #[arg(
        long,
        value_name = "M,M,..",
        value_delimiter = ',',
        allow_hyphen_values = true,
        value_parser = multiplier,
        default_values_t = [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]
    )]
    pub(crate) multipliers: Vec<f64>,
    /// Rescale the vector on the other model to the same share of its residual stream
    #[arg(long)]
    pub(crate) rescale: bool,
    /// Questions of the pairs to answer at -1, 0 and 1, beside those in the other language
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) questions: usize,
    /// Tokens per answer
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = positive)]
    pub(crate) max_tokens: usize,
    /// Write the result as a page
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Arithmetic of the large matrix products
    #[arg(long, value_enum, default_value_t)]
    pub(crate) precision: ModelPrecision,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Make a condition for generate --gate, or find its threshold
///
/// Takes prompts that should be steered and prompts that should not. With --layer, the condition is the difference of
/// their mean residual streams there, from every other prompt of each file; the rest decide the threshold. Without
/// it, VECTOR is a vector that is there, and all prompts decide. The threshold is the cosine with the highest F1, and is
/// stored in the vector's file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit vector gate about-work --model smollm2-135m --layer 12 --positive work.jsonl --negative other.jsonl
      Writes about-work.safetensors.
  steerkit vector gate runs/formality/vector.safetensors --model smollm2-135m --positive a.jsonl --negative b.jsonl
  steerkit generate --model smollm2-135m --steer formality=1 --gate about-work --prompt '...'")]
pub(crate) struct VectorGate {
    /// A file, or the name of a run; with --layer the name of the new file
    #[arg(value_name = "VECTOR")]
    pub(crate) vector: String,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Prompts that meet the condition, one JSON text or object per line
    #[arg(long, value_name = "FILE")]
    pub(crate) positive: PathBuf,
    /// Prompts that do not
    #[arg(long, value_name = "FILE")]
    pub(crate) negative: PathBuf,
    /// Make the condition after this block
    #[arg(long, short, value_name = "N")]
    pub(crate) layer: Option<usize>,
    /// Tokens of the prompt that a new condition looks at [default: last-user, the user's words]
    #[arg(long, value_name = "SCOPE", requires = "layer")]
    pub(crate) scope: Option<TokenScope>,
    /// Write the vector here [default: into its file]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}
