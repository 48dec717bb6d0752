//! The fields that `config.json` files of all families share (`configuration_*.py` of transformers).

use super::{
    fields::{self, HeadFields, limit},
    rope,
};
use crate::{
    ModelError, Result,
    config::{Activation, BlockFeatures, DecoderConfig, Features, Rope},
    hf::{HfFolder, Json},
};
use serde_json::{Value, json};

/// Fields that change what a model computes, with the values that change nothing. A family takes those that it
/// reads out of the list.
const NUMERIC: &[(&str, &[&str])] = &[
    ("attention_bias", &["false"]),
    ("mlp_bias", &["false"]),
    ("qkv_bias", &["false"]),
    ("use_bias", &["false"]),
    ("sliding_window", &[]),
    ("use_sliding_window", &["false"]),
    ("no_rope_layers", &[]),
    ("attn_logit_softcapping", &[]),
    ("final_logit_softcapping", &[]),
    ("query_pre_attn_scalar", &[]),
    ("use_bidirectional_attention", &["false"]),
    ("embedding_multiplier", &["1", "1.0"]),
    ("residual_multiplier", &["1", "1.0"]),
    ("attention_multiplier", &[]),
    ("logits_scaling", &["1", "1.0"]),
    ("logit_scale", &["1", "1.0"]),
    ("partial_rotary_factor", &["1", "1.0"]),
    ("rope_local_base_freq", &[]),
    ("rope_interleaved", &["false"]),
    ("clip_qkv", &[]),
    ("qk_layernorm", &["false"]),
    ("use_qk_norm", &["false"]),
    ("num_experts", &["0"]),
    ("num_local_experts", &["0"]),
    ("n_routed_experts", &["0"]),
    ("attention_chunk_size", &[]),
    ("attn_temperature_tuning", &["false", "0"]),
    ("dual_chunk_attention_config", &[]),
    ("alibi", &["false"]),
    ("parallel_attn", &["false"]),
    ("use_parallel_residual", &["false"]),
];

/// What differs between families where a field is not there, and which fields a family reads itself.
pub(super) struct Reading {
    /// Name of the architecture.
    pub(super) arch: &'static str,
    /// `head_dim`; `hidden_size / num_attention_heads` when `None`.
    pub(super) head_dim: Option<usize>,
    /// Whether `num_key_value_heads` may be missing: as many as query heads then.
    pub(super) kv_heads_may_miss: bool,
    /// `rope_theta`.
    pub(super) theta: f64,
    /// Fields of [`NUMERIC`] that the family reads.
    pub(super) reads: &'static [&'static str],
}

impl Reading {
    /// What every decoder has.
    pub(super) fn config(&self, folder: &HfFolder) -> Result<DecoderConfig> {
        self.config_with(folder, |context, rotary_dim| {
            rope::from_hf(&folder.config, self.theta, context, rotary_dim)
        })
    }

    /// The same with a rotary embedding read by `rope(context, rotary_dim)`.
    pub(super) fn config_with(
        &self,
        folder: &HfFolder,
        rope: impl FnOnce(usize, usize) -> Result<Rope>,
    ) -> Result<DecoderConfig> {
        let config = &folder.config;
        for (field, neutral) in NUMERIC.iter().filter(|(field, _)| !self.reads.contains(field)) {
            if let Some(value) = config.get(field).filter(|v| !neutral.contains(&v.to_string().as_str())) {
                let known: &[&str] = if neutral.is_empty() { &["null"] } else { neutral };
                return Err(ModelError::unsupported(config.path(), field, short(value), known));
            }
        }
        let d_model = fields::size(config, "hidden_size", limit::WIDTH)?;
        let kv_heads = "num_key_value_heads";
        if !self.kv_heads_may_miss {
            fields::size(config, kv_heads, limit::HEADS)?;
        }
        let heads = HeadFields { n_heads: "num_attention_heads", n_kv_heads: kv_heads, head_dim: "head_dim" };
        let (n_heads, n_kv_heads, mut head_dim) = fields::heads(config, &heads, d_model)?;
        if let Some(default) = self.head_dim.filter(|_| config.get("head_dim").is_none()) {
            head_dim = default;
        }
        let context = fields::size(config, "max_position_embeddings", limit::CONTEXT)?;
        let rotary_dim = rope::hf_rotary_dim(config, head_dim)?;
        let rope = rope(context, rotary_dim.unwrap_or(head_dim))?;
        let original = rope::hf_original_context(config)?.map(|n| n as f64);
        Ok(DecoderConfig {
            architecture: self.arch.to_owned(),
            n_layers: fields::size(config, "num_hidden_layers", limit::LAYERS)?,
            d_model,
            n_heads,
            n_kv_heads,
            head_dim,
            d_ff: fields::size(config, "intermediate_size", limit::FFN)?,
            vocab: fields::size(config, "vocab_size", limit::VOCAB)?,
            context: rope::context(&rope, context, original),
            norm_eps: fields::norm_eps(config, "rms_norm_eps")?,
            rope,
            features: Features { rotary_dim, ..Features::default() },
        })
    }
}

