//! The key/value cache of a text at one block, and attention of new rows over it.
//!
//! Keys and values lie as the micro-kernels read them, so that a step neither gathers nor packs: a key/value head's
//! keys in panels of as many keys as a panel is wide, its values in panels of as many numbers of the head. The bits
//! are those of [`attention`](crate::attention::attention) over the whole text.

use crate::attention::{Heads, softmax_between};
use crate::gemm::{panel_width, times_panel};
use crate::isa::Isa;
use crate::parallel;
use crate::rows::softcap_row;
use crate::shared::Shared;
use std::cell::RefCell;
use std::ops::Range;

/// New rows of a text that one task takes at most.
const ROWS_PER_TASK: usize = 16;

/// Keys and values of one text at one block.
#[derive(Clone, Debug)]
pub struct KeyValues {
    /// The level that the panels are laid out for.
    isa: Isa,
    len: usize,
    /// For each key/value head: panels `[h, width]`, the last one filled up with zeros.
    keys: Vec<Vec<f32>>,
    /// For each key/value head and each `width` numbers of it: `[s, width]`.
    values: Vec<Vec<f32>>,
}

impl Default for KeyValues {
    fn default() -> Self {
        Self { isa: Isa::current(), len: 0, keys: Vec::new(), values: Vec::new() }
    }
}

impl KeyValues {
    /// Keys held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `len` keys and values, copied.
    ///
    /// # Panics
    /// When fewer are held.
    pub fn prefix(&self, len: usize) -> Self {
        assert!(len <= self.len, "{len} of {} keys", self.len);
        let width = panel_width(self.isa);
        // A head's keys lie in panels `[h, width]`: what the last one holds beyond `len` becomes zero again.
        let panels = len.div_ceil(width);
        let keys = self.keys.iter().map(|keys| {
            let panel = keys.len() / self.len.div_ceil(width).max(1);
            let mut keys = keys[..panels * panel].to_vec();
            if !len.is_multiple_of(width) {
                for row in keys[(panels - 1) * panel..].chunks_exact_mut(width) {
                    row[len % width..].fill(0.0);
                }
            }
            keys
        });
        let values = self.values.iter().map(|values| values[..len * width].to_vec());
        Self { isa: self.isa, len, keys: keys.collect(), values: values.collect() }
    }

    /// Appends the keys and values of rows `q | k | v`.
    pub fn push(&mut self, heads: Heads, qkv: &[f32]) {
        let width = panel_width(self.isa);
        let parts = heads.h.div_ceil(width);
        self.keys.resize_with(heads.k, Vec::new);
        self.values.resize_with(heads.k * parts, Vec::new);
        for row in qkv.chunks_exact(heads.qkv_width()) {
            let (keys, values) = row[heads.n * heads.h..].split_at(heads.k * heads.h);
            let at = self.len / width * heads.h * width + self.len % width;
            for (panels, key) in self.keys.iter_mut().zip(keys.chunks_exact(heads.h)) {
                if self.len.is_multiple_of(width) {
                    panels.resize(panels.len() + heads.h * width, 0.0);
                }
                for (to, x) in panels[at..].iter_mut().step_by(width).zip(key) {
                    *to = *x;
                }
            }
            let pieces = values.chunks_exact(heads.h).flat_map(|value| value.chunks(width));
            for (panel, piece) in self.values.iter_mut().zip(pieces) {
                panel.extend_from_slice(piece);
                panel.resize((self.len + 1) * width, 0.0);
            }
            self.len += 1;
        }
    }
}

/// New rows of a text, which its cache holds as its last ones.
#[derive(Clone, Copy, Debug)]
pub struct CachedText<'a> {
    /// Keys and values.
    pub cache: &'a KeyValues,
    /// The rows in the batch.
    pub rows: (usize, usize),
}

/// Attention of new rows `qkv` of several texts, each over its own cache, into `out` `[t, n·h]`.
pub fn attention_cached(heads: Heads, qkv: &[f32], texts: &[CachedText<'_>], out: &mut [f32]) {
    let pieces = |text: &CachedText<'_>| {
        let (start, end) = text.rows;
        (start..end).step_by(ROWS_PER_TASK).map(move |from| from..end.min(from + ROWS_PER_TASK))
    };
    let tasks: Vec<_> = texts
        .iter()
        .flat_map(|text| {
            pieces(text).flat_map(move |rows| (0..heads.k).map(move |kv| (text, rows.clone(), kv)))
        })
        .collect();
    let out = Shared::new(out);
    parallel::for_each(tasks.len(), |task| {
        let (text, rows, kv) = &tasks[task];
        let seen = text.cache.len - (text.rows.1 - rows.end);
        SCRATCH
            .with_borrow_mut(|scratch| scratch.attend(heads, qkv, text.cache, rows.clone(), seen, *kv, &out));
    });
}

thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    probs: Vec<f32>,
    out: Vec<f32>,
}

/// `buffer[..n]`, grown when needed; what it holds is not defined.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

