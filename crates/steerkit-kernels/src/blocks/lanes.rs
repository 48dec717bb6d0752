//! Sixteen codes at a time, from bytes to numbers.

/// The instructions that turn sixteen byte-sized codes (the lowest byte first) into numbers. The bits of the
/// results do not depend on them.
pub(super) trait Lanes {
    /// `d · (code - offset)`.
    fn scale(codes: u128, offset: i32, d: f32) -> [f32; 16];
    /// `d · code + m`, two roundings.
    fn scale_add(codes: u128, d: f32, m: f32) -> [f32; 16];
    /// `d · table[code]`, codes below 16.
    fn look_up(codes: u128, table: &[f32; 16], d: f32) -> [f32; 16];
    /// Half precision to single.
    fn half(h: u16) -> f32;
}

/// Every byte of a result is `byte`.
pub(super) const fn each_byte(byte: u8) -> u128 {
    u128::from_le_bytes([byte; 16])
}

/// The sixteen bytes from `bytes[at]` on.
#[inline(always)]
pub(super) fn sixteen(bytes: &[u8], at: usize) -> u128 {
    let mut sixteen = [0; 16];
    sixteen.copy_from_slice(&bytes[at..at + 16]);
    u128::from_le_bytes(sixteen)
}

/// The bits of `mask` in every byte of `codes` shifted right by `shift < 8`.
#[inline(always)]
pub(super) fn bits(codes: u128, shift: usize, mask: u8) -> u128 {
    // A shift of each half is enough: what would cross bytes is masked.
    let (low, high) = (codes as u64 >> shift, (codes >> 64) as u64 >> shift);
    (u128::from(low) | u128::from(high) << 64) & each_byte(mask)
}

/// Plain Rust.
pub(super) struct Portable;

impl Lanes for Portable {
    #[inline(always)]
    fn scale(codes: u128, offset: i32, d: f32) -> [f32; 16] {
        codes.to_le_bytes().map(|q| d * (i32::from(q) - offset) as f32)
    }

    #[inline(always)]
    fn scale_add(codes: u128, d: f32, m: f32) -> [f32; 16] {
        codes.to_le_bytes().map(|q| d * f32::from(q) + m)
    }

    #[inline(always)]
    fn look_up(codes: u128, table: &[f32; 16], d: f32) -> [f32; 16] {
        codes.to_le_bytes().map(|q| d * table[usize::from(q & 15)])
    }

    #[inline(always)]
    fn half(h: u16) -> f32 {
        super::f16_to_f32(h)
    }
}

/// Sixteen codes of a row, and what turns them into weights: `scale · code + min`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Coded {
    pub(crate) codes: [u8; 16],
    pub(crate) scale: f32,
    pub(crate) min: f32,
}

/// Not numbers but what they would be made of: the bits of sixteen codes, the scale and the minimum.
pub(super) struct Record;

impl Record {
    fn write(coded: Coded) -> [f32; 16] {
        let mut out = [0.0; 16];
        for (out, bytes) in out.iter_mut().zip(coded.codes.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
        }
        (out[4], out[5]) = (coded.scale, coded.min);
        out
    }

    /// What [`Lanes`] wrote.
    pub(super) fn read(written: &[f32; 16]) -> Coded {
        let mut codes = [0; 16];
        for (bytes, x) in codes.as_chunks_mut::<4>().0.iter_mut().zip(written) {
            *bytes = x.to_le_bytes();
        }
        Coded { codes, scale: written[4], min: written[5] }
    }
}

impl Lanes for Record {
    fn scale(codes: u128, offset: i32, d: f32) -> [f32; 16] {
        Self::write(Coded { codes: codes.to_le_bytes(), scale: d, min: -d * offset as f32 })
    }

    fn scale_add(codes: u128, d: f32, m: f32) -> [f32; 16] {
        Self::write(Coded { codes: codes.to_le_bytes(), scale: d, min: m })
    }

