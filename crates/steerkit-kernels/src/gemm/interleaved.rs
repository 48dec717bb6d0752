//! Quantised weights laid out for products with few rows: sixteen outputs side by side.
//!
//! Every block format but MXFP4 gives a weight as `fma(scale, code, min)` with an unsigned code of 4 or 8 bits
//! and one scale and minimum for 16 or 32 inputs, and to the same bits as its own expansion: `scale · code` is
//! exact in f32, so there is one rounding either way. A panel is sixteen outputs; its record for 32 inputs is
//! the scales and minima of the sixteen, then lines of 64 bytes with four bytes for each output. Expanding it needs no
//! transposition, and a product with few rows multiplies straight from the codes.

use super::pack::Scratch;
use crate::blocks::Coded;
use crate::isa::Isa;
use crate::shared::Shared;
use crate::{BlockFormat, Matrix, parallel};

/// Outputs of a panel.
pub(super) const PANEL: usize = 16;

/// Inputs of a record.
pub(super) const RECORD: usize = 32;

/// One cache line of a record.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// How the records of a part are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Codes of 8 bits: byte `i` of an output's four is input `i`. Else of 4 bits: the low nibbles are inputs
    /// 0 to 3, the high ones 4 to 7.
    pub(super) wide: bool,
    /// Scales and minima in f32, a line each. Else both in one line, in half precision.
    pub(super) single: bool,
    /// Groups of inputs with a scale of their own: 1 or 2.
    pub(super) groups: usize,
}

impl Layout {
    /// Lines of the scales and minima of one group.
    pub(super) fn affine_lines(self) -> usize {
        1 + usize::from(self.single)
    }

    /// Lines before the codes.
    pub(super) fn codes_at(self) -> usize {
        self.groups * self.affine_lines()
    }

    /// Inputs of a line of codes.
    pub(super) fn line_inputs(self) -> usize {
        if self.wide { 4 } else { 8 }
    }

    /// Lines of a record.
    pub(super) fn lines(self) -> usize {
        self.codes_at() + RECORD / self.line_inputs()
    }
}

/// Rows of one format.
pub(super) struct Part {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) layout: Layout,
    /// Panel after panel, record after record.
    lines: Vec<Line>,
}

impl Part {
    fn new(
        layout: Layout,
        first_row: usize,
        rows: usize,
        cols: usize,
        coded: impl Fn(usize) -> Vec<Coded> + Sync,
    ) -> Self {
        let panel_lines = cols / RECORD * layout.lines();
        let mut lines = vec![Line([0; 64]); rows.div_ceil(PANEL) * panel_lines];
        let shared = Shared::new(&mut lines);
        parallel::for_each(rows.div_ceil(PANEL), |panel| {
            // SAFETY: every panel belongs to exactly one task.
            let lines = unsafe { shared.part(panel * panel_lines, panel_lines) };
            for row in panel * PANEL..rows.min((panel + 1) * PANEL) {
                for (record, coded) in lines.chunks_exact_mut(layout.lines()).zip(coded(row).chunks_exact(2))
                {
                    layout.write(record, row % PANEL, [coded[0], coded[1]]);
                }
            }
        });
        Self { first_row, rows, layout, lines }
    }

    /// The records of panel `panel`, of which there are `records`; none beyond the last panel.
    pub(super) fn panel(&self, panel: usize, records: usize) -> &[Line] {
        let len = records * self.layout.lines();
        self.lines.get(panel * len..(panel + 1) * len).unwrap_or_default()
    }
}

/// A frozen matrix `[rows = outputs, cols = inputs]` in the layout for few rows, beside its stored form.
pub struct Interleaved {
    pub(super) parts: Vec<Part>,
    rows: usize,
    cols: usize,
}

impl Interleaved {
    /// `w` in this layout, or `None` when a part of it has no codes (F32, F16, BF16) or is MXFP4.
    pub fn new(w: &Matrix) -> Option<Self> {
        let parts = w.parts().map(|(format, first_row, rows, bytes)| {
            let row_bytes = bytes.len() / rows.max(1);
            let coded = |row: usize| format.codes(&bytes[row * row_bytes..(row + 1) * row_bytes], w.cols());
            let layout = || Layout::of(format, bytes);
            format.has_codes().then(|| Part::new(layout(), first_row, rows, w.cols(), coded))
        });
        Some(Self { parts: parts.collect::<Option<_>>()?, rows: w.rows(), cols: w.cols() })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes held.
    pub fn stored_bytes(&self) -> usize {
        self.parts.iter().map(|p| size_of_val(p.lines.as_slice())).sum()
    }

    /// Records of a panel.
    pub(super) fn records(&self) -> usize {
        self.cols / RECORD
    }
}

impl Layout {
    /// The layout that holds every weight of these blocks exactly.
    fn of(format: BlockFormat, bytes: &[u8]) -> Self {
        use BlockFormat::*;
        let wide = matches!(format, Q5_0 | Q5_1 | Q8_0 | Q5_K | Q6_K | IQ4_NL | IQ4_XS);
        let groups = if matches!(format, Q2_K | Q3_K | Q6_K) { 2 } else { 1 };
        // Blocks of 32 begin with a scale in half precision. Their minima are in half precision too, or up to 128 times
        // the scale, which half precision holds unless it overflows.
        let overflows = |block: &[u8]| {
            let scale = crate::blocks::f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
            !matches!(scale.abs(), 0.0..511.0)
        };
        let single = format.block_len() != 32 || bytes.chunks_exact(format.block_bytes()).any(overflows);
        Self { wide, single, groups }
    }

