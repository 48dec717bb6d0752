//! Model families: how a file's metadata becomes a [`DecoderConfig`], and which tensor plays which role.
//!
//! A new family is a file here, or a few lines in that of a relative, and its line in [`FAMILIES`].

mod fields;
mod gather;
mod gemma;
mod gguf_keys;
mod hf_fields;
mod llama;
mod olmo;
mod phi;
mod qwen;
mod rope;

use crate::{
    ModelError, Result,
    config::{DecoderConfig, RopePairing},
    gguf::Gguf,
    hf::HfFolder,
    source::TensorInfo,
    weights::Weights,
};
use gather::Gather;

/// The families this build knows.
pub const FAMILIES: &[Family] = &[
    llama::LLAMA,
    llama::MISTRAL,
    llama::SMOLLM3,
    llama::GRANITE,
    qwen::QWEN2,
    qwen::QWEN3,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    phi::PHI3,
    olmo::OLMO2,
];

/// A model family as data.
pub struct Family {
    /// Value of GGUF `general.architecture`; empty where the family has none of its own.
    pub gguf: &'static str,
    /// Value of `model_type` in `config.json`.
    pub hf: &'static str,
    /// The order of the rows of q and k in its GGUF files.
    pub gguf_pairing: RopePairing,
    /// Reads the metadata of a GGUF file.
    pub gguf_config: fn(&Gguf) -> Result<DecoderConfig>,
    /// Reads a `config.json`.
    pub hf_config: fn(&HfFolder) -> Result<DecoderConfig>,
    /// Names of the tensors in a GGUF file.
    pub gguf_names: TensorNames,
    /// Names of the tensors in a safetensors file.
    pub hf_names: TensorNames,
    /// Whether the head is the embedding where `config.json` does not say.
    pub tied: bool,
}

impl Family {
    /// The family of a loaded model's architecture.
    ///
    /// # Panics
    /// When no family has that name.
    pub(crate) fn of(architecture: &str) -> &'static Self {
        let has = |f: &&Self| f.gguf == architecture || f.hf.trim_end_matches("_text") == architecture;
        FAMILIES.iter().find(has).expect("a loaded model's architecture is a family's")
    }

    /// What GGUF files of the family call their architecture.
    pub(crate) fn gguf_name(&self) -> &'static str {
        if self.gguf.is_empty() { llama::LLAMA.gguf } else { self.gguf }
    }
}

/// Names of the tensors of a family in one kind of file, without `.weight` and `.bias`. Those of a block stand
/// behind `{block}{index}.`, as in `blk.3.attn_q.weight`.
#[derive(Clone, Copy)]
pub struct TensorNames {
    /// Token embedding.
    pub embed: &'static str,
    /// Gain of the last norm.
    pub final_norm: &'static str,
    /// Output head.
    pub head: &'static str,
    /// What stands before a block's index.
    pub block: &'static str,
    /// Gain of the norm before attention.
    pub attn_norm: &'static str,
    /// Query, key and value projections: three tensors, or one of all.
    pub qkv: &'static [&'static str],
    /// Gains of the norms of queries and keys.
    pub qk_norms: [&'static str; 2],
    /// Output projection of attention.
    pub attn_out: &'static str,
    /// Gain of the norm after attention.
    pub attn_post_norm: &'static str,
    /// Gain of the norm before the MLP.
    pub ffn_norm: &'static str,
    /// Gate and up projections: two tensors, or one of both.
    pub gate_up: &'static [&'static str],
    /// Down projection.
    pub down: &'static str,
    /// Gain of the norm after the MLP.
    pub ffn_post_norm: &'static str,
    /// What is added to every stored gain.
    pub gain_offset: f32,
    /// Endings of names that carry no weights of the decoder. Any other tensor without a role is refused:
    /// leaving a bias or an expert out would give a wrong model.
    pub without_role: &'static [&'static str],
}

/// Tensor names in GGUF files.
const GGUF_NAMES: TensorNames = TensorNames {
    embed: "token_embd",
    final_norm: "output_norm",
    head: "output",
    block: "blk.",
    attn_norm: "attn_norm",
    qkv: &["attn_q", "attn_k", "attn_v"],
    qk_norms: ["attn_q_norm", "attn_k_norm"],
    attn_out: "attn_output",
    attn_post_norm: "post_attention_norm",
    ffn_norm: "ffn_norm",
    gate_up: &["ffn_gate", "ffn_up"],
    down: "ffn_down",
    ffn_post_norm: "post_ffw_norm",
    gain_offset: 0.0,
    // Read with the configuration; some old files hold one copy per block of the inverse frequencies.
    without_role: &[rope::ROPE_FREQS, rope::FACTORS_SHORT, rope::FACTORS_LONG, ".attn_rot_embd"],
};

