//! Shared by the unit tests: seeded noise and the check of a VJP against finite differences.

use rand::{Rng, SeedableRng};

/// `n` numbers in -1..1.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Asserts that `dx` is the gradient of `Σ dy · f(x)`: along each of ten random directions the central
/// difference of step 1e-2 agrees within 1% of the norms' product.
pub(crate) fn assert_vjp(x: &[f32], dy: &[f32], dx: &[f32], f: impl Fn(&[f32]) -> Vec<f32>) {
    let loss = |x: &[f32]| f(x).iter().zip(dy).map(|(&y, &g)| f64::from(y) * f64::from(g)).sum::<f64>();
    let norm = |v: &[f32]| v.iter().map(|&a| f64::from(a).powi(2)).sum::<f64>().sqrt();
    for seed in 100..110 {
        let u = noise(seed, x.len());
        let h = 1e-2f32;
        let moved = |s: f32| x.iter().zip(&u).map(|(&a, &b)| a + s * b).collect::<Vec<_>>();
        let numeric = (loss(&moved(h)) - loss(&moved(-h))) / (2.0 * f64::from(h));
        let exact: f64 = dx.iter().zip(&u).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let scale = norm(dx) * norm(&u) / (x.len() as f64).sqrt();
        assert!((numeric - exact).abs() < 1e-2 * scale, "numeric {numeric}, exact {exact}, scale {scale}");
    }
}
