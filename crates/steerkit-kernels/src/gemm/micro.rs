//! The innermost f32 kernels: one tile of `c`, `M` rows by one panel of `b`.
//!
//! Each element of the tile is one chain of fused multiply-adds in the order of `k`, in every kernel here.

#[cfg(target_arch = "x86_64")]
use super::amx;
use crate::isa::Isa;

/// What a micro-kernel does before and after its chain.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode {
    /// `c = chain from 0`.
    Start,
    /// `c += chain from 0`; on AMX the chain starts from `c`.
    Add,
    /// `c = alpha · chain from 0`.
    Scale(f32),
    /// `c = fma(alpha, chain from 0, c)`.
    AddScaled(f32),
}

/// The arguments of a micro-kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Length of the chain.
    pub(super) k: usize,
    /// Row `i`, input `p` at `a[i * lda + p]`.
    pub(super) a: *const f32,
    pub(super) lda: usize,
    /// Input `p`, column `j` at `b[p * nr + j]`.
    pub(super) b: *const f32,
    /// Row `i`, column `j` at `c[i * ldc + j]`.
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    pub(super) mode: Mode,
}

/// The micro-kernels of one instruction set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// Columns of a panel.
    pub(super) nr: usize,
    /// The kernel for `i + 1` rows at `i`; unsafe: `Tile` must describe valid memory of `rows × nr`, and the
    /// processor must have the instructions.
    by_rows: &'static [unsafe fn(&Tile)],
}

impl Kernels {
    /// The kernels of `isa`, which this processor must have.
    pub(super) fn of(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => Self { nr: 32, by_rows: &x86::AVX512 },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self { nr: 16, by_rows: &x86::AVX2 },
            _ => Self { nr: PORTABLE_NR, by_rows: &PORTABLE },
        }
    }

    /// The kernels of `isa` for products with many columns. Six rows by four vectors need a quarter fewer loads for each
    /// multiply-add than twelve by two, which counts where something else keeps the load ports busy.
    pub(super) fn wide(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => Self { nr: 64, by_rows: &x86::AVX512_WIDE },
            _ => Self::of(isa),
        }
    }

    /// The kernels for cells that each hold a pair of bf16 numbers, where `isa` (which this processor must have)
    /// and the processor offer them. A cell's product is the sum of two products, rounded as the
    /// processor does (subnormals count as 0). Modes `Start` and `Add` only.
    pub(super) fn of_bf16_pairs(isa: Isa) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Amx {
            return Some(Self { nr: amx::NR, by_rows: &amx::KERNELS });
        }
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Avx512 && is_x86_feature_detected!("avx512bf16") {
            return Some(Self { nr: 32, by_rows: &x86::AVX512_BF16 });
        }
        let _ = isa;
        None
    }

    /// Rows of the tallest tile.
    pub(super) fn mr(self) -> usize {
        self.by_rows.len()
    }

    /// Runs the kernel for `rows` rows.
    ///
    /// # Safety
    /// `a` is readable for `rows` rows of `k`, `b` for `k × nr`, `c` readable and writable for `rows × nr` with
    /// no other access meanwhile, and the processor has the instructions.
    #[inline]
    pub(super) unsafe fn run(self, rows: usize, tile: &Tile) {
        // SAFETY: passed on to the caller.
        unsafe { (self.by_rows[rows - 1])(tile) }
    }
}

const PORTABLE_NR: usize = 16;
const PORTABLE: [unsafe fn(&Tile); 4] = [portable::<1>, portable::<2>, portable::<3>, portable::<4>];

