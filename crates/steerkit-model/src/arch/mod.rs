//! Model families: how a file's metadata becomes a [`DecoderConfig`], and which tensor plays which role.
//!
//! A new family is one file here and its line in [`FAMILIES`].

mod fields;
pub mod llama;

use crate::{
    ModelError, Result,
    config::DecoderConfig,
    gguf::Gguf,
    hf::HfFolder,
    source::TensorInfo,
    weights::{LayerWeights, Weights},
};
use std::{collections::HashSet, path::Path};
use steerkit_kernels::Matrix;

/// The families this build knows.
pub const FAMILIES: &[Family] = &[llama::FAMILY];

/// A model family as data.
pub struct Family {
    /// Values of GGUF `general.architecture`.
    pub gguf: &'static [&'static str],
    /// Values of `model_type` in `config.json`.
    pub hf: &'static [&'static str],
    /// Reads the metadata of a GGUF file.
    pub gguf_config: fn(&Gguf) -> Result<DecoderConfig>,
    /// Reads a `config.json`.
    pub hf_config: fn(&HfFolder) -> Result<DecoderConfig>,
    /// Names of the tensors in a GGUF file.
    pub gguf_names: &'static TensorNames,
    /// Names of the tensors in a safetensors file.
    pub hf_names: &'static TensorNames,
}

/// Names of the tensors of a family in one kind of file. Those of a block stand behind
/// `{block}{index}.`, as in `blk.3.attn_q.weight`.
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
    /// Query, key and value projections.
    pub qkv: [&'static str; 3],
    /// Output projection of attention.
    pub attn_out: &'static str,
    /// Gain of the norm before the MLP.
    pub ffn_norm: &'static str,
    /// Gate and up projections.
    pub gate_up: [&'static str; 2],
    /// Down projection.
    pub down: &'static str,
    /// Endings of names that carry no weights of the decoder. Any other tensor without a role is refused:
    /// leaving a bias or an expert out would give a wrong model.
    pub without_role: &'static [&'static str],
}

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
    let known: Vec<&str> = FAMILIES.iter().flat_map(|f| f.gguf).copied().collect();
    let Some(name) = gguf.meta.text(KEY)? else {
        return Err(gguf.meta.missing(KEY, &known.join(" or ")));
    };
    let family = FAMILIES.iter().find(|f| f.gguf.contains(&name));
    let family = family.ok_or_else(|| ModelError::unsupported(gguf.path(), "architecture", name, &known))?;
    let config = (family.gguf_config)(gguf)?;
    let tied = gguf.tensor(family.gguf_names.head).is_none();
    let mut gather = Gather::new(gguf.path(), |name| gguf.tensor(name));
    let weights = gather.weights(&config, family.gguf_names, tied)?;
    gather.refuse_without_role(gguf.tensors().iter(), family.gguf_names, name)?;
    Ok((config, weights))
}

/// Configuration and weights of a Hugging Face folder.
///
/// # Errors
/// Like [`read_gguf`].
pub fn read_hf(folder: &HfFolder) -> Result<(DecoderConfig, Weights)> {
    const FIELD: &str = "model_type";
    let known: Vec<&str> = FAMILIES.iter().flat_map(|f| f.hf).copied().collect();
    let Some(name) = folder.config.text(FIELD)? else {
        return Err(folder.config.missing(FIELD, &known.join(" or ")));
    };
    let family = FAMILIES.iter().find(|f| f.hf.contains(&name));
    let family = family.ok_or_else(|| ModelError::unsupported(folder.config.path(), FIELD, name, &known))?;
    if let Some(quantised) = folder.config.object("quantization_config")? {
        let method = quantised.text("quant_method")?.unwrap_or("?");
        let known = ["none (F32, F16, BF16)"];
        return Err(ModelError::unsupported(folder.config.path(), "quantization_config", method, &known));
    }
    let config = (family.hf_config)(folder)?;
    let tied = folder.config.flag("tie_word_embeddings")?.unwrap_or(false);
    let mut gather = Gather::new(folder.path(), |name| folder.tensor(name));
    let weights = gather.weights(&config, family.hf_names, tied)?;
    gather.refuse_without_role(folder.tensors(), family.hf_names, name)?;
    Ok((config, weights))
}

