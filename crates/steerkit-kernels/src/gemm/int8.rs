//! Products of 8-bit activations with the codes of interleaved weights.
//!
//! A row of inputs is cut into runs of 32. A run becomes codes of -127 to 127 and one scale, its greatest magnitude
//! over 127, as llama.cpp's `Q8_1` has it. A record of weights gives the sum over its inputs of code times code, which
//! is exact in integers, and then `y = fma(d · sum, scale, y)` and `y = fma(d · Σ codes of x, min, y)` in f32, record
//! after record. So the bits depend neither on the rows beside a row, nor on the processor.

use super::few::{each_panel, panels_of_task};
use super::interleaved::{Interleaved, Layout, Line, PANEL, Part, RECORD};
use crate::isa::Isa;
use crate::parallel;
use crate::shared::Shared;
use std::cell::Cell;

/// Codes that are multiplied at a time: four bytes of an output beside four of a row.
const CELL: usize = 4;

/// Cells of a run.
const CELLS: usize = RECORD / CELL;

/// A run of a row of inputs.
#[derive(Clone, Copy, Default)]
struct Run {
    cells: [u32; CELLS],
    scale: f32,
    /// `scale` times the sum of the codes: of all, of the first half, of the second half.
    sums: [f32; 3],
}

impl Run {
    /// The sum that belongs to the minimum of a group.
    #[inline(always)]
    fn sum(&self, layout: Layout, group: usize) -> f32 {
        self.sums[if layout.groups == 1 { 0 } else { 1 + group }]
    }

    /// The run nearest to `x`. A number that is not finite makes the scale not finite, and so every product with it.
    #[inline(always)]
    fn of(x: &[f32; RECORD]) -> Self {
        // Bits of magnitudes are ordered as the magnitudes, with NaN above all.
        let top = x.iter().fold(0, |top: u32, x| top.max(x.to_bits() & 0x7fff_ffff));
        let most = f32::from_bits(top);
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        let mut run = Self { scale: most / 127.0, ..Self::default() };
        let mut halves = [0i32; 2];
        for (i, x) in x.iter().enumerate() {
            // Adding 1.5 · 2^23 leaves the nearest integer in the lowest bits.
            let code = (x.mul_add(inverse, 12_582_912.0)).to_bits() as i8;
            halves[2 * i / RECORD] += i32::from(code);
            run.cells[i / CELL] |= u32::from(code as u8) << (8 * (i % CELL));
        }
        run.sums = [halves[0] + halves[1], halves[0], halves[1]].map(|sum| run.scale * sum as f32);
        run
    }
}

#[inline(always)]
fn quantise_body(x: &[f32], runs: &mut [Run]) {
    for (x, run) in x.as_chunks::<RECORD>().0.iter().zip(runs) {
        *run = Run::of(x);
    }
}

/// The runs of `x`, with the instructions of `isa`.
fn quantise(isa: Isa, x: &[f32], runs: &mut [Run]) {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Portable {
        #[target_feature(enable = "avx2,fma")]
        fn avx2(x: &[f32], runs: &mut [Run]) {
            quantise_body(x, runs);
        }
        // SAFETY: every level but the portable one has these.
        return unsafe { avx2(x, runs) };
    }
    quantise_body(x, runs);
}

/// `y[t, rows] = x[t, cols] · Wᵀ` with `x` rounded to 8 bits, over all threads.
///
/// # Panics
/// When `x` or `y` has not exactly that shape.
pub(super) fn linear(w: &Interleaved, x: &[f32], t: usize, y: &mut [f32]) {
    thread_local! {
        static RUNS: Cell<Vec<Run>> = const { Cell::new(Vec::new()) };
    }
    const ROWS: usize = 32;
    let isa = Isa::current();
    let (n, records) = (w.rows(), w.records());
    assert_eq!((x.len(), y.len()), (t * w.cols(), t * n), "[{t}, {n}, {}]", w.cols());
    let mut kept = RUNS.take();
    if kept.len() < t * records {
        kept.resize(t * records, Run::default());
    }
    let runs = &mut kept[..t * records];
    let shared = Shared::new(runs);
    let convert = |i: usize| {
        let (from, rows) = (i * ROWS, ROWS.min(t - i * ROWS));
        // SAFETY: every group of rows belongs to exactly one task.
        let runs = unsafe { shared.part(from * records, rows * records) };
        quantise(isa, &x[from * w.cols()..], runs);
    };
    if t > ROWS {
        parallel::for_each(t.div_ceil(ROWS), convert)
    } else {
        (0..t.div_ceil(ROWS)).for_each(convert)
    }

    let job = Job { isa, w, t, runs, y: y.as_mut_ptr() };
    // SAFETY: the panels are disjoint columns of `y`.
    each_panel(w, job.panels() * PANEL, t, |part, from, cols| unsafe { job.columns(part, from, cols) });
    RUNS.set(kept);
}

