//! The decoder: embedding, blocks and output head of a frozen transformer, and the gradient of
//! log-probabilities with respect to the residual stream. One text for every family and every backend.

mod steered;

use crate::backend::Backend;
use crate::config::Rope;
use crate::edit::{EditedScores, TextEdits};
use crate::engine::{CachedRun, Engine, KvCache, Vjp};
use crate::twins::Twins;
use crate::weights::{LayerWeights, Linear, Weights};
use crate::{DecoderConfig, ModelError, Pack, Result};
use std::ops::Range;
use steerkit_kernels::attention::Heads;
use steerkit_kernels::rope::{Angles, Turn};

/// Logits that are computed at once, unless rows are few.
const HEAD_NUMBERS: usize = 1 << 25;
/// Numbers of `gate | up` that a pass keeps for its gradient, 512 MiB; blocks beyond compute theirs again.
pub(crate) const KEPT_GATES: usize = 1 << 27;

/// Rows of the head in one go, of `n` in all: what bounds the memory for logits, in parts of about the same size.
pub(crate) fn head_rows_at_once(n: usize, vocab: usize) -> usize {
    let most = (HEAD_NUMBERS / vocab.max(1)).clamp(64, 256);
    n.div_ceil(n.div_ceil(most).max(1)).max(1)
}

/// Blocks, of those that a pass of `t` rows runs through whole, that keep `gate | up` for its gradient where `kept`
/// numbers of it may be kept.
pub(crate) fn blocks_with_gates(kept: usize, t: usize, d_ff: usize) -> usize {
    kept / (t * 2 * d_ff).max(1)
}

/// A decoder on one backend.
pub(crate) struct Decoder<B: Backend> {
    pub(crate) backend: B,
    config: DecoderConfig,
    /// The rotary embedding, and that of blocks with a window where it is another one.
    ropes: Vec<Rope>,
    embed: B::Matrix,
    layers: Vec<Layer<B>>,
    final_norm: B::Gain,
    head: B::Matrix,
    /// [`KEPT_GATES`], but in a test.
    pub(crate) kept_gates: usize,
}

struct Layer<B: Backend> {
    heads: Heads,
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

struct Projection<B: Backend> {
    matrix: B::Matrix,
    bias: Option<B::Gain>,
    /// `A` and `B` of a low-rank addition.
    low_rank: Option<(B::Matrix, B::Matrix)>,
}

/// What the VJP of one block needs; the rest is computed again.
struct Saved<B: Backend> {
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
    narrowed: bool,
}

/// What a block keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeping {
    Nothing,
    /// What its VJP needs, without `gate | up`.
    Little,
    /// What its VJP needs.
    All,
}

/// Rows that were normalised, and the reciprocal of each one's root mean square.
type Normed<B> = (<B as Backend>::Tensor, <B as Backend>::Tensor);

/// How the rows of a pass see each other, and which of them the head reads.
struct Context<B: Backend> {
    runs: B::Runs,
    /// One for each of the ropes.
    angles: Vec<B::Angles>,
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
    /// The gradient of each scored token's log-probability with respect to the row that it is predicted from, in parts
    /// of `part` rows. It does not depend on the coefficients, so that no logits have to wait for them.
    slopes: Vec<B::Tensor>,
    part: usize,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn new(backend: B, config: DecoderConfig, weights: &Weights) -> Result<Self> {
        let layers = weights.layers.iter().enumerate().map(|(i, w)| Layer::new(&backend, &config, i, w));
        let local = config.features.local_rope.as_ref();
        // A factor of the logits is one of the rows that make them.
        let final_norm: Vec<f32> =
            weights.final_norm.iter().map(|gain| gain * config.features.logit_scale).collect();
        Ok(Self {
            ropes: std::iter::once(&config.rope).chain(local).cloned().collect(),
            embed: backend.matrix(&weights.embed)?,
            layers: layers.collect::<Result<_>>()?,
            final_norm: backend.gain(&final_norm)?,
            head: backend.matrix(&weights.head)?,
            kept_gates: KEPT_GATES,
            config,
            backend,
        })
    }
}

