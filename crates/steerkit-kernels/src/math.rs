//! Scalar functions and reductions in a fixed order that vectorises.

/// Lanes of every reduction, whatever the register width.
pub(crate) const LANES: usize = 16;

/// `e^x` for `x <= 88`, within 2 ulp; below -87 it gives about 1e-38; NaN stays NaN
/// (Cephes' polynomial).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to a whole number, ties to even, and leaves it in the low bits: a cast to an
    // integer, which checks for NaN and overflow, would not vectorise.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// The logistic function.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp((-x).min(87.0)))
}

/// The hyperbolic tangent, within 3e-7 of it relatively (Cephes' polynomial near zero).
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3_f32;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_5e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let near = p * z * x + x;
    let size = x.abs();
    let far = (1.0 - 2.0 / (exp((2.0 * size).min(87.0)) + 1.0)).copysign(x);
    if size < 0.625 { near } else { far }
}

/// `Σ f(i)` for `i < n`: sixteen partial sums by index modulo 16, then those in order.
#[inline(always)]
pub(crate) fn sum_by(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
        i += LANES;
    }
    for (l, lane) in lanes.iter_mut().enumerate().take(n - whole) {
        *lane += f(whole + l);
    }
    lanes.iter().sum()
}

/// The largest of `x`, negative infinity when empty; NaN is passed over.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for c in &mut chunks {
        for (lane, &v) in lanes.iter_mut().zip(c) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = if v > *lane { v } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -8700..880 {
            let x = i as f32 / 100.0;
            let truth = f64::from(x).exp();
            let err = (f64::from(exp(x)) - truth).abs() / truth;
            assert!(err < 2.4e-7, "exp({x}): relative error {err:e}");
        }
        assert!(exp(f32::NAN).is_nan() && exp(f32::NEG_INFINITY) < 2e-38 && exp(-0.0) == 1.0);
    }

    #[test]
    fn tanh_is_exact_to_rounding() {
        for i in -3000..3000 {
            let x = i as f32 / 100.0;
            let truth = f64::from(x).tanh();
            let err = (f64::from(tanh(x)) - truth).abs() / truth.abs().max(1e-30);
            assert!(err < 3e-7, "tanh({x}): relative error {err:e}");
        }
        assert_eq!((tanh(0.0), tanh(1e30), tanh(-1e30)), (0.0, 1.0, -1.0));
    }

    #[test]
    fn sums_and_maxima_cover_the_remainder() {
        for n in 0..50 {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum_by(n, |i| x[i]), (n * n.saturating_sub(1) / 2) as f32);
            assert_eq!(max(&x), if n == 0 { f32::NEG_INFINITY } else { (n - 1) as f32 });
        }
    }
}