    fn look_up(codes: u128, table: &[f32; 16], d: f32) -> [f32; 16] {
        let codes = codes.to_le_bytes().map(|q| (table[usize::from(q & 15)] + 128.0) as u8);
        Self::write(Coded { codes, scale: d, min: -128.0 * d })
    }

    fn half(h: u16) -> f32 {
        super::f16_to_f32(h)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, Portable};
    use std::arch::x86_64::*;

    /// AVX2 and F16C: only for code that runs with those features.
    pub(crate) struct Avx2;

    /// AVX-512 F and F16C: only for code that runs with those features.
    pub(crate) struct Avx512;

    /// Two halves of eight numbers.
    #[inline(always)]
    fn halves(codes: u128, f: impl Fn(__m256i) -> __m256) -> [f32; 16] {
        let mut out = [0f32; 16];
        for (half, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            // SAFETY: `Avx2` is used only where the processor has AVX2; `out` is eight numbers.
            unsafe {
                let bytes = _mm_cvtsi64_si128((codes >> (64 * half)) as i64);
                _mm256_storeu_ps(out.as_mut_ptr(), f(_mm256_cvtepu8_epi32(bytes)));
            }
        }
        out
    }

    impl Lanes for Avx2 {
        #[inline(always)]
        fn scale(codes: u128, offset: i32, d: f32) -> [f32; 16] {
            // SAFETY: as in `halves`.
            halves(codes, |q| unsafe {
                let q = _mm256_cvtepi32_ps(_mm256_sub_epi32(q, _mm256_set1_epi32(offset)));
                _mm256_mul_ps(_mm256_set1_ps(d), q)
            })
        }

        #[inline(always)]
        fn scale_add(codes: u128, d: f32, m: f32) -> [f32; 16] {
            // SAFETY: as in `halves`.
            halves(codes, |q| unsafe {
                _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(q)), _mm256_set1_ps(m))
            })
        }

        #[inline(always)]
        fn look_up(codes: u128, table: &[f32; 16], d: f32) -> [f32; 16] {
            Portable::look_up(codes, table, d)
        }

        #[inline(always)]
        fn half(h: u16) -> f32 {
            // SAFETY: `Avx2` and `Avx512` are used only where the processor has F16C.
            unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(h)))) }
        }
    }

    /// Sixteen numbers.
    #[inline(always)]
    fn whole(codes: u128, f: impl Fn(__m512i) -> __m512) -> [f32; 16] {
        let mut out = [0f32; 16];
        // SAFETY: `Avx512` is used only where the processor has AVX-512 F; loads and stores stay in range.
        unsafe {
            let bytes = _mm_loadu_si128((&raw const codes).cast());
            _mm512_storeu_ps(out.as_mut_ptr(), f(_mm512_cvtepu8_epi32(bytes)));
        }
        out
    }

    impl Lanes for Avx512 {
        #[inline(always)]
        fn scale(codes: u128, offset: i32, d: f32) -> [f32; 16] {
            // SAFETY: as in `whole`.
            whole(codes, |q| unsafe {
                let q = _mm512_cvtepi32_ps(_mm512_sub_epi32(q, _mm512_set1_epi32(offset)));
                _mm512_mul_ps(_mm512_set1_ps(d), q)
            })
        }

        #[inline(always)]
        fn scale_add(codes: u128, d: f32, m: f32) -> [f32; 16] {
            // SAFETY: as in `whole`.
            whole(codes, |q| unsafe {
                _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(d), _mm512_cvtepi32_ps(q)), _mm512_set1_ps(m))
            })
        }

        #[inline(always)]
        fn look_up(codes: u128, table: &[f32; 16], d: f32) -> [f32; 16] {
            // SAFETY: as in `whole`; the table is sixteen numbers.
            whole(codes, |q| unsafe {
                let table = _mm512_loadu_ps(table.as_ptr());
                _mm512_mul_ps(_mm512_set1_ps(d), _mm512_permutexvar_ps(q, table))
            })
        }

        #[inline(always)]
        fn half(h: u16) -> f32 {
            Avx2::half(h)
        }
    }
}
