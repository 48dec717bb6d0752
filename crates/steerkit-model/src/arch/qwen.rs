//! Qwen 2, 2.5 and 3 (dense): as Llama, with biases of q, k and v (2) or norms of queries and keys (3).
//!
//! Sources: `modeling_qwen2.py` and `modeling_qwen3.py` of transformers; `llama-arch.cpp` of llama.cpp.

use super::{
    Family, GGUF_NAMES, HF_NAMES,
    fields::{self, limit},
    gguf_keys::Keys,
    hf_fields::{self, Reading},
    rope::DEFAULT_THETA,
};
use crate::{
    Result,
    config::{Biases, DecoderConfig, QkNorm, RopePairing},
    gguf::Gguf,
    hf::{HfFolder, Json},
};

/// Qwen 2 and 2.5.
pub(super) const QWEN2: Family = Family {
    gguf: "qwen2",
    hf: "qwen2",
    gguf_pairing: RopePairing::Halves,
    gguf_config: |gguf| Keys::new(gguf, "qwen2").config(RopePairing::Halves, &[]),
    hf_config: qwen2_hf,
    gguf_names: GGUF_NAMES,
    hf_names: HF_NAMES,
    tied: false,
};

/// Qwen 3.
pub(super) const QWEN3: Family =
    Family { gguf: "qwen3", hf: "qwen3", gguf_config: qwen3_gguf, hf_config: qwen3_hf, ..QWEN2 };

const READING: Reading = Reading {
    arch: "qwen2",
    head_dim: None,
    kv_heads_may_miss: false,
    theta: DEFAULT_THETA,
    reads: &["sliding_window", "use_sliding_window"],
};

/// Blocks from `max_window_layers` on have a window where `use_sliding_window` says so.
fn with_windows(mut c: DecoderConfig, config: &Json) -> Result<DecoderConfig> {
    hf_fields::silu(config)?;
    let window = match config.flag("use_sliding_window")?.unwrap_or(false) {
        true => hf_fields::window(config, Some(4096))?,
        false => None,
    };
    let first = fields::optional_size(config, "max_window_layers", limit::LAYERS)?.unwrap_or(28);
    c.features.blocks = hf_fields::windows(config, c.n_layers, window, |i| i >= first)?;
    Ok(c)
}

fn qwen2_hf(folder: &HfFolder) -> Result<DecoderConfig> {
    let mut c = with_windows(READING.config(folder)?, &folder.config)?;
    c.features.biases = Biases { qkv: true, ..Biases::default() };
    Ok(c)
}

fn qwen3_gguf(gguf: &Gguf) -> Result<DecoderConfig> {
    let mut c = Keys::new(gguf, "qwen3").config(RopePairing::Halves, &[])?;
    c.features.qk_norm = QkNorm::PerHead;
    Ok(c)
}

fn qwen3_hf(folder: &HfFolder) -> Result<DecoderConfig> {
    let reading = Reading {
        arch: "qwen3",
        head_dim: Some(128),
        reads: &["sliding_window", "use_sliding_window", "attention_bias"],
        ..READING
    };
    let mut c = with_windows(reading.config(folder)?, &folder.config)?;
    let biased = folder.config.flag("attention_bias")?.unwrap_or(false);
    c.features.biases = Biases { qkv: biased, attn_out: biased, mlp: false };
    c.features.qk_norm = QkNorm::PerHead;
    Ok(c)
}
