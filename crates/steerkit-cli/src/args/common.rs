//! Options that several commands share.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use steerkit::{Operator, TokenScope};
use steerkit_model::{DeviceChoice, LoraChoice, LoraMode, Precision};

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Print results as JSON: one object per result, the last line of stdout is the last result
    #[arg(long, global = true, help_heading = "Every command")]
    pub(crate) json: bool,
    /// Print only results and errors
    #[arg(long, short, global = true, help_heading = "Every command")]
    pub(crate) quiet: bool,
    /// Threads to compute with [default: all cores]
    ///
    /// The number of threads changes the speed, never the result.
    #[arg(long, value_name = "N", global = true, help_heading = "Every command", value_parser = threads)]
    pub(crate) threads: Option<usize>,
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err("expected a number from 1 to 1024".into()),
    }
}

/// Which model, and how it computes.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// The model: a .gguf file, a Hugging Face folder, or the name of a pulled model
    #[arg(long, short, value_name = "FILE|DIR|NAME")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) lora: LoraArgs,
    /// Arithmetic of the large matrix products
    #[arg(long, value_enum, default_value_t)]
    pub(crate) precision: ModelPrecision,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Where and how far the model runs.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Compute a LongRoPE (Phi-3) for texts beyond its original context, whatever their length
    #[arg(long)]
    pub(crate) long_context: bool,
    /// Where the model runs: cpu, cuda[:N] or metal[:N], where this build has them [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<DeviceChoice>,
}

impl DeviceArgs {
    /// The device asked for, else the CPU.
    pub(crate) fn choice(self) -> DeviceChoice {
        self.device.unwrap_or_default()
    }
}

/// Arithmetic of the large matrix products of an opened model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModelPrecision {
    /// 32-bit floats
    #[default]
    F32,
    /// bfloat16 inputs with 32-bit sums: faster on CPUs that have it, less exact
    Bf16,
    /// 8-bit inputs times the codes of a quantised model's weights, as llama.cpp has it: fastest for a few texts, least
    /// exact; other matrices in 32-bit floats
    Int8,
    /// The faster one here of the exact and bf16: bf16 for 8 texts or more at a time on CPUs with AMX, else f32
    Auto,
}

impl ModelPrecision {
    /// The precision for this many texts at a time.
    pub(crate) fn resolve(self, texts: usize) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::Int8 => Precision::Int8,
            Self::Auto => Precision::fastest_for(texts),
        }
    }
}

/// Adapters on the model.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoraArgs {
    /// A LoRA adapter on the model, a PEFT folder or a GGUF adapter, and how much of it [default weight: 1]; repeatable
    #[arg(long, value_name = "ADAPTER[=W]")]
    pub(crate) lora: Vec<LoraChoice>,
    /// Add the adapters to the weights, at four bytes a number, in place of computing them beside
    #[arg(long, requires = "lora")]
    pub(crate) merge_lora: bool,
}

impl LoraArgs {
    /// How the adapters become part of the model.
    pub(crate) fn mode(&self) -> LoraMode {
        if self.merge_lora { LoraMode::Merged } else { LoraMode::Beside }
    }
}

/// Arithmetic of the large matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionArg {
    /// 32-bit floats
    #[default]
    F32,
    /// bfloat16 inputs with 32-bit sums: faster on CPUs that have it, less exact
    Bf16,
}

impl PrecisionArg {
    /// As a recipe names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// How a question becomes the text that the model continues, and which vectors are added.
#[derive(Clone, Debug, Args)]
pub(crate) struct PromptArgs {
    /// Add a vector, MULT times (repeatable; 1 without =MULT)
    ///
    /// A file, or a name: NAME stands for ./NAME.safetensors, NAME/vector.safetensors or
    /// runs/NAME/vector.safetensors, whichever is there first.
    #[arg(long, short, value_name = "FILE|NAME[=MULT]")]
    pub(crate) steer: Vec<SteerSpec>,
    /// What is done with the vectors: add, ablate, one-sided[:BIAS] or clamp:LOW:HIGH
    #[arg(long, value_name = "OP", default_value = "add")]
    pub(crate) operator: Operator,
    /// Tokens that the vectors act on [default: those they were trained on]
    #[arg(long, value_name = "SCOPE")]
    pub(crate) scope: Option<TokenScope>,
    /// Count multipliers in the vectors' calibrated unit doses (see vector calibrate)
    #[arg(long)]
    pub(crate) calibrated: bool,
    /// System prompt; empty for none [default: the one that the vector was trained with]
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Apply vectors even when they were made with another model file
    #[arg(long)]
    pub(crate) force: bool,
}

/// A vector and how many times to add it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SteerSpec {
    /// A file or a name.
    pub(crate) vector: String,
    /// How many times it is added.
    pub(crate) multiplier: f64,
}

