//! The Llama family: RMS norms, rotary embedding, grouped-query attention, SwiGLU, no biases.
//!
//! Sources: `modeling_llama.py` of transformers for `config.json`; `llama-arch.cpp` and `convert_hf_to_gguf.py`
//! of llama.cpp for GGUF. GGUF files hold the rows of q and k permuted so that the rotary embedding turns
//! neighbours.

use super::{
    Family, TensorNames,
    fields::{self, HeadFields, limit},
    finite,
};
use crate::{
    ModelError, Result,
    config::{DecoderConfig, Rope, RopePairing, RopeScaling},
    gguf::Gguf,
    hf::{HfFolder, Json},
};

/// The family's entry in the list.
pub const FAMILY: Family = Family {
    gguf: &["llama"],
    hf: &["llama"],
    gguf_config,
    hf_config,
    gguf_names: &GGUF_NAMES,
    hf_names: &HF_NAMES,
};

/// Tensor names that GGUF files of plain decoders share.
const GGUF_NAMES: TensorNames = TensorNames {
    embed: "token_embd.weight",
    final_norm: "output_norm.weight",
    head: "output.weight",
    block: "blk.",
    attn_norm: "attn_norm.weight",
    qkv: ["attn_q.weight", "attn_k.weight", "attn_v.weight"],
    attn_out: "attn_output.weight",
    ffn_norm: "ffn_norm.weight",
    gate_up: ["ffn_gate.weight", "ffn_up.weight"],
    down: "ffn_down.weight",
    // Read with the configuration; some old files hold one copy per block of the inverse frequencies.
    without_role: &[ROPE_FREQS, ".attn_rot_embd"],
};

/// Tensor names in transformers' checkpoints.
const HF_NAMES: TensorNames = TensorNames {
    embed: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    block: "model.layers.",
    attn_norm: "input_layernorm.weight",
    qkv: ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    attn_out: "self_attn.o_proj.weight",
    ffn_norm: "post_attention_layernorm.weight",
    gate_up: ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    down: "mlp.down_proj.weight",
    // A buffer that follows from the configuration; old checkpoints saved it.
    without_role: &[".rotary_emb.inv_freq"],
};

/// GGUF tensor of divisors per rotary frequency.
const ROPE_FREQS: &str = "rope_freqs.weight";
/// Base of the rotary frequencies where a file names none.
const DEFAULT_THETA: f64 = 10_000.0;

fn gguf_config(gguf: &Gguf) -> Result<DecoderConfig> {
    let meta = &gguf.meta;
    let d_model = fields::size(meta, "llama.embedding_length", limit::WIDTH)?;
    let names = HeadFields {
        n_heads: "llama.attention.head_count",
        n_kv_heads: "llama.attention.head_count_kv",
        head_dim: "llama.attention.key_length",
    };
    let (n_heads, n_kv_heads, head_dim) = fields::heads(meta, &names, d_model)?;
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        refuse_other(gguf, key, head_dim as u64)?;
    }
    refuse_other(gguf, "llama.expert_count", 0)?;
    refuse_other(gguf, "llama.attention.sliding_window", 0)?;
    Ok(DecoderConfig {
        architecture: "llama".to_owned(),
        n_layers: fields::size(meta, "llama.block_count", limit::LAYERS)?,
        d_model,
        n_heads,
        n_kv_heads,
        head_dim,
        d_ff: fields::size(meta, "llama.feed_forward_length", limit::FFN)?,
        vocab: gguf_vocab(gguf)?,
        context: fields::size(meta, "llama.context_length", limit::CONTEXT)?,
        norm_eps: fields::norm_eps(meta, "llama.attention.layer_norm_rms_epsilon")?,
        rope: Rope {
            theta: fields::optional_positive(meta, "llama.rope.freq_base")?.unwrap_or(DEFAULT_THETA),
            pairing: RopePairing::Adjacent,
            scaling: gguf_rope_scaling(gguf, head_dim)?,
        },
    })
}

/// Refuses a value other than the only one this decoder computes.
fn refuse_other(gguf: &Gguf, key: &str, only: u64) -> Result<()> {
    match gguf.meta.integer(key)? {
        Some(n) if n != only => {
            Err(ModelError::unsupported(gguf.path(), key, n.to_string(), &[&only.to_string()]))
        }
        _ => Ok(()),
    }
}

/// Rows of the embedding; the key, which old files lack, must agree.
fn gguf_vocab(gguf: &Gguf) -> Result<usize> {
    const KEY: &str = "llama.vocab_size";
    let listed = fields::optional_size(&gguf.meta, KEY, limit::VOCAB)?;
    match (listed, gguf.tensor(GGUF_NAMES.embed).map(|t| t.shape[0])) {
        (Some(n), Some(rows)) if n != rows => {
            Err(gguf.meta.wrong(KEY, n.to_string(), format!("{rows}, the rows of \"{}\"", GGUF_NAMES.embed)))
        }
        (Some(n), _) | (None, Some(n)) if n as u64 <= limit::VOCAB => Ok(n),
        (_, Some(n)) => Err(gguf.meta.wrong(KEY, n.to_string(), format!("1 to {}", limit::VOCAB))),
        _ => Err(gguf.meta.missing(KEY, "the rows of the embedding")),
    }
}