/// Takes tensors out of a file by name and notes which it took.
struct Gather<'a, F> {
    path: &'a Path,
    find: F,
    taken: HashSet<&'a str>,
}

impl<'a, F: Fn(&str) -> Option<&'a TensorInfo>> Gather<'a, F> {
    fn new(path: &'a Path, find: F) -> Self {
        Self { path, find, taken: HashSet::new() }
    }

    fn weights(&mut self, c: &DecoderConfig, names: &TensorNames, tied: bool) -> Result<Weights> {
        let embed = self.matrix(names.embed, c.vocab, c.d_model)?;
        let head = if tied {
            self.refuse_second_head(names)?;
            embed.clone()
        } else {
            self.matrix(names.head, c.vocab, c.d_model)?
        };
        let final_norm = self.norm(names.final_norm, c.d_model)?;
        let layers: Result<Vec<_>> = (0..c.n_layers).map(|i| self.layer(c, names, i)).collect();
        Ok(Weights { embed, layers: layers?, final_norm, head })
    }

    fn layer(&mut self, c: &DecoderConfig, names: &TensorNames, index: usize) -> Result<LayerWeights> {
        let name = |role: &str| format!("{}{index}.{role}", names.block);
        let (q_rows, kv_rows) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let [q, k, v] = names.qkv.map(name);
        let [gate, up] = names.gate_up.map(name);
        Ok(LayerWeights {
            attn_norm: self.norm(&name(names.attn_norm), c.d_model)?,
            qkv: Matrix::stack([
                self.matrix(&q, q_rows, c.d_model)?,
                self.matrix(&k, kv_rows, c.d_model)?,
                self.matrix(&v, kv_rows, c.d_model)?,
            ]),
            attn_out: self.matrix(&name(names.attn_out), c.d_model, q_rows)?,
            ffn_norm: self.norm(&name(names.ffn_norm), c.d_model)?,
            gate_up: Matrix::stack([
                self.matrix(&gate, c.d_ff, c.d_model)?,
                self.matrix(&up, c.d_ff, c.d_model)?,
            ]),
            down: self.matrix(&name(names.down), c.d_model, c.d_ff)?,
        })
    }

    /// A tensor of exactly this shape.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<&'a TensorInfo> {
        let error = |path: &Path, found: String| {
            ModelError::malformed(path, format!("tensor \"{name}\""), found, format!("shape {shape:?}"))
        };
        let tensor = (self.find)(name).ok_or_else(|| error(self.path, "no such tensor".to_owned()))?;
        if tensor.shape != shape {
            return Err(error(&tensor.path, format!("shape {:?}", tensor.shape)));
        }
        self.taken.insert(&tensor.name);
        Ok(tensor)
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let t = self.tensor(name, &[rows, cols])?;
        Ok(Matrix::new(t.format, rows, cols, t.bytes.clone()))
    }

    fn norm(&mut self, name: &str, d: usize) -> Result<Vec<f32>> {
        finite(self.tensor(name, &[d])?)
    }

    /// A file that ties the head to the embedding may still hold the head, but not another one.
    fn refuse_second_head(&mut self, names: &TensorNames) -> Result<()> {
        let (Some(head), Some(embed)) = ((self.find)(names.head), (self.find)(names.embed)) else {
            return Ok(());
        };
        if head.bytes.as_slice() != embed.bytes.as_slice() {
            let place = format!("tensor \"{}\"", names.head);
            let expected = "the embedding, as tie_word_embeddings says";
            return Err(ModelError::malformed(&head.path, place, "other numbers", expected));
        }
        self.taken.insert(&head.name);
        Ok(())
    }

    fn refuse_without_role(
        &self,
        mut all: impl Iterator<Item = &'a TensorInfo>,
        names: &TensorNames,
        family: &str,
    ) -> Result<()> {
        let has_role = |t: &TensorInfo| {
            self.taken.contains(t.name.as_str()) || names.without_role.iter().any(|end| t.name.ends_with(end))
        };
        match all.find(|t| !has_role(t)) {
            None => Ok(()),
            Some(t) => {
                let place = format!("tensor \"{}\"", t.name);
                let found = format!("a tensor without a role in a {family} model");
                Err(ModelError::malformed(&t.path, place, found, "the tensors of that family").advise(
                    "the model has a part that this program does not compute, such as a bias or an expert",
                ))
            }
        }
    }
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
