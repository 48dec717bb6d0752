//! Products with few rows, straight from interleaved weights.
//!
//! The sums are those of [`linear`](super::linear), to the bit. A task is one or two panels of outputs and all rows: it expands
//! a chain of the panels into a buffer that stays in the nearest cache and runs the micro-kernels on it, or, in
//! f32 with AVX-512, multiplies the codes as it expands them.

use super::driver::{CHAIN, run_tile};
use super::interleaved::{Interleaved, Line, PANEL, Part, RECORD};
use super::micro::{Kernels, Mode, Tile};
use super::pack::{Buffers, Scratch, with_buffers};
use super::{bf16, driver::Shape};
use crate::isa::Isa;
use crate::{Precision, parallel};

/// Multiply-adds below which threads are not worth waking.
const MIN_PARALLEL: usize = 50_000;

/// What a task works with, over and over.
#[derive(Clone, Copy)]
struct Job<'a> {
    isa: Isa,
    w: &'a Interleaved,
    t: usize,
    /// Rows of numbers, or of cells where `pairs`.
    x: &'a [f32],
    y: *mut f32,
    kernels: Kernels,
    /// How the panels are filled.
    fill: Fill,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    F32,
    Bf16,
    Bf16Pairs,
}

// SAFETY: tasks write disjoint columns of `y`.
unsafe impl Sync for Job<'_> {}

/// `y[t, rows] = x[t, cols] · Wᵀ`, over all threads; the bits are those of [`super::linear`].
///
/// # Panics
/// When `x` or `y` has not exactly that shape.
pub fn linear_interleaved(w: &Interleaved, x: &[f32], t: usize, y: &mut [f32], precision: Precision) {
    let isa = Isa::current();
    let (n, k) = (w.rows(), w.cols());
    assert_eq!((x.len(), y.len()), (t * k, t * n), "[{t}, {n}, {k}]");
    let kernels = Kernels::of(isa);
    let job = Job { isa, w, t, x, y: y.as_mut_ptr(), kernels, fill: Fill::F32 };
    if precision == Precision::F32 {
        return job.run();
    }
    bf16::with_rounded(isa, Shape { t, n, k, n_step: 1 }, x, |pairs, x| match pairs {
        Some(kernels) => Job { x: &x[..t * k / 2], kernels, fill: Fill::Bf16Pairs, ..job }.run(),
        None => Job { x: &x[..t * k], fill: Fill::Bf16, ..job }.run(),
    });
}

