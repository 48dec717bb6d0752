//! Products with a matrix that lies in panels already.

use super::micro::{Kernels, Mode, Tile};
use crate::isa::Isa;

/// Columns of a panel on level `isa`.
pub(crate) fn panel_width(isa: Isa) -> usize {
    Kernels::of(isa).nr
}

/// `c[rows, width] = alpha · a[rows, k] · b[k, width]` for one panel `b`, rows of `a` and `c` being `lda` and `ldc`
/// apart. Each element is one chain in the order of `k`, as in [`product`](super::product).
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(crate) fn times_panel(
    isa: Isa,
    rows: usize,
    k: usize,
    alpha: f32,
    (a, lda): (&[f32], usize),
    b: &[f32],
    c: &mut [f32],
    ldc: usize,
) {
    let kernels = Kernels::of(isa);
    assert!(rows > 0 && a.len() >= (rows - 1) * lda + k && b.len() >= k * kernels.nr);
    assert!(c.len() >= (rows - 1) * ldc + kernels.nr);
    for i in (0..rows).step_by(kernels.mr()) {
        let tile = Tile {
            k,
            a: a[i * lda..].as_ptr(),
            lda,
            b: b.as_ptr(),
            c: c[i * ldc..].as_mut_ptr(),
            ldc,
            mode: Mode::Scale(alpha),
        };
        // SAFETY: the assertions cover all rows; the level is one that this processor has.
        unsafe { kernels.run(kernels.mr().min(rows - i), &tile) };
    }
}
