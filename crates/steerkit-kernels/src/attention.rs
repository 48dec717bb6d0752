//! Grouped-query attention with a causal mask over a forest of packed texts; over a key/value cache: [`crate::kv`].
//!
//! `softmax(q·kᵀ / √h) · v` (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023), where a model has them with
//! a sliding window (Mistral 7B, Jiang et al. 2023) and capped scores `cap · tanh(score / cap)` (Gemma 2). Each
//! query row sums over its keys in text order, so that a text gives the same bits alone, in a pack, and token by
//! token.

use crate::gemm::{View, product};
use crate::isa::multiversion;
use crate::math::{exp, max, sum_by, tanh};
use crate::shared::Shared;
use std::ops::Range;

/// Shapes of the heads, and how scores become probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub n: usize,
    /// Key/value heads.
    pub k: usize,
    /// Numbers per head.
    pub h: usize,
    /// Factor of the scores, usually `h^-½`.
    pub scale: f32,
    /// Bound of the scores, by `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Keys that a query sees at most, itself included.
    pub window: Option<usize>,
}

impl Heads {
    /// Width of a row `q | k | v`.
    pub fn qkv_width(&self) -> usize {
        (self.n + 2 * self.k) * self.h
    }

    /// The keys that query `i` of the last `m` of `s` sees.
    pub(crate) fn seen(&self, i: usize, m: usize, s: usize) -> Range<usize> {
        let end = s - m + i + 1;
        self.window.map_or(0, |w| end.saturating_sub(w))..end
    }

    fn group(&self) -> usize {
        self.n / self.k
    }

    fn key_at(&self, kv: usize) -> usize {
        (self.n + kv) * self.h
    }

    fn value_at(&self, kv: usize) -> usize {
        (self.n + self.k + kv) * self.h
    }
}

/// A run of rows and the rows they see before themselves: `keys` are the ancestors' row ranges in text order,
/// ending with the run itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The rows that ask.
    pub rows: Range<usize>,
    /// Rows that are seen; the last range is `rows`, seen causally.
    pub keys: Vec<Range<usize>>,
    /// Which text (tree) the run belongs to; runs of one tree stand together.
    pub tree: usize,
}

impl Run {
    fn n_keys(&self) -> usize {
        self.keys.iter().map(Range::len).sum()
    }
}

/// Attention of packed rows `qkv` (`[t, (n + 2k)h]`, rotary embedding applied) into `out` `[t, n·h]`.
pub fn attention(heads: Heads, qkv: &[f32], runs: &[Run], out: &mut [f32]) {
    let (width, out_width) = (heads.qkv_width(), heads.n * heads.h);
    let out = Shared::new(out);
    crate::parallel::for_each(runs.len() * heads.k, |task| {
        let (run, kv) = (&runs[task / heads.k], task % heads.k);
        with_scratch(|s| {
            gather(&mut s.keys, qkv, width, heads.key_at(kv), heads.h, &run.keys);
            gather(&mut s.values, qkv, width, heads.value_at(kv), heads.h, &run.keys);
            let (keys, values) = (std::mem::take(&mut s.keys), std::mem::take(&mut s.values));
            let side = Side { data: &keys, stride: heads.h, values: &values, n_keys: run.n_keys() };
            s.attend(heads, qkv, width, run.rows.clone(), kv, side);
            (s.keys, s.values) = (keys, values);
            // SAFETY: each head of a row is written by one task alone.
            unsafe { scatter_heads(&s.out, heads, &out, out_width, run.rows.clone(), kv) };
        });
    });
}

