//! The decoder: embedding, blocks and output head of a frozen pre-norm transformer, and the gradient of
//! log-probabilities with respect to the residual stream. One text for every family and every backend.

use crate::backend::Backend;
use crate::edit::EditOp;
use crate::engine::{CachedRun, Engine, KvCache, Vjp};
use crate::weights::{LayerWeights, Weights};
use crate::{DecoderConfig, Pack, Result};
use std::ops::Range;
use steerkit_kernels::attention::Heads;
use steerkit_kernels::rope::{Angles, Turn};

/// Rows of the head computed at once when nothing is kept; bounds the memory for logits.
const HEAD_ROWS: usize = 256;

/// A decoder on one backend.
pub(crate) struct Decoder<B: Backend> {
    backend: B,
    config: DecoderConfig,
    heads: Heads,
    frequencies: Vec<f64>,
    embed: B::Matrix,
    layers: Vec<Layer<B>>,
    final_norm: B::Gain,
    head: B::Matrix,
}

struct Layer<B: Backend> {
    attn_norm: B::Gain,
    qkv: B::Matrix,
    attn_out: B::Matrix,
    ffn_norm: B::Gain,
    gate_up: B::Matrix,
    down: B::Matrix,
}

/// What the VJP of one block needs; the rest is computed again.
struct Saved<B: Backend> {
    input: B::Tensor,
    attn_rstd: B::Tensor,
    qkv: B::Tensor,
    middle: B::Tensor,
    ffn_rstd: B::Tensor,
    gate_up: B::Tensor,
}

/// How the rows of a pass see each other.
struct Context<B: Backend> {
    runs: B::Runs,
    angles: B::Angles,
}

/// What the VJP of log-probabilities needs.
struct Kept<B: Backend> {
    context: Context<B>,
    saved: Vec<Saved<B>>,
    head_input: B::Tensor,
    head_rstd: B::Tensor,
    logits: B::Tensor,
    rows: Vec<usize>,
    targets: Vec<u32>,
    t: usize,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn new(backend: B, config: DecoderConfig, weights: &Weights) -> Result<Self> {
        let layer = |w: &LayerWeights| {
            Ok(Layer {
                attn_norm: backend.gain(&w.attn_norm)?,
                qkv: backend.matrix(&w.qkv)?,
                attn_out: backend.matrix(&w.attn_out)?,
                ffn_norm: backend.gain(&w.ffn_norm)?,
                gate_up: backend.matrix(&w.gate_up)?,
                down: backend.matrix(&w.down)?,
            })
        };
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        Ok(Self {
            heads: Heads { n: config.n_heads, k: config.n_kv_heads, h: config.head_dim, scale },
            frequencies: config.rope.frequencies(config.head_dim),
            embed: backend.matrix(&weights.embed)?,
            layers: weights.layers.iter().map(layer).collect::<Result<_>>()?,
            final_norm: backend.gain(&weights.final_norm)?,
            head: backend.matrix(&weights.head)?,
            config,
            backend,
        })
    }
}

impl<B: Backend> Engine for Decoder<B> {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn residual(&self, pack: &Pack, layer: usize) -> Result<Vec<f32>> {
        Ok(self.residuals(pack, &[layer])?.remove(0))
    }

    fn residuals(&self, pack: &Pack, layers: &[usize]) -> Result<Vec<Vec<f32>>> {
        let context = self.context(pack)?;
        let mut x = self.backend.embed(&self.embed, &pack.tokens)?;
        let mut done = 0;
        let mut all = Vec::with_capacity(layers.len());
        for &layer in layers {
            self.blocks(done..layer + 1, &mut x, &context, None)?;
            done = layer + 1;
            all.push(self.backend.download(&x)?);
        }
        Ok(all)
    }

    fn score(&self, pack: &Pack) -> Result<Vec<f32>> {
        let context = self.context(pack)?;
        let mut x = self.backend.embed(&self.embed, &pack.tokens)?;
        self.blocks(0..self.layers.len(), &mut x, &context, None)?;
        self.head_log_probs(&x, pack)
    }

    fn score_from(&self, layer: usize, h_td: &[f32], pack: &Pack) -> Result<Vec<f32>> {
        let context = self.context(pack)?;
        let mut x = self.backend.upload(h_td, self.config.d_model)?;
        self.blocks(layer + 1..self.layers.len(), &mut x, &context, None)?;
        self.head_log_probs(&x, pack)
    }