    /// Writes 32 weights of output `lane` into its record.
    fn write(self, record: &mut [Line], lane: usize, coded: [Coded; 2]) {
        for (group, c) in coded.iter().enumerate().take(self.groups) {
            let line = group * self.affine_lines();
            if self.single {
                record[line].0[4 * lane..][..4].copy_from_slice(&c.scale.to_le_bytes());
                record[line + 1].0[4 * lane..][..4].copy_from_slice(&c.min.to_le_bytes());
            } else {
                let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
                record[line].0[2 * lane..][..2].copy_from_slice(&half(c.scale));
                record[line].0[32 + 2 * lane..][..2].copy_from_slice(&half(c.min));
            }
        }
        let codes = coded.iter().flat_map(|c| c.codes.chunks_exact(self.line_inputs()));
        for (line, codes) in record[self.codes_at()..].iter_mut().zip(codes) {
            for (i, byte) in line.0[4 * lane..][..4].iter_mut().enumerate() {
                *byte = if self.wide { codes[i] } else { codes[i] | codes[i + 4] << 4 };
            }
        }
    }

    /// The scales and minima of a record's group.
    #[inline(always)]
    pub(super) fn affine(self, record: &[Line], group: usize) -> ([f32; 16], [f32; 16]) {
        let line = group * self.affine_lines();
        if self.single {
            let floats = |line: &Line| {
                std::array::from_fn(|l| f32::from_bits(u32::from_le_bytes(line.0.as_chunks::<4>().0[l])))
            };
            return (floats(&record[line]), floats(&record[line + 1]));
        }
        let halves = |at: usize| {
            let bytes = record[line].0[at..at + 32].as_chunks::<2>().0;
            std::array::from_fn(|l| crate::blocks::f16_to_f32(u16::from_le_bytes(bytes[l])))
        };
        (halves(0), halves(32))
    }

    #[inline(always)]
    fn expand_body(self, records: &[Line], out: &mut [f32], ldo: usize) {
        for (r, record) in records.chunks_exact(self.lines()).enumerate() {
            self.expand_record(record, &mut out[r * RECORD * ldo..], ldo);
        }
    }

    /// `out[p * ldo + lane]` = weight of input `p` for output `lane`.
    #[inline(always)]
    fn expand_record(self, record: &[Line], out: &mut [f32], ldo: usize) {
        let n = self.line_inputs();
        for (i, line) in record[self.codes_at()..self.lines()].iter().enumerate() {
            let (scale, min) = self.affine(record, i * n * self.groups / RECORD);
            let words = line.0.as_chunks::<4>().0;
            for j in 0..n {
                let out = &mut out[(i * n + j) * ldo..][..PANEL];
                let (shift, mask) = if self.wide { (8 * j, 255) } else { (j % 4 * 8 + j / 4 * 4, 15) };
                for l in 0..PANEL {
                    let code = u32::from_le_bytes(words[l]) >> shift & mask;
                    out[l] = scale[l].mul_add(code as i32 as f32, min[l]);
                }
            }
        }
    }