impl Scratch {
    /// The query heads of key/value head `kv` at `rows`, the last of which sees `seen` keys.
    #[allow(clippy::too_many_arguments, reason = "one call site")]
    fn attend(
        &mut self,
        heads: Heads,
        qkv: &[f32],
        cache: &KeyValues,
        rows: Range<usize>,
        seen: usize,
        kv: usize,
        out: &Shared<'_, f32>,
    ) {
        let (h, group, isa) = (heads.h, heads.n / heads.k, cache.isa);
        let width = panel_width(isa);
        let (m, stride, parts) = (rows.len() * group, seen.next_multiple_of(width), h.div_ceil(width));
        let query = |row: usize, g: usize| row * heads.qkv_width() + (kv * group + g) * h;
        let q = sized(&mut self.q, m * h);
        for (i, to) in q.chunks_exact_mut(h).enumerate() {
            let at = query(rows.start + i / group, i % group);
            to.copy_from_slice(&qkv[at..at + h]);
        }
        let probs = sized(&mut self.probs, m * stride);
        for (panel, keys) in cache.keys[kv].chunks_exact(h * width).take(stride / width).enumerate() {
            times_panel(isa, m, h, heads.scale, (q, h), keys, &mut probs[panel * width..], stride);
        }
        for (i, row) in probs.chunks_exact_mut(stride).enumerate() {
            if let Some(cap) = heads.softcap {
                softcap_row(row, cap);
            }
            let Range { start, end } = heads.seen(i / group, rows.len(), seen);
            softmax_between(row, start, end);
        }
        let wide = parts * width;
        let sums = sized(&mut self.out, m * wide);
        for part in 0..parts {
            let values = &cache.values[kv * parts + part];
            times_panel(isa, m, seen, 1.0, (probs, stride), values, &mut sums[part * width..], wide);
        }
        for (i, sums) in sums.chunks_exact(wide).enumerate() {
            let at = (rows.start + i / group) * heads.n * h + (kv * group + i % group) * h;
            // SAFETY: each head of a row is written by one task alone.
            unsafe { out.part(at, h) }.copy_from_slice(&sums[..h]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Run, attention};
    use crate::isa::with_isa;
    use crate::testing::noise;

    #[test]
    fn a_cache_gives_the_bits_of_the_whole_text() {
        for heads in [
            Heads { n: 4, k: 2, h: 6, scale: 0.4, softcap: None, window: None },
            Heads { n: 9, k: 3, h: 64, scale: 0.125, softcap: None, window: None },
            Heads { n: 2, k: 2, h: 40, scale: 0.2, softcap: Some(0.7), window: Some(19) },
        ] {
            let (t, width, out_width) = (90, heads.qkv_width(), heads.n * heads.h);
            let qkv = noise(3, t * width);
            let mut whole = vec![f32::NAN; t * out_width];
            attention(heads, &qkv, &[Run { rows: 0..t, keys: vec![0..t], tree: 0 }], &mut whole);
            for isa in Isa::available() {
                with_isa(isa, || {
                    let mut cache = KeyValues::default();
                    for (from, to) in [(0, 4), (4, 5), (5, 57), (57, 58), (58, t)] {
                        let rows = &qkv[from * width..to * width];
                        cache.push(heads, rows);
                        let mut out = vec![f32::NAN; (to - from) * out_width];
                        let text = CachedText { cache: &cache, rows: (0, to - from) };
                        attention_cached(heads, rows, &[text], &mut out);
                        assert_eq!(out, whole[from * out_width..to * out_width], "{isa:?} {heads:?} {from}");
                    }
                    for len in [0, 1, 16, 33, t - 1] {
                        let mut part = cache.prefix(len);
                        let rows = &qkv[len * width..];
                        part.push(heads, rows);
                        let mut out = vec![f32::NAN; (t - len) * out_width];
                        let text = CachedText { cache: &part, rows: (0, t - len) };
                        attention_cached(heads, rows, &[text], &mut out);
                        assert_eq!(out, whole[len * out_width..], "{isa:?} {heads:?} prefix {len}");
                    }
                });
            }
        }
    }

    #[test]
    fn texts_do_not_see_each_other() {
        let heads = Heads { n: 4, k: 2, h: 6, scale: 0.4, softcap: None, window: Some(7) };
        let (width, out_width) = (heads.qkv_width(), heads.n * heads.h);
        let lens = [3, 1, 40];
        let qkv = noise(4, 44 * width);
        let (mut caches, mut texts, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for len in lens {
            let rows = &qkv[start * width..(start + len) * width];
            let mut cache = KeyValues::default();
            cache.push(heads, rows);
            let mut out = vec![0.0; len * out_width];
            attention_cached(heads, rows, &[CachedText { cache: &cache, rows: (0, len) }], &mut out);
            alone.extend(out);
            caches.push((cache, start, start + len));
            start += len;
        }
        texts.extend(caches.iter().map(|(cache, from, to)| CachedText { cache, rows: (*from, *to) }));
        let mut together = vec![0.0; 44 * out_width];
        attention_cached(heads, &qkv, &texts, &mut together);
        assert_eq!(together, alone);
    }
}
