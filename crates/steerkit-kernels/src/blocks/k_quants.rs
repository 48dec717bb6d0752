//! The formats with super-blocks of 256 numbers, sixteen numbers at a time.

use super::half_at;
use super::lanes::{Lanes, bits, sixteen};
use super::small::{IQ4_VALUES, nibbles};

/// Applies `f` to the index of each group of sixteen numbers.
#[inline(always)]
fn groups(y: &mut [f32; 256], f: impl Fn(usize) -> [f32; 16]) {
    for (i, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        *y = f(i);
    }
}

/// `scales: 16 × (scale, min) nibbles, q: 64 × 4 codes, d: f16, dmin: f16`; `d·scale·q - dmin·min`.
#[inline(always)]
pub(super) fn q2_k<L: Lanes>(b: &[u8; 84], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at::<L>(b, 80), half_at::<L>(b, 82));
    groups(y, |i| {
        let (dl, ml) = (d * f32::from(b[i] & 15), dmin * f32::from(b[i] >> 4));
        let q = bits(sixteen(b, 16 + i / 8 * 32 + i % 2 * 16), i / 2 % 4 * 2, 3);
        L::scale_add(q, dl, -ml)
    });
}

/// `high: 32 × 8 bits, q: 64 × 4 codes, scales: 12 bytes, d: f16`; `d·(scale - 32)·(q + 4·high - 4)`.
#[inline(always)]
pub(super) fn q3_k<L: Lanes>(b: &[u8; 110], y: &mut [f32; 256]) {
    let d = half_at::<L>(b, 108);
    let scales = &b[96..108];
    groups(y, |i| {
        let low = scales[i % 8] >> (i / 8 * 4) & 15;
        let high = scales[8 + i % 4] >> (i / 4 * 2) & 3;
        let dl = d * f32::from((low | high << 4) as i8 - 32);
        let q = bits(sixteen(b, 32 + i / 8 * 32 + i % 2 * 16), i / 2 % 4 * 2, 3);
        let third_bit = bits(sixteen(b, i % 2 * 16), i / 2, 1) << 2;
        L::scale(q | third_bit, 4, dl)
    });
}

/// The 6-bit scale and minimum of sub-block `i` of Q4_K and Q5_K, packed at `b[4..16]`.
#[inline(always)]
fn scale_min(b: &[u8], i: usize) -> (f32, f32) {
    let (s, j) = (&b[4..16], i % 4);
    let (scale, min) = if i < 4 {
        (s[j] & 63, s[4 + j] & 63)
    } else {
        (s[8 + j] & 15 | s[j] >> 2 & 48, s[8 + j] >> 4 | s[4 + j] >> 2 & 48)
    };
    (f32::from(scale), f32::from(min))
}

/// `d: f16, dmin: f16, scales: 12 bytes, q: 128 × 2 codes`; `d·scale·q - dmin·min`.
#[inline(always)]
pub(super) fn q4_k<L: Lanes>(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at::<L>(b, 0), half_at::<L>(b, 2));
    groups(y, |i| {
        let (scale, min) = scale_min(b, i / 2);
        let q = bits(sixteen(b, 16 + i / 4 * 32 + i % 2 * 16), i / 2 % 2 * 4, 15);
        L::scale_add(q, d * scale, -(dmin * min))
    });
}

/// `d: f16, dmin: f16, scales: 12 bytes, high: 32 × 8 bits, q: 128 × 2 codes`; `d·scale·q - dmin·min`.
#[inline(always)]
pub(super) fn q5_k<L: Lanes>(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at::<L>(b, 0), half_at::<L>(b, 2));
    groups(y, |i| {
        let (scale, min) = scale_min(b, i / 2);
        let q = bits(sixteen(b, 48 + i / 4 * 32 + i % 2 * 16), i / 2 % 2 * 4, 15);
        let fifth_bit = bits(sixteen(b, 16 + i % 2 * 16), i / 2, 1) << 4;
        L::scale_add(q | fifth_bit, d * scale, -(dmin * min))
    });
}

/// `low: 128 × 2 nibbles, high: 64 × 4 pairs, scales: 16 × i8, d: f16`; `d·scale·(q - 32)`.
#[inline(always)]
pub(super) fn q6_k<L: Lanes>(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = half_at::<L>(b, 208);
    groups(y, |i| {
        let dl = d * f32::from(b[192 + i] as i8);
        let (half, part) = (i / 8, i / 2 % 4);
        let low = bits(sixteen(b, half * 64 + part % 2 * 32 + i % 2 * 16), part / 2 * 4, 15);
        let high = bits(sixteen(b, 128 + half * 32 + i % 2 * 16), part * 2, 3) << 4;
        L::scale(low | high, 32, dl)
    });
}

/// `d: f16, scales_high: u16, scales_low: 4 bytes, q: 128 × 2 codes`; `d·(scale - 32)·table[q]`.
#[inline(always)]
pub(super) fn iq4_xs<L: Lanes>(b: &[u8; 136], y: &mut [f32; 256]) {
    let d = half_at::<L>(b, 0);
    let scales_high = u16::from_le_bytes([b[2], b[3]]);
    groups(y, |i| {
        let sub = i / 2;
        let low = b[4 + sub / 2] >> (sub % 2 * 4) & 15;
        let high = (scales_high >> (2 * sub) & 3) as u8;
        let dl = d * f32::from((low | high << 4) as i8 - 32);
        L::look_up(nibbles(b, 8 + sub * 16)[i % 2], &IQ4_VALUES, dl)
    });
}
