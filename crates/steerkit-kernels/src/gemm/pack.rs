//! Rearranging operands into the layouts that the micro-kernels read.

use super::{Isa, View, bf16};
use crate::Matrix;
use std::cell::Cell;

/// One cache line of numbers, so that buffers are aligned to lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([f32; 16]);

/// A buffer that a thread keeps for its next use.
#[derive(Default)]
pub(super) struct Scratch(Vec<Line>);

impl Scratch {
    /// An empty buffer.
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// At least `len` numbers with unspecified (but initialised) values.
    pub(super) fn floats(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        let lines = self.0.len();
        // SAFETY: `Line` is sixteen `f32` and nothing else, and the vector holds `lines` of them.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<f32>(), lines * 16) }
    }
}

/// The buffers of one thread: panels of `b`, strips of `a`, expanded weight rows, an edge tile.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) b: Scratch,
    pub(super) a: Scratch,
    pub(super) rows: Scratch,
    pub(super) tile: Scratch,
}

/// Runs `f` with this thread's buffers.
pub(super) fn with_buffers<R>(f: impl FnOnce(&mut Buffers) -> R) -> R {
    thread_local! {
        static BUFFERS: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
    }
    let mut buffers = BUFFERS.take().unwrap_or_default();
    let result = f(&mut buffers);
    BUFFERS.set(Some(buffers));
    result
}

/// A range of the reduction and a range of the outputs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) k0: usize,
    pub(super) k: usize,
    pub(super) j0: usize,
    pub(super) n: usize,
}

/// Which way a matrix of weights enters a product.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    /// `b[p, j] = W[j, p]`.
    Rows,
    /// `b[p, j] = W[p, j]`.
    Cols,
}

/// What panels hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// The numbers.
    F32,
    /// The numbers rounded to bf16.
    Bf16,
    /// Cells: inputs `2p` and `2p + 1` as a pair of bf16 numbers; `k0` and `k` of a block count cells.
    Bf16Pairs,
}

impl Operand {
    /// Packs a block of `b` into panels of `nr` columns, zeros beyond the last column.
    #[allow(clippy::too_many_arguments, reason = "the block, where from and where to")]
    pub(super) fn pack(
        self,
        isa: Isa,
        w: &Matrix,
        store: Store,
        at: Block,
        nr: usize,
        rows: &mut Scratch,
        out: &mut [f32],
    ) {
        match self {
            Self::Rows => weight_rows(isa, w, store, at, nr, rows, out),
            Self::Cols => weight_cols(isa, w, store, at, nr, rows, out),
        }
    }
}

/// Packs `b[p, j] = W[j0 + j, k0 + p]`: rows are expanded in groups of 16 and transposed.
fn weight_rows(
    isa: Isa,
    w: &Matrix,
    store: Store,
    at: Block,
    nr: usize,
    rows: &mut Scratch,
    out: &mut [f32],
) {
    const GROUP: usize = 16;
    let stride = at.k.next_multiple_of(GROUP) + GROUP; // not a power of two: neighbours in other cache sets
    let (col, len) = match store {
        Store::Bf16Pairs => (2 * at.k0, (2 * at.k).min(w.cols() - 2 * at.k0)),
        Store::F32 | Store::Bf16 => (at.k0, at.k),
    };
    let (rows, wide) = rows.floats(GROUP * stride + len).split_at_mut(GROUP * stride);
    let wide = &mut wide[..len];
    for g in (0..at.n.next_multiple_of(nr)).step_by(GROUP) {
        for i in 0..GROUP {
            let row = &mut rows[i * stride..][..at.k];
            if g + i >= at.n {
                row.fill(0.0);
                continue;
            }
            let from = at.j0 + g + i;
            match store {
                Store::F32 => w.expand_part(isa, from, col, row),
                Store::Bf16 => {
                    w.expand_part(isa, from, col, wide);
                    bf16::round_row(isa, wide, row);
                }
                Store::Bf16Pairs => {
                    w.expand_part(isa, from, col, wide);
                    bf16::pair_row(isa, wide, row);
                }
            }
        }
        let panel = g / nr;
        transpose(isa, rows, stride, at.k, &mut out[panel * nr * at.k + g % nr..], nr);
    }
}

