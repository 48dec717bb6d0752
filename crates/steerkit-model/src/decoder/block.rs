//! One block: attention and feed-forward with the norms that the model has, forward and back.

use super::projection::{LowRank, LowRankGradient, Projection};
use super::{Context, Decoder};
use crate::backend::Backend;
use crate::lora::Role;
use crate::weights::{LayerWeights, Linear};
use crate::{DecoderConfig, ModelError, Result};
use std::ops::Range;
use steerkit_kernels::attention::Heads;
use steerkit_kernels::rope::Turn;

pub(super) struct Layer<B: Backend> {
    pub(super) heads: Heads,
    /// Which of the ropes turns its heads.
    rope: Option<usize>,
    attn_norm: Option<B::Gain>,
    qkv: Projection<B>,
    qk_norms: Option<[B::Gain; 2]>,
    attn_out: Projection<B>,
    attn_post_norm: Option<B::Gain>,
    ffn_norm: Option<B::Gain>,
    gate_up: Projection<B>,
    down: Projection<B>,
    ffn_post_norm: Option<B::Gain>,
}

impl<B: Backend> Layer<B> {
    pub(super) fn new(backend: &B, config: &DecoderConfig, index: usize, w: &LayerWeights) -> Result<Self> {
        let gain = |gain: &Option<Vec<f32>>| gain.as_deref().map(|g| backend.gain(g)).transpose();
        let projection = |w: &Linear| -> Result<_> {
            let low_rank = w.low_rank.as_ref().map(|factors| LowRank::new(backend, factors));
            Ok(Projection {
                matrix: backend.matrix(&w.matrix)?,
                bias: gain(&w.bias)?,
                low_rank: low_rank.transpose()?,
            })
        };
        let block = config.block(index);
        let local = block.window.is_some() && config.features.local_rope.is_some();
        let qk_norms = w.qk_norms.as_ref();
        Ok(Self {
            heads: Heads {
                n: config.n_heads,
                k: config.n_kv_heads,
                h: config.head_dim,
                scale: config.attn_scale(),
                softcap: config.features.attn_softcap,
                window: block.window,
            },
            rope: block.rotary.then_some(usize::from(local)),
            attn_norm: gain(&w.attn_norm)?,
            qkv: projection(&w.qkv)?,
            qk_norms: qk_norms
                .map(|[q, k]| Ok::<_, ModelError>([backend.gain(q)?, backend.gain(k)?]))
                .transpose()?,
            attn_out: projection(&w.attn_out)?,
            attn_post_norm: gain(&w.attn_post_norm)?,
            ffn_norm: gain(&w.ffn_norm)?,
            gate_up: projection(&w.gate_up)?,
            down: projection(&w.down)?,
            ffn_post_norm: gain(&w.ffn_post_norm)?,
        })
    }

    /// The columns of queries and of keys with the gains of their norms.
    fn normed_heads(&self) -> impl Iterator<Item = (Range<usize>, &B::Gain)> {
        let Heads { n, k, h, .. } = self.heads;
        let columns = [0..n * h, n * h..(n + k) * h];
        columns.into_iter().zip(self.qk_norms.iter().flatten())
    }
}

/// A block with what a pass adds to its projections.
pub(super) struct Adapted<'a, B: Backend> {
    pub(super) layer: &'a Layer<B>,
    pub(super) adapter: &'a [Option<LowRank<B>>],
}

/// What a block keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeping {
    Nothing,
    /// What its VJP needs, without `gate | up`.
    Little,
    /// What its VJP needs.
    All,
}

/// Rows that were normalised, and the reciprocal of each one's root mean square.
pub(super) type Normed<B> = (<B as Backend>::Tensor, <B as Backend>::Tensor);

/// What the VJP of one block needs; the rest is computed again.
pub(super) struct Saved<B: Backend> {
    input: B::Tensor,
    attn_rstd: Option<B::Tensor>,
    /// Before the norms of queries and keys, where there are some.
    raw_qkv: Option<B::Tensor>,
    qkv: B::Tensor,
    attn_post: Option<Normed<B>>,
    middle: B::Tensor,
    ffn_rstd: Option<B::Tensor>,
    /// Where there was room.
    gate_up: Option<B::Tensor>,
    ffn_post: Option<Normed<B>>,
    /// Only the head's rows went on after the attention.
    pub(super) narrowed: bool,
    /// Inputs of the adapted projections.
    inputs: [Option<B::Tensor>; 4],
}

