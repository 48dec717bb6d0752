//! The decoder: embedding, blocks and output head of a frozen pre-norm transformer, and the gradient of
//! log-probabilities with respect to the residual stream. One text for every family and every backend.

use crate::backend::Backend;
use crate::edit::{Edit, EditOp};
use crate::engine::{CachedRun, Engine, KvCache, Vjp};
use crate::twins::Twins;
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
    /// Only the head's rows went through the MLP.
    narrowed: bool,
}

/// How the rows of a pass see each other, and which of them the head reads.
struct Context<B: Backend> {
    runs: B::Runs,
    angles: B::Angles,
    /// Rows of the pass.
    t: usize,
    /// The rows that predict a scored token, each once, in order.
    head_rows: Vec<usize>,
    /// For each scored token, its row's place in `head_rows`.
    scored: Vec<usize>,
    /// The scored tokens.
    targets: Vec<u32>,
}

/// What the VJP of log-probabilities needs.
struct Kept<B: Backend> {
    context: Context<B>,
    saved: Vec<Saved<B>>,
    head_input: B::Tensor,
    head_rstd: B::Tensor,
    logits: B::Tensor,
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
        let context = self.context(pack)?;
        let mut x = self.backend.embed(&self.embed, &pack.tokens)?;
        self.blocks(0..layer + 1, &mut x, &context)?;
        self.backend.download(&x)
    }

    fn score(&self, pack: &Pack) -> Result<Vec<f32>> {
        let context = self.context(pack)?;
        let mut x = self.backend.embed(&self.embed, &pack.tokens)?;
        self.head_rows(0, &mut x, &context, None)?;
        self.head_log_probs(&x, &context)
    }

    fn score_from(&self, layer: usize, h_td: &[f32], pack: &Pack) -> Result<Vec<f32>> {
        let context = self.context(pack)?;
        let mut x = self.backend.upload(h_td, self.config.d_model)?;
        self.head_rows(layer + 1, &mut x, &context, None)?;
        self.head_log_probs(&x, &context)
    }

    fn score_from_kept(&self, layer: usize, h_td: &[f32], pack: &Pack) -> Result<(Vec<f32>, Box<Vjp<'_>>)> {
        let b = &self.backend;
        let context = self.context(pack)?;
        let mut x = b.upload(h_td, self.config.d_model)?;
        let mut saved = Vec::with_capacity(self.layers.len() - layer - 1);
        self.head_rows(layer + 1, &mut x, &context, Some(&mut saved))?;
        let head_input = b.select(&x, &context.scored)?;
        let (normed, head_rstd) = b.rms_norm(&head_input, &self.final_norm, self.config.norm_eps)?;
        let logits = b.linear(&normed, &self.head)?;
        let logps = b.log_probs(&logits, &context.targets)?;
        let kept = Kept { context, saved, head_input, head_rstd, logits };
        Ok((logps, Box::new(move |coef| self.vjp(layer, kept, coef))))
    }

    fn advance(&self, runs: &mut [CachedRun<'_>]) -> Result<Vec<f32>> {
        let b = &self.backend;
        let twins = Twins::of(runs, self.layers.len());
        let mut rows = twins.rows(runs, 0);
        let tokens: Vec<u32> = twins.computed(0).flat_map(|run| runs[run].tokens.iter().copied()).collect();
        let mut angles = self.angles_of(runs, &rows)?;
        let mut x = b.embed(&self.embed, &tokens)?;
        for (l, layer) in self.layers.iter().enumerate() {
            let caches = runs.iter_mut().map(|run| &mut run.cache.layers::<B>()[l]);
            let mut texts: Vec<_> =
                rows.iter().zip(caches).filter_map(|(rows, cache)| rows.clone().zip(Some(cache))).collect();
            let attend = |qkv: &B::Tensor| b.attention_cached(qkv, self.heads, &mut texts);
            self.block(layer, &mut x, &angles, None, false, attend)?;
            for run in (0..runs.len()).filter(|&run| rows[run].is_none()) {
                let cache = runs[twins.source(run, l)].cache.layers::<B>()[l].clone();
                runs[run].cache.layers::<B>()[l] = cache;
            }
            if twins.part_after(l) {
                let parted = twins.rows(runs, l + 1);
                let sources = twins.computed(l + 1).filter_map(|run| rows[twins.source(run, l)].clone());
                x = b.select(&x, &sources.flatten().collect::<Vec<_>>())?;
                rows = parted;
                angles = self.angles_of(runs, &rows)?;
            }
            for (run, rows) in runs.iter().zip(&rows) {
                if let Some(rows) = rows {
                    self.edit(&mut x, rows.clone(), run.edits, l)?;
                }
            }
        }
        for run in runs.iter_mut() {
            run.cache.tokens.extend_from_slice(run.tokens);
        }
        let last = (0..runs.len()).filter_map(|run| rows[twins.source(run, self.layers.len())].as_ref());
        let last: Vec<usize> = last.map(|rows| rows.end - 1).collect();
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
        let (b, context) = (&self.backend, &kept.context);
        let dlogits = b.log_probs_vjp(kept.logits, &context.targets, coef)?;
        let dnormed = b.linear_vjp(&dlogits, &self.head)?;
        drop(dlogits);
        let mut dinput = b.upload(&vec![0.0; coef.len() * self.config.d_model], self.config.d_model)?;
        b.rms_norm_vjp(&kept.head_input, &self.final_norm, &kept.head_rstd, &dnormed, &mut dinput)?;
        let mut dx = b.select_vjp(&dinput, &context.scored, context.head_rows.len())?;
        if kept.saved.is_empty() {
            dx = b.select_vjp(&dx, &context.head_rows, context.t)?;
        }
        for (layer, saved) in self.layers[layer + 1..].iter().zip(kept.saved).rev() {
            dx = self.block_vjp(layer, saved, context, dx)?;
        }
        b.download(&dx)
    }

    fn context(&self, pack: &Pack) -> Result<Context<B>> {
        let angles = Angles::new(&pack.positions(), &self.frequencies);
        let mut head_rows: Vec<usize> = pack.scored.iter().map(|s| s.row).collect();
        head_rows.sort_unstable();
        head_rows.dedup();
        let place = |row: usize| head_rows.partition_point(|&r| r < row);
        Ok(Context {
            runs: self.backend.runs(pack.runs())?,
            angles: self.backend.angles(angles, &self.config.rope)?,
            t: pack.len(),
            scored: pack.scored.iter().map(|s| place(s.row)).collect(),
            targets: pack.scored.iter().map(|s| s.target).collect(),
            head_rows,
        })
    }

    /// Angles of the rows of new tokens.
    fn angles_of(&self, runs: &[CachedRun<'_>], rows: &[Option<Range<usize>>]) -> Result<B::Angles> {
        let computed = runs.iter().zip(rows).filter(|(_, rows)| rows.is_some());
        let positions: Vec<usize> =
            computed.flat_map(|(r, _)| r.cache.len()..r.cache.len() + r.tokens.len()).collect();
        self.backend.angles(Angles::new(&positions, &self.frequencies), &self.config.rope)
    }

    fn edit(&self, x: &mut B::Tensor, rows: Range<usize>, edits: &[Edit], layer: usize) -> Result<()> {
        for edit in edits.iter().filter(|e| e.layer == layer) {
            match &edit.op {
                EditOp::Add(v) => self.backend.add_to_rows(x, rows.clone(), v)?,
            }
        }
        Ok(())
    }

    /// Runs blocks `range` on packed rows `x`.
    fn blocks(&self, range: Range<usize>, x: &mut B::Tensor, context: &Context<B>) -> Result<()> {
        for layer in &self.layers[range] {
            let attend = |qkv: &B::Tensor| self.backend.attention(qkv, self.heads, &context.runs);
            self.block(layer, x, &context.angles, None, false, attend)?;
        }
        Ok(())
    }

    /// Runs blocks `first..` on packed rows `x` and leaves only the rows that the head reads: the last block
    /// computes no others after its attention. `keep` collects what the VJPs need.
    fn head_rows(
        &self,
        first: usize,
        x: &mut B::Tensor,
        context: &Context<B>,
        mut keep: Option<&mut Vec<Saved<B>>>,
    ) -> Result<()> {
        if first == self.layers.len() {
            *x = self.backend.select(x, &context.head_rows)?;
        }
        for (l, layer) in self.layers.iter().enumerate().skip(first) {
            let attend = |qkv: &B::Tensor| self.backend.attention(qkv, self.heads, &context.runs);
            let narrow = (l + 1 == self.layers.len()).then_some(&context.head_rows[..]);
            let saved = self.block(layer, x, &context.angles, narrow, keep.is_some(), attend)?;
            if let Some(keep) = keep.as_mut() {
                keep.extend(saved);
            }
        }
        Ok(())
    }

    /// One block: `x += attention(norm(x)); x += mlp(norm(x))`. Only rows `narrow`, where given, go on after the
    /// attention.
    fn block(
        &self,
        layer: &Layer<B>,
        x: &mut B::Tensor,
        angles: &B::Angles,
        narrow: Option<&[usize]>,
        keep: bool,
        attend: impl FnOnce(&B::Tensor) -> Result<B::Tensor>,
    ) -> Result<Option<Saved<B>>> {
        let (b, eps) = (&self.backend, self.config.norm_eps);
        let input = keep.then(|| b.copy(x)).transpose()?;
        let (normed, attn_rstd) = b.rms_norm(x, &layer.attn_norm, eps)?;
        let mut qkv = b.linear(&normed, &layer.qkv)?;
        b.rope(&mut qkv, self.heads, angles, Turn::Forward)?;
        let mut attended = attend(&qkv)?;
        if let Some(rows) = narrow {
            attended = b.select(&attended, rows)?;
            *x = b.select(x, rows)?;
        }
        b.add(x, &b.linear(&attended, &layer.attn_out)?)?;

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
            narrowed: narrow.is_some(),
        }))
    }

    /// The VJP of one block: from the gradient of its output to that of its input.
    fn block_vjp(
        &self,
        layer: &Layer<B>,
        saved: Saved<B>,
        context: &Context<B>,
        mut dx: B::Tensor,
    ) -> Result<B::Tensor> {
        let b = &self.backend;
        let dgated = b.linear_vjp(&dx, &layer.down)?;
        let dgate_up = b.swiglu_vjp(saved.gate_up, &dgated)?;
        let dnormed = b.linear_vjp(&dgate_up, &layer.gate_up)?;
        b.rms_norm_vjp(&saved.middle, &layer.ffn_norm, &saved.ffn_rstd, &dnormed, &mut dx)?;

        let mut dattended = b.linear_vjp(&dx, &layer.attn_out)?;
        if saved.narrowed {
            dattended = b.select_vjp(&dattended, &context.head_rows, context.t)?;
            dx = b.select_vjp(&dx, &context.head_rows, context.t)?;
        }
        let mut dqkv = b.attention_vjp(&saved.qkv, self.heads, &context.runs, &dattended)?;
        b.rope(&mut dqkv, self.heads, &context.angles, Turn::Back)?;
        let dnormed = b.linear_vjp(&dqkv, &layer.qkv)?;
        b.rms_norm_vjp(&saved.input, &layer.attn_norm, &saved.attn_rstd, &dnormed, &mut dx)?;
        Ok(dx)
    }

    /// Log-probabilities of the scored tokens from the head's rows of the last block's output, some at a time.
    fn head_log_probs(&self, x: &B::Tensor, context: &Context<B>) -> Result<Vec<f32>> {
        let mut logps = Vec::with_capacity(context.scored.len());
        for (rows, targets) in context.scored.chunks(HEAD_ROWS).zip(context.targets.chunks(HEAD_ROWS)) {
            let rows = self.backend.select(x, rows)?;
            let (normed, _) = self.backend.rms_norm(&rows, &self.final_norm, self.config.norm_eps)?;
            let logits = self.backend.linear(&normed, &self.head)?;
            logps.extend(self.backend.log_probs(&logits, targets)?);
        }
        Ok(logps)
    }
}