/// Refuses another activation than SiLU.
pub(super) fn silu(config: &Json) -> Result<()> {
    match config.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(()),
        other => Err(ModelError::unsupported(config.path(), "activation", other, &["silu"])),
    }
}

/// Gemma's activation. Its first files say `gelu` and mean the tanh form, as transformers has it.
pub(super) fn gelu_tanh(config: &Json) -> Result<Activation> {
    for field in ["hidden_activation", "hidden_act"] {
        match config.text(field)? {
            None | Some("gelu" | "gelu_pytorch_tanh") => (),
            Some(other) => {
                let known = ["gelu_pytorch_tanh"];
                return Err(ModelError::unsupported(config.path(), "activation", other, &known));
            }
        }
    }
    Ok(Activation::GeluTanh)
}

/// A positive number; `default` where the field is not there, `None` where it is null.
pub(super) fn or_default(config: &Json, field: &str, default: f64) -> Result<Option<f64>> {
    if !config.has(field) {
        return Ok(Some(default));
    }
    fields::optional_positive(config, field)
}

/// The window; `default` where the field is not there, `None` where it is null.
pub(super) fn window(config: &Json, default: Option<usize>) -> Result<Option<usize>> {
    if !config.has("sliding_window") {
        return Ok(default);
    }
    fields::optional_size(config, "sliding_window", u64::from(u32::MAX))
}

/// Blocks whose `layer_types` is `sliding_attention` see `window` tokens; where there is no such list,
/// `by_default(index)` decides.
pub(super) fn windows(
    config: &Json,
    n_layers: usize,
    window: Option<usize>,
    by_default: impl Fn(usize) -> bool,
) -> Result<Vec<BlockFeatures>> {
    const FIELD: &str = "layer_types";
    let types = match config.get(FIELD) {
        None => None,
        Some(Value::Array(types)) if types.len() == n_layers => Some(types),
        Some(other) => return Err(config.wrong(FIELD, short(other), format!("a list of {n_layers} texts"))),
    };
    let slides = |i: usize| match types {
        None => Ok(by_default(i)),
        Some(types) if types[i] == json!("full_attention") => Ok(false),
        Some(types) if types[i] == json!("sliding_attention") => Ok(true),
        Some(types) => {
            let known = ["full_attention", "sliding_attention"];
            Err(ModelError::unsupported(config.path(), FIELD, short(&types[i]), &known))
        }
    };
    let block = |i| match (slides(i)?, window) {
        (true, None) if types.is_some() => {
            Err(config.wrong("sliding_window", "nothing", "the window of the blocks that layer_types names"))
        }
        (slides, window) => Ok(BlockFeatures { window: window.filter(|_| slides), rotary: true }),
    };
    let blocks = (0..n_layers).map(block).collect::<Result<Vec<_>>>()?;
    Ok(if blocks.iter().all(|b| b.window.is_none()) { Vec::new() } else { blocks })
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}