/// # Safety
/// As [`Kernels::run`].
unsafe fn portable<const M: usize>(t: &Tile) {
    const NR: usize = PORTABLE_NR;
    // SAFETY: the caller vouches for `rows × nr` at `c`.
    let row = |i: usize| unsafe { t.c.add(i * t.ldc).cast::<[f32; NR]>() };
    let mut acc = [[0f32; NR]; M];
    for p in 0..t.k {
        // SAFETY: the caller vouches for `k × nr` at `b`.
        let b = unsafe { &*t.b.add(p * NR).cast::<[f32; NR]>() };
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller vouches for `rows × k` at `a`.
            let a = unsafe { *t.a.add(i * t.lda + p) };
            for (acc, &b) in acc.iter_mut().zip(b) {
                *acc = a.mul_add(b, *acc);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: as `row`.
        let c = unsafe { &mut *row(i) };
        for (c, &x) in c.iter_mut().zip(acc) {
            *c = match t.mode {
                Mode::Start => x,
                Mode::Add => *c + x,
                Mode::Scale(alpha) => alpha * x,
                Mode::AddScaled(alpha) => alpha.mul_add(x, *c),
            };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Mode, Tile};
    use std::arch::x86_64::*;

    /// Inputs per round of the inner loop.
    const UNROLL: usize = 4;

    /// A micro-kernel of `M` rows by `$width` vectors.
    macro_rules! kernel {
        ($name:ident, $features:literal, $lanes:literal, $width:literal, $zero:ident, $load:ident, $store:ident, $splat:ident,
         $fma:ident, $mul:ident, $add:ident) => {
            /// # Safety
            /// As [`Kernels::run`](super::Kernels::run).
            #[target_feature(enable = $features)]
            unsafe fn $name<const M: usize>(t: &Tile) {
                let mut acc = [[$zero(); $width]; M];
                // SAFETY: the caller vouches for `rows × nr` at `c`.
                let c = |i: usize, h: usize| unsafe { t.c.add(i * t.ldc + h * $lanes) };
                // Row `3q + r` is addressed as `base[q] + r * lda`: few pointers to advance, and no address
                // arithmetic on the ports that the multiply-adds need.
                let lda = t.lda;
                let mut base: [*const f32; 4] = std::array::from_fn(|q| t.a.wrapping_add(3 * q * lda));
                let mut b = t.b;
                let mut left = t.k;
                macro_rules! step {
                    ($p:ident) => {
                        let b: [_; $width] = std::array::from_fn(|h| {
                            // SAFETY: the caller vouches for `k × nr` at `b`.
                            unsafe { $load(b.add(($p * $width + h) * $lanes)) }
                        });
                        for i in 0..M {
                            // SAFETY: the caller vouches for `rows × k` at `a`.
                            let x = $splat(unsafe { *base[i / 3].add(i % 3 * lda + $p) });
                            for h in 0..$width {
                                acc[i][h] = $fma(x, b[h], acc[i][h]);
                            }
                        }
                    };
                }
                while left >= UNROLL {
                    for p in 0..UNROLL {
                        step!(p);
                    }
                    base = base.map(|a| a.wrapping_add(UNROLL));
                    b = b.wrapping_add(UNROLL * $width * $lanes);
                    left -= UNROLL;
                }
                for p in 0..left {
                    step!(p);
                }
                for i in 0..M {
                    for h in 0..$width {
                        // SAFETY: as `c`.
                        unsafe {
                            let y = match t.mode {
                                Mode::Start => acc[i][h],
                                Mode::Add => $add($load(c(i, h)), acc[i][h]),
                                Mode::Scale(alpha) => $mul($splat(alpha), acc[i][h]),
                                Mode::AddScaled(alpha) => $fma($splat(alpha), acc[i][h], $load(c(i, h))),
                            };
                            $store(c(i, h), y);
                        }
                    }
                }
            }
        };
    }

    kernel!(
        avx512,
        "avx512f",
        16,
        2,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_mul_ps,
        _mm512_add_ps
    );
    kernel!(
        avx512_wide,
        "avx512f",
        16,
        4,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_mul_ps,
        _mm512_add_ps
    );
    kernel!(
        avx512_bf16,
        "avx512f,avx512bf16",
        16,
        2,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        dot_pairs,
        _mm512_mul_ps,
        _mm512_add_ps
    );
    kernel!(
        avx2,
        "avx2,fma",
        8,
        2,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_mul_ps,
        _mm256_add_ps
    );

    /// `acc` plus the products of the bf16 pairs in `x` and `b`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dot_pairs(x: __m512, b: __m512, acc: __m512) -> __m512 {
        // SAFETY: both types are 64 bytes that may have any value.
        let pairs = |v: __m512| unsafe { std::mem::transmute::<__m512, __m512bh>(v) };
        _mm512_dpbf16_ps(acc, pairs(x), pairs(b))
    }

    pub(super) const AVX512: [unsafe fn(&Tile); 12] = [
        avx512::<1>,
        avx512::<2>,
        avx512::<3>,
        avx512::<4>,
        avx512::<5>,
        avx512::<6>,
        avx512::<7>,
        avx512::<8>,
        avx512::<9>,
        avx512::<10>,
        avx512::<11>,
        avx512::<12>,
    ];
    pub(super) const AVX512_WIDE: [unsafe fn(&Tile); 6] = [
        avx512_wide::<1>,
        avx512_wide::<2>,
        avx512_wide::<3>,
        avx512_wide::<4>,
        avx512_wide::<5>,
        avx512_wide::<6>,
    ];
    pub(super) const AVX512_BF16: [unsafe fn(&Tile); 12] = [
        avx512_bf16::<1>,
        avx512_bf16::<2>,
        avx512_bf16::<3>,
        avx512_bf16::<4>,
        avx512_bf16::<5>,
        avx512_bf16::<6>,
        avx512_bf16::<7>,
        avx512_bf16::<8>,
        avx512_bf16::<9>,
        avx512_bf16::<10>,
        avx512_bf16::<11>,
        avx512_bf16::<12>,
    ];
    pub(super) const AVX2: [unsafe fn(&Tile); 6] =
        [avx2::<1>, avx2::<2>, avx2::<3>, avx2::<4>, avx2::<5>, avx2::<6>];
}