impl<B: Backend> Decoder<B> {
    /// One block: `x += norm(attention(norm(x))); x += norm(mlp(norm(x)))`, with the norms that the model has.
    /// Only rows `narrow`, where given, go on after the attention.
    pub(super) fn block(
        &self,
        block: &Adapted<'_, B>,
        x: &mut B::Tensor,
        angles: &[B::Angles],
        narrow: Option<&[usize]>,
        keeping: Keeping,
        attend: impl FnOnce(&B::Tensor) -> Result<B::Tensor>,
    ) -> Result<Option<Saved<B>>> {
        let (b, &Adapted { layer, adapter }) = (&self.backend, block);
        let keep = keeping != Keeping::Nothing;
        let input = keep.then(|| b.copy(x)).transpose()?;
        let (normed, attn_rstd) = self.norm_before(x, layer.attn_norm.as_ref())?;
        let mut qkv = self.project(&normed, &layer.qkv, adapter, Role::Qkv)?;
        let qkv_input = self.kept_input(normed, keep, adapter, Role::Qkv);
        let raw_qkv = (keep && layer.qk_norms.is_some()).then(|| b.copy(&qkv)).transpose()?;
        for (columns, gain) in layer.normed_heads() {
            b.rms_norm_columns(&mut qkv, columns, gain, self.config.norm_eps)?;
        }
        if let Some(rope) = layer.rope {
            b.rope(&mut qkv, layer.heads, &angles[rope], Turn::Forward)?;
        }
        let mut attended = attend(&qkv)?;
        let qkv = keep.then_some(qkv);
        if let Some(rows) = narrow {
            attended = b.select(&attended, rows)?;
            *x = b.select(x, rows)?;
        }
        let out = self.project(&attended, &layer.attn_out, adapter, Role::AttnOut)?;
        let attn_out_input = self.kept_input(attended, keep, adapter, Role::AttnOut);
        let attn_post = self.add_out(x, out, layer.attn_post_norm.as_ref())?.filter(|_| keep);

        let middle = keep.then(|| b.copy(x)).transpose()?;
        let (normed, ffn_rstd) = self.norm_before(x, layer.ffn_norm.as_ref())?;
        let gate_up = self.project(&normed, &layer.gate_up, adapter, Role::GateUp)?;
        let gate_up_input = self.kept_input(normed, keep, adapter, Role::GateUp);
        let gated = b.gated(self.config.features.activation, &gate_up)?;
        let gate_up = (keeping == Keeping::All).then_some(gate_up);
        let out = self.project(&gated, &layer.down, adapter, Role::Down)?;
        let down_input = self.kept_input(gated, keep, adapter, Role::Down);
        let ffn_post = self.add_out(x, out, layer.ffn_post_norm.as_ref())?;
        let inputs = input.zip(qkv).zip(middle);
        Ok(inputs.map(|((input, qkv), middle)| Saved {
            input,
            attn_rstd,
            raw_qkv,
            qkv,
            attn_post,
            middle,
            ffn_rstd,
            gate_up,
            ffn_post,
            narrowed: narrow.is_some(),
            inputs: [qkv_input, attn_out_input, gate_up_input, down_input],
        }))
    }

    /// What a sublayer reads: the normalised stream, or the stream itself where no norm stands before.
    fn norm_before(&self, x: &B::Tensor, gain: Option<&B::Gain>) -> Result<(B::Tensor, Option<B::Tensor>)> {
        match gain {
            None => Ok((self.backend.copy(x)?, None)),
            Some(gain) => {
                let (normed, rstd) = self.backend.rms_norm(x, gain, self.config.norm_eps)?;
                Ok((normed, Some(rstd)))
            }
        }
    }

    /// The VJP of [`Self::norm_before`], added to `dx`.
    fn norm_before_vjp(
        &self,
        x: &B::Tensor,
        norm: Option<(&B::Gain, &B::Tensor)>,
        dnormed: &B::Tensor,
        dx: &mut B::Tensor,
    ) -> Result<()> {
        match norm {
            None => self.backend.add(dx, dnormed),
            Some((gain, rstd)) => self.backend.rms_norm_vjp(x, gain, rstd, dnormed, dx),
        }
    }