    fn score_from_kept(&self, layer: usize, h_td: &[f32], pack: &Pack) -> Result<(Vec<f32>, Box<Vjp<'_>>)> {
        let b = &self.backend;
        let context = self.context(pack)?;
        let mut x = b.upload(h_td, self.config.d_model)?;
        let mut saved = Vec::with_capacity(self.layers.len() - layer - 1);
        self.blocks(layer + 1..self.layers.len(), &mut x, &context, Some(&mut saved))?;
        let (rows, targets): (Vec<_>, Vec<_>) = pack.scored.iter().map(|s| (s.row, s.target)).unzip();
        let head_input = b.select(&x, &rows)?;
        let (normed, head_rstd) = b.rms_norm(&head_input, &self.final_norm, self.config.norm_eps)?;
        let logits = b.linear(&normed, &self.head)?;
        let logps = b.log_probs(&logits, &targets)?;
        let kept = Kept { context, saved, head_input, head_rstd, logits, rows, targets, t: pack.len() };
        Ok((logps, Box::new(move |coef| self.vjp(layer, kept, coef))))
    }

    fn advance(&self, runs: &mut [CachedRun<'_>]) -> Result<Vec<f32>> {
        let b = &self.backend;
        let tokens: Vec<u32> = runs.iter().flat_map(|r| r.tokens).copied().collect();
        let positions: Vec<usize> =
            runs.iter().flat_map(|r| r.cache.len..r.cache.len + r.tokens.len()).collect();
        let ends = runs.iter().scan(0, |end, r| {
            *end += r.tokens.len();
            Some(*end)
        });
        let rows: Vec<Range<usize>> =
            ends.zip(runs.iter()).map(|(end, r)| end - r.tokens.len()..end).collect();
        let angles = b.angles(Angles::new(&positions, &self.frequencies), &self.config.rope)?;
        let mut x = b.embed(&self.embed, &tokens)?;
        for (l, layer) in self.layers.iter().enumerate() {
            let mut texts: Vec<_> =
                rows.iter().cloned().zip(runs.iter_mut().map(|r| &mut r.cache.layers::<B>()[l])).collect();
            let attend = |qkv: &B::Tensor| b.attention_cached(qkv, self.heads, &mut texts);
            self.block(layer, &mut x, &angles, false, attend)?;
            for (run, rows) in runs.iter().zip(&rows) {
                self.edit(&mut x, rows.clone(), run, l)?;
            }
        }
        for run in runs.iter_mut() {
            run.cache.len += run.tokens.len();
        }
        let last: Vec<usize> = rows.iter().map(|r| r.end - 1).collect();
        let (normed, _) = b.rms_norm(&b.select(&x, &last)?, &self.final_norm, self.config.norm_eps)?;
        b.download(&b.linear(&normed, &self.head)?)
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new::<B>(self.layers.iter().map(|_| self.backend.new_cache()).collect())
    }
}

impl<B: Backend> Decoder<B> {
    /// `Σ coef[i] · ∂ logps[i] / ∂ h_td`, `[t, d]`.
    fn vjp(&self, layer: usize, kept: Kept<B>, coef: &[f32]) -> Result<Vec<f32>> {
        let b = &self.backend;
        let dlogits = b.log_probs_vjp(kept.logits, &kept.targets, coef)?;
        let dnormed = b.linear_vjp(&dlogits, &self.head)?;
        drop(dlogits);
        let mut dinput = b.upload(&vec![0.0; coef.len() * self.config.d_model], self.config.d_model)?;
        b.rms_norm_vjp(&kept.head_input, &self.final_norm, &kept.head_rstd, &dnormed, &mut dinput)?;
        let mut dx = b.select_vjp(&dinput, &kept.rows, kept.t)?;
        for (layer, saved) in self.layers[layer + 1..].iter().zip(kept.saved).rev() {
            self.block_vjp(layer, saved, &kept.context, &mut dx)?;
        }
        b.download(&dx)
    }

    fn context(&self, pack: &Pack) -> Result<Context<B>> {
        let angles = Angles::new(&pack.positions(), &self.frequencies);
        Ok(Context {
            runs: self.backend.runs(pack.runs())?,
            angles: self.backend.angles(angles, &self.config.rope)?,
        })
    }