/// Packs `b[p, j] = W[k0 + p, j0 + j]`: parts of rows are expanded and cut into panels.
fn weight_cols(
    isa: Isa,
    w: &Matrix,
    store: Store,
    at: Block,
    nr: usize,
    rows: &mut Scratch,
    out: &mut [f32],
) {
    let width = at.n.next_multiple_of(nr);
    let (row, wide) = rows.floats(3 * width).split_at_mut(width);
    let (low, high) = wide.split_at_mut(width);
    row[at.n..].fill(0.0);
    for p in 0..at.k {
        let row = &mut row[..width];
        match store {
            Store::F32 => w.expand_part(isa, at.k0 + p, at.j0, &mut row[..at.n]),
            Store::Bf16 => {
                w.expand_part(isa, at.k0 + p, at.j0, &mut low[..at.n]);
                bf16::round_row(isa, &low[..at.n], row);
            }
            Store::Bf16Pairs => {
                let from = 2 * (at.k0 + p);
                w.expand_part(isa, from, at.j0, &mut low[..at.n]);
                if from + 1 < w.rows() {
                    w.expand_part(isa, from + 1, at.j0, &mut high[..at.n]);
                } else {
                    high.fill(0.0);
                }
                bf16::pair_rows(isa, &low[..at.n], &high[..at.n], row);
            }
        }
        for (panel, numbers) in row.chunks_exact(nr).enumerate() {
            out[(panel * at.k + p) * nr..][..nr].copy_from_slice(numbers);
        }
    }
}

/// Packs columns `j..j + n` of `b` into one panel of `nr` columns, zeros beyond `n`.
pub(super) fn panel(isa: Isa, b: View<'_>, k: usize, j: usize, n: usize, nr: usize, out: &mut [f32]) {
    if k == 0 {
        return;
    }
    if b.col_stride == 1 {
        for (p, out) in out.chunks_exact_mut(nr).enumerate() {
            let from = p * b.row_stride + j;
            out[..n].copy_from_slice(&b.data[from..from + n]);
            out[n..].fill(0.0);
        }
        return;
    }
    let group = |g: usize| g..n.min(g + 16);
    for g in (0..nr).step_by(16) {
        if b.row_stride == 1 && g + 16 <= n {
            transpose(isa, &b.data[(j + g) * b.col_stride..], b.col_stride, k, &mut out[g..], nr);
            continue;
        }
        for (p, out) in out.chunks_exact_mut(nr).enumerate() {
            out[g..g + 16].fill(0.0);
            for i in group(g) {
                out[i] = b.data[p * b.row_stride + (j + i) * b.col_stride];
            }
        }
    }
}

/// Copies rows `i..i + rows` of `a` to rows of `k` neighbouring numbers.
pub(super) fn strips(isa: Isa, a: View<'_>, i: usize, rows: usize, k: usize, out: &mut [f32]) {
    let whole = if a.row_stride == 1 { k / 16 * 16 } else { 0 };
    for p in (0..whole).step_by(16) {
        transpose(isa, &a.data[p * a.col_stride + i..], a.col_stride, rows, &mut out[p..], k);
    }
    for p in whole..k {
        for r in 0..rows {
            out[r * k + p] = a.data[(i + r) * a.row_stride + p * a.col_stride];
        }
    }
}

