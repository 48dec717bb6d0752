//! GGUF block formats: how weights are stored, and their expansion to `f32`.
//!
//! Source of the layouts: ggml's `ggml-quants.c`; the order of the roundings is that of the Python package
//! `gguf` (`gguf/quants.py`), and the results are equal to its results bit for bit.

mod k_quants;
mod lanes;
mod small;

use crate::isa::Isa;
use lanes::Lanes;

pub(crate) use lanes::Coded;

/// How the numbers of a weight row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types, reason = "the names that GGUF tools print")]
pub enum BlockFormat {
    /// IEEE single precision, little-endian.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 32 numbers of 4 bits, one scale.
    Q4_0,
    /// 32 numbers of 4 bits, scale and minimum.
    Q4_1,
    /// 32 numbers of 5 bits, one scale.
    Q5_0,
    /// 32 numbers of 5 bits, scale and minimum.
    Q5_1,
    /// 32 numbers of 8 bits, one scale.
    Q8_0,
    /// 256 numbers of 2 bits, 4-bit scales and minima for each 16.
    Q2_K,
    /// 256 numbers of 3 bits, 6-bit scales for each 16.
    Q3_K,
    /// 256 numbers of 4 bits, 6-bit scales and minima for each 32.
    Q4_K,
    /// 256 numbers of 5 bits, 6-bit scales and minima for each 32.
    Q5_K,
    /// 256 numbers of 6 bits, 8-bit scales for each 16.
    Q6_K,
    /// 32 numbers out of a table of 16, one scale.
    IQ4_NL,
    /// 256 numbers out of a table of 16, 6-bit scales for each 32.
    IQ4_XS,
    /// 32 numbers of 4 bits (e2m1), a power of two as the scale.
    MXFP4,
}

use BlockFormat::*;

impl BlockFormat {
    /// Every format.
    pub const ALL: [Self; 16] =
        [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4];

