//! A frozen weight matrix in the bytes it was stored in.

use crate::BlockFormat;
use crate::isa::Isa;
use std::sync::Arc;

/// A range of shared bytes: a mapped file, or memory of our own.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    start: usize,
    len: usize,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let len = (*owner).as_ref().len();
        Self { owner, start: 0, len }
    }

    /// Bytes of `values`, little-endian.
    pub fn from_f32(values: &[f32]) -> Self {
        Self::new(Arc::new(values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
    }

    /// The sub-range `start..start + len`, or `None` when it leaves this one.
    pub fn slice(&self, start: usize, len: usize) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self { owner: self.owner.clone(), start: self.start + start, len })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({} at {})", self.len, self.start)
    }
}

/// A frozen matrix `[rows = outputs, cols = inputs]`, row-major, its rows stored in one or several stacked
/// parts (fused q|k|v and gate|up stay in their own files' blocks and formats).
#[derive(Clone, Debug)]
pub struct Matrix {
    parts: Vec<Part>,
    rows: usize,
    cols: usize,
}

#[derive(Clone, Debug)]
struct Part {
    format: BlockFormat,
    first_row: usize,
    bytes: Bytes,
    row_bytes: usize,
}

impl Matrix {
    /// A matrix over `bytes`.
    ///
    /// # Panics
    /// When `bytes` is not exactly `rows` rows of `cols` numbers in `format`.
    pub fn new(format: BlockFormat, rows: usize, cols: usize, bytes: Bytes) -> Self {
        let row_bytes = format.row_bytes(cols).expect("columns are a multiple of the block length");
        assert_eq!(bytes.len, rows * row_bytes, "{format:?} [{rows}, {cols}]");
        Self { parts: vec![Part { format, first_row: 0, bytes, row_bytes }], rows, cols }
    }

    /// A matrix of its own from `f32` values.
    pub fn from_f32(rows: usize, cols: usize, values: &[f32]) -> Self {
        Self::new(BlockFormat::F32, rows, cols, Bytes::from_f32(values))
    }

    /// The matrices on top of each other: their outputs side by side.
    ///
    /// # Panics
    /// When their columns differ or there are none.
    pub fn stack(matrices: impl IntoIterator<Item = Matrix>) -> Self {
        let mut all: Option<Self> = None;
        for m in matrices {
            match &mut all {
                None => all = Some(m),
                Some(top) => {
                    assert_eq!(top.cols, m.cols);
                    top.parts
                        .extend(m.parts.into_iter().map(|p| Part { first_row: p.first_row + top.rows, ..p }));
                    top.rows += m.rows;
                }
            }
        }
        all.expect("at least one matrix")
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes held (stored form).
    pub fn stored_bytes(&self) -> usize {
        self.parts.iter().map(|p| p.bytes.len).sum()
    }

    /// Format, first row, rows and bytes of each part.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (BlockFormat, usize, usize, &[u8])> {
        let ends = self.parts.iter().skip(1).map(|p| p.first_row).chain([self.rows]);
        self.parts
            .iter()
            .zip(ends)
            .map(|(p, end)| (p.format, p.first_row, end - p.first_row, p.bytes.as_slice()))
    }

    /// Expands row `row` into `out[..cols]`.
    pub fn expand_row(&self, row: usize, out: &mut [f32]) {
        self.expand_part(Isa::current(), row, 0, &mut out[..self.cols]);
    }

    /// Numbers that are stored together at most: parts of rows begin at multiples of it.
    pub(crate) fn block_len(&self) -> usize {
        self.parts.iter().map(|p| p.format.block_len()).max().unwrap_or(1)
    }

    /// Expands `out.len()` numbers of row `row` from column `col` on; both in whole blocks.
    pub(crate) fn expand_part(&self, isa: Isa, row: usize, col: usize, out: &mut [f32]) {
        assert!(row < self.rows);
        let i = self.parts.partition_point(|p| p.first_row <= row) - 1;
        let p = &self.parts[i];
        let size = |numbers| p.format.row_bytes(numbers).expect("whole blocks");
        let at = (row - p.first_row) * p.row_bytes + size(col);
        p.format.expand_with(isa, &p.bytes.as_slice()[at..at + size(out.len())], out);
    }
}
