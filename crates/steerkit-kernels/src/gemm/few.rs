//! Products with few rows, straight from interleaved weights.
//!
//! In f32 and bf16 the sums are those of [`linear`](super::linear), to the bit. A task is one or two panels of outputs and all rows: it expands
//! a chain of the panels into a buffer that stays in the nearest cache and runs the micro-kernels on it, or, in
//! f32 with AVX-512, multiplies the codes as it expands them.

use super::driver::{CHAIN, run_tile};
use super::interleaved::{Interleaved, Line, PANEL, Part, RECORD};
use super::micro::{Kernels, Mode, Tile};
use super::pack::{Buffers, Scratch, with_buffers};
use super::{bf16, driver::Shape, int8};
use crate::isa::Isa;
use crate::{Precision, parallel};

/// Multiply-adds below which threads are not worth waking.
const MIN_PARALLEL: usize = 50_000;

/// Tasks per thread: a thread that loses its core for a while holds the others up by one of them.
const TASKS_PER_THREAD: usize = 4;

/// Panels of a task with up to this many rows are four, so that there are enough independent sums; else two.
pub(super) const FOUR_PANELS: usize = 2;

/// Outputs below which two panels a task share the work out better.
const MANY_OUTPUTS: usize = 1024;

/// Panels of a task that multiplies the codes themselves, with `t` rows and `outputs` outputs.
pub(super) fn panels_of_task(t: usize, outputs: usize) -> usize {
    if t <= FOUR_PANELS && outputs >= MANY_OUTPUTS { 4 } else { 2 }
}

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