/// What a task works with, over and over.
struct Job<'a> {
    isa: Isa,
    w: &'a Interleaved,
    t: usize,
    runs: &'a [Run],
    y: *mut f32,
}

// SAFETY: tasks write disjoint columns of `y`.
unsafe impl Sync for Job<'_> {}

impl Job<'_> {
    #[cfg(target_arch = "x86_64")]
    fn has_vnni(&self) -> bool {
        matches!(self.isa, Isa::Avx512 | Isa::Amx) && is_x86_feature_detected!("avx512vnni")
    }

    /// Panels of a task.
    fn panels(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_vnni() {
            return panels_of_task(self.t, self.w.rows());
        }
        1
    }

    /// Columns `from..from + cols` of a part.
    ///
    /// # Safety
    /// This call alone uses these columns of `y`.
    unsafe fn columns(&self, part: &Part, from: usize, cols: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.has_vnni() {
            // SAFETY: the caller's promise, and the processor has the instructions.
            return unsafe { vnni::columns(self, part, from, cols) };
        }
        let records = self.w.records();
        let lines = part.panel(from / PANEL, records);
        for i in 0..self.t {
            let sums = dot(self.isa, part.layout, lines, &self.runs[i * records..(i + 1) * records]);
            // SAFETY: the caller's promise.
            unsafe {
                let y = self.y.add(i * self.w.rows() + part.first_row + from);
                std::ptr::copy_nonoverlapping(sums.as_ptr(), y, cols);
            }
        }
    }
}

/// A row times a panel, with the instructions of `isa`.
fn dot(isa: Isa, layout: Layout, lines: &[Line], runs: &[Run]) -> [f32; PANEL] {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Portable {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2(layout: Layout, lines: &[Line], runs: &[Run]) -> [f32; PANEL] {
            dot_body(layout, lines, runs)
        }
        // SAFETY: every level but the portable one has these.
        return unsafe { avx2(layout, lines, runs) };
    }
    dot_body(layout, lines, runs)
}