    /// Adds what a sublayer gives to the stream, through the norm that stands after it where there is one. Gives
    /// what the VJP needs.
    fn add_out(
        &self,
        x: &mut B::Tensor,
        mut out: B::Tensor,
        gain: Option<&B::Gain>,
    ) -> Result<Option<Normed<B>>> {
        let b = &self.backend;
        let factor = self.config.features.residual_scale;
        let Some(gain) = gain else {
            self.scale(&mut out, factor)?;
            b.add(x, &out)?;
            return Ok(None);
        };
        let (mut normed, rstd) = b.rms_norm(&out, gain, self.config.norm_eps)?;
        self.scale(&mut normed, factor)?;
        b.add(x, &normed)?;
        Ok(Some((out, rstd)))
    }

    /// The gradient of a sublayer's output from that of the stream; `None` where the two are the same.
    fn add_out_vjp(
        &self,
        dx: &B::Tensor,
        gain: Option<&B::Gain>,
        saved: Option<Normed<B>>,
    ) -> Result<Option<B::Tensor>> {
        let b = &self.backend;
        let factor = self.config.features.residual_scale;
        let mut dout = None;
        if factor != 1.0 {
            let mut scaled = b.copy(dx)?;
            b.scale(&mut scaled, factor)?;
            dout = Some(scaled);
        }
        if let Some((gain, (out, rstd))) = gain.zip(saved) {
            let mut before = b.zeros_like(dx)?;
            b.rms_norm_vjp(&out, gain, &rstd, dout.as_ref().unwrap_or(dx), &mut before)?;
            dout = Some(before);
        }
        Ok(dout)
    }

    /// The VJP of one block: from the gradient of its output to that of its input. Those of an adapter's factors go to
    /// `gradients`.
    pub(super) fn block_vjp(
        &self,
        block: &Adapted<'_, B>,
        saved: Saved<B>,
        context: &Context<B>,
        mut dx: B::Tensor,
        gradients: &mut [Option<LowRankGradient>],
    ) -> Result<B::Tensor> {
        let (b, layer) = (&self.backend, block.layer);
        let mut project_vjp = |dy: &B::Tensor, w: &Projection<B>, role: Role| {
            self.project_vjp(dy, w, block.adapter, role, saved.inputs[role as usize].as_ref(), gradients)
        };
        let dout = self.add_out_vjp(&dx, layer.ffn_post_norm.as_ref(), saved.ffn_post)?;
        let gate_up = match saved.gate_up {
            Some(gate_up) => gate_up,
            None => {
                let (normed, _) = self.norm_before(&saved.middle, layer.ffn_norm.as_ref())?;
                self.project(&normed, &layer.gate_up, block.adapter, Role::GateUp)?
            }
        };
        let dgated = project_vjp(dout.as_ref().unwrap_or(&dx), &layer.down, Role::Down)?;
        drop(dout);
        let dgate_up = b.gated_vjp(self.config.features.activation, gate_up, &dgated)?;
        drop(dgated);
        let dnormed = project_vjp(&dgate_up, &layer.gate_up, Role::GateUp)?;
        drop(dgate_up);
        let norm = layer.ffn_norm.as_ref().zip(saved.ffn_rstd.as_ref());
        self.norm_before_vjp(&saved.middle, norm, &dnormed, &mut dx)?;

        let dout = self.add_out_vjp(&dx, layer.attn_post_norm.as_ref(), saved.attn_post)?;
        let mut dattended = project_vjp(dout.as_ref().unwrap_or(&dx), &layer.attn_out, Role::AttnOut)?;
        if saved.narrowed {
            dattended = b.select_vjp(&dattended, &context.head_rows, context.t)?;
            dx = b.select_vjp(&dx, &context.head_rows, context.t)?;
        }
        drop(dout);
        let mut dqkv = b.attention_vjp(&saved.qkv, layer.heads, &context.runs, &dattended)?;
        drop(dattended);
        if let Some(rope) = layer.rope {
            b.rope(&mut dqkv, layer.heads, &context.angles[rope], Turn::Back)?;
        }
        if let Some(raw) = &saved.raw_qkv {
            for (columns, gain) in layer.normed_heads() {
                b.rms_norm_columns_vjp(raw, columns, gain, self.config.norm_eps, &mut dqkv)?;
            }
        }
        let dnormed = project_vjp(&dqkv, &layer.qkv, Role::Qkv)?;
        let norm = layer.attn_norm.as_ref().zip(saved.attn_rstd.as_ref());
        self.norm_before_vjp(&saved.input, norm, &dnormed, &mut dx)?;
        Ok(dx)
    }
}
