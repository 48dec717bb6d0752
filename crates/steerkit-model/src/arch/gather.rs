//! The decoder's weights from the tensors of a file, by their names.

use super::{TensorNames, finite};
use crate::{
    ModelError, Result,
    config::{DecoderConfig, Norms, QkNorm},
    source::TensorInfo,
    weights::{LayerWeights, Linear, Weights},
};
use std::{collections::HashSet, path::Path};
use steerkit_kernels::Matrix;

/// Takes tensors out of a file by name and notes which it took.
pub(super) struct Gather<'a, F> {
    path: &'a Path,
    find: F,
    names: &'a TensorNames,
    taken: HashSet<&'a str>,
}

impl<'a, F: Fn(&str) -> Option<&'a TensorInfo>> Gather<'a, F> {
    pub(super) fn new(path: &'a Path, find: F, names: &'a TensorNames) -> Self {
        Self { path, find, names, taken: HashSet::new() }
    }

    pub(super) fn weights(&mut self, c: &DecoderConfig, tied: bool) -> Result<Weights> {
        let names = self.names;
        let embed = self.matrix(names.embed, c.vocab, c.d_model)?;
        let head = if tied {
            self.refuse_second_head()?;
            embed.clone()
        } else {
            self.matrix(names.head, c.vocab, c.d_model)?
        };
        let final_norm = self.gain(names.final_norm, c.d_model)?;
        let layers: Result<Vec<_>> = (0..c.n_layers).map(|i| self.layer(c, i)).collect();
        Ok(Weights { embed, layers: layers?, final_norm, head })
    }

    fn layer(&mut self, c: &DecoderConfig, index: usize) -> Result<LayerWeights> {
        let names = self.names;
        let (d, h) = (c.d_model, c.head_dim);
        let (q, kv) = (c.n_heads * h, c.n_kv_heads * h);
        let (biases, norms) = (c.features.biases, c.features.norms);
        let name = |role: &str| format!("{}{index}.{role}", names.block);
        let stacked = |roles: &[&str], rows: &[usize]| match roles {
            [one] => vec![(name(one), rows.iter().sum())],
            _ => roles.iter().map(|role| name(role)).zip(rows.iter().copied()).collect(),
        };
        let qk_norms = match c.features.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some([h, h]),
            QkNorm::Whole => Some([q, kv]),
        };
        let [q_norm, k_norm] = names.qk_norms.map(name);
        let mut norm = |stands: bool, role| stands.then(|| self.gain(&name(role), d)).transpose();
        let (before, after) = (norms != Norms::After, norms != Norms::Before);
        Ok(LayerWeights {
            attn_norm: norm(before, names.attn_norm)?,
            attn_post_norm: norm(after, names.attn_post_norm)?,
            ffn_norm: norm(before, names.ffn_norm)?,
            ffn_post_norm: norm(after, names.ffn_post_norm)?,
            qk_norms: qk_norms
                .map(|[q, k]| Ok::<_, ModelError>([self.gain(&q_norm, q)?, self.gain(&k_norm, k)?]))
                .transpose()?,
            qkv: self.linear(&stacked(names.qkv, &[q, kv, kv]), d, biases.qkv)?,
            attn_out: self.linear(&stacked(&[names.attn_out], &[d]), q, biases.attn_out)?,
            gate_up: self.linear(&stacked(names.gate_up, &[c.d_ff, c.d_ff]), d, biases.mlp)?,
            down: self.linear(&stacked(&[names.down], &[d]), c.d_ff, biases.mlp)?,
        })
    }

    /// A projection whose outputs are stored in one or several tensors.
    fn linear(&mut self, parts: &[(String, usize)], cols: usize, bias: bool) -> Result<Linear> {
        let matrices: Result<Vec<_>> =
            parts.iter().map(|(name, rows)| self.matrix(name, *rows, cols)).collect();
        let biases = parts.iter().filter(|_| bias);
        let biases: Result<Vec<_>> =
            biases.map(|(name, rows)| finite(self.tensor(&format!("{name}.bias"), &[*rows])?)).collect();
        let bias = bias.then_some(biases?.concat());
        Ok(Linear { matrix: Matrix::stack(matrices?), bias, low_rank: None })
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
        let t = self.tensor(&format!("{name}.weight"), &[rows, cols])?;
        Ok(Matrix::new(t.format, rows, cols, t.bytes.clone()))
    }

    fn gain(&mut self, name: &str, d: usize) -> Result<Vec<f32>> {
        let mut gain = finite(self.tensor(&format!("{name}.weight"), &[d])?)?;
        gain.iter_mut().for_each(|g| *g += self.names.gain_offset);
        Ok(gain)
    }

    /// A file that ties the head to the embedding may still hold the head, but not another one.
    fn refuse_second_head(&mut self) -> Result<()> {
        let [head, embed] =
            [self.names.head, self.names.embed].map(|name| (self.find)(&format!("{name}.weight")));
        let (Some(head), Some(embed)) = (head, embed) else { return Ok(()) };
        if head.bytes.as_slice() != embed.bytes.as_slice() {
            let place = format!("tensor \"{}\"", head.name);
            let expected = "the embedding, as tie_word_embeddings says";
            return Err(ModelError::malformed(&head.path, place, "other numbers", expected));
        }
        self.taken.insert(&head.name);
        Ok(())
    }

    pub(super) fn refuse_without_role(
        &self,
        mut all: impl Iterator<Item = &'a TensorInfo>,
        family: &str,
    ) -> Result<()> {
        let has_role = |t: &TensorInfo| {
            self.taken.contains(t.name.as_str())
                || self.names.without_role.iter().any(|end| t.name.ends_with(end))
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