/// `out[p * ldo + i] = rows[i * stride + p]` for 16 rows `i` and `p < k`.
fn transpose(isa: Isa, rows: &[f32], stride: usize, k: usize, out: &mut [f32], ldo: usize) {
    assert!(rows.len() >= 15 * stride + k && out.len() >= (k - 1) * ldo + 16);
    let whole = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => {
            let whole = k / 16 * 16;
            for p in (0..whole).step_by(16) {
                // SAFETY: the assertion covers rows `0..16` from `p` to `p + 16` and the lines of `out`; the
                // processor has the level, because `isa` came from `Isa::current`.
                unsafe {
                    x86::transpose_16x16(rows.as_ptr().add(p), stride, out.as_mut_ptr().add(p * ldo), ldo)
                };
            }
            whole
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            let whole = k / 8 * 8;
            for p in (0..whole).step_by(8) {
                for i in [0, 8] {
                    // SAFETY: as above with halves.
                    unsafe {
                        x86::transpose_8x8(
                            rows.as_ptr().add(i * stride + p),
                            stride,
                            out.as_mut_ptr().add(p * ldo + i),
                            ldo,
                        );
                    }
                }
            }
            whole
        }
        _ => 0,
    };
    for p in whole..k {
        for (i, o) in out[p * ldo..][..16].iter_mut().enumerate() {
            *o = rows[i * stride + p];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// 16 rows of 16 numbers are readable at `from` (rows `lda` apart) and writable at `to` (`ldo` apart).
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose_16x16(from: *const f32, lda: usize, to: *mut f32, ldo: usize) {
        // SAFETY: the caller vouches for the memory.
        let r: [__m512; 16] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(from.add(i * lda)) });
        let d = |x| _mm512_castps_pd(x);
        let s = |x| _mm512_castpd_ps(x);
        // Pairs of rows, then fours: lane group g of `four[4 * q + e]` holds column 4g + e of rows 4q..4q + 4.
        let mut four = [_mm512_setzero_ps(); 16];
        for q in 0..4 {
            let (a, b, c, e) = (r[4 * q], r[4 * q + 1], r[4 * q + 2], r[4 * q + 3]);
            let (ab_lo, ab_hi) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (ce_lo, ce_hi) = (_mm512_unpacklo_ps(c, e), _mm512_unpackhi_ps(c, e));
            four[4 * q] = s(_mm512_unpacklo_pd(d(ab_lo), d(ce_lo)));
            four[4 * q + 1] = s(_mm512_unpackhi_pd(d(ab_lo), d(ce_lo)));
            four[4 * q + 2] = s(_mm512_unpacklo_pd(d(ab_hi), d(ce_hi)));
            four[4 * q + 3] = s(_mm512_unpackhi_pd(d(ab_hi), d(ce_hi)));
        }
        for e in 0..4 {
            // 4 × 4 transposition of lane groups.
            let x = _mm512_shuffle_f32x4::<0x44>(four[e], four[4 + e]);
            let y = _mm512_shuffle_f32x4::<0xee>(four[e], four[4 + e]);
            let z = _mm512_shuffle_f32x4::<0x44>(four[8 + e], four[12 + e]);
            let w = _mm512_shuffle_f32x4::<0xee>(four[8 + e], four[12 + e]);
            let columns = [
                _mm512_shuffle_f32x4::<0x88>(x, z),
                _mm512_shuffle_f32x4::<0xdd>(x, z),
                _mm512_shuffle_f32x4::<0x88>(y, w),
                _mm512_shuffle_f32x4::<0xdd>(y, w),
            ];
            for (g, column) in columns.into_iter().enumerate() {
                // SAFETY: the caller vouches for the memory.
                unsafe { _mm512_storeu_ps(to.add((4 * g + e) * ldo), column) };
            }
        }
    }

    /// # Safety
    /// 8 rows of 8 numbers are readable at `from` (rows `lda` apart) and writable at `to` (`ldo` apart).
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose_8x8(from: *const f32, lda: usize, to: *mut f32, ldo: usize) {
        // SAFETY: the caller vouches for the memory.
        let r: [__m256; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(from.add(i * lda)) });
        let d = |x| _mm256_castps_pd(x);
        let s = |x| _mm256_castpd_ps(x);
        let mut four = [_mm256_setzero_ps(); 8];
        for q in 0..2 {
            let (a, b, c, e) = (r[4 * q], r[4 * q + 1], r[4 * q + 2], r[4 * q + 3]);
            let (ab_lo, ab_hi) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (ce_lo, ce_hi) = (_mm256_unpacklo_ps(c, e), _mm256_unpackhi_ps(c, e));
            four[4 * q] = s(_mm256_unpacklo_pd(d(ab_lo), d(ce_lo)));
            four[4 * q + 1] = s(_mm256_unpackhi_pd(d(ab_lo), d(ce_lo)));
            four[4 * q + 2] = s(_mm256_unpacklo_pd(d(ab_hi), d(ce_hi)));
            four[4 * q + 3] = s(_mm256_unpackhi_pd(d(ab_hi), d(ce_hi)));
        }
        for e in 0..4 {
            // SAFETY: the caller vouches for the memory.
            unsafe {
                _mm256_storeu_ps(to.add(e * ldo), _mm256_permute2f128_ps::<0x20>(four[e], four[4 + e]));
                _mm256_storeu_ps(to.add((4 + e) * ldo), _mm256_permute2f128_ps::<0x31>(four[e], four[4 + e]));
            }
        }
    }
}