impl FromStr for SteerSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (vector, multiplier) = match text.rsplit_once('=') {
            Some((vector, number)) => (vector, multiplier(number)?),
            None => (text, 1.0),
        };
        if vector.is_empty() {
            return Err("expected a file or a name before `=`".into());
        }
        Ok(Self { vector: vector.into(), multiplier })
    }
}

/// A condition and the similarity from which on a prompt meets it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GateSpec {
    /// A file or a name.
    pub(crate) vector: String,
    /// The vector's own, unless given.
    pub(crate) threshold: Option<f32>,
}

impl FromStr for GateSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let given =
            text.rsplit_once(':').and_then(|(name, number)| Some((name, number.parse::<f32>().ok()?)));
        let (vector, threshold) = match given {
            Some((_, t)) if !(-1.0..=1.0).contains(&t) => {
                return Err(format!("found the threshold {t}, expected a cosine from -1 to 1"));
            }
            Some((vector, threshold)) => (vector, Some(threshold)),
            None => (text, None),
        };
        match vector.is_empty() {
            true => Err("expected a file or a name".into()),
            false => Ok(Self { vector: vector.into(), threshold }),
        }
    }
}

/// A finite number that is finite in 32 bits too.
pub(crate) fn multiplier(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(m) if (m as f32).is_finite() => Ok(m),
        Ok(_) => Err(format!("the multiplier {text} is not a finite 32-bit number")),
        Err(_) => Err(format!("expected a number as multiplier, found {text:?}")),
    }
}

/// How the next token is chosen.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// At most this many tokens per answer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    pub(crate) max_tokens: usize,
    /// 0 takes the likeliest token every time; higher values give more varied text
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub(crate) temperature: f32,
    /// Draw from the K likeliest tokens only [default: all]
    #[arg(long, value_name = "K", value_parser = positive)]
    pub(crate) top_k: Option<usize>,
    /// Draw from the smallest set of tokens with this much probability together [default: 1]
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) top_p: Option<f32>,
    /// Leave out tokens less likely than P times the likeliest [default: 0]
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) min_p: Option<f32>,
    /// Make tokens that already occurred less likely; 1 changes nothing
    #[arg(long, value_name = "R", value_parser = penalty)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Seed of the draws: the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// End the answer before this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

/// A whole number from 1.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a whole number from 1".into()),
    }
}

fn within(text: &str, range: std::ops::RangeInclusive<f32>) -> Result<f32, String> {
    match text.parse() {
        Ok(x) if range.contains(&x) => Ok(x),
        _ => Err(format!("expected a number from {} to {}", range.start(), range.end())),
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    within(text, 0.0..=10.0)
}

fn share(text: &str) -> Result<f32, String> {
    within(text, 0.0..=1.0)
}

fn penalty(text: &str) -> Result<f32, String> {
    within(text, 0.01..=100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_with_and_without_threshold() {
        let spec = |text: &str| text.parse::<GateSpec>();
        assert_eq!(spec("a.b:-0.5").unwrap(), GateSpec { vector: "a.b".into(), threshold: Some(-0.5) });
        assert_eq!(spec("c:/x").unwrap(), GateSpec { vector: "c:/x".into(), threshold: None });
        assert!(spec("a:2").is_err() && spec(":0.1").is_err() && spec("").is_err() && spec("a:nan").is_err());
    }

    #[test]
    fn a_vector_with_and_without_multiplier() {
        let spec = |text: &str| text.parse::<SteerSpec>();
        assert_eq!(spec("a.b=-1.5").unwrap(), SteerSpec { vector: "a.b".into(), multiplier: -1.5 });
        assert_eq!(spec("x=y=2").unwrap(), SteerSpec { vector: "x=y".into(), multiplier: 2.0 });
        assert_eq!(spec("runs/a").unwrap(), SteerSpec { vector: "runs/a".into(), multiplier: 1.0 });
        for bad in ["a=", "=1", "a=nan", "a=1e39", "a=inf", "a=two", ""] {
            assert!(spec(bad).is_err(), "{bad}");
        }
    }
}
