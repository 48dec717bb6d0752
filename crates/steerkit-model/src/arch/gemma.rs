//! Gemma 1, 2 and 3 (text): the embedding scaled by `√d_model`, GeGLU, norms that store their gain less 1 (in
//! safetensors; GGUF files hold the gain itself); 2 also has norms after attention and MLP, capped scores and
//! logits and a window in every other block; 3 has norms of queries and keys and two rotary embeddings.
//!
//! Sources: `modeling_{gemma,gemma2,gemma3}.py` of transformers; `llama-model.cpp` and `convert_hf_to_gguf.py` of
//! llama.cpp.

use super::{
    Family, GGUF_NAMES, HF_NAMES, TensorNames,
    fields::{self, limit},
    gguf_keys::{self, Keys},
    hf_fields::{self, Reading},
    rope::{self, Contexts, DEFAULT_THETA},
};
use crate::{
    ModelError, Result,
    config::{Activation, DecoderConfig, Norms, QkNorm, Rope, RopePairing, RopeScaling},
    gguf::Gguf,
    hf::{HfFolder, Json},
};

/// Gemma 1.
pub(super) const GEMMA: Family = Family {
    gguf: "gemma",
    hf: "gemma",
    gguf_pairing: RopePairing::Halves,
    gguf_config: |gguf| Ok(gemma(Keys::new(gguf, "gemma").config(RopePairing::Halves, &[])?)),
    hf_config: gemma_hf,
    gguf_names: GGUF_NAMES,
    hf_names: TensorNames { gain_offset: 1.0, ..HF_NAMES },
    tied: true,
};

/// Tensor names of models with norms around attention and MLP.
const NORMS_AROUND: TensorNames =
    TensorNames { ffn_norm: "pre_feedforward_layernorm", gain_offset: 1.0, ..HF_NAMES };

/// Gemma 2.
pub(super) const GEMMA2: Family = Family {
    gguf: "gemma2",
    hf: "gemma2",
    gguf_config: gemma2_gguf,
    hf_config: gemma2_hf,
    hf_names: NORMS_AROUND,
    ..GEMMA
};

/// Gemma 3, text only.
pub(super) const GEMMA3: Family = Family {
    gguf: "gemma3",
    hf: "gemma3_text",
    gguf_config: gemma3_gguf,
    hf_config: gemma3_hf,
    hf_names: NORMS_AROUND,
    ..GEMMA
};

/// Base of the rotary frequencies of Gemma 3: of all blocks, and of those with a window.
const GLOBAL_THETA: f64 = 1e6;
const LOCAL_THETA: f64 = 1e4;

const READING: Reading = Reading {
    arch: "gemma",
    head_dim: Some(256),
    kv_heads_may_miss: false,
    theta: DEFAULT_THETA,
    reads: &[],
};

/// What all three have.
fn gemma(mut c: DecoderConfig) -> DecoderConfig {
    c.features.activation = Activation::GeluTanh;
    c.features.embed_scale = (c.d_model as f32).sqrt();
    c
}

fn gemma_hf(folder: &HfFolder) -> Result<DecoderConfig> {
    let c = gemma(READING.config(folder)?);
    hf_fields::gelu_tanh(&folder.config)?;
    Ok(c)
}

/// Whether block `i` has a window when every `every`-th has none.
fn slides(every: usize) -> impl Fn(usize) -> bool {
    move |i| !(i + 1).is_multiple_of(every)
}

/// Factor of scores where the file does not say: that of the largest model, known by its blocks, is not `h^-½`.
fn gguf_attn_scale(keys: &Keys<'_>, c: &DecoderConfig, blocks_of_largest: usize) -> Result<Option<f32>> {
    let largest =
        || (c.n_layers == blocks_of_largest).then(|| 1.0 / (c.d_model as f64 / c.n_heads as f64).sqrt());
    Ok(keys.number("attention.scale")?.or_else(largest).map(|x| x as f32))
}

