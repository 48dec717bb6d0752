//! Rounding to bf16.

use super::driver::Shape;
use super::micro::Kernels;
use super::pack::Scratch;
use crate::isa::Isa;
use crate::parallel;
use std::cell::Cell;
use std::sync::Mutex;

/// The bits of `x` rounded to bf16, to nearest even. A NaN stays a NaN.
#[inline(always)]
pub(super) fn round_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let quiet_nan = (bits >> 16) as u16 | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { quiet_nan } else { rounded }
}

/// `x` rounded to bf16.
#[inline(always)]
pub(super) fn round(x: f32) -> f32 {
    f32::from_bits(u32::from(round_bits(x)) << 16)
}

/// A cell with the bf16 numbers nearest to `low` and `high`.
#[inline(always)]
pub(super) fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(u32::from(round_bits(low)) | u32::from(round_bits(high)) << 16)
}

/// Applies one of the loops below with the instructions of `isa`.
macro_rules! with_features {
    ($name:ident, $body:ident, ($($arg:ident: $ty:ty),*)) => {
        /// The loop of the same name, with the instructions of `isa`; the bits do not depend on it.
        pub(super) fn $name(isa: Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) {
                $body($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                $body($($arg),*);
            }
            match isa {
                // SAFETY: levels inside this crate come from `Isa::current`, which the processor has.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body($($arg),*),
            }
        }
    };
}

with_features!(pair_row, pair_row_body, (row: &[f32], cells: &mut [f32]));
with_features!(pair_rows, pair_rows_body, (low: &[f32], high: &[f32], cells: &mut [f32]));
with_features!(round_row, round_row_body, (row: &[f32], out: &mut [f32]));

/// Neighbours of a row become cells; an odd last number is paired with 0.
#[inline(always)]
fn pair_row_body(row: &[f32], cells: &mut [f32]) {
    let (pairs, rest) = row.as_chunks::<2>();
    for (cell, [low, high]) in cells.iter_mut().zip(pairs) {
        *cell = pair(*low, *high);
    }
    if let [last] = rest {
        cells[pairs.len()] = pair(*last, 0.0);
    }
}

/// Numbers of two rows above each other become cells.
#[inline(always)]
fn pair_rows_body(low: &[f32], high: &[f32], cells: &mut [f32]) {
    for ((cell, &low), &high) in cells.iter_mut().zip(low).zip(high) {
        *cell = pair(low, high);
    }
}

#[inline(always)]
fn round_row_body(row: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(row) {
        *o = round(x);
    }
}

/// Runs `f` with the rows of `a` rounded: as cells for the pair kernels where there are any, else as numbers.
pub(super) fn with_rounded(isa: Isa, shape: Shape, a: &[f32], f: impl FnOnce(Option<Kernels>, &[f32])) {
    thread_local! {
        static ROUNDED: Cell<Scratch> = const { Cell::new(Scratch::new()) };
    }
    const ROWS: usize = 32;
    let kernels = Kernels::of_bf16_pairs(isa);
    let (t, k) = (shape.t, shape.k);
    assert_eq!(a.len(), t * k, "{shape:?}");
    let width = if kernels.is_some() { k.div_ceil(2) } else { k };
    let mut scratch = ROUNDED.take();
    let rounded = &mut scratch.floats(t * width)[..t * width];
    let convert = |rows: &[f32], out: &mut [f32]| {
        for (row, out) in rows.chunks_exact(k.max(1)).zip(out.chunks_exact_mut(width.max(1))) {
            match kernels {
                Some(_) => pair_row(isa, row, out),
                None => round_row(isa, row, out),
            }
        }
    };
    if t > ROWS {
        let outs = rounded.chunks_mut(ROWS * width.max(1));
        let groups: Vec<_> = a.chunks(ROWS * k.max(1)).zip(outs).map(Mutex::new).collect();
        parallel::for_each(groups.len(), |i| {
            let (rows, out) = &mut *groups[i].lock().expect("one task a group");
            convert(rows, out);
        });
    } else {
        convert(a, rounded);
    }
    f(kernels, rounded);
    ROUNDED.set(scratch);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_the_half_crate() {
        for high in 0..=u16::MAX {
            for low in [0u16, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | u32::from(low));
                assert_eq!(round_bits(x), half::bf16::from_f32(x).to_bits(), "{x:?}");
            }
        }
    }
}