/// The VJP of [`attention`]: `dqkv` (same layout as `qkv`) from `dout`. Every number of `dqkv` is written.
/// Gradients of shared keys are summed in run order.
pub fn attention_vjp(heads: Heads, qkv: &[f32], runs: &[Run], dout: &[f32], dqkv: &mut [f32]) {
    thread_local!(static PARTS: std::cell::Cell<Vec<f32>> = const { std::cell::Cell::new(Vec::new()) });
    // A run's own gradients of the keys and values it sees: `[2, s, h]` for each key/value head.
    let part = |run: &Run| 2 * run.n_keys() * heads.h;
    let mut total = 0;
    let mut starts = Vec::with_capacity(runs.len());
    for run in runs {
        starts.push(total);
        total += heads.k * part(run);
    }
    let mut buffer = PARTS.take();
    let parts = sized(&mut buffer, total);
    let dqkv = Shared::new(dqkv);
    {
        let parts = Shared::new(parts);
        crate::parallel::for_each(runs.len() * heads.k, |task| {
            let (i, kv) = (task / heads.k, task % heads.k);
            let run = &runs[i];
            // SAFETY: each task has its own part.
            let (dk, dv) =
                unsafe { parts.part(starts[i] + kv * part(run), part(run)) }.split_at_mut(part(run) / 2);
            with_scratch(|s| {
                s.run_vjp(heads, qkv, run, kv, dout, dk, dv);
                // SAFETY: each query head of a row is written by one task alone.
                unsafe { scatter_heads(&s.dq, heads, &dqkv, heads.qkv_width(), run.rows.clone(), kv) };
            });
        });
    }
    let parts = &*parts;
    let trees: Vec<Range<usize>> = (0..runs.len())
        .filter(|&i| i == 0 || runs[i].tree != runs[i - 1].tree)
        .map(|i| i..runs[i..].iter().take_while(|r| r.tree == runs[i].tree).count() + i)
        .collect();
    crate::parallel::for_each(trees.len() * heads.k * 2, |task| {
        let (tree, kv, side) = (&trees[task / 2 / heads.k], task / 2 % heads.k, task % 2);
        let at = if side == 0 { heads.key_at(kv) } else { heads.value_at(kv) };
        for i in tree.clone() {
            let run = &runs[i];
            let part = &parts[starts[i] + kv * part(run) + side * part(run) / 2..][..part(run) / 2];
            for (row, part) in run.keys.iter().cloned().flatten().zip(part.chunks_exact(heads.h)) {
                // SAFETY: a row's key or value head is written by one task alone.
                let sum = unsafe { dqkv.part(row * heads.qkv_width() + at, heads.h) };
                // A row's own run is the first to see it.
                match run.rows.contains(&row) {
                    true => sum.copy_from_slice(part),
                    false => crate::rows::add_row(sum, part),
                }
            }
        }
    });
    PARTS.set(buffer);
}

/// Keys and values of one head, rows `stride` apart.
#[derive(Clone, Copy)]
struct Side<'a> {
    data: &'a [f32],
    stride: usize,
    values: &'a [f32],
    n_keys: usize,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    q: Vec<f32>,
    probs: Vec<f32>,
    /// `tanh(score / cap)` of each score, where there is a cap.
    tanhs: Vec<f32>,
    out: Vec<f32>,
    dout: Vec<f32>,
    dprobs: Vec<f32>,
    dq: Vec<f32>,
}

fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local!(static SCRATCH: std::cell::RefCell<Scratch> = std::cell::RefCell::default());
    SCRATCH.with_borrow_mut(f)
}

/// `buffer[..n]`, grown when needed; what it holds is not defined.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

fn row_major(data: &[f32], stride: usize) -> View<'_> {
    View { data, row_stride: stride, col_stride: 1 }
}

fn transposed(data: &[f32], stride: usize) -> View<'_> {
    View { data, row_stride: 1, col_stride: stride }
}

/// Copies columns `at..at + h` of the rows in `ranges` into `out` `[s, h]`.
fn gather(out: &mut Vec<f32>, rows: &[f32], width: usize, at: usize, h: usize, ranges: &[Range<usize>]) {
    let out = sized(out, ranges.iter().map(Range::len).sum::<usize>() * h);
    for (to, row) in out.chunks_exact_mut(h).zip(ranges.iter().cloned().flatten()) {
        to.copy_from_slice(&rows[row * width + at..row * width + at + h]);
    }
}

/// Copies the query heads of key/value head `kv` from rows `width` apart into `out` `[group·m, h]`.
fn gather_heads(out: &mut Vec<f32>, heads: Heads, from: &[f32], width: usize, rows: Range<usize>, kv: usize) {
    let (h, m) = (heads.h, rows.len());
    let out = sized(out, heads.group() * m * h);
    for g in 0..heads.group() {
        for (i, row) in rows.clone().enumerate() {
            let at = row * width + (kv * heads.group() + g) * h;
            out[(g * m + i) * h..(g * m + i + 1) * h].copy_from_slice(&from[at..at + h]);
        }
    }
}