#[inline(always)]
fn dot_body(layout: Layout, lines: &[Line], runs: &[Run]) -> [f32; PANEL] {
    let mut y = [0.0f32; PANEL];
    let group_lines = (layout.lines() - layout.codes_at()) / layout.groups;
    let line_cells = layout.line_inputs() / CELL;
    for (record, run) in lines.chunks_exact(layout.lines()).zip(runs) {
        let codes = record[layout.codes_at()..].chunks_exact(group_lines);
        let cells = run.cells.chunks_exact(CELLS / layout.groups);
        for (group, (codes, cells)) in codes.zip(cells).enumerate() {
            let mut sums = [0i32; PANEL];
            for (line, cells) in codes.iter().zip(cells.chunks_exact(line_cells)) {
                for (half, cell) in cells.iter().enumerate() {
                    let mask = if layout.wide { 255 } else { 15 };
                    let cell = cell.to_le_bytes().map(|code| i32::from(code as i8));
                    for (sum, codes) in sums.iter_mut().zip(line.0.as_chunks::<CELL>().0) {
                        let code = |i: usize| i32::from(codes[i] >> (4 * half) & mask);
                        *sum += (0..CELL).map(|i| code(i) * cell[i]).sum::<i32>();
                    }
                }
            }
            let (scale, min) = layout.affine(record, group);
            for (l, y) in y.iter_mut().enumerate() {
                *y = (sums[l] as f32 * run.scale).mul_add(scale[l], *y);
                *y = run.sum(layout, group).mul_add(min[l], *y);
            }
        }
    }
    y
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use super::{CELLS, Job, Line, PANEL, Part, Run};
    use crate::gemm::few::FOUR_PANELS;
    use crate::gemm::interleaved::x86::{Rows, Strip, affine, each_strip};
    use std::arch::x86_64::*;

    /// Rows of a strip: with two panels sixteen of the thirty-two registers hold sums.
    const STRIP: usize = 4;

    /// # Safety
    /// As [`Job::columns`]; the processor has AVX-512 with VNNI.
    pub(super) unsafe fn columns(job: &Job<'_>, part: &Part, from: usize, cols: usize) {
        let kernels = [[&NARROW[..], &WIDE[..]], [&FEW_NARROW[..], &FEW_WIDE[..]]];
        let rows = Rows { x: job.runs, width: job.w.records(), t: job.t, y: job.y };
        // SAFETY: there are `t` rows of runs; the caller vouches for `y`.
        unsafe { each_strip(job.w, part, from, cols, STRIP, rows, kernels) };
    }

    macro_rules! kernels {
        ($panels:literal, $wide:literal: $($m:literal)*) => { [$(kernel::<$m, $panels, $wide>),*] };
    }

    /// The kernel for `i + 1` rows at `i`.
    const FEW_WIDE: [unsafe fn(&Strip<Run>); FOUR_PANELS] = kernels!(4, true: 1 2);
    const FEW_NARROW: [unsafe fn(&Strip<Run>); FOUR_PANELS] = kernels!(4, false: 1 2);
    const WIDE: [unsafe fn(&Strip<Run>); STRIP] = kernels!(2, true: 1 2 3 4);
    const NARROW: [unsafe fn(&Strip<Run>); STRIP] = kernels!(2, false: 1 2 3 4);

    /// # Safety
    /// The strip's pointers are valid for `M` rows and what the masks of its first `G` panels leave.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,f16c")]
    unsafe fn kernel<const M: usize, const G: usize, const WIDE: bool>(s: &Strip<Run>) {
        let mut acc = [[_mm512_setzero_ps(); G]; M];
        let lines = s.layout.lines();
        for record in 0..s.width {
            let at: [*const Line; G] = std::array::from_fn(|g| s.panels[g].wrapping_add(record * lines));
            // SAFETY: the strip has `M` rows of as many runs as records.
            let runs: [&Run; M] = std::array::from_fn(|m| unsafe { &*s.x.add(m * s.width + record) });
            for group in 0..s.layout.groups {
                // SAFETY: the panels have this record.
                unsafe {
                    let dots = dots::<M, G, WIDE>(s, at, runs, group);
                    let affine: [_; G] = std::array::from_fn(|g| affine(s.layout, at[g], group));
                    for m in 0..M {
                        let d = _mm512_set1_ps(runs[m].scale);
                        let sum = _mm512_set1_ps(runs[m].sum(s.layout, group));
                        for g in 0..G {
                            let (scale, min) = affine[g];
                            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[m][g]), d);
                            acc[m][g] = _mm512_fmadd_ps(scaled, scale, acc[m][g]);
                            acc[m][g] = _mm512_fmadd_ps(sum, min, acc[m][g]);
                        }
                    }
                }
            }
        }
        for (m, acc) in acc.iter().enumerate() {
            for (g, &acc) in acc.iter().enumerate() {
                let y = s.y.wrapping_add(m * s.ldy + g * PANEL);
                // SAFETY: the mask leaves what the caller vouches for.
                unsafe { _mm512_mask_storeu_ps(y, s.masks[g], acc) };
            }
        }
    }

    /// The sums of code times code over a group of a record, for `M` rows and `G` panels.
    ///
    /// # Safety
    /// `at` are records of the strip's layout.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn dots<const M: usize, const G: usize, const WIDE: bool>(
        s: &Strip<Run>,
        at: [*const Line; G],
        runs: [&Run; M],
        group: usize,
    ) -> [[__m512i; G]; M] {
        let line_cells = if WIDE { 1 } else { 2 };
        let group_lines = CELLS / line_cells / s.layout.groups;
        // The panels after these, which this thread reads next: hardware does not see that far.
        let ahead = G * s.width * s.layout.lines();
        let nibbles = _mm512_set1_epi8(15);
        let mut dots = [[_mm512_setzero_si512(); G]; M];
        let affine = group * s.layout.affine_lines() + ahead;
        at.iter().for_each(|at| _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(affine).cast()));
        for i in group * group_lines..(group + 1) * group_lines {
            let mut low = [_mm512_setzero_si512(); G];
            let mut high = low;
            for g in 0..G {
                let line = at[g].wrapping_add(s.layout.codes_at() + i);
                // SAFETY: the line lies in the record.
                let codes = unsafe { _mm512_loadu_si512(line.cast()) };
                _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(ahead).cast());
                low[g] = if WIDE { codes } else { _mm512_and_si512(codes, nibbles) };
                if !WIDE {
                    high[g] = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), nibbles);
                }
            }
            for m in 0..M {
                let cell = |half: usize| _mm512_set1_epi32(runs[m].cells[i * line_cells + half] as i32);
                for g in 0..G {
                    dots[m][g] = _mm512_dpbusd_epi32(dots[m][g], low[g], cell(0));
                    if !WIDE {
                        dots[m][g] = _mm512_dpbusd_epi32(dots[m][g], high[g], cell(1));
                    }
                }
            }
        }
        dots
    }
}
