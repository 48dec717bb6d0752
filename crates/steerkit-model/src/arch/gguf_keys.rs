//! The metadata keys that GGUF files of all families share (`llama-arch.cpp` and `gguf/constants.py` of llama.cpp).

use super::{
    GGUF_NAMES,
    fields::{self, HeadFields, limit},
    rope,
};
use crate::{
    ModelError, Result,
    config::{Biases, BlockFeatures, DecoderConfig, Features, RopePairing},
    gguf::Gguf,
};

/// Keys, behind the architecture's name, that change what a model computes, with the value that changes nothing.
/// A family takes those that it reads out of the list.
const NUMERIC: &[(&str, f64)] = &[
    ("expert_count", 0.0),
    ("attention.sliding_window", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("attention.scale", f64::NAN),
    ("embedding_scale", 1.0),
    ("residual_scale", 1.0),
    ("logit_scale", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.temperature_scale", 0.0),
    ("attention.chunk_size", 0.0),
    ("attention.kv_lora_rank", 0.0),
    ("embedding_length_per_layer_input", 0.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
];

/// Truth values that change what a model computes, with the one that changes nothing.
const NUMERIC_FLAGS: &[(&str, bool)] =
    &[("use_parallel_residual", false), ("attention.causal", true), ("swin_norm", false)];

/// The keys of one architecture in a file.
pub(super) struct Keys<'g> {
    pub(super) gguf: &'g Gguf,
    arch: &'static str,
}

impl<'g> Keys<'g> {
    pub(super) fn new(gguf: &'g Gguf, arch: &'static str) -> Self {
        Self { gguf, arch }
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// A number of either type, 0 counting as not there.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        let (key, meta) = (self.key(name), &self.gguf.meta);
        let number = match meta.integer(&key) {
            Ok(n) => n.map(|n| n as f64),
            Err(_) => meta.float(&key)?,
        };
        match number {
            Some(x) if !x.is_finite() || x < 0.0 => {
                Err(meta.wrong(&key, x.to_string(), "a finite number that is not negative"))
            }
            number => Ok(number.filter(|&x| x != 0.0)),
        }
    }

    pub(super) fn size(&self, name: &str, max: u64) -> Result<usize> {
        fields::size(&self.gguf.meta, &self.key(name), max)
    }

    pub(super) fn window(&self) -> Result<Option<usize>> {
        let key = self.key("attention.sliding_window");
        Ok(self
            .gguf
            .meta
            .integer(&key)?
            .filter(|&w| w != 0)
            .map(|w| usize::try_from(w).unwrap_or(usize::MAX)))
    }

    /// What every decoder has. `reads` are the keys of [`NUMERIC`] that the family reads itself.
    pub(super) fn config(&self, pairing: RopePairing, reads: &[&str]) -> Result<DecoderConfig> {
        self.refuse_unread(reads)?;
        let meta = &self.gguf.meta;
        let d_model = self.size("embedding_length", limit::WIDTH)?;
        let [n_heads, n_kv_heads, head_dim] =
            ["attention.head_count", "attention.head_count_kv", "attention.key_length"]
                .map(|name| self.key(name));
        let names = HeadFields { n_heads: &n_heads, n_kv_heads: &n_kv_heads, head_dim: &head_dim };
        let (n_heads, n_kv_heads, head_dim) = fields::heads(meta, &names, d_model)?;
        let value_length = self.key("attention.value_length");
        if let Some(n) = meta.integer(&value_length)?.filter(|&n| n != head_dim as u64) {
            let known = head_dim.to_string();
            return Err(ModelError::unsupported(self.gguf.path(), &value_length, n.to_string(), &[&known]));
        }
        let rotary_dim = fields::rotary_dim(meta, &self.key("rope.dimension_count"), head_dim)?;
        let context = self.size("context_length", limit::CONTEXT)?;
        let features = Features { biases: self.biases(), rotary_dim, ..Features::default() };
        let rope = rope::from_gguf(self, pairing, rotary_dim.unwrap_or(head_dim))?;
        Ok(DecoderConfig {
            architecture: self.arch.to_owned(),
            n_layers: self.size("block_count", limit::LAYERS)?,
            d_model,
            n_heads,
            n_kv_heads,
            head_dim,
            d_ff: self.size("feed_forward_length", limit::FFN)?,
            vocab: self.vocab()?,
            context: rope::context(&rope, context, self.number("rope.scaling.original_context_length")?),
            norm_eps: fields::norm_eps(meta, &self.key("attention.layer_norm_rms_epsilon"))?,
            rope,
            features,
        })
    }

    fn refuse_unread(&self, reads: &[&str]) -> Result<()> {
        for &(name, neutral) in NUMERIC.iter().filter(|(name, _)| !reads.contains(name)) {
            if let Some(x) = self.number(name)?.filter(|&x| x != neutral) {
                let known = if neutral.is_nan() { "none".to_owned() } else { neutral.to_string() };
                return Err(ModelError::unsupported(
                    self.gguf.path(),
                    &self.key(name),
                    x.to_string(),
                    &[&known],
                ));
            }
        }
        for &(name, neutral) in NUMERIC_FLAGS {
            let key = self.key(name);
            if self.gguf.meta.flag(&key)?.is_some_and(|x| x != neutral) {
                let (found, known) = ((!neutral).to_string(), neutral.to_string());
                return Err(ModelError::unsupported(self.gguf.path(), &key, found, &[&known]));
            }
        }
        Ok(())
    }

    /// The projections whose biases the first block has; the others must have them too.
    fn biases(&self) -> Biases {
        let has = |roles: &[&str]| {
            roles.iter().any(|role| self.gguf.tensor(&format!("blk.0.{role}.bias")).is_some())
        };
        Biases {
            qkv: has(&["attn_q", "attn_k", "attn_v", "attn_qkv"]),
            attn_out: has(&["attn_output"]),
            mlp: has(&["ffn_gate", "ffn_up", "ffn_down"]),
        }
    }

    /// Rows of the embedding; the key, which many files lack, must agree.
    fn vocab(&self) -> Result<usize> {
        let (key, meta) = (self.key("vocab_size"), &self.gguf.meta);
        let embed = format!("{}.weight", GGUF_NAMES.embed);
        let listed = fields::optional_size(meta, &key, limit::VOCAB)?;
        match (listed, self.gguf.tensor(&embed).map(|t| t.shape[0])) {
            (Some(n), Some(rows)) if n != rows => {
                Err(meta.wrong(&key, n.to_string(), format!("{rows}, the rows of \"{embed}\"")))
            }
            (Some(n), _) | (None, Some(n)) if n as u64 <= limit::VOCAB => Ok(n),
            (_, Some(n)) => Err(meta.wrong(&key, n.to_string(), format!("1 to {}", limit::VOCAB))),
            _ => Err(meta.missing(&key, "the rows of the embedding")),
        }
    }
}

/// Blocks with and without a window, as `has_window(index)` says; none when there is no window.
pub(super) fn windows(
    n_layers: usize,
    window: Option<usize>,
    has_window: impl Fn(usize) -> bool,
) -> Vec<BlockFeatures> {
    let Some(window) = window else { return Vec::new() };
    (0..n_layers).map(|i| BlockFeatures { window: has_window(i).then_some(window), rotary: true }).collect()
}