/// The reverse of [`gather_heads`].
///
/// # Safety
/// No other task writes these heads of these rows.
unsafe fn scatter_heads(
    from: &[f32],
    heads: Heads,
    to: &Shared<'_, f32>,
    width: usize,
    rows: Range<usize>,
    kv: usize,
) {
    let (h, m) = (heads.h, rows.len());
    for g in 0..heads.group() {
        for (i, row) in rows.clone().enumerate() {
            // SAFETY: the caller's promise.
            let head = unsafe { to.part(row * width + (kv * heads.group() + g) * h, h) };
            head.copy_from_slice(&from[(g * m + i) * h..(g * m + i + 1) * h]);
        }
    }
}

impl Scratch {
    /// Probabilities `[group·m, s]` and outputs `[group·m, h]` of the run's query heads of one key/value head;
    /// row `g·m + i` is head `g` of query `i`.
    fn attend(
        &mut self,
        heads: Heads,
        qkv: &[f32],
        width: usize,
        rows: Range<usize>,
        kv: usize,
        side: Side<'_>,
    ) {
        let (h, m, s) = (heads.h, rows.len(), side.n_keys);
        let all = heads.group() * m;
        gather_heads(&mut self.q, heads, qkv, width, rows, kv);
        let q = &self.q[..all * h];
        let probs = sized(&mut self.probs, all * s);
        product(all, s, h, heads.scale, row_major(q, h), transposed(side.data, side.stride), false, probs, s);
        if let Some(cap) = heads.softcap {
            cap_scores(probs, cap, sized(&mut self.tanhs, all * s));
        }
        for (r, row) in probs.chunks_exact_mut(s).enumerate() {
            let Range { start, end } = heads.seen(r % m, m, s);
            softmax_between(row, start, end);
        }
        let out = sized(&mut self.out, all * h);
        product(all, h, s, 1.0, row_major(probs, s), row_major(side.values, side.stride), false, out, h);
    }

    /// Gradients `dq` `[group·m, h]` (kept here), `dk` and `dv` `[s, h]` of one run and one key/value head.
    #[allow(clippy::too_many_arguments, reason = "one call site; a struct would only rename them")]
    fn run_vjp(
        &mut self,
        heads: Heads,
        qkv: &[f32],
        run: &Run,
        kv: usize,
        dout: &[f32],
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        let (width, h, m, s) = (heads.qkv_width(), heads.h, run.rows.len(), run.n_keys());
        let all = heads.group() * m;
        gather(&mut self.keys, qkv, width, heads.key_at(kv), h, &run.keys);
        gather(&mut self.values, qkv, width, heads.value_at(kv), h, &run.keys);
        let (keys, values) = (std::mem::take(&mut self.keys), std::mem::take(&mut self.values));
        let side = Side { data: &keys, stride: h, values: &values, n_keys: s };
        self.attend(heads, qkv, width, run.rows.clone(), kv, side);

        gather_heads(&mut self.dout, heads, dout, heads.n * h, run.rows.clone(), kv);
        let grad = &self.dout[..all * h];
        let (probs, q) = (&self.probs[..all * s], &self.q[..all * h]);
        let dprobs = sized(&mut self.dprobs, all * s);
        product(all, s, h, 1.0, row_major(grad, h), transposed(&values, h), false, dprobs, s);
        product(s, h, all, 1.0, transposed(probs, s), row_major(grad, h), false, dv, h);
        for (p, dp) in probs.chunks_exact(s).zip(dprobs.chunks_exact_mut(s)) {
            softmax_vjp(p, dp);
        }
        if heads.softcap.is_some() {
            cap_scores_vjp(&self.tanhs[..all * s], dprobs);
        }
        let dq = sized(&mut self.dq, all * h);
        product(all, h, s, heads.scale, row_major(dprobs, s), row_major(&keys, h), false, dq, h);
        product(s, h, all, heads.scale, transposed(dprobs, s), row_major(q, h), false, dk, h);
        (self.keys, self.values) = (keys, values);
    }
}

multiversion! {
    /// Softmax over the numbers from `start` to `end`; the others become zero.
    pub(crate) fn softmax_between(row: &mut [f32], start: usize, end: usize) {
        let (before, rest) = row.split_at_mut(start);
        let (seen, after) = rest.split_at_mut(end - start);
        before.fill(0.0);
        after.fill(0.0);
        let top = max(seen);
        for x in seen.iter_mut() {
            *x = exp(*x - top);
        }
        let factor = 1.0 / sum_by(seen.len(), |i| seen[i]);
        for x in seen.iter_mut() {
            *x *= factor;
        }
    }
}

