//! The decoder: embedding, blocks and output head of a frozen transformer, and the gradient of
//! log-probabilities with respect to the residual stream. One text for every family and every backend.

mod block;
mod projection;
mod steered;

use crate::backend::Backend;
use crate::config::Rope;
use crate::edit::{EditedScores, TextEdits};
use crate::engine::{CachedRun, Engine, KvCache, Vjp};
use crate::lora::AdditionGradients;
use crate::pass::{Gradients, Pass, Start};
use crate::twins::Twins;
use crate::weights::Weights;
use crate::{DecoderConfig, Pack, Result};
use block::{Adapted, Keeping, Layer, Normed, Saved};
use projection::{Adapter, LowRankGradient};
use std::ops::Range;
use steerkit_kernels::rope::Angles;

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

/// What a pass adds to the model.
struct Changes<B: Backend> {
    /// To the residual stream after some blocks, `[t, d]`.
    added: Vec<(usize, B::Tensor)>,
    adapter: Adapter<B>,
}

impl<B: Backend> Changes<B> {
    fn none() -> Self {
        Self { added: Vec::new(), adapter: Adapter::none() }
    }
}

/// What the VJP of log-probabilities needs.
struct Kept<B: Backend> {
    context: Context<B>,
    /// The first block that was run.
    first: usize,
    /// The blocks after which something was added.
    added: Vec<usize>,
    adapter: Adapter<B>,
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

    fn score(&self, pass: &Pass<'_>) -> Result<Vec<f32>> {
        let context = self.context(pass.pack)?;
        let (mut x, changes) = self.begin(pass)?;
        self.head_rows(pass.first_block(), &mut x, &context, &changes, None)?;
        self.head_log_probs(&x, &context)
    }

    fn score_kept(&self, pass: &Pass<'_>) -> Result<(Vec<f32>, Box<Vjp<'_>>)> {
        let b = &self.backend;
        let context = self.context(pass.pack)?;
        let (mut x, changes) = self.begin(pass)?;
        let first = pass.first_block();
        let mut saved = Vec::with_capacity(self.layers.len() - first);
        self.head_rows(first, &mut x, &context, &changes, Some(&mut saved))?;
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
        let added = changes.added.iter().map(|(layer, _)| *layer).collect();
        let kept = Kept { context, first, added, adapter: changes.adapter, saved, slopes, part };
        Ok((logps, Box::new(move |coef, start_td| self.vjp(kept, coef, start_td))))
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
            let block = Adapted { layer, adapter: &[] };
            self.block(&block, &mut x, &angles, None, Keeping::Nothing, attend)?;
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
    /// The residual stream at the beginning of a pass, and what the pass adds.
    fn begin(&self, pass: &Pass<'_>) -> Result<(B::Tensor, Changes<B>)> {
        let (b, d) = (&self.backend, self.config.d_model);
        let x = match pass.start {
            Start::Tokens => self.embed(&pass.pack.tokens)?,
            Start::Residual { h_td, .. } => b.upload(h_td, d)?,
        };
        let added = pass.added.iter().map(|(layer, rows)| Ok((*layer, b.upload(rows, d)?)));
        let added = added.collect::<Result<_>>()?;
        Ok((x, Changes { added, adapter: Adapter::new(b, pass.adapter)? }))
    }

    /// The gradients of `Σ coef[i] · logps[i]`, the first of them in the memory of `start_td`.
    fn vjp(&self, kept: Kept<B>, coef: &[f32], mut start_td: Vec<f32>) -> Result<Gradients> {
        let Kept { context, first, added, adapter, saved, slopes, part } = kept;
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
        let mut dx = match sum {
            Some(sum) => sum,
            // Without scored tokens every gradient is zero.
            None => {
                b.upload(&vec![0.0; context.head_rows.len() * self.config.d_model], self.config.d_model)?
            }
        };
        if saved.is_empty() {
            dx = b.select_vjp(&dx, &context.head_rows, context.t)?;
        }
        let mut added_td = Vec::with_capacity(added.len());
        let mut gradients: Vec<Option<LowRankGradient>> = vec![None; 4 * self.layers.len()];
        for (l, saved) in (first..self.layers.len()).zip(saved).rev() {
            if added.contains(&l) {
                let whole = saved.narrowed.then(|| b.select_vjp(&dx, &context.head_rows, context.t));
                added_td.push(b.download(whole.transpose()?.as_ref().unwrap_or(&dx))?);
            }
            let block = Adapted { layer: &self.layers[l], adapter: adapter.block(l) };
            dx = self.block_vjp(&block, saved, &context, dx, &mut gradients[4 * l..4 * l + 4])?;
        }
        added_td.reverse();
        start_td.resize(context.t * self.config.d_model, 0.0);
        b.download_to(&dx, &mut start_td)?;
        Ok(Gradients { start_td, added_td, adapter: AdditionGradients(gradients) })
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
            let block = Adapted { layer, adapter: &[] };
            self.block(&block, x, &context.angles, None, Keeping::Nothing, attend)?;
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
        changes: &Changes<B>,
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
            let block = Adapted { layer, adapter: changes.adapter.block(l) };
            let saved = self.block(&block, x, &context.angles, narrow, keeping, attend)?;
            if let Some(keep) = keep.as_mut() {
                keep.extend(saved);
            }
            if let Some((_, added)) = changes.added.iter().find(|(layer, _)| *layer == l) {
                let narrowed = narrow.map(|rows| self.backend.select(added, rows)).transpose()?;
                self.backend.add(x, narrowed.as_ref().unwrap_or(added))?;
            }
        }
        Ok(())
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