fn gguf_rope_scaling(gguf: &Gguf, head_dim: usize) -> Result<RopeScaling> {
    let kind = gguf.meta.text("llama.rope.scaling.type")?.unwrap_or("none");
    if kind != "none" {
        let known = ["none", "llama3 (as rope_freqs.weight)"];
        return Err(ModelError::unsupported(gguf.path(), "rope scaling type", kind, &known));
    }
    let Some(tensor) = gguf.tensor(ROPE_FREQS) else { return Ok(RopeScaling::None) };
    let divisors = finite(tensor)?;
    let error = |found, expected| {
        ModelError::malformed(gguf.path(), format!("tensor \"{ROPE_FREQS}\""), found, expected)
    };
    if tensor.shape != [head_dim / 2] {
        return Err(error(format!("shape {:?}", tensor.shape), format!("shape [{}]", head_dim / 2)));
    }
    match divisors.iter().find(|&&x| x <= 0.0) {
        None => Ok(RopeScaling::Divisors(divisors)),
        Some(x) => Err(error(x.to_string(), "divisors above 0".to_owned())),
    }
}

fn hf_config(folder: &HfFolder) -> Result<DecoderConfig> {
    let config = &folder.config;
    for field in ["attention_bias", "mlp_bias"] {
        if config.flag(field)? == Some(true) {
            return Err(ModelError::unsupported(config.path(), field, "true", &["false"]));
        }
    }
    let activation = config.text("hidden_act")?.unwrap_or("silu");
    if activation != "silu" {
        return Err(ModelError::unsupported(config.path(), "activation", activation, &["silu"]));
    }
    let d_model = fields::size(config, "hidden_size", limit::WIDTH)?;
    let names = HeadFields {
        n_heads: "num_attention_heads",
        n_kv_heads: "num_key_value_heads",
        head_dim: "head_dim",
    };
    let (n_heads, n_kv_heads, head_dim) = fields::heads(config, &names, d_model)?;
    let context = fields::size(config, "max_position_embeddings", limit::CONTEXT)?;
    Ok(DecoderConfig {
        architecture: "llama".to_owned(),
        n_layers: fields::size(config, "num_hidden_layers", limit::LAYERS)?,
        d_model,
        n_heads,
        n_kv_heads,
        head_dim,
        d_ff: fields::size(config, "intermediate_size", limit::FFN)?,
        vocab: fields::size(config, "vocab_size", limit::VOCAB)?,
        context,
        norm_eps: fields::norm_eps(config, "rms_norm_eps")?,
        rope: hf_rope(config, context)?,
    })
}

/// Rotary embedding from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4). A file
/// that holds both is read in the newer way.
fn hf_rope(config: &Json, context: usize) -> Result<Rope> {
    let newer = config.object("rope_parameters")?;
    let parameters = if newer.is_some() { newer } else { config.object("rope_scaling")? };
    let own_theta =
        parameters.as_ref().map(|p| fields::optional_positive(p, "rope_theta")).transpose()?.flatten();
    let theta = match own_theta {
        Some(theta) => theta,
        None => fields::optional_positive(config, "rope_theta")?.unwrap_or(DEFAULT_THETA),
    };
    let scaling = parameters.map_or(Ok(RopeScaling::None), |p| hf_rope_scaling(&p, context))?;
    Ok(Rope { theta, pairing: RopePairing::Halves, scaling })
}

fn hf_rope_scaling(parameters: &Json, context: usize) -> Result<RopeScaling> {
    let kind = match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
    };
    if let Some(part) = parameters.float("partial_rotary_factor")?.filter(|&x| x != 1.0) {
        let what = "partial_rotary_factor";
        return Err(ModelError::unsupported(parameters.path(), what, part.to_string(), &["1"]));
    }
    match kind {
        "default" => Ok(RopeScaling::None),
        "llama3" => {
            let original = "original_max_position_embeddings";
            let (low, high) = ("low_freq_factor", "high_freq_factor");
            let low_freq_factor = fields::positive(parameters, low)?;
            let high_freq_factor = fields::positive(parameters, high)?;
            if high_freq_factor <= low_freq_factor {
                let expected = format!("more than {low}, which is {low_freq_factor}");
                return Err(parameters.wrong(high, high_freq_factor.to_string(), expected));
            }
            Ok(RopeScaling::Llama3 {
                factor: fields::positive(parameters, "factor")?,
                low_freq_factor,
                high_freq_factor,
                original_context: fields::optional_size(parameters, original, limit::CONTEXT)?
                    .unwrap_or(context),
            })
        }
        other => Err(ModelError::unsupported(parameters.path(), "rope type", other, &["default", "llama3"])),
    }
}
