//! The formats with blocks of 32 numbers. Byte `i` of a nibble field holds number `i` low and `i + 16` high.

use super::half_at;
use super::lanes::{Lanes, each_byte, sixteen};

/// Values of IQ4_NL and IQ4_XS codes.
pub(super) const IQ4_VALUES: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// Doubled values of e2m1 codes.
const E2M1_DOUBLED: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

/// Applies `f` to the codes of numbers `0..16` and `16..32`.
#[inline(always)]
fn both(codes: [u128; 2], y: &mut [f32; 32], f: impl Fn(u128) -> [f32; 16]) {
    for (y, codes) in y.as_chunks_mut::<16>().0.iter_mut().zip(codes) {
        *y = f(codes);
    }
}

/// The low and the high nibbles of the sixteen bytes from `b[at]` on.
#[inline(always)]
pub(super) fn nibbles(b: &[u8], at: usize) -> [u128; 2] {
    let q = sixteen(b, at);
    [q & each_byte(15), q >> 4 & each_byte(15)]
}

/// `d: f16, q: 16 × u8`; `d · (q - 8)`.
#[inline(always)]
pub(super) fn q4_0<L: Lanes>(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at::<L>(b, 0);
    both(nibbles(b, 2), y, |q| L::scale(q, 8, d));
}

/// `d: f16, m: f16, q: 16 × u8`; `d · q + m`.
#[inline(always)]
pub(super) fn q4_1<L: Lanes>(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half_at::<L>(b, 0), half_at::<L>(b, 2));
    both(nibbles(b, 4), y, |q| L::scale_add(q, d, m));
}

/// Nibbles from `b[at + 4]` on with their fifth bits: number `i`'s is bit `i` of the word at `b[at]`.
#[inline(always)]
fn five_bits(b: &[u8], at: usize) -> [u128; 2] {
    let spread = |byte: u8| {
        let each = (u64::from(byte) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        ((each + 0x7f7f_7f7f_7f7f_7f7f) >> 3) & 0x1010_1010_1010_1010
    };
    let high = |at: usize| u128::from(spread(b[at])) | u128::from(spread(b[at + 1])) << 64;
    let [low_nibbles, high_nibbles] = nibbles(b, at + 4);
    [low_nibbles | high(at), high_nibbles | high(at + 2)]
}

/// `d: f16, high: u32, q: 16 × u8`; `d · (q - 16)`.
#[inline(always)]
pub(super) fn q5_0<L: Lanes>(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = half_at::<L>(b, 0);
    both(five_bits(b, 2), y, |q| L::scale(q, 16, d));
}

/// `d: f16, m: f16, high: u32, q: 16 × u8`; `d · q + m`.
#[inline(always)]
pub(super) fn q5_1<L: Lanes>(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (half_at::<L>(b, 0), half_at::<L>(b, 2));
    both(five_bits(b, 4), y, |q| L::scale_add(q, d, m));
}

/// `d: f16, q: 32 × i8`; `d · q`.
#[inline(always)]
pub(super) fn q8_0<L: Lanes>(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half_at::<L>(b, 0);
    let signed = |at| sixteen(b, at) ^ each_byte(128);
    both([signed(2), signed(18)], y, |q| L::scale(q, 128, d));
}

/// `d: f16, q: 16 × u8`; `d · table[q]`.
#[inline(always)]
pub(super) fn iq4_nl<L: Lanes>(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at::<L>(b, 0);
    both(nibbles(b, 2), y, |q| L::look_up(q, &IQ4_VALUES, d));
}

/// `e: u8, q: 16 × u8`; `2^(e - 128) · table[q]` with the doubled e2m1 table.
#[inline(always)]
pub(super) fn mxfp4<L: Lanes>(b: &[u8; 17], y: &mut [f32; 32]) {
    let e = u32::from(b[0]);
    let d = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
    both(nibbles(b, 1), y, |q| L::look_up(q, &E2M1_DOUBLED, d));
}
