//! What a decoder is made of: the family as data.

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
    /// Divisors per frequency as a file stores them (GGUF `rope_freqs.weight`), `[head_dim / 2]`.
    Divisors(Vec<f32>),
}

impl Rope {
    /// Angular frequencies `[head_dim / 2]` in radians per position.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let base = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        match &self.scaling {
            RopeScaling::None => base.collect(),
            RopeScaling::Divisors(d) => base.zip(d).map(|(f, &d)| f / f64::from(d)).collect(),
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
        }
    }
}