/// Tensor names in transformers' checkpoints of models with norms before attention and MLP.
const HF_NAMES: TensorNames = TensorNames {
    embed: "model.embed_tokens",
    final_norm: "model.norm",
    head: "lm_head",
    block: "model.layers.",
    attn_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qk_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    attn_out: "self_attn.o_proj",
    attn_post_norm: "post_attention_layernorm",
    ffn_norm: "post_attention_layernorm",
    gate_up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    ffn_post_norm: "post_feedforward_layernorm",
    gain_offset: 0.0,
    // A buffer that follows from the configuration; old checkpoints saved it.
    without_role: &[".rotary_emb.inv_freq"],
};

/// Configuration and weights of a GGUF file.
///
/// # Errors
/// An unknown family, a value or a tensor that does not fit, each by name.
pub fn read_gguf(gguf: &Gguf) -> Result<(DecoderConfig, Weights)> {
    const KEY: &str = "general.architecture";
    if gguf.meta.integer("split.count")?.is_some_and(|n| n > 1) {
        return Err(gguf
            .meta
            .wrong("split.count", "one part of several", "a whole model")
            .advise("join the parts first: llama-gguf-split --merge FIRST-PART OUTPUT"));
    }
    let known: Vec<&str> = FAMILIES.iter().map(|f| f.gguf).filter(|name| !name.is_empty()).collect();
    let Some(name) = gguf.meta.text(KEY)? else {
        return Err(gguf.meta.missing(KEY, &known.join(" or ")));
    };
    let family = FAMILIES.iter().find(|f| f.gguf == name && !name.is_empty());
    let family = family.ok_or_else(|| ModelError::unsupported(gguf.path(), "architecture", name, &known))?;
    let config = (family.gguf_config)(gguf)?;
    let tied = gguf.tensor(&format!("{}.weight", family.gguf_names.head)).is_none();
    let mut gather = Gather::new(gguf.path(), |name| gguf.tensor(name), &family.gguf_names);
    let weights = gather.weights(&config, tied)?;
    gather.refuse_without_role(gguf.tensors().iter(), name)?;
    Ok((config, weights))
}

/// Configuration and weights of a Hugging Face folder.
///
/// # Errors
/// Like [`read_gguf`].
pub fn read_hf(folder: &HfFolder) -> Result<(DecoderConfig, Weights)> {
    const FIELD: &str = "model_type";
    let known: Vec<&str> = FAMILIES.iter().map(|f| f.hf).collect();
    let Some(name) = folder.config.text(FIELD)? else {
        return Err(folder.config.missing(FIELD, &known.join(" or ")));
    };
    let family = FAMILIES.iter().find(|f| f.hf == name);
    let family = family.ok_or_else(|| ModelError::unsupported(folder.config.path(), FIELD, name, &known))?;
    if let Some(quantised) = folder.config.object("quantization_config")? {
        let method = quantised.text("quant_method")?.unwrap_or("?");
        let known = ["none (F32, F16, BF16)"];
        return Err(ModelError::unsupported(folder.config.path(), "quantization_config", method, &known));
    }
    let config = (family.hf_config)(folder)?;
    let tied = folder.config.flag("tie_word_embeddings")?.unwrap_or(family.tied);
    let mut gather = Gather::new(folder.path(), |name| folder.tensor(name), &family.hf_names);
    let weights = gather.weights(&config, tied)?;
    gather.refuse_without_role(folder.tensors(), name)?;
    Ok((config, weights))
}

/// A small tensor's numbers, all of them finite.
fn finite(tensor: &TensorInfo) -> Result<Vec<f32>> {
    let values = tensor.to_f32();
    match values.iter().filter(|x| !x.is_finite()).count() {
        0 => Ok(values),
        found => Err(ModelError::NonFinite {
            place: format!("{}: tensor \"{}\"", tensor.path.display(), tensor.name),
            found,
            total: values.len(),
        }),
    }
}