multiversion! {
    /// `score ← cap · tanh(score / cap)`; keeps the tanh.
    fn cap_scores(scores: &mut [f32], cap: f32, tanhs: &mut [f32]) {
        for (score, t) in scores.iter_mut().zip(tanhs) {
            *t = tanh(*score / cap);
            *score = cap * *t;
        }
    }
}

multiversion! {
    /// `ds ← ds · (1 − tanh²)`.
    fn cap_scores_vjp(tanhs: &[f32], dscores: &mut [f32]) {
        for (ds, t) in dscores.iter_mut().zip(tanhs) {
            *ds *= 1.0 - t * t;
        }
    }
}

multiversion! {
    /// `dp ← p · (dp − Σ p·dp)`.
    fn softmax_vjp(p: &[f32], dp: &mut [f32]) {
        let dp = &mut dp[..p.len()];
        let mean = sum_by(p.len(), |i| p[i] * dp[i]);
        for i in 0..p.len() {
            dp[i] = p[i] * (dp[i] - mean);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_vjp, noise};

    const HEADS: Heads = Heads { n: 4, k: 2, h: 6, scale: 0.4, softcap: None, window: None };
    /// Capped well inside the range of the scores, and a window that hides keys of every run.
    const CAPPED: Heads = Heads { scale: 1.4, softcap: Some(0.7), window: Some(4), ..HEADS };

    /// A prompt of 5 with branches of 3 and 4, and a text of 2.
    fn runs() -> Vec<Run> {
        vec![
            Run { rows: 0..5, keys: vec![0..5], tree: 0 },
            Run { rows: 5..8, keys: vec![0..5, 5..8], tree: 0 },
            Run { rows: 8..12, keys: vec![0..5, 8..12], tree: 0 },
            Run { rows: 12..14, keys: vec![12..14], tree: 1 },
        ]
    }

    /// The definition, row by row in f64.
    fn naive(heads: Heads, qkv: &[f32], runs: &[Run]) -> Vec<f32> {
        let (w, h, group) = (HEADS.qkv_width(), HEADS.h, HEADS.n / HEADS.k);
        let mut out = vec![0f32; qkv.len() / w * HEADS.n * h];
        for run in runs {
            for row in run.rows.clone() {
                let mut seen: Vec<usize> =
                    run.keys.iter().flat_map(|r| r.clone()).filter(|&k| k <= row).collect();
                seen.drain(..seen.len().saturating_sub(heads.window.unwrap_or(usize::MAX)));
                for head in 0..HEADS.n {
                    let at = |row: usize, col: usize, i: usize| f64::from(qkv[row * w + col * h + i]);
                    let (key, value) = (HEADS.n + head / group, HEADS.n + HEADS.k + head / group);
                    let e: Vec<f64> = seen
                        .iter()
                        .map(|&s| (0..h).map(|i| at(row, head, i) * at(s, key, i)).sum::<f64>())
                        .map(|x| x * f64::from(heads.scale))
                        .map(|x| heads.softcap.map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh()).exp())
                        .collect();
                    let total: f64 = e.iter().sum();
                    for i in 0..h {
                        let y: f64 = seen.iter().zip(&e).map(|(&s, e)| e / total * at(s, value, i)).sum();
                        out[row * HEADS.n * h + head * h + i] = y as f32;
                    }
                }
            }
        }
        out
    }

    fn run(heads: Heads, qkv: &[f32], runs: &[Run]) -> Vec<f32> {
        let mut out = vec![f32::NAN; qkv.len() / HEADS.qkv_width() * HEADS.n * HEADS.h];
        attention(heads, qkv, runs, &mut out);
        out
    }

    #[test]
    fn equals_the_definition() {
        let qkv = noise(1, 14 * HEADS.qkv_width());
        for heads in [HEADS, CAPPED] {
            for (a, b) in run(heads, &qkv, &runs()).iter().zip(naive(heads, &qkv, &runs())) {
                assert!((a - b).abs() < 1e-6, "{heads:?}: {a} {b}");
            }
        }
    }

    #[test]
    fn vjp_matches_finite_differences() {
        let qkv = noise(1, 14 * HEADS.qkv_width());
        let dout = noise(2, 14 * HEADS.n * HEADS.h);
        for heads in [HEADS, CAPPED] {
            let mut dqkv = vec![f32::NAN; qkv.len()];
            attention_vjp(heads, &qkv, &runs(), &dout, &mut dqkv);
            assert_vjp(&qkv, &dout, &dqkv, |x| run(heads, x, &runs()));
        }
    }
}