/// Keys that Gemma 2 and 3 read.
const GGUF_READS: [&str; 4] =
    ["attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "attention.scale"];

fn gemma2_gguf(gguf: &Gguf) -> Result<DecoderConfig> {
    let keys = Keys::new(gguf, "gemma2");
    let mut c = gemma(keys.config(RopePairing::Halves, &GGUF_READS)?);
    c.features.norms = Norms::Around;
    c.features.attn_scale = gguf_attn_scale(&keys, &c, 46)?;
    let cap = |name, default: f64| Ok::<_, ModelError>(keys.number(name)?.unwrap_or(default) as f32);
    c.features.attn_softcap = Some(cap("attn_logit_softcapping", 50.0)?);
    c.features.logit_softcap = Some(cap("final_logit_softcapping", 30.0)?);
    c.features.blocks = gguf_keys::windows(c.n_layers, keys.window()?.or(Some(4096)), slides(2));
    Ok(c)
}

fn gemma3_gguf(gguf: &Gguf) -> Result<DecoderConfig> {
    let keys = Keys::new(gguf, "gemma3");
    let mut c = gemma(keys.config(RopePairing::Halves, &GGUF_READS)?);
    c.features.norms = Norms::Around;
    c.features.qk_norm = QkNorm::PerHead;
    c.features.attn_scale = gguf_attn_scale(&keys, &c, 62)?;
    c.features.logit_softcap = keys.number("final_logit_softcapping")?.map(|x| x as f32);
    c.features.attn_softcap = keys.number("attn_logit_softcapping")?.map(|x| x as f32);
    let every =
        fields::optional_size(&gguf.meta, &keys.key("attention.sliding_window_pattern"), limit::LAYERS)?;
    c.features.blocks = gguf_keys::windows(c.n_layers, keys.window()?, slides(every.unwrap_or(6)));
    if keys.number("rope.freq_base")?.is_none() {
        c.rope.theta = GLOBAL_THETA;
    }
    let local = keys.number("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA);
    c.features.local_rope = Some(plain(local));
    Ok(c)
}

fn plain(theta: f64) -> Rope {
    Rope { theta, pairing: RopePairing::Halves, scaling: RopeScaling::None }
}

/// Factor of scores: `query_pre_attn_scalar^-½`, 256 where the file does not say.
fn hf_attn_scale(config: &Json) -> Result<Option<f32>> {
    let scalar = fields::optional_positive(config, "query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(Some(1.0 / (scalar as f32).sqrt()))
}

fn gemma2_hf(folder: &HfFolder) -> Result<DecoderConfig> {
    let config = &folder.config;
    let reads =
        &["sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"];
    let mut c = gemma(Reading { arch: "gemma2", reads, ..READING }.config(folder)?);
    hf_fields::gelu_tanh(config)?;
    c.features.norms = Norms::Around;
    c.features.attn_scale = hf_attn_scale(config)?;
    let cap = |field, default| -> Result<_> {
        Ok(hf_fields::or_default(config, field, default)?.map(|x| x as f32))
    };
    c.features.attn_softcap = cap("attn_logit_softcapping", 50.0)?;
    c.features.logit_softcap = cap("final_logit_softcapping", 30.0)?;
    let window = hf_fields::window(config, Some(4096))?;
    c.features.blocks = hf_fields::windows(config, c.n_layers, window, slides(2))?;
    Ok(c)
}

fn gemma3_hf(folder: &HfFolder) -> Result<DecoderConfig> {
    let config = &folder.config;
    let reads = &[
        "sliding_window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
    ];
    let reading = Reading { arch: "gemma3", reads, theta: GLOBAL_THETA, ..READING };
    let (global, local) = gemma3_ropes(config)?;
    let mut c = gemma(reading.config_with(folder, |_, _| Ok(global))?);
    hf_fields::gelu_tanh(config)?;
    c.features.norms = Norms::Around;
    c.features.qk_norm = QkNorm::PerHead;
    c.features.attn_scale = hf_attn_scale(config)?;
    c.features.attn_softcap = fields::optional_positive(config, "attn_logit_softcapping")?.map(|x| x as f32);
    c.features.logit_softcap =
        fields::optional_positive(config, "final_logit_softcapping")?.map(|x| x as f32);
    let window = hf_fields::window(config, Some(4096))?;
    let every = ["sliding_window_pattern", "_sliding_window_pattern"]
        .iter()
        .find_map(|field| fields::optional_size(config, field, limit::LAYERS).transpose())
        .transpose()?;
    c.features.blocks = hf_fields::windows(config, c.n_layers, window, slides(every.unwrap_or(6)))?;
    c.features.local_rope = Some(local);
    Ok(c)
}

/// The rotary embeddings of all blocks and of those with a window: one object each (transformers 5), or
/// `rope_theta`, `rope_scaling` and `rope_local_base_freq` (4).
fn gemma3_ropes(config: &Json) -> Result<(Rope, Rope)> {
    let context = fields::size(config, "max_position_embeddings", limit::CONTEXT)?;
    let contexts = Contexts { context, original: None };
    let newer = config.object("rope_parameters")?;
    let part = |name: &str, theta_field: &str, default: f64, older: Option<Json>| {
        let own = newer.as_ref().map(|p| p.object(name)).transpose()?.flatten().or(older);
        let theta = own.as_ref().map(|p| fields::optional_positive(p, "rope_theta")).transpose()?.flatten();
        let theta = match theta {
            None => fields::optional_positive(config, theta_field)?.unwrap_or(default),
            Some(theta) => theta,
        };
        let scaling = own.map_or(Ok(RopeScaling::None), |p| {
            // LongRoPE's divisors would need the head's size; no Gemma has them.
            rope::hf_scaling(&p, theta, contexts, 0)
        })?;
        Ok::<_, ModelError>(Rope { scaling, ..plain(theta) })
    };
    let global = part("full_attention", "rope_theta", GLOBAL_THETA, config.object("rope_scaling")?)?;
    Ok((global, part("sliding_attention", "rope_local_base_freq", LOCAL_THETA, None)?))
}