impl<B: Backend> Layer<B> {
    fn new(backend: &B, config: &DecoderConfig, index: usize, w: &LayerWeights) -> Result<Self> {
        let gain = |gain: &Option<Vec<f32>>| gain.as_deref().map(|g| backend.gain(g)).transpose();
        let projection = |w: &Linear| -> Result<_> {
            let low_rank = w.low_rank.as_ref();
            Ok(Projection {
                matrix: backend.matrix(&w.matrix)?,
                bias: gain(&w.bias)?,
                low_rank: low_rank
                    .map(|l| Ok::<_, ModelError>((backend.matrix(&l.down)?, backend.matrix(&l.up)?)))
                    .transpose()?,
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
}

impl<B: Backend> Layer<B> {
    /// The columns of queries and of keys with the gains of their norms.
    fn normed_heads(&self) -> impl Iterator<Item = (Range<usize>, &B::Gain)> {
        let Heads { n, k, h, .. } = self.heads;
        let columns = [0..n * h, n * h..(n + k) * h];
        columns.into_iter().zip(self.qk_norms.iter().flatten())
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
        let mut x = self.embed(&pack.tokens)?;
        let mut done = 0;
        let mut all = Vec::with_capacity(layers.len());
        for &layer in layers {
            self.blocks(done..layer + 1, &mut x, &context)?;
            done = layer + 1;
            all.push(self.backend.download(&x)?);
        }
        Ok(all)
    }

    fn score(&self, pack: &Pack) -> Result<Vec<f32>> {
        let context = self.context(pack)?;
        let mut x = self.embed(&pack.tokens)?;
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
        let part = head_rows_at_once(context.scored.len(), self.config.vocab);
        let (mut logps, mut slopes) = (Vec::with_capacity(context.scored.len()), Vec::new());
        for (rows, targets) in context.scored.chunks(part).zip(context.targets.chunks(part)) {
            let rows = b.select(&x, rows)?;
            let (logits, rstd) = self.logits(&rows)?;
            logps.extend(b.log_probs(&logits, targets)?);
            let softcap = self.config.features.logit_softcap;
            let dlogits = b.log_probs_vjp(logits, targets, &vec![1.0; targets.len()], softcap)?;
            let dnormed = b.linear_vjp(&dlogits, &self.head)?;
            let mut slope = b.zeros_like(&rows)?;
            b.rms_norm_vjp(&rows, &self.final_norm, &rstd, &dnormed, &mut slope)?;
            slopes.push(slope);
        }
        let kept = Kept { context, saved, slopes, part };
        Ok((logps, Box::new(move |coef, dh_td| self.vjp(layer, kept, coef, dh_td))))
    }

    fn score_edited(&self, pack: &Pack, plans: &[TextEdits], divergences: bool) -> Result<Vec<EditedScores>> {
        self.score_plans(pack, plans, divergences)
    }

    fn advance(&self, runs: &mut [CachedRun<'_>]) -> Result<Vec<f32>> {
        let b = &self.backend;
        let twins = Twins::of(runs, self.layers.len());
        let mut rows = twins.rows(runs, 0);
        let tokens: Vec<u32> = twins.computed(0).flat_map(|run| runs[run].tokens.iter().copied()).collect();
        let mut angles = self.angles_of(runs, &rows)?;
        let mut x = self.embed(&tokens)?;
        for (l, layer) in self.layers.iter().enumerate() {
            let caches = runs.iter_mut().map(|run| &mut run.cache.layers::<B>()[l]);
            let mut texts: Vec<_> =
                rows.iter().zip(caches).filter_map(|(rows, cache)| rows.clone().zip(Some(cache))).collect();
            let attend = |qkv: &B::Tensor| b.attention_cached(qkv, layer.heads, &mut texts);
            self.block(layer, &mut x, &angles, None, Keeping::Nothing, attend)?;
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
                    self.edit(&mut x, rows.clone(), run, l)?;
                }
            }
        }
        for run in runs.iter_mut() {
            run.cache.tokens.extend_from_slice(run.tokens);
        }
        let wanted = runs.iter().enumerate().filter_map(|(run, cached)| {
            let rows = rows[twins.source(run, self.layers.len())].as_ref()?;
            Some(rows.end - cached.wanted..rows.end)
        });
        let wanted: Vec<usize> = wanted.flatten().collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        b.download(&self.logits(&b.select(&x, &wanted)?)?.0)
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new::<B>(self.layers.iter().map(|_| self.backend.new_cache()).collect())
    }

    fn cache_prefix(&self, cache: &KvCache, len: usize) -> Result<KvCache> {
        let layers = cache.stored::<B>().iter().map(|layer| self.backend.cache_prefix(layer, len));
        let mut prefix = KvCache::new::<B>(layers.collect::<Result<_>>()?);
        prefix.tokens.extend_from_slice(&cache.tokens[..len]);
        Ok(prefix)
    }
}

impl<B: Backend> Decoder<B> {
    /// `Σ coef[i] · ∂ logps[i] / ∂ h_td`, `[t, d]`, in `dh_td`.
    fn vjp(&self, layer: usize, kept: Kept<B>, coef: &[f32], dh_td: &mut [f32]) -> Result<()> {
        let Kept { context, saved, slopes, part } = kept;
        let b = &self.backend;
        let mut sum: Option<B::Tensor> = None;
        for ((mut slope, coef), rows) in
            slopes.into_iter().zip(coef.chunks(part)).zip(context.scored.chunks(part))
        {
            b.scale_rows(&mut slope, coef)?;
            let slope = b.select_vjp(&slope, rows, context.head_rows.len())?;
            match &mut sum {
                Some(sum) => b.add(sum, &slope)?,
                None => sum = Some(slope),
            }
        }
        // A pass without scored tokens has a gradient of zeros.
        let Some(mut dx) = sum else {
            dh_td.fill(0.0);
            return Ok(());
        };
        if saved.is_empty() {
            dx = b.select_vjp(&dx, &context.head_rows, context.t)?;
        }
        for (layer, saved) in self.layers[layer + 1..].iter().zip(saved).rev() {
            dx = self.block_vjp(layer, saved, &context, dx)?;
        }
        b.download_to(&dx, dh_td)
    }

    fn context(&self, pack: &Pack) -> Result<Context<B>> {
        let mut head_rows: Vec<usize> = pack.scored.iter().map(|s| s.row).collect();
        head_rows.sort_unstable();
        head_rows.dedup();
        let place = |row: usize| head_rows.partition_point(|&r| r < row);
        Ok(Context {
            runs: self.backend.runs(pack.runs())?,
            angles: self.angles(&pack.positions())?,
            t: pack.len(),
            scored: pack.scored.iter().map(|s| place(s.row)).collect(),
            targets: pack.scored.iter().map(|s| s.target).collect(),
            head_rows,
        })
    }

    /// Angles of the rows of new tokens.
    fn angles_of(&self, runs: &[CachedRun<'_>], rows: &[Option<Range<usize>>]) -> Result<Vec<B::Angles>> {
        let computed = runs.iter().zip(rows).filter(|(_, rows)| rows.is_some());
        let positions: Vec<usize> =
            computed.flat_map(|(r, _)| r.cache.len()..r.cache.len() + r.tokens.len()).collect();
        self.angles(&positions)
    }

    fn angles(&self, positions: &[usize]) -> Result<Vec<B::Angles>> {
        let angles = |rope: &Rope| {
            let frequencies = rope.frequencies(self.config.rotary_dim());
            self.backend.angles(Angles::new(positions, &frequencies, rope.magnitude()), rope)
        };
        self.ropes.iter().map(angles).collect()
    }

    fn embed(&self, tokens: &[u32]) -> Result<B::Tensor> {
        let mut x = self.backend.embed(&self.embed, tokens)?;
        self.scale(&mut x, self.config.features.embed_scale)?;
        Ok(x)
    }

    fn scale(&self, x: &mut B::Tensor, factor: f32) -> Result<()> {
        if factor == 1.0 { Ok(()) } else { self.backend.scale(x, factor) }
    }

    /// Logits of rows of the last block's output, and what the VJP of the last norm needs.
    fn logits(&self, x: &B::Tensor) -> Result<Normed<B>> {
        let b = &self.backend;
        let (normed, rstd) = b.rms_norm(x, &self.final_norm, self.config.norm_eps)?;
        let mut logits = b.linear(&normed, &self.head)?;
        if let Some(cap) = self.config.features.logit_softcap {
            b.softcap(&mut logits, cap)?;
        }
        Ok((logits, rstd))
    }

    /// Edits the new rows of one text, where its edits act.
    fn edit(&self, x: &mut B::Tensor, rows: Range<usize>, run: &CachedRun<'_>, layer: usize) -> Result<()> {
        let first = run.cache.len();
        for edit in run.edits.iter().filter(|e| e.layer == layer) {
            for at in edit.positions.within(first..first + rows.len()) {
                self.edit_rows(x, rows.start + at.start - first..rows.start + at.end - first, edit)?;
            }
        }
        Ok(())
    }

    /// Runs blocks `range` on packed rows `x`.
    fn blocks(&self, range: Range<usize>, x: &mut B::Tensor, context: &Context<B>) -> Result<()> {
        for layer in &self.layers[range] {
            let attend = |qkv: &B::Tensor| self.backend.attention(qkv, layer.heads, &context.runs);
            self.block(layer, x, &context.angles, None, Keeping::Nothing, attend)?;
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
        let with_gates = blocks_with_gates(self.kept_gates, context.t, self.config.d_ff);
        for (l, layer) in self.layers.iter().enumerate().skip(first) {
            let attend = |qkv: &B::Tensor| self.backend.attention(qkv, layer.heads, &context.runs);
            let narrow = (l + 1 == self.layers.len()).then_some(&context.head_rows[..]);
            let keeping = match keep {
                None => Keeping::Nothing,
                Some(_) if narrow.is_some() || l - first < with_gates => Keeping::All,
                Some(_) => Keeping::Little,
            };
            let saved = self.block(layer, x, &context.angles, narrow, keeping, attend)?;
            if let Some(keep) = keep.as_mut() {
                keep.extend(saved);
            }
        }
        Ok(())
    }

    /// One block: `x += norm(attention(norm(x))); x += norm(mlp(norm(x)))`, with the norms that the model has.
    /// Only rows `narrow`, where given, go on after the attention.
    fn block(
        &self,
        layer: &Layer<B>,
        x: &mut B::Tensor,
        angles: &[B::Angles],
        narrow: Option<&[usize]>,
        keeping: Keeping,
        attend: impl FnOnce(&B::Tensor) -> Result<B::Tensor>,
    ) -> Result<Option<Saved<B>>> {
        let b = &self.backend;
        let keep = keeping != Keeping::Nothing;
        let input = keep.then(|| b.copy(x)).transpose()?;
        let (normed, attn_rstd) = self.norm_before(x, layer.attn_norm.as_ref())?;
        let mut qkv = self.project(&normed, &layer.qkv)?;
        drop(normed);
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
        let out = self.project(&attended, &layer.attn_out)?;
        drop(attended);
        let attn_post = self.add_out(x, out, layer.attn_post_norm.as_ref())?.filter(|_| keep);

        let middle = keep.then(|| b.copy(x)).transpose()?;
        let (normed, ffn_rstd) = self.norm_before(x, layer.ffn_norm.as_ref())?;
        let gate_up = self.project(&normed, &layer.gate_up)?;
        drop(normed);
        let gated = b.gated(self.config.features.activation, &gate_up)?;
        let gate_up = (keeping == Keeping::All).then_some(gate_up);
        let out = self.project(&gated, &layer.down)?;
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

    fn project(&self, x: &B::Tensor, w: &Projection<B>) -> Result<B::Tensor> {
        let b = &self.backend;
        let mut y = b.linear(x, &w.matrix)?;
        if let Some(bias) = &w.bias {
            b.add_bias(&mut y, bias)?;
        }
        if let Some((down, up)) = &w.low_rank {
            b.add(&mut y, &b.linear(&b.linear(x, down)?, up)?)?;
        }
        Ok(y)
    }

    fn project_vjp(&self, dy: &B::Tensor, w: &Projection<B>) -> Result<B::Tensor> {
        let b = &self.backend;
        let mut dx = b.linear_vjp(dy, &w.matrix)?;
        if let Some((down, up)) = &w.low_rank {
            b.add(&mut dx, &b.linear_vjp(&b.linear_vjp(dy, up)?, down)?)?;
        }
        Ok(dx)
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
        let dout = self.add_out_vjp(&dx, layer.ffn_post_norm.as_ref(), saved.ffn_post)?;
        let gate_up = match saved.gate_up {
            Some(gate_up) => gate_up,
            None => {
                let (normed, _) = self.norm_before(&saved.middle, layer.ffn_norm.as_ref())?;
                self.project(&normed, &layer.gate_up)?
            }
        };
        let dgated = self.project_vjp(dout.as_ref().unwrap_or(&dx), &layer.down)?;
        drop(dout);
        let dgate_up = b.gated_vjp(self.config.features.activation, gate_up, &dgated)?;
        drop(dgated);
        let dnormed = self.project_vjp(&dgate_up, &layer.gate_up)?;
        drop(dgate_up);
        let norm = layer.ffn_norm.as_ref().zip(saved.ffn_rstd.as_ref());
        self.norm_before_vjp(&saved.middle, norm, &dnormed, &mut dx)?;

        let dout = self.add_out_vjp(&dx, layer.attn_post_norm.as_ref(), saved.attn_post)?;
        let mut dattended = self.project_vjp(dout.as_ref().unwrap_or(&dx), &layer.attn_out)?;
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
        let dnormed = self.project_vjp(&dqkv, &layer.qkv)?;
        let norm = layer.attn_norm.as_ref().zip(saved.attn_rstd.as_ref());
        self.norm_before_vjp(&saved.input, norm, &dnormed, &mut dx)?;
        Ok(dx)
    }

    /// Log-probabilities of the scored tokens from the head's rows of the last block's output, some at a time.
    fn head_log_probs(&self, x: &B::Tensor, context: &Context<B>) -> Result<Vec<f32>> {
        let mut logps = Vec::with_capacity(context.scored.len());
        let part = head_rows_at_once(context.scored.len(), self.config.vocab);
        for (rows, targets) in context.scored.chunks(part).zip(context.targets.chunks(part)) {
            let rows = self.backend.select(x, rows)?;
            logps.extend(self.backend.log_probs(&self.logits(&rows)?.0, targets)?);
        }
        Ok(logps)
    }
}