/// `y[t, rows] = x[t, cols] · Wᵀ`, over all threads. In f32 and bf16 the bits are those of [`super::linear`].
///
/// # Panics
/// When `x` or `y` has not exactly that shape.
pub fn linear_interleaved(w: &Interleaved, x: &[f32], t: usize, y: &mut [f32], precision: Precision) {
    let isa = Isa::current();
    let (n, k) = (w.rows(), w.cols());
    assert_eq!((x.len(), y.len()), (t * k, t * n), "[{t}, {n}, {k}]");
    if precision == Precision::Int8 {
        return int8::linear(w, x, t, y);
    }
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

/// Calls `work` with a part of `w`, a first column of the part and a number of columns, `width` at a time, over all
/// threads.
pub(super) fn each_panel(w: &Interleaved, width: usize, t: usize, work: impl Fn(&Part, usize, usize) + Sync) {
    let tiles: Vec<(&Part, usize)> =
        w.parts.iter().flat_map(|p| (0..p.rows.div_ceil(width)).map(move |i| (p, i * width))).collect();
    // Neighbours in one task, so that what a thread prefetches is what it reads next.
    let together = tiles.len().div_ceil(parallel::threads() * TASKS_PER_THREAD).max(1);
    let tasks: Vec<&[(&Part, usize)]> = tiles.chunks(together).collect();
    let task =
        |i: usize| tasks[i].iter().for_each(|&(part, from)| work(part, from, width.min(part.rows - from)));
    if w.rows() * w.cols() * (t + 8) < MIN_PARALLEL {
        (0..tasks.len()).for_each(task);
    } else {
        parallel::for_each(tasks.len(), task);
    }
}

impl Job<'_> {
    fn run(self) {
        each_panel(self.w, self.width(), self.t, |part, from, cols| {
            // SAFETY: this task alone has these columns of `y`.
            unsafe { self.columns(part, from, cols) };
        });
    }

    /// Columns of a task.
    fn width(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.is_fused() {
            return panels_of_task(self.t, self.w.rows()) * PANEL;
        }
        self.kernels.nr
    }

    #[cfg(target_arch = "x86_64")]
    fn is_fused(&self) -> bool {
        self.fill == Fill::F32 && matches!(self.isa, Isa::Avx512 | Isa::Amx) && self.t <= fused::MOST
    }

    /// Columns `from..from + cols` of a part.
    ///
    /// # Safety
    /// This call alone uses these columns of `y`.
    unsafe fn columns(&self, part: &Part, from: usize, cols: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.is_fused() {
            // SAFETY: the caller's promise, and the processor has AVX-512.
            return unsafe { fused::columns(self, part, from, cols) };
        }
        with_buffers(|buffers| {
            // SAFETY: the caller's promise.
            unsafe { self.expanded_columns(part, from, cols, buffers) }
        });
    }

    /// Cells that are expanded at a time. For the tiles they may be fewer than a chain, because a tile goes on
    /// where the last one ended; these leave room in the nearest cache for the rows.
    fn chain(&self) -> usize {
        if self.fill == Fill::Bf16Pairs && self.isa == Isa::Amx { CHAIN / 4 } else { CHAIN }
    }

    /// Expands records to a part of a panel.
    fn expand(&self, part: &Part, records: &[Line], out: &mut [f32], wide: &mut Scratch) {
        let nr = self.kernels.nr;
        match self.fill {
            Fill::F32 => part.layout.expand(self.isa, records, out, nr),
            Fill::Bf16Pairs => part.layout.expand_pairs(self.isa, records, out, nr, wide),
            Fill::Bf16 => {
                let len = records.len() / part.layout.lines() * RECORD * PANEL;
                let wide = &mut wide.floats(len)[..len];
                part.layout.expand(self.isa, records, wide, PANEL);
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
                let lines = part.layout.lines();
                let at = |input: usize| (input / RECORD * lines).min(records.len());
                let records = &records[at(k0 * cell)..at((k0 + len) * cell)];
                self.expand(part, records, &mut b[half * PANEL..], &mut buffers.rows);
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
    use super::{CHAIN, FOUR_PANELS, Job, PANEL, Part, RECORD};
    use crate::gemm::interleaved::x86::{Rows, Strip, affine, code, each_strip, table};
    use std::arch::x86_64::*;

    /// Rows up to which expanding the weights again for every eight rows is worth it.
    pub(super) const MOST: usize = 48;

    /// Rows of a strip: sixteen sums of the thirty-two registers.
    const STRIP: usize = 8;

    /// # Safety
    /// As [`Job::columns`]; the processor has AVX-512.
    pub(super) unsafe fn columns(job: &Job<'_>, part: &Part, from: usize, cols: usize) {
        let kernels = [[&NARROW[..], &WIDE[..]], [&FEW_NARROW[..], &FEW_WIDE[..]]];
        let rows = Rows { x: job.x, width: job.w.cols(), t: job.t, y: job.y };
        // SAFETY: `x` has `t` rows; the caller vouches for `y`.
        unsafe { each_strip(job.w, part, from, cols, STRIP, rows, kernels) };
    }

    macro_rules! kernels {
        ($panels:literal, $wide:literal: $($m:literal)*) => { [$(kernel::<$m, $panels, $wide>),*] };
    }

    /// The kernel for `i + 1` rows at `i`.
    const FEW_WIDE: [unsafe fn(&Strip<f32>); FOUR_PANELS] = kernels!(4, true: 1 2);
    const FEW_NARROW: [unsafe fn(&Strip<f32>); FOUR_PANELS] = kernels!(4, false: 1 2);
    const WIDE: [unsafe fn(&Strip<f32>); STRIP] = kernels!(2, true: 1 2 3 4 5 6 7 8);
    const NARROW: [unsafe fn(&Strip<f32>); STRIP] = kernels!(2, false: 1 2 3 4 5 6 7 8);

    /// # Safety
    /// The strip's pointers are valid for `M` rows and what the masks of its first `G` panels leave.
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn kernel<const M: usize, const G: usize, const WIDE: bool>(s: &Strip<f32>) {
        let n = if WIDE { 4 } else { 8 };
        let (layout, table, k) = (s.layout, table(), s.width);
        let (lines, codes_at) = (layout.lines(), layout.codes_at());
        let group_lines = RECORD / n / layout.groups;
        // The panels after these, which this thread reads next: hardware does not see that far.
        let ahead = G * (k / RECORD) * lines;
        for k0 in (0..k).step_by(CHAIN) {
            let mut acc = [[_mm512_setzero_ps(); G]; M];
            // Row `3q + r` is addressed as `x[q] + r * k`: few pointers to advance.
            let mut x: [*const f32; 3] = [0, 3, 6].map(|m| s.x.wrapping_add(m * k + k0));
            for record in k0 / RECORD..(k0 + CHAIN).min(k) / RECORD {
                let at = s.panels.map(|r| r.wrapping_add(record * lines));
                for group in 0..layout.groups {
                    let (mut scale, mut min) = ([_mm512_setzero_ps(); G], [_mm512_setzero_ps(); G]);
                    for g in 0..G {
                        // SAFETY: the record lies in the panel.
                        (scale[g], min[g]) = unsafe { affine(layout, at[g], group) };
                        let next = group * layout.affine_lines() + ahead;
                        _mm_prefetch::<_MM_HINT_T0>(at[g].wrapping_add(next).cast());
                    }
                    for i in group * group_lines..(group + 1) * group_lines {
                        let mut codes = [_mm512_setzero_si512(); G];
                        for g in 0..G {
                            // SAFETY: as above.
                            codes[g] = unsafe { _mm512_loadu_si512(at[g].add(codes_at + i).cast()) };
                            _mm_prefetch::<_MM_HINT_T0>(at[g].wrapping_add(codes_at + i + ahead).cast());
                        }
                        macro_rules! input {
                            ($j:literal) => {
                                let mut w = [_mm512_setzero_ps(); G];
                                for g in 0..G {
                                    w[g] =
                                        _mm512_fmadd_ps(scale[g], code::<WIDE>(codes[g], $j, table), min[g]);
                                }
                                for m in 0..M {
                                    // SAFETY: the caller vouches for `M` rows of `k`.
                                    let x = _mm512_set1_ps(unsafe { *x[m / 3].add(m % 3 * k + $j) });
                                    for g in 0..G {
                                        acc[m][g] = _mm512_fmadd_ps(x, w[g], acc[m][g]);
                                    }
                                }
                            };
                        }
                        input!(0);
                        input!(1);
                        input!(2);
                        input!(3);
                        if !WIDE {
                            input!(4);
                            input!(5);
                            input!(6);
                            input!(7);
                        }
                        x = x.map(|x| x.wrapping_add(n));
                    }
                }
            }
            for (m, acc) in acc.iter().enumerate() {
                for (g, &acc) in acc.iter().enumerate() {
                    // SAFETY: the mask leaves what the caller vouches for.
                    unsafe {
                        let y = s.y.wrapping_add(m * s.ldy + g * PANEL);
                        let sum = match k0 {
                            0 => acc,
                            _ => _mm512_add_ps(_mm512_maskz_loadu_ps(s.masks[g], y), acc),
                        };
                        _mm512_mask_storeu_ps(y, s.masks[g], sum);
                    }
                }
            }
        }
    }
}