impl Job<'_> {
    fn run(self) {
        let width = self.kernels.nr;
        let tiles: Vec<(&Part, usize)> = self
            .w
            .parts
            .iter()
            .flat_map(|p| (0..p.rows.div_ceil(width)).map(move |i| (p, i * width)))
            .collect();
        let task = |i: usize| {
            let (part, from) = tiles[i];
            // SAFETY: this task alone has these columns of `y`.
            unsafe { self.columns(part, from, width.min(part.rows - from)) };
        };
        if self.w.rows() * self.w.cols() * (self.t + 8) < MIN_PARALLEL {
            (0..tiles.len()).for_each(task);
        } else {
            parallel::for_each(tiles.len(), task);
        }
    }

    /// Columns `from..from + cols` of a part.
    ///
    /// # Safety
    /// This call alone uses these columns of `y`.
    unsafe fn columns(&self, part: &Part, from: usize, cols: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.fill == Fill::F32 && matches!(self.isa, Isa::Avx512 | Isa::Amx) && self.t <= fused::MOST {
            // SAFETY: the caller's promise, and the processor has AVX-512.
            return unsafe { fused::columns(self, part, from, cols) };
        }
        with_buffers(|buffers| {
            // SAFETY: the caller's promise.
            unsafe { self.expanded_columns(part, from, cols, buffers) }
        });
    }

    /// Cells that are expanded at a time. Those of the tiles may be fewer than in a chain, because a tile goes on
    /// where the last one ended.
    fn chain(&self) -> usize {
        if self.fill == Fill::Bf16Pairs && self.isa == Isa::Amx { CHAIN / 2 } else { CHAIN }
    }

    /// Expands one record to a part of a panel.
    fn expand(&self, part: &Part, record: &[Line], out: &mut [f32], wide: &mut Scratch) {
        let nr = self.kernels.nr;
        match self.fill {
            Fill::F32 => part.layout.expand(self.isa, record, out, nr),
            Fill::Bf16Pairs => part.layout.expand_pairs(self.isa, record, out, nr, wide),
            Fill::Bf16 => {
                let wide = &mut wide.floats(RECORD * PANEL)[..RECORD * PANEL];
                part.layout.expand(self.isa, record, wide, PANEL);
                for (row, out) in wide.chunks_exact(PANEL).zip(out.chunks_mut(nr)) {
                    bf16::round_row(self.isa, row, &mut out[..PANEL]);
                }
            }
        }
    }

    /// # Safety
    /// As [`columns`](Self::columns).
    unsafe fn expanded_columns(&self, part: &Part, from: usize, cols: usize, buffers: &mut Buffers) {
        // Inputs of a cell.
        let cell = if self.fill == Fill::Bf16Pairs { 2 } else { 1 };
        let (nr, n, k) = (self.kernels.nr, self.w.rows(), self.w.cols() / cell);
        let chain = self.chain();
        let b = buffers.b.floats(chain.min(k) * nr);
        for k0 in (0..k).step_by(chain) {
            let len = chain.min(k - k0);
            for half in 0..nr / PANEL {
                let records = part.panel(from / PANEL + half, self.w.records());
                let records = records.chunks_exact(part.layout.lines()).skip(k0 * cell / RECORD);
                let mut at = half * PANEL;
                for record in records.take(len * cell / RECORD) {
                    self.expand(part, record, &mut b[at..], &mut buffers.rows);
                    at += RECORD / cell * nr;
                }
            }
            let mode = if k0 == 0 { Mode::Start } else { Mode::Add };
            for i in (0..self.t).step_by(self.kernels.mr()) {
                let rows = self.kernels.mr().min(self.t - i);
                let strip = &self.x[i * k + k0..(i + rows - 1) * k + k0 + len];
                // SAFETY: `strip` holds `rows` rows of `len`, `k` apart; `b` is `len × nr`; the columns are ours.
                unsafe {
                    let c = self.y.add(i * n + part.first_row + from);
                    let tile = Tile { k: len, a: strip.as_ptr(), lda: k, b: b.as_ptr(), c, ldc: n, mode };
                    run_tile(self.kernels, rows, cols, tile, &mut buffers.tile);
                }
            }
        }
    }
}

/// f32 with AVX-512: codes become weights in registers and are multiplied there.
#[cfg(target_arch = "x86_64")]
mod fused {
    use super::{CHAIN, Job, PANEL, Part, RECORD};
    use crate::gemm::interleaved::x86::{affine, code, table};
    use crate::gemm::interleaved::{Layout, Line};
    use std::arch::x86_64::*;

    /// Rows up to which expanding the weights again for every eight rows is worth it.
    pub(super) const MOST: usize = 48;

    /// Rows of a strip: sixteen sums of the thirty-two registers.
    const STRIP: usize = 8;

    /// The arguments of a kernel: two panels by a strip of rows, the whole reduction.
    struct Strip {
        layout: Layout,
        records: [*const Line; 2],
        k: usize,
        x: *const f32,
        y: *mut f32,
        ldy: usize,
        /// Which outputs of the panels there are.
        masks: [__mmask16; 2],
    }

