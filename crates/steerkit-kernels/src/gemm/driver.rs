//! `c[t, n] = a[t, k] · b[k, n]` over all threads, with `b` packed on the fly.

use super::micro::{Kernels, Mode, Tile};
use super::pack::{Block, Scratch, with_buffers};
use crate::parallel;

/// Inputs per chain of a sum: fixed, so that bits depend on nothing else; a multiple of every block format's
/// length; short enough that a strip of `a` and a panel of `b` stay in the near caches.
pub(super) const CHAIN: usize = 768;

/// Most columns of a task: its packed block of `b` takes at most `CHAIN × MAX_N × 4` bytes = 768 KiB.
const MAX_N: usize = 256;

/// Multiply-adds (with the cost of expanding weights) below which threads are not worth waking.
const MIN_PARALLEL: usize = 100_000;

/// The size of a product, and the step in which the columns of `b` can be cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) t: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) n_step: usize,
}

/// How a product is cut: into column groups times row groups.
#[derive(Clone, Copy, Debug)]
struct Cut {
    cols: usize,
    rows: usize,
}

impl Cut {
    fn of(shape: Shape, kernels: Kernels, threads: usize) -> Self {
        let step = shape.n_step.max(kernels.nr);
        let cols = (shape.n / (threads * 3)).clamp(step, MAX_N.max(step)) / step * step;
        let groups = shape.n.div_ceil(cols);
        // Few columns on many cores: share the rows too, at the price of packing twice.
        let row_groups = (2 * threads).div_ceil(groups).min(shape.t / 64).max(1);
        let rows = if threads == 1 { shape.t } else { shape.t.div_ceil(row_groups) };
        Self { cols, rows: rows.next_multiple_of(kernels.mr()) }
    }
}

#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: tasks write disjoint elements.
unsafe impl Sync for Output {}

/// Computes `c = a · b`; `pack` writes a block of `b` as panels of the given number of columns.
pub(super) fn run(
    kernels: Kernels,
    shape: Shape,
    a: &[f32],
    c: &mut [f32],
    pack: impl Fn(Block, usize, &mut Scratch, &mut [f32]) + Sync,
) {
    let Shape { t, n, k, .. } = shape;
    assert_eq!((a.len(), c.len()), (t * k, t * n), "{shape:?}");
    if t == 0 || n == 0 {
        return;
    }
    let small = n * k * (t + 8) < MIN_PARALLEL;
    let cut = Cut::of(shape, kernels, if small { 1 } else { parallel::threads() });
    let col_groups = n.div_ceil(cut.cols);
    let row_groups = t.div_ceil(cut.rows);
    let output = Output(c.as_mut_ptr());
    let task = |index: usize| {
        let output = &output;
        let (j0, i0) = (index % col_groups * cut.cols, index / col_groups * cut.rows);
        let cols = cut.cols.min(n - j0);
        let rows = cut.rows.min(t - i0);
        // SAFETY: this task alone has rows `i0..i0 + rows` of columns `j0..j0 + cols`, inside `c`.
        unsafe {
            let c = output.0.add(i0 * n + j0);
            columns(kernels, rows, &a[i0 * k..(i0 + rows) * k], Block { k0: 0, k, j0, n: cols }, c, n, &pack);
        }
    };
    if small {
        (0..col_groups * row_groups).for_each(task);
    } else {
        parallel::for_each(col_groups * row_groups, task);
    }
}

/// One task: `rows` rows of the columns of `all`, whose `k` is the whole reduction.
///
/// # Safety
/// `c` is valid for `rows × all.n` with rows `ldc` apart, and this call alone uses it.
#[allow(clippy::too_many_arguments, reason = "one call site, one loop nest")]
unsafe fn columns(
    kernels: Kernels,
    rows: usize,
    a: &[f32],
    all: Block,
    c: *mut f32,
    ldc: usize,
    pack: &(impl Fn(Block, usize, &mut Scratch, &mut [f32]) + Sync),
) {
    let (nr, lda) = (kernels.nr, all.k);
    with_buffers(|buffers| {
        let packed = buffers.b.floats(CHAIN.min(all.k) * all.n.next_multiple_of(nr));
        for k0 in (0..all.k.max(1)).step_by(CHAIN) {
            let at = Block { k0, k: CHAIN.min(all.k - k0), ..all };
            pack(at, nr, &mut buffers.rows, packed);
            let mode = if k0 == 0 { Mode::Start } else { Mode::Add };
            for i in (0..rows).step_by(kernels.mr()) {
                let height = kernels.mr().min(rows - i);
                let strip = &a[i * lda + k0..(i + height - 1) * lda + k0 + at.k];
                for (panel, j) in (0..all.n).step_by(nr).enumerate() {
                    let b = &packed[panel * at.k * nr..(panel + 1) * at.k * nr];
                    // SAFETY: `strip` holds `height` rows of `k`, `lda` apart, `b` is `k × nr`, the caller
                    // vouches for `c`.
                    unsafe {
                        let tile = Tile {
                            k: at.k,
                            a: strip.as_ptr(),
                            lda,
                            b: b.as_ptr(),
                            c: c.add(i * ldc + j),
                            ldc,
                            mode,
                        };
                        run_tile(kernels, height, nr.min(all.n - j), tile, &mut buffers.tile);
                    }
                }
            }
        }
    });
}

/// Runs a tile of `rows × cols`; a narrow one goes through a tile of full width.
///
/// # Safety
/// As [`Kernels::run`], with `c` valid for `rows × cols` only.
pub(super) unsafe fn run_tile(kernels: Kernels, rows: usize, cols: usize, tile: Tile, edge: &mut Scratch) {
    if cols == kernels.nr {
        // SAFETY: passed on to the caller.
        unsafe { kernels.run(rows, &tile) };
        return;
    }
    let nr = kernels.nr;
    let full = edge.floats(kernels.mr() * nr);
    for i in 0..rows {
        // SAFETY: the caller vouches for `rows × cols` at `c`; `full` has `rows × nr`.
        unsafe { std::ptr::copy_nonoverlapping(tile.c.add(i * tile.ldc), full[i * nr..].as_mut_ptr(), cols) };
    }
    // SAFETY: `full` is valid for `rows × nr`, the rest is passed on to the caller.
    unsafe { kernels.run(rows, &Tile { c: full.as_mut_ptr(), ldc: nr, ..tile }) };
    for i in 0..rows {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(full[i * nr..].as_ptr(), tile.c.add(i * tile.ldc), cols) };
    }
}