    /// Edits the new rows of one text, where its edits act.
    fn edit(&self, x: &mut B::Tensor, rows: Range<usize>, run: &CachedRun<'_>, layer: usize) -> Result<()> {
        let first = run.cache.len;
        for edit in run.edits.iter().filter(|e| e.layer == layer) {
            for at in edit.positions.within(first..first + rows.len()) {
                let rows = rows.start + at.start - first..rows.start + at.end - first;
                match &edit.op {
                    EditOp::Add(v) => self.backend.add_to_rows(x, rows, v)?,
                    EditOp::Along { unit_d, shift } => self.backend.shift_rows(x, rows, unit_d, *shift)?,
                }
            }
        }
        Ok(())
    }

    /// Runs blocks `range` on packed rows `x`; `keep` collects what their VJPs need.
    fn blocks(
        &self,
        range: Range<usize>,
        x: &mut B::Tensor,
        context: &Context<B>,
        mut keep: Option<&mut Vec<Saved<B>>>,
    ) -> Result<()> {
        for layer in &self.layers[range] {
            let attend = |qkv: &B::Tensor| self.backend.attention(qkv, self.heads, &context.runs);
            let saved = self.block(layer, x, &context.angles, keep.is_some(), attend)?;
            if let Some(keep) = keep.as_mut() {
                keep.extend(saved);
            }
        }
        Ok(())
    }

    /// One block: `x += attention(norm(x)); x += mlp(norm(x))`.
    fn block(
        &self,
        layer: &Layer<B>,
        x: &mut B::Tensor,
        angles: &B::Angles,
        keep: bool,
        attend: impl FnOnce(&B::Tensor) -> Result<B::Tensor>,
    ) -> Result<Option<Saved<B>>> {
        let (b, eps) = (&self.backend, self.config.norm_eps);
        let input = keep.then(|| b.copy(x)).transpose()?;
        let (normed, attn_rstd) = b.rms_norm(x, &layer.attn_norm, eps)?;
        let mut qkv = b.linear(&normed, &layer.qkv)?;
        b.rope(&mut qkv, self.heads, angles, Turn::Forward)?;
        b.add(x, &b.linear(&attend(&qkv)?, &layer.attn_out)?)?;

        let middle = keep.then(|| b.copy(x)).transpose()?;
        let (normed, ffn_rstd) = b.rms_norm(x, &layer.ffn_norm, eps)?;
        let gate_up = b.linear(&normed, &layer.gate_up)?;
        b.add(x, &b.linear(&b.swiglu(&gate_up)?, &layer.down)?)?;
        Ok(input.zip(middle).map(|(input, middle)| Saved {
            input,
            attn_rstd,
            qkv,
            middle,
            ffn_rstd,
            gate_up,
        }))
    }

    /// The VJP of one block: `dx` becomes the gradient of its input.
    fn block_vjp(
        &self,
        layer: &Layer<B>,
        saved: Saved<B>,
        context: &Context<B>,
        dx: &mut B::Tensor,
    ) -> Result<()> {
        let b = &self.backend;
        let dgated = b.linear_vjp(dx, &layer.down)?;
        let dgate_up = b.swiglu_vjp(saved.gate_up, &dgated)?;
        let dnormed = b.linear_vjp(&dgate_up, &layer.gate_up)?;
        b.rms_norm_vjp(&saved.middle, &layer.ffn_norm, &saved.ffn_rstd, &dnormed, dx)?;

        let dattended = b.linear_vjp(dx, &layer.attn_out)?;
        let mut dqkv = b.attention_vjp(&saved.qkv, self.heads, &context.runs, &dattended)?;
        b.rope(&mut dqkv, self.heads, &context.angles, Turn::Back)?;
        let dnormed = b.linear_vjp(&dqkv, &layer.qkv)?;
        b.rms_norm_vjp(&saved.input, &layer.attn_norm, &saved.attn_rstd, &dnormed, dx)
    }

    /// Log-probabilities of the scored tokens from the last block's output, some rows at a time.
    fn head_log_probs(&self, x: &B::Tensor, pack: &Pack) -> Result<Vec<f32>> {
        let mut logps = Vec::with_capacity(pack.scored.len());
        for scored in pack.scored.chunks(HEAD_ROWS) {
            let (rows, targets): (Vec<_>, Vec<_>) = scored.iter().map(|s| (s.row, s.target)).unzip();
            let rows = self.backend.select(x, &rows)?;
            let (normed, _) = self.backend.rms_norm(&rows, &self.final_norm, self.config.norm_eps)?;
            let logits = self.backend.linear(&normed, &self.head)?;
            logps.extend(self.backend.log_probs(&logits, &targets)?);
        }
        Ok(logps)
    }
}
