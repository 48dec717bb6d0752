//! The formats with super-blocks of 256 numbers. Each loop runs over 32 neighbouring numbers that share their
//! shifts, so that it vectorises.

use super::half_at;
use super::small::IQ4_VALUES;

/// `scales: 16 × (scale, min) nibbles, q: 64 × 4 codes, d: f16, dmin: f16`; `d·scale·q - dmin·min`.
#[inline(always)]
pub(super) fn q2_k(b: &[u8; 84], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for (i, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, shift) = (b[i], i / 2 % 4 * 2);
        let (dl, ml) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        let q = &b[16 + i / 8 * 32 + i % 2 * 16..][..16];
        for (y, &q) in y.iter_mut().zip(q) {
            *y = dl * f32::from(q >> shift & 3) - ml;
        }
    }
}

/// `high: 32 × 8 bits, q: 64 × 4 codes, scales: 12 bytes, d: f16`; `d·(scale - 32)·(q - 4·[high bit clear])`.
#[inline(always)]
pub(super) fn q3_k(b: &[u8; 110], y: &mut [f32; 256]) {
    let d = half_at(b, 108);
    let scales = &b[96..108];
    for (i, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[i % 8] >> (i / 8 * 4) & 15;
        let high = scales[8 + i % 4] >> (i / 4 * 2) & 3;
        let dl = d * f32::from((low | high << 4) as i8 - 32);
        let (shift, bit) = (i / 2 % 4 * 2, i / 2);
        let q = &b[32 + i / 8 * 32 + i % 2 * 16..][..16];
        let mask = &b[i % 2 * 16..][..16];
        for ((y, &q), &h) in y.iter_mut().zip(q).zip(mask) {
            *y = dl * f32::from((q >> shift & 3) as i8 - ((!h >> bit & 1) << 2) as i8);
        }
    }
}

/// The 6-bit scale and minimum of sub-block `i` of Q4_K and Q5_K.
#[inline(always)]
fn scale_min(s: &[u8; 12], i: usize) -> (f32, f32) {
    let j = i % 4;
    let (scale, min) = if i < 4 {
        (s[j] & 63, s[4 + j] & 63)
    } else {
        (s[8 + j] & 15 | s[j] >> 2 & 48, s[8 + j] >> 4 | s[4 + j] >> 2 & 48)
    };
    (f32::from(scale), f32::from(min))
}

/// The 12 bytes of packed scales at `b[4..16]`.
#[inline(always)]
fn packed_scales<const B: usize>(b: &[u8; B]) -> [u8; 12] {
    std::array::from_fn(|i| b[4 + i])
}

/// `d: f16, dmin: f16, scales: 12 bytes, q: 128 × 2 codes`; `d·scale·q - dmin·min`.
#[inline(always)]
pub(super) fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin, scales) = (half_at(b, 0), half_at(b, 2), packed_scales(b));
    for (i, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(&scales, i);
        let (dl, ml, shift) = (d * scale, dmin * min, i % 2 * 4);
        for (y, &q) in y.iter_mut().zip(&b[16 + i / 2 * 32..][..32]) {
            *y = dl * f32::from(q >> shift & 15) - ml;
        }
    }
}

/// `d: f16, dmin: f16, scales: 12 bytes, high: 32 × 8 bits, q: 128 × 2 codes`; `d·scale·q - dmin·min`.
#[inline(always)]
pub(super) fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin, scales) = (half_at(b, 0), half_at(b, 2), packed_scales(b));
    for (i, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(&scales, i);
        let (dl, ml, shift) = (d * scale, dmin * min, i % 2 * 4);
        for ((y, &q), &h) in y.iter_mut().zip(&b[48 + i / 2 * 32..][..32]).zip(&b[16..48]) {
            *y = dl * f32::from(q >> shift & 15 | (h >> i & 1) << 4) - ml;
        }
    }
}

/// `low: 128 × 2 nibbles, high: 64 × 4 pairs, scales: 16 × i8, d: f16`; `d·scale·(q - 32)`.
#[inline(always)]
pub(super) fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = half_at(b, 208);
    for (i, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let dl = d * f32::from(b[192 + i] as i8);
        let (half, part) = (i / 8, i / 2 % 4);
        let low = &b[half * 64 + part % 2 * 32 + i % 2 * 16..][..16];
        let high = &b[128 + half * 32 + i % 2 * 16..][..16];
        for ((y, &l), &h) in y.iter_mut().zip(low).zip(high) {
            let q = l >> (part / 2 * 4) & 15 | (h >> (part * 2) & 3) << 4;
            *y = dl * f32::from(q as i8 - 32);
        }
    }
}

/// `d: f16, scales_high: u16, scales_low: 4 bytes, q: 128 × 2 codes`; `d·(scale - 32)·table[q]`.
#[inline(always)]
pub(super) fn iq4_xs(b: &[u8; 136], y: &mut [f32; 256]) {
    let d = half_at(b, 0);
    let scales_high = u16::from_le_bytes([b[2], b[3]]);
    for (i, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = b[4 + i / 2] >> (i % 2 * 4) & 15;
        let high = (scales_high >> (2 * i) & 3) as u8;
        let dl = d * f32::from((low | high << 4) as i8 - 32);
        for (l, &q) in b[8 + i * 16..][..16].iter().enumerate() {
            y[l] = dl * IQ4_VALUES[usize::from(q & 15)];
            y[l + 16] = dl * IQ4_VALUES[usize::from(q >> 4)];
        }
    }
}