    /// The format with ggml's type id `id`, or `None` when it is not one of ours.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.ggml_id() == id)
    }

    /// ggml's type id.
    pub const fn ggml_id(self) -> u32 {
        match self {
            F32 => 0,
            F16 => 1,
            Q4_0 => 2,
            Q4_1 => 3,
            Q5_0 => 6,
            Q5_1 => 7,
            Q8_0 => 8,
            Q2_K => 10,
            Q3_K => 11,
            Q4_K => 12,
            Q5_K => 13,
            Q6_K => 14,
            IQ4_NL => 20,
            IQ4_XS => 23,
            BF16 => 30,
            MXFP4 => 39,
        }
    }

    /// The name that GGUF tools print.
    pub const fn name(self) -> &'static str {
        match self {
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q2_K => "Q2_K",
            Q3_K => "Q3_K",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
            IQ4_NL => "IQ4_NL",
            IQ4_XS => "IQ4_XS",
            MXFP4 => "MXFP4",
        }
    }

    /// Numbers in one block.
    pub const fn block_len(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL | MXFP4 => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            MXFP4 => 17,
            Q4_0 | IQ4_NL => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2_K => 84,
            Q3_K => 110,
            IQ4_XS => 136,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
        }
    }

    /// Bytes of a row of `cols` numbers, or `None` when `cols` is no multiple of the block length or the
    /// size overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Expands one row of blocks.
    ///
    /// # Panics
    /// When `bytes` is not exactly `row_bytes(out.len())` long.
    pub fn expand(self, bytes: &[u8], out: &mut [f32]) {
        self.expand_with(Isa::current(), bytes, out);
    }

    /// Whether a weight is `scale · code + min` with a code of up to 8 bits.
    pub(crate) const fn has_codes(self) -> bool {
        !matches!(self, F32 | F16 | BF16 | MXFP4)
    }

    /// The codes of one row of `cols` numbers, sixteen by sixteen; for formats that have codes.
    pub(crate) fn codes(self, bytes: &[u8], cols: usize) -> Vec<Coded> {
        assert!(self.has_codes() && Some(bytes.len()) == self.row_bytes(cols));
        let mut out = vec![0.0; cols];
        expand_body::<lanes::Record>(self, bytes, &mut out);
        out.as_chunks().0.iter().map(lanes::Record::read).collect()
    }

    /// [`expand`](Self::expand) with the instructions of `isa`; the bits do not depend on it.
    pub(crate) fn expand_with(self, isa: Isa, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(Some(bytes.len()), self.row_bytes(out.len()), "{self:?} row of {} numbers", out.len());
        match isa {
            // SAFETY: an `Isa` value exists only for instructions that this processor has.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => unsafe { expand_avx512(self, bytes, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { expand_avx2(self, bytes, out) },
            _ => expand_body::<lanes::Portable>(self, bytes, out),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn expand_avx512(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    expand_body::<lanes::Avx512>(format, bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn expand_avx2(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    expand_body::<lanes::Avx2>(format, bytes, out);
}

/// The expansions, compiled once for each instruction set.
#[inline(always)]
fn expand_body<L: Lanes>(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    match format {
        F32 => each(bytes, out, |b: &[u8; 4], y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*b)),
        F16 => each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| y[0] = f16_to_f32(u16::from_le_bytes(*b))),
        BF16 => each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| {
            y[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        }),
        Q4_0 => each(bytes, out, small::q4_0::<L>),
        Q4_1 => each(bytes, out, small::q4_1::<L>),
        Q5_0 => each(bytes, out, small::q5_0::<L>),
        Q5_1 => each(bytes, out, small::q5_1::<L>),
        Q8_0 => each(bytes, out, small::q8_0::<L>),
        IQ4_NL => each(bytes, out, small::iq4_nl::<L>),
        MXFP4 => each(bytes, out, small::mxfp4::<L>),
        Q2_K => each(bytes, out, k_quants::q2_k::<L>),
        Q3_K => each(bytes, out, k_quants::q3_k::<L>),
        Q4_K => each(bytes, out, k_quants::q4_k::<L>),
        Q5_K => each(bytes, out, k_quants::q5_k::<L>),
        Q6_K => each(bytes, out, k_quants::q6_k::<L>),
        IQ4_XS => each(bytes, out, k_quants::iq4_xs::<L>),
    }
}

/// Applies `f` to each block of `B` bytes and its `N` numbers.
#[inline(always)]
fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn(&[u8; B], &mut [f32; N])) {
    let (blocks, numbers) = (bytes.as_chunks::<B>().0, out.as_chunks_mut::<N>().0);
    for (b, y) in blocks.iter().zip(numbers) {
        f(b, y);
    }
}

/// Half precision to single, exact. It multiplies no subnormals, which are slow on some processors.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let magnitude = u32::from(h & 0x7fff);
    let subnormal = (magnitude as i32 as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let normal = (magnitude << 13) + ((127 - 15) << 23);
    let special = magnitude << 13 | 0x7f80_0000;
    let bits = match magnitude {
        0..0x400 => subnormal,
        0x400..0x7c00 => normal,
        _ => special,
    };
    f32::from_bits(bits | u32::from(h & 0x8000) << 16)
}

/// The half-precision number at `bytes[at..at + 2]`.
#[inline(always)]
fn half_at<L: Lanes>(bytes: &[u8], at: usize) -> f32 {
    L::half(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_agrees_with_the_half_crate() {
        for h in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(h), half::f16::from_bits(h).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{h:#x}");
        }
    }

    #[test]
    fn ids_and_names_are_distinct() {
        for f in BlockFormat::ALL {
            assert_eq!(BlockFormat::from_ggml(f.ggml_id()), Some(f));
            assert_eq!(BlockFormat::ALL.iter().filter(|g| g.name() == f.name()).count(), 1);
        }
        assert_eq!(BlockFormat::from_ggml(4), None);
    }

    #[test]
    fn row_bytes_needs_whole_blocks() {
        assert_eq!(Q4_1.row_bytes(576), Some(360));
        assert_eq!(Q4_1.row_bytes(577), None);
        assert_eq!(F16.row_bytes(usize::MAX / 2 + 1), None);
        assert_eq!(F32.row_bytes(usize::MAX), None);
    }
}
