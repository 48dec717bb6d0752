//! Small products of strided matrices, on one thread.

use super::driver::run_tile;
use super::micro::{Kernels, Mode, Tile};
use super::pack::{self, Buffers, with_buffers};
use super::{Isa, View};

/// Most numbers of `b` packed at once (1 MiB), unless one panel is larger.
const MAX_PACKED: usize = 1 << 18;

/// Strips of `a` that are rearranged together: their rows are a multiple of a vector's length.
const STRIPS: usize = 4;

/// `c[m, n] = alpha * a[m, k] · b[k, n]` (`+ c` when `accumulate`), single-threaded; `c` is row-major with
/// rows `ldc` apart. For the small products of attention.
///
/// # Panics
/// When a view or `c` is too short.
#[allow(clippy::too_many_arguments, reason = "the arguments of a general matrix product")]
pub fn product(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: View<'_>,
    b: View<'_>,
    accumulate: bool,
    c: &mut [f32],
    ldc: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "c [{m}, {n}] with rows {ldc} apart in {}", c.len());
    for (view, rows, cols) in [(a, m, k), (b, k, n)] {
        assert!(view.holds(rows, cols), "[{rows}, {cols}] in {view:?}");
    }
    let mode = match (accumulate, alpha == 1.0) {
        (true, _) => Mode::AddScaled(alpha),
        (false, true) => Mode::Start,
        (false, false) => Mode::Scale(alpha),
    };
    let isa = Isa::current();
    let kernels = Kernels::of(isa);
    let (mr, nr) = (kernels.mr(), kernels.nr);
    let width = (MAX_PACKED / k.max(1)).max(nr) / nr * nr;
    with_buffers(|Buffers { a: strip_buffer, b: packed, tile: edge, .. }| {
        for j0 in (0..n).step_by(width) {
            let cols = width.min(n - j0);
            let packed = packed.floats(k * cols.next_multiple_of(nr));
            for (panel, j) in (j0..j0 + cols).step_by(nr).enumerate() {
                pack::panel(
                    isa,
                    b,
                    k,
                    j,
                    nr.min(n - j),
                    nr,
                    &mut packed[panel * k * nr..(panel + 1) * k * nr],
                );
            }
            for i in (0..m).step_by(mr) {
                let height = mr.min(m - i);
                let (strip, lda) = if a.col_stride == 1 || k <= 1 {
                    (&a.data[(i * a.row_stride).min(a.data.len())..], a.row_stride)
                } else {
                    let first = i / (STRIPS * mr) * STRIPS * mr;
                    if i == first {
                        let rows = (STRIPS * mr).min(m - i);
                        pack::strips(isa, a, i, rows, k, strip_buffer.floats(rows * k));
                    }
                    (&strip_buffer.floats(0)[(i - first) * k..], k)
                };
                for (panel, j) in (j0..j0 + cols).step_by(nr).enumerate() {
                    let b = packed[panel * k * nr..].as_ptr();
                    let c = c[i * ldc + j..].as_mut_ptr();
                    // SAFETY: `strip` holds `height` rows of `k`, because the view holds `m × k` (checked) or
                    // because it was packed so; `b` is `k × nr`; `c` holds the tile (checked).
                    unsafe {
                        let tile = Tile { k, a: strip.as_ptr(), lda, b, c, ldc, mode };
                        run_tile(kernels, height, nr.min(n - j), tile, edge);
                    }
                }
            }
        }
    });
}

impl View<'_> {
    /// Whether all of `[rows, cols]` lies inside the data.
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0
            || cols == 0
            || (rows - 1) * self.row_stride + (cols - 1) * self.col_stride < self.data.len()
    }
}