    /// Expands records one after the other: `out[p * ldo + lane]` = weight of input `p` for output `lane`.
    pub(super) fn expand(self, isa: Isa, records: &[Line], out: &mut [f32], ldo: usize) {
        let n = records.len() / self.lines();
        assert!(n == 0 || out.len() >= (n * RECORD - 1) * ldo + PANEL);
        match isa {
            // SAFETY: an `Isa` value exists only for instructions that this processor has, and the assertion holds.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => unsafe { x86::expand_f32(self, records, out, ldo) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2(layout: Layout, records: &[Line], out: &mut [f32], ldo: usize) {
                    layout.expand_body(records, out, ldo);
                }
                // SAFETY: as above.
                unsafe { avx2(self, records, out, ldo) }
            }
            _ => self.expand_body(records, out, ldo),
        }
    }

    /// Expands records into cells: `out[p * ldo + lane]` holds inputs `2p` and `2p + 1` rounded to bf16.
    pub(super) fn expand_pairs(
        self,
        isa: Isa,
        records: &[Line],
        out: &mut [f32],
        ldo: usize,
        wide: &mut Scratch,
    ) {
        let n = records.len() / self.lines();
        assert!(n == 0 || out.len() >= (n * RECORD / 2 - 1) * ldo + PANEL);
        #[cfg(target_arch = "x86_64")]
        if matches!(isa, Isa::Avx512 | Isa::Amx) && is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the processor has the instructions, and the assertion holds.
            return unsafe { x86::expand_pairs(self, records, out, ldo) };
        }
        let wide = &mut wide.floats(n * RECORD * PANEL)[..n * RECORD * PANEL];
        self.expand(isa, records, wide, PANEL);
        for (p, two) in wide.chunks_exact(2 * PANEL).enumerate() {
            super::bf16::pair_rows(isa, &two[..PANEL], &two[PANEL..], &mut out[p * ldo..][..PANEL]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::{Interleaved, Layout, Line, PANEL, Part, RECORD};
    use crate::gemm::few::panels_of_task;
    use std::arch::x86_64::*;

    /// Rows that panels are multiplied with, and where the products go.
    pub(in super::super) struct Rows<'a, X> {
        /// `t` rows of `width`.
        pub(in super::super) x: &'a [X],
        pub(in super::super) width: usize,
        pub(in super::super) t: usize,
        /// All outputs of the matrix.
        pub(in super::super) y: *mut f32,
    }

    /// The arguments of a kernel: some panels by a strip of rows, the whole reduction.
    pub(in super::super) struct Strip<X> {
        pub(in super::super) layout: Layout,
        pub(in super::super) panels: [*const Line; 4],
        pub(in super::super) x: *const X,
        /// Distance of the rows of `x`.
        pub(in super::super) width: usize,
        pub(in super::super) y: *mut f32,
        pub(in super::super) ldy: usize,
        /// Which outputs of the panels there are.
        pub(in super::super) masks: [__mmask16; 4],
    }

    /// Multiplies a strip.
    pub(in super::super) type Kernel<X> = unsafe fn(&Strip<X>);

    /// Multiplies the panels of columns `from..from + cols` of a part with all rows, in strips of `height`. The kernels are
    /// those for two panels and for four, of narrow codes and of wide ones, for one row more each.
    ///
    /// # Safety
    /// The caller alone uses these columns of `y`, and the processor has the kernels' instructions.
    pub(in super::super) unsafe fn each_strip<X>(
        w: &Interleaved,
        part: &Part,
        from: usize,
        cols: usize,
        height: usize,
        rows: Rows<'_, X>,
        kernels: [[&[Kernel<X>]; 2]; 2],
    ) {
        // As many panels as the tasks were cut for, whatever the strip's rows.
        let four = panels_of_task(rows.t, w.rows()) == 4;
        let kernels = kernels[usize::from(four)][usize::from(part.layout.wide)];
        let (panels, masks) = sides(part, from, cols, w.records());
        for i in (0..rows.t).step_by(height) {
            let strip = Strip {
                layout: part.layout,
                panels,
                x: rows.x[i * rows.width..].as_ptr(),
                width: rows.width,
                y: rows.y.wrapping_add(i * w.rows() + part.first_row + from),
                ldy: w.rows(),
                masks,
            };
            // SAFETY: the panels are whole, `x` has the strip's rows; the caller vouches for `y`.
            unsafe { kernels[height.min(rows.t - i) - 1](&strip) };
        }
    }

    /// Up to four panels from column `from` on, and which of their outputs are among `cols` columns. A panel that is
    /// not there is the first one again: it is computed and not stored.
    fn sides(part: &Part, from: usize, cols: usize, records: usize) -> ([*const Line; 4], [__mmask16; 4]) {
        let first = part.panel(from / PANEL, records);
        let panel = |i: usize| match part.panel(from / PANEL + i, records) {
            [] => first.as_ptr(),
            lines => lines.as_ptr(),
        };
        let mask = |i: usize| ((1u32 << cols.saturating_sub(i * PANEL).min(PANEL)) - 1) as __mmask16;
        (std::array::from_fn(panel), std::array::from_fn(mask))
    }

    /// The scales and minima of a record's group.
    ///
    /// # Safety
    /// `record` is a record of this layout.
    #[inline]
    #[target_feature(enable = "avx512f,f16c")]
    pub(in super::super) unsafe fn affine(
        layout: Layout,
        record: *const Line,
        group: usize,
    ) -> (__m512, __m512) {
        // SAFETY: the lines of a group lie before the codes.
        unsafe {
            let line = record.add(group * layout.affine_lines());
            if layout.single {
                return (_mm512_loadu_ps(line.cast()), _mm512_loadu_ps(line.add(1).cast()));
            }
            let both = _mm512_loadu_si512(line.cast());
            let halves = (_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both));
            (_mm512_cvtph_ps(halves.0), _mm512_cvtph_ps(halves.1))
        }
    }

    /// Code `i` of each output of a line, as a number. `table` holds 0 to 15.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn code<const WIDE: bool>(line: __m512i, i: usize, table: __m512) -> __m512 {
        if WIDE {
            let byte = _mm512_srlv_epi32(line, _mm512_set1_epi32(8 * i as i32));
            return _mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(255)));
        }
        // The permutation looks at the lowest four bits of an index.
        let index = _mm512_srlv_epi32(line, _mm512_set1_epi32((i % 4 * 8 + i / 4 * 4) as i32));
        _mm512_permutexvar_ps(index, table)
    }

    /// 0 to 15.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn table() -> __m512 {
        _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.)
    }

    /// Calls the kernel for the layout with every record and its place in `out`.
    macro_rules! each_record {
        ($layout:ident, $records:ident, $kernel:ident, $out:ident, $step:expr, $ldo:ident) => {
            let (lines, n) = ($layout.lines(), $records.len() / $layout.lines());
            for r in 0..n {
                let record = $records.as_ptr().wrapping_add(r * lines);
                let out = $out.as_mut_ptr().wrapping_add(r * $step * $ldo);
                // SAFETY: the caller's promise.
                unsafe {
                    if $layout.wide {
                        $kernel::<true>($layout, record, out, $ldo);
                    } else {
                        $kernel::<false>($layout, record, out, $ldo);
                    }
                }
            }
        };
    }

    /// # Safety
    /// `records` are records of this layout, and `out` has 32 rows for each, `ldo` apart, of sixteen numbers.
    #[target_feature(enable = "avx512f,f16c")]
    pub(super) unsafe fn expand_f32(layout: Layout, records: &[Line], out: &mut [f32], ldo: usize) {
        each_record!(layout, records, expand_f32_of, out, RECORD, ldo);
    }

    /// # Safety
    /// As [`expand_f32`], for one record.
    #[inline]
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn expand_f32_of<const WIDE: bool>(
        layout: Layout,
        record: *const Line,
        out: *mut f32,
        ldo: usize,
    ) {
        let n = if WIDE { 4 } else { 8 };
        let table = table();
        for i in 0..RECORD / n {
            // SAFETY: the caller's promise.
            unsafe {
                let (scale, min) = affine(layout, record, i * n * layout.groups / RECORD);
                let line = _mm512_loadu_si512(record.add(layout.codes_at() + i).cast());
                for j in 0..n {
                    let w = _mm512_fmadd_ps(scale, code::<WIDE>(line, j, table), min);
                    _mm512_storeu_ps(out.add((i * n + j) * ldo), w);
                }
            }
        }
    }

    /// # Safety
    /// As [`expand_f32`], with sixteen rows of cells for each record.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16,f16c")]
    pub(super) unsafe fn expand_pairs(layout: Layout, records: &[Line], out: &mut [f32], ldo: usize) {
        each_record!(layout, records, expand_pairs_of, out, RECORD / 2, ldo);
    }

    /// # Safety
    /// As [`expand_pairs`], for one record.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16,f16c")]
    unsafe fn expand_pairs_of<const WIDE: bool>(
        layout: Layout,
        record: *const Line,
        out: *mut f32,
        ldo: usize,
    ) {
        let n = if WIDE { 4 } else { 8 };
        let table = table();
        // Word `l` of the lower half beside word `l` of the upper half.
        let low = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let high = _mm512_slli_epi32::<16>(_mm512_add_epi32(low, _mm512_set1_epi32(16)));
        let zip = _mm512_or_si512(low, high);
        for i in 0..RECORD / n {
            // SAFETY: the caller's promise.
            unsafe {
                let (scale, min) = affine(layout, record, i * n * layout.groups / RECORD);
                let line = _mm512_loadu_si512(record.add(layout.codes_at() + i).cast());
                for j in (0..n).step_by(2) {
                    let low = _mm512_fmadd_ps(scale, code::<WIDE>(line, j, table), min);
                    let high = _mm512_fmadd_ps(scale, code::<WIDE>(line, j + 1, table), min);
                    let both = _mm512_cvtne2ps_pbh(high, low);
                    let both = std::mem::transmute::<__m512bh, __m512i>(both);
                    let cells = _mm512_permutexvar_epi16(zip, both);
                    _mm512_storeu_si512(out.add((i * n + j) / 2 * ldo).cast(), cells);
                }
            }
        }
    }
}
