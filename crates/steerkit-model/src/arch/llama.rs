//! The plain family and its nearest relatives: RMS norms before attention and MLP, rotary embedding,
//! grouped-query attention, SwiGLU.
//!
//! Sources: `modeling_{llama,mistral,smollm3,granite}.py` of transformers; `llama-arch.cpp` and
//! `convert_hf_to_gguf.py` of llama.cpp. Their GGUF files hold the rows of q and k permuted so that the rotary
//! embedding turns neighbours.

use super::{
    Family, GGUF_NAMES, HF_NAMES,
    fields::{self},
    gguf_keys::{self, Keys},
    hf_fields::{self, Reading},
    rope::DEFAULT_THETA,
};
use crate::{
    Result,
    config::{Biases, BlockFeatures, DecoderConfig, RopePairing},
    gguf::Gguf,
    hf::{HfFolder, Json},
};
use serde_json::Value;

/// Llama 1 to 3.3, Vicuna, SmolLM2 and many others.
pub(super) const LLAMA: Family = Family {
    gguf: "llama",
    hf: "llama",
    gguf_pairing: RopePairing::Adjacent,
    gguf_config: llama_gguf,
    hf_config: llama_hf,
    gguf_names: GGUF_NAMES,
    hf_names: HF_NAMES,
    tied: false,
};

/// Mistral: a sliding window; its GGUF files call themselves `llama`.
pub(super) const MISTRAL: Family = Family { gguf: "", hf: "mistral", hf_config: mistral_hf, ..LLAMA };

/// SmolLM3: every fourth block without rotary embedding.
pub(super) const SMOLLM3: Family = Family {
    gguf: "smollm3",
    hf: "smollm3",
    gguf_config: smollm3_gguf,
    hf_config: smollm3_hf,
    tied: true,
    ..LLAMA
};

/// Granite 3 (dense): factors of embedding, scores, residual stream and logits.
pub(super) const GRANITE: Family =
    Family { gguf: "granite", hf: "granite", gguf_config: granite_gguf, hf_config: granite_hf, ..LLAMA };

/// The fields of Llama's `config.json`.
const READING: Reading = Reading {
    arch: "llama",
    head_dim: None,
    kv_heads_may_miss: true,
    theta: DEFAULT_THETA,
    reads: &["attention_bias", "mlp_bias"],
};

fn llama_gguf(gguf: &Gguf) -> Result<DecoderConfig> {
    let keys = Keys::new(gguf, "llama");
    let mut c = keys.config(RopePairing::Adjacent, &["attention.sliding_window"])?;
    c.features.blocks = gguf_keys::windows(c.n_layers, keys.window()?, |_| true);
    Ok(c)
}

fn llama_hf(folder: &HfFolder) -> Result<DecoderConfig> {
    with_biases(READING.config(folder)?, &folder.config)
}

/// Adds what `attention_bias` and `mlp_bias` say.
fn with_biases(mut c: DecoderConfig, config: &Json) -> Result<DecoderConfig> {
    hf_fields::silu(config)?;
    let attention = config.flag("attention_bias")?.unwrap_or(false);
    let mlp = config.flag("mlp_bias")?.unwrap_or(false);
    c.features.biases = Biases { qkv: attention, attn_out: attention, mlp };
    Ok(c)
}

fn mistral_hf(folder: &HfFolder) -> Result<DecoderConfig> {
    let config = &folder.config;
    let reading =
        Reading { arch: "mistral", kv_heads_may_miss: false, reads: &["sliding_window"], ..READING };
    let mut c = reading.config(folder)?;
    hf_fields::silu(config)?;
    let window = hf_fields::window(config, Some(4096))?;
    c.features.blocks = hf_fields::windows(config, c.n_layers, window, |_| true)?;
    Ok(c)
}

fn smollm3_gguf(gguf: &Gguf) -> Result<DecoderConfig> {
    let mut c = Keys::new(gguf, "smollm3").config(RopePairing::Adjacent, &[])?;
    c.features.blocks = (0..c.n_layers).map(|i| without_rotary((i + 1) % 4 == 0)).collect();
    Ok(c)
}

fn without_rotary(without: bool) -> BlockFeatures {
    BlockFeatures { window: None, rotary: !without }
}

fn smollm3_hf(folder: &HfFolder) -> Result<DecoderConfig> {
    const LIST: &str = "no_rope_layers";
    let config = &folder.config;
    let reading = Reading {
        arch: "smollm3",
        kv_heads_may_miss: false,
        theta: 2e6,
        // A window is only used where use_sliding_window says so, which is refused.
        reads: &["attention_bias", "mlp_bias", "no_rope_layers", "sliding_window"],
        ..READING
    };
    let mut c = with_biases(reading.config(folder)?, config)?;
    let every = fields::optional_size(config, "no_rope_layer_interval", 1 << 20)?.unwrap_or(4);
    let listed = match config.get(LIST) {
        None => None,
        Some(Value::Array(list)) if list.len() == c.n_layers => {
            let rotary = list.iter().map(|x| x.as_u64().filter(|&x| x < 2)).collect::<Option<Vec<_>>>();
            Some(rotary.ok_or_else(|| config.wrong(LIST, "other values", "0 or 1 for each block"))?)
        }
        Some(_) => {
            let expected = format!("a list of {} numbers", c.n_layers);
            return Err(config.wrong(LIST, "another value", expected));
        }
    };
    let without = |i: usize| listed.as_ref().map_or((i + 1).is_multiple_of(every), |l| l[i] == 0);
    c.features.blocks = (0..c.n_layers).map(|i| without_rotary(without(i))).collect();
    Ok(c)
}

fn granite_gguf(gguf: &Gguf) -> Result<DecoderConfig> {
    let keys = Keys::new(gguf, "granite");
    let scales = ["attention.scale", "embedding_scale", "residual_scale", "logit_scale"];
    let mut c = keys.config(RopePairing::Adjacent, &scales)?;
    let [attn, embed, residual, logits] = scales.map(|name| keys.number(name));
    with_scales(&mut c, attn?, [embed?, residual?, logits?]);
    Ok(c)
}

fn granite_hf(folder: &HfFolder) -> Result<DecoderConfig> {
    let config = &folder.config;
    let reading = Reading {
        arch: "granite",
        reads: &[
            "attention_bias",
            "mlp_bias",
            "attention_multiplier",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
        ],
        ..READING
    };
    let mut c = with_biases(reading.config(folder)?, config)?;
    let number = |name: &str| fields::optional_positive(config, name);
    // Where the field is not there, scores are not divided by anything.
    let attn = hf_fields::or_default(config, "attention_multiplier", 1.0)?;
    let others = [number("embedding_multiplier")?, number("residual_multiplier")?, number("logits_scaling")?];
    with_scales(&mut c, attn, others);
    Ok(c)
}

/// Sets the factor of scores, and those of embedding, residual stream and (dividing) logits.
fn with_scales(c: &mut DecoderConfig, attn: Option<f64>, [embed, residual, logits]: [Option<f64>; 3]) {
    let f = &mut c.features;
    f.attn_scale = attn.map(|x| x as f32);
    f.embed_scale = embed.unwrap_or(1.0) as f32;
    f.residual_scale = residual.unwrap_or(1.0) as f32;
    f.logit_scale = (1.0 / logits.unwrap_or(1.0)) as f32;
}