    /// # Safety
    /// As [`Job::columns`]; the processor has AVX-512.
    pub(super) unsafe fn columns(job: &Job<'_>, part: &Part, from: usize, cols: usize) {
        let (n, k, records) = (job.w.rows(), job.w.cols(), job.w.records());
        let first = part.panel(from / PANEL, records);
        // A panel that is not there is computed from the first one's records and not stored.
        let second = Some(part.panel(from / PANEL + 1, records)).filter(|p| !p.is_empty()).unwrap_or(first);
        let mask = |cols: usize| ((1u32 << cols.min(PANEL)) - 1) as __mmask16;
        for i in (0..job.t).step_by(STRIP) {
            let strip = Strip {
                layout: part.layout,
                records: [first.as_ptr(), second.as_ptr()],
                k,
                x: job.x[i * k..].as_ptr(),
                y: job.y.wrapping_add(i * n + part.first_row + from),
                ldy: n,
                masks: [mask(cols), mask(cols.saturating_sub(PANEL))],
            };
            let rows = STRIP.min(job.t - i);
            // SAFETY: `records` are whole panels, `x` has `rows` rows of `k`; the caller vouches for `y`.
            unsafe { if part.layout.wide { WIDE[rows - 1](&strip) } else { NARROW[rows - 1](&strip) } }
        }
    }

    macro_rules! kernels {
        ($wide:literal: $($m:literal)*) => { [$(kernel::<$m, $wide>),*] };
    }

    /// The kernel for `i + 1` rows at `i`.
    const WIDE: [unsafe fn(&Strip); STRIP] = kernels!(true: 1 2 3 4 5 6 7 8);
    const NARROW: [unsafe fn(&Strip); STRIP] = kernels!(false: 1 2 3 4 5 6 7 8);

    /// # Safety
    /// The strip's pointers are valid for `M` rows and what its masks leave.
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn kernel<const M: usize, const WIDE: bool>(s: &Strip) {
        let n = if WIDE { 4 } else { 8 };
        let (layout, table, k) = (s.layout, table(), s.k);
        for k0 in (0..k).step_by(CHAIN) {
            let mut acc = [[_mm512_setzero_ps(); 2]; M];
            for record in k0 / RECORD..(k0 + CHAIN).min(k) / RECORD {
                let at = s.records.map(|r| r.wrapping_add(record * layout.lines()));
                let x = s.x.wrapping_add(record * RECORD);
                for group in 0..layout.groups {
                    let lines = RECORD / n / layout.groups;
                    // SAFETY: the record lies in the panel.
                    let affine = at.map(|r| unsafe { affine(layout, r, group) });
                    for i in group * lines..(group + 1) * lines {
                        // SAFETY: as above.
                        let codes =
                            at.map(|r| unsafe { _mm512_loadu_si512(r.add(layout.codes_at() + i).cast()) });
                        for j in 0..n {
                            let w: [__m512; 2] = std::array::from_fn(|h| {
                                let (scale, min) = affine[h];
                                _mm512_fmadd_ps(scale, code::<WIDE>(codes[h], j, table), min)
                            });
                            for (m, acc) in acc.iter_mut().enumerate() {
                                // SAFETY: the caller vouches for `M` rows of `k`.
                                let x = _mm512_set1_ps(unsafe { *x.add(m * k + i * n + j) });
                                acc[0] = _mm512_fmadd_ps(x, w[0], acc[0]);
                                acc[1] = _mm512_fmadd_ps(x, w[1], acc[1]);
                            }
                        }
                    }
                }
            }
            for (m, acc) in acc.iter().enumerate() {
                for h in 0..2 {
                    // SAFETY: the mask leaves what the caller vouches for.
                    unsafe {
                        let y = s.y.wrapping_add(m * s.ldy + h * PANEL);
                        let sum = match k0 {
                            0 => acc[h],
                            _ => _mm512_add_ps(_mm512_maskz_loadu_ps(s.masks[h], y), acc[h]),
                        };
                        _mm512_mask_storeu_ps(y, s.masks[h], sum);
                    }
                }
            }
        }
    }
}
