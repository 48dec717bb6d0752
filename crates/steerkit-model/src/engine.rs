//! The decoder without its backend's type: what [`crate::Model`] holds.

use crate::backend::{Backend, cpu::Cpu};
use crate::decoder::Decoder;
use crate::edit::{EditedScores, TextEdits};
use crate::pass::{Gradients, Pass};
use crate::weights::Weights;
use crate::{DecoderConfig, Edit, OpenOptions, Pack, Result};
use std::any::Any;

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU, on our own kernels.
    #[default]
    Cpu,
    /// A device of the tensor library.
    #[cfg(feature = "device")]
    Candle(CandleDevice),
}

/// A device of the tensor library. One that this build has no support for is refused when a model is opened.
#[cfg(feature = "device")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandleDevice {
    /// The CPU: the check of what the others run.
    Cpu,
    /// The NVIDIA GPU of this number (feature `cuda`).
    Cuda(usize),
    /// The Apple GPU of this number (feature `metal`).
    Metal(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    /// `cpu`, `cuda[:N]` or `metal[:N]`, and `candle-cpu`, the tensor library on the CPU; an error for what this build has
    /// no support for.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, number) = text.split_once(':').unwrap_or((text, "0"));
        let number = number.parse::<usize>().map_err(|_| format!("expected a number after {name}:"));
        let without = |feature: &str| {
            Err(format!(
                "this build has no support for {name}: build it with `cargo build --release --features {feature}`"
            ))
        };
        match name {
            "cpu" if text == name => Ok(Self::Cpu),
            #[cfg(feature = "device")]
            "candle-cpu" if text == name => Ok(Self::Candle(CandleDevice::Cpu)),
            #[cfg(not(feature = "device"))]
            "candle-cpu" if text == name => without("device"),
            #[cfg(feature = "cuda")]
            "cuda" => Ok(Self::Candle(CandleDevice::Cuda(number?))),
            #[cfg(feature = "metal")]
            "metal" => Ok(Self::Candle(CandleDevice::Metal(number?))),
            "cuda" | "metal" => number.and_then(|_| without(name)),
            _ => Err("expected cpu, cuda, cuda:N, metal or metal:N".into()),
        }
    }
}

/// A [`Decoder`] on some backend.
pub(crate) trait Engine: Send + Sync {
    fn config(&self) -> &DecoderConfig;

    /// The residual stream after block `layer`, `[t, d]`.
    fn residual(&self, pack: &Pack, layer: usize) -> Result<Vec<f32>>;

    /// The residual streams after each of `layers` (ascending), from one pass, `[t, d]` each.
    fn residuals(&self, pack: &Pack, layers: &[usize]) -> Result<Vec<Vec<f32>>>;

    /// Log-probabilities of the scored tokens of a pass.
    fn score(&self, pass: &Pass<'_>) -> Result<Vec<f32>>;

    /// [`Self::score`], and its VJP.
    fn score_kept(&self, pass: &Pass<'_>) -> Result<(Vec<f32>, Box<Vjp<'_>>)>;

    /// Log-probabilities of the pack's scored tokens under each plan and, when asked for, the divergence from the
    /// plain model where they are predicted.
    fn score_edited(&self, pack: &Pack, plans: &[TextEdits], divergences: bool) -> Result<Vec<EditedScores>>;

    /// Feeds new tokens of several texts through the model, extends their caches, and gives the logits after
    /// the last [`CachedRun::wanted`] tokens of each, run by run, `[sum of wanted, v]`.
    fn advance(&self, runs: &mut [CachedRun<'_>]) -> Result<Vec<f32>>;

    fn new_cache(&self) -> KvCache;

    /// A copy of the first `len` tokens of a cache.
    fn cache_prefix(&self, cache: &KvCache, len: usize) -> Result<KvCache>;
}

/// From `coef`, and memory for the first of them, to the gradients of `Σ coef[i] · logps[i]`.
pub(crate) type Vjp<'m> = dyn FnOnce(&[f32], Vec<f32>) -> Result<Gradients> + 'm;

/// Keys and values of one text at every block of the decoder that made it.
pub(crate) struct KvCache {
    /// A `Vec<B::Cache>`.
    layers: Box<dyn Any + Send + Sync>,
    /// The tokens that were read.
    pub(crate) tokens: Vec<u32>,
}

impl KvCache {
    pub(crate) fn new<B: Backend>(layers: Vec<B::Cache>) -> Self {
        Self { layers: Box::new(layers), tokens: Vec::new() }
    }

    /// The keys and values, one entry per block.
    ///
    /// # Panics
    /// When a decoder on another backend made it.
    pub(crate) fn stored<B: Backend>(&self) -> &[B::Cache] {
        self.layers.downcast_ref::<Vec<B::Cache>>().expect("a sequence is read by the model that made it")
    }

    /// Tokens held.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// # Panics
    /// When a decoder on another backend made it.
    pub(crate) fn layers<B: Backend>(&mut self) -> &mut [B::Cache] {
        self.layers.downcast_mut::<Vec<B::Cache>>().expect("a sequence is read by the model that made it")
    }
}

/// New tokens of one text.
pub(crate) struct CachedRun<'a> {
    pub(crate) cache: &'a mut KvCache,
    pub(crate) edits: &'a [Edit],
    pub(crate) tokens: &'a [u32],
    /// Of how many of its last tokens the logits are wanted.
    pub(crate) wanted: usize,
}

/// A decoder where `options` want it.
pub(crate) fn open(
    options: &OpenOptions,
    config: DecoderConfig,
    weights: &Weights,
) -> Result<Box<dyn Engine>> {
    match options.device {
        DeviceChoice::Cpu => Ok(Box::new(Decoder::new(Cpu::new(options.precision), config, weights)?)),
        #[cfg(feature = "device")]
        DeviceChoice::Candle(device) => {
            let backend = crate::backend::device::Device::open(device, options.precision)?;
            Ok(Box::new(Decoder::new(backend, config, weights)?))
        }
    }
}
