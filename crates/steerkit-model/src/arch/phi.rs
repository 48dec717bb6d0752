//! Phi-3, 3.5 and 4 (dense, text): as Llama with q, k and v in one tensor, gate and up in another, a window,
//! rotary embedding of a part of each head (Phi-4-mini) and LongRoPE.
//!
//! Sources: `modeling_phi3.py` of transformers; `llama-model.cpp` and `convert_hf_to_gguf.py` of llama.cpp.

use super::{
    Family, GGUF_NAMES, HF_NAMES, TensorNames,
    gguf_keys::{self, Keys},
    hf_fields::{self, Reading},
    rope::DEFAULT_THETA,
};
use crate::{
    Result,
    config::{DecoderConfig, RopePairing},
    gguf::Gguf,
    hf::HfFolder,
};

pub(super) const PHI3: Family = Family {
    gguf: "phi3",
    hf: "phi3",
    gguf_pairing: RopePairing::Halves,
    gguf_config,
    hf_config,
    gguf_names: TensorNames { qkv: &["attn_qkv"], gate_up: &["ffn_up"], ..GGUF_NAMES },
    hf_names: TensorNames { qkv: &["self_attn.qkv_proj"], gate_up: &["mlp.gate_up_proj"], ..HF_NAMES },
    tied: false,
};

fn gguf_config(gguf: &Gguf) -> Result<DecoderConfig> {
    let keys = Keys::new(gguf, "phi3");
    let mut c = keys.config(RopePairing::Halves, &["attention.sliding_window"])?;
    c.features.blocks = gguf_keys::windows(c.n_layers, keys.window()?, |_| true);
    Ok(c)
}

fn hf_config(folder: &HfFolder) -> Result<DecoderConfig> {
    let config = &folder.config;
    let reading = Reading {
        arch: "phi3",
        head_dim: None,
        kv_heads_may_miss: true,
        theta: DEFAULT_THETA,
        reads: &["sliding_window", "partial_rotary_factor"],
    };
    let mut c = reading.config(folder)?;
    hf_fields::silu(config)?;
    let window = hf_fields::window(config, None)?;
    c.features.blocks = hf_fields::windows(config, c.n_layers, window, |_| true)?;
    Ok(c)
}
