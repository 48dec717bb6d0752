//! OLMo 2: norms only after attention and MLP, and of all queries and all keys of a token together.
//!
//! Sources: `modeling_olmo2.py` of transformers; `llama-model.cpp` of llama.cpp.

use super::{
    Family, GGUF_NAMES, HF_NAMES,
    gguf_keys::Keys,
    hf_fields::{self, Reading},
    rope::DEFAULT_THETA,
};
use crate::{
    Result,
    config::{Biases, DecoderConfig, Norms, QkNorm, RopePairing},
    gguf::Gguf,
    hf::HfFolder,
};

pub(super) const OLMO2: Family = Family {
    gguf: "olmo2",
    hf: "olmo2",
    gguf_pairing: RopePairing::Halves,
    gguf_config: |gguf: &Gguf| Ok(olmo(Keys::new(gguf, "olmo2").config(RopePairing::Halves, &[])?)),
    hf_config,
    gguf_names: GGUF_NAMES,
    hf_names: HF_NAMES,
    tied: false,
};

fn olmo(mut c: DecoderConfig) -> DecoderConfig {
    c.features.norms = Norms::After;
    c.features.qk_norm = QkNorm::Whole;
    c
}

fn hf_config(folder: &HfFolder) -> Result<DecoderConfig> {
    let config = &folder.config;
    let reading = Reading {
        arch: "olmo2",
        head_dim: None,
        kv_heads_may_miss: true,
        theta: DEFAULT_THETA,
        reads: &["attention_bias"],
    };
    let mut c = olmo(reading.config(folder)?);
    hf_fields::silu(config)?;
    let biased = config.flag("attention_bias")?.unwrap_or(false);
    c.features.biases = Biases { qkv: biased, attn_out: biased, mlp: false };
    Ok(c)
}
