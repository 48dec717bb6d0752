//! The formats with blocks of 32 numbers. Byte `i` of a nibble field holds number `i` low and `i + 16` high.

use super::half_at;

/// Values of IQ4_NL and IQ4_XS codes.
pub(super) const IQ4_VALUES: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// Doubled values of e2m1 codes.
const E2M1_DOUBLED: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

/// `d: f16, q: 16 × u8`; `d · (q - 8)`.
#[inline(always)]
pub(super) fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (i, &q) in b[2..].iter().enumerate() {
        y[i] = d * f32::from((q & 15) as i8 - 8);
        y[i + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// `d: f16, m: f16, q: 16 × u8`; `d · q + m`, two roundings.
#[inline(always)]
pub(super) fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (i, &q) in b[4..].iter().enumerate() {
        y[i] = d * f32::from(q & 15) + m;
        y[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The fifth bits: number `i`'s is bit `i`.
#[inline(always)]
fn fifth_bits(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// `d: f16, high: u32, q: 16 × u8`; `d · (q - 16)`.
#[inline(always)]
pub(super) fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let (d, high) = (half_at(b, 0), fifth_bits(b, 2));
    for (i, &q) in b[6..].iter().enumerate() {
        let (lo, hi) =
            (u32::from(q & 15) | (high >> i & 1) << 4, u32::from(q >> 4) | (high >> (i + 16) & 1) << 4);
        y[i] = d * (lo as i32 - 16) as f32;
        y[i + 16] = d * (hi as i32 - 16) as f32;
    }
}

/// `d: f16, m: f16, high: u32, q: 16 × u8`; `d · q + m`, two roundings.
#[inline(always)]
pub(super) fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m, high) = (half_at(b, 0), half_at(b, 2), fifth_bits(b, 4));
    for (i, &q) in b[8..].iter().enumerate() {
        let (lo, hi) =
            (u32::from(q & 15) | (high >> i & 1) << 4, u32::from(q >> 4) | (high >> (i + 16) & 1) << 4);
        y[i] = d * (lo as i32) as f32 + m;
        y[i + 16] = d * (hi as i32) as f32 + m;
    }
}

/// `d: f16, q: 32 × i8`; `q · d`.
#[inline(always)]
pub(super) fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (y, &q) in y.iter_mut().zip(&b[2..]) {
        *y = f32::from(q as i8) * d;
    }
}

/// `d: f16, q: 16 × u8`; `d · table[q]`.
#[inline(always)]
pub(super) fn iq4_nl(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (i, &q) in b[2..].iter().enumerate() {
        y[i] = d * IQ4_VALUES[usize::from(q & 15)];
        y[i + 16] = d * IQ4_VALUES[usize::from(q >> 4)];
    }
}

/// `e: u8, q: 16 × u8`; `2^(e - 128) · table[q]` with the doubled e2m1 table.
#[inline(always)]
pub(super) fn mxfp4(b: &[u8; 17], y: &mut [f32; 32]) {
    let e = u32::from(b[0]);
    let d = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
    for (i, &q) in b[1..].iter().enumerate() {
        y[i] = d * E2M1_DOUBLED[usize::from(q & 15)];
        y[i + 16] = d * E2M1_DOUBLED[usize::from(q >> 4)];
    }
}
