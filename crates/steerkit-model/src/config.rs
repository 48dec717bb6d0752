//! What a decoder is made of: the family as data.

pub use steerkit_kernels::mlp::Activation;

/// Every number and switch the decoder needs. A model family is a function from its file's metadata to this.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Architecture as the file names it, for messages and provenance (`llama`).
    pub architecture: String,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Numbers per head; even.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub d_ff: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest text the model was made for, in tokens.
    pub context: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// What the family has beyond a plain Llama.
    pub features: Features,
}

/// What families have beyond a plain Llama; the default is a plain Llama.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Activation of the MLP's gate.
    pub activation: Activation,
    /// Factor of the attention scores; `head_dim^-½` when `None`.
    pub attn_scale: Option<f32>,
    /// Bound of the attention scores, by `cap · tanh(score / cap)`.
    pub attn_softcap: Option<f32>,
    /// Bound of the logits, likewise.
    pub logit_softcap: Option<f32>,
    /// Factor of the embedding.
    pub embed_scale: f32,
    /// Factor of what attention and the MLP add to the residual stream.
    pub residual_scale: f32,
    /// Factor of the logits.
    pub logit_scale: f32,
    /// Where the norms of a block stand.
    pub norms: Norms,
    /// Norms of queries and keys, before the rotary embedding.
    pub qk_norm: QkNorm,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Numbers of a head that turn, the first ones; all when `None`.
    pub rotary_dim: Option<usize>,
    /// The rotary embedding of blocks with a window, where it is another one.
    pub local_rope: Option<Rope>,
    /// Which tokens each block sees and whether it turns its heads; empty: all of them do what a plain Llama's do.
    pub blocks: Vec<BlockFeatures>,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            activation: Activation::Silu,
            attn_scale: None,
            attn_softcap: None,
            logit_softcap: None,
            embed_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            norms: Norms::Before,
            qk_norm: QkNorm::None,
            biases: Biases::default(),
            rotary_dim: None,
            local_rope: None,
            blocks: Vec::new(),
        }
    }
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and before the MLP.
    Before,
    /// Before and after each.
    Around,
    /// After each, before it is added to the residual stream.
    After,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Of each head, all with the same gain.
    PerHead,
    /// Of all heads of a row together.
    Whole,
}

/// Which projections have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The output of attention.
    pub attn_out: bool,
    /// All three of the MLP.
    pub mlp: bool,
}

/// What one block does its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFeatures {
    /// Tokens that a token sees at most, itself included.
    pub window: Option<usize>,
    /// Whether its queries and keys turn with their position.
    pub rotary: bool,
}

impl DecoderConfig {
    /// What block `layer` does its own way.
    pub fn block(&self, layer: usize) -> BlockFeatures {
        let plain = BlockFeatures { window: None, rotary: true };
        self.features.blocks.get(layer).copied().unwrap_or(plain)
    }

    /// Factor of the attention scores.
    pub fn attn_scale(&self) -> f32 {
        self.features.attn_scale.unwrap_or_else(|| 1.0 / (self.head_dim as f32).sqrt())
    }

    /// Numbers of a head that turn.
    pub fn rotary_dim(&self) -> usize {
        self.features.rotary_dim.unwrap_or(self.head_dim)
    }
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Which two numbers of a head turn together.
    pub pairing: RopePairing,
    /// How the frequencies are changed for longer texts.
    pub scaling: RopeScaling,
}

/// Which two numbers of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// `(i, i + h/2)`: Hugging Face checkpoints.
    Halves,
    /// `(2i, 2i + 1)`: GGUF files of the Llama family, whose q and k rows are permuted so.
    Adjacent,
}

/// How rotary frequencies are changed for longer texts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// All divided by a factor.
    Linear(f64),
    /// Llama 3's blend by wavelength.
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided by `factor`.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Context of the pre-training.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023): a blend by turns within the original context.
    Yarn {
        /// Divides low frequencies.
        factor: f64,
        /// Frequencies that turn more often than this within the original context stay.
        beta_fast: f64,
        /// Frequencies that turn less often than this are divided by `factor`.
        beta_slow: f64,
        /// Context of the pre-training.
        original_context: usize,
        /// Whether the bounds of the blend are whole frequency indices.
        truncate: bool,
        /// Factor of cosines and sines.
        magnitude: f64,
    },
    /// Divisors per frequency as a file stores them (GGUF `rope_freqs.weight`), `[rotary_dim / 2]`.
    Divisors(Vec<f32>),
    /// LongRoPE (Ding et al. 2024).
    LongRope {
        /// Divisors per frequency in use, `[rotary_dim / 2]`: the short ones, for texts within the original context,
        /// unless [`DecoderConfig::use_long_context`] chose the others.
        divisors: Vec<f32>,
        /// Factor of cosines and sines.
        magnitude: f64,
        /// What reaches beyond the original context.
        long: Option<LongContext>,
    },
}

/// The other half of a LongRoPE.
#[derive(Clone, Debug, PartialEq)]
pub struct LongContext {
    /// Divisors per frequency for texts beyond the original context.
    pub divisors: Vec<f32>,
    /// The longest text in tokens.
    pub context: usize,
}

impl DecoderConfig {
    /// Computes LongRoPE with its long divisors from now on, for texts of any length, and opens the whole context. False
    /// where the model has none.
    pub fn use_long_context(&mut self) -> bool {
        let RopeScaling::LongRope { divisors, long, .. } = &mut self.rope.scaling else { return false };
        let Some(LongContext { divisors: others, context }) = long.take() else { return false };
        *divisors = others;
        self.context = context;
        true
    }
}

impl Rope {
    /// Angular frequencies `[rotary_dim / 2]` in radians per position.
    pub fn frequencies(&self, rotary_dim: usize) -> Vec<f64> {
        let base = (0..rotary_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / rotary_dim as f64));
        match &self.scaling {
            RopeScaling::None => base.collect(),
            RopeScaling::Linear(factor) => base.map(|f| f / factor).collect(),
            RopeScaling::Divisors(d) | RopeScaling::LongRope { divisors: d, .. } => {
                base.zip(d).map(|(f, &d)| f / f64::from(d)).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let context = *original_context as f64;
                base.map(|f| {
                    let wavelength = 2.0 * std::f64::consts::PI / f;
                    if wavelength < context / high_freq_factor {
                        f
                    } else if wavelength > context / low_freq_factor {
                        f / factor
                    } else {
                        let smooth =
                            (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                })
                .collect()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } => {
                // The index of the frequency that turns so often within the original context.
                let index = |turns: f64| {
                    let context = *original_context as f64;
                    rotary_dim as f64 * (context / (turns * 2.0 * std::f64::consts::PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (index(*beta_fast), index(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(rotary_dim as f64 - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                base.enumerate()
                    .map(|(i, f)| {
                        let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                        f / factor * divided + f * (1.0 - divided)
                    })
                    .collect()
            }
        }
    }

    /// Factor of cosines and sines.
    pub fn magnitude(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { magnitude, .. } | RopeScaling::LongRope { magnitude, .. } => magnitude,
            _ => 1.0,
        }
    }
}
