//! Penalties on the norms of vectors that are trained together, so that layers which add little fall silent.

use super::norm;
use serde::{Deserialize, Serialize};

/// A penalty; in a recipe `penalty.kind` names the variant. `|v_L|` is the norm of the vector of layer L, `|v|` that of
/// all numbers together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Penalty {
    /// `weight · Σ |v_L|`, by its proximal operator after each step: every norm shrinks by `lr · weight`, to 0 at least.
    GroupLasso {
        /// Its weight.
        weight: f64,
    },
    /// `weight · Σ |v_L| / |v|` (Hoyer's ratio of the layers' norms), added to the loss. It does not depend on the
    /// norm of all.
    Hoyer {
        /// Its weight.
        weight: f64,
    },
}

impl Penalty {
    /// Its weight.
    pub fn weight(self) -> f64 {
        match self {
            Self::GroupLasso { weight } | Self::Hoyer { weight } => weight,
        }
    }

    /// The penalty of vectors `v` `[layers · d]`.
    pub fn value(self, v: &[f32], d: usize) -> f64 {
        let sum: f64 = v.chunks_exact(d).map(norm).sum();
        match self {
            Self::GroupLasso { weight } => weight * sum,
            Self::Hoyer { .. } if sum == 0.0 => 0.0,
            Self::Hoyer { weight } => weight * sum / norm(v),
        }
    }

    /// Adds what is taken with the loss's gradient: `weight · (1/(|v_L||v|) - Σ|v_M|/|v|³) · v_L` for Hoyer's ratio, 0
    /// for layers of norm 0.
    pub fn add_gradient(self, v: &[f32], d: usize, grad: &mut [f32]) {
        let Self::Hoyer { weight } = self else { return };
        let (all, sum) = (norm(v), v.chunks_exact(d).map(norm).sum::<f64>());
        for (v, grad) in v.chunks_exact(d).zip(grad.chunks_exact_mut(d)) {
            let own = norm(v);
            if own > 0.0 {
                let factor = weight * (1.0 / (own * all) - sum / all.powi(3));
                grad.iter_mut().zip(v).for_each(|(g, &v)| *g += (factor * f64::from(v)) as f32);
            }
        }
    }

    /// What follows a step of learning rate `lr`: the proximal operator of the group lasso.
    pub fn shrink(self, v: &mut [f32], d: usize, lr: f64) {
        let Self::GroupLasso { weight } = self else { return };
        for v in v.chunks_exact_mut(d) {
            let own = norm(v);
            let factor = if own > lr * weight { 1.0 - lr * weight / own } else { 0.0 };
            v.iter_mut().for_each(|x| *x = (factor * f64::from(*x)) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_shrink_by_the_same_amount() {
        let mut v = [3.0, 4.0, 0.3, 0.4];
        let lasso = Penalty::GroupLasso { weight: 2.0 };
        assert!((lasso.value(&v, 2) - 11.0).abs() < 1e-6);
        lasso.shrink(&mut v, 2, 0.5);
        assert!((norm(&v[..2]) - 4.0).abs() < 1e-6 && v[2..] == [0.0, 0.0]);
        let mut grad = [1.0; 4];
        lasso.add_gradient(&v, 2, &mut grad);
        assert_eq!(grad, [1.0; 4]);
    }

    #[test]
    fn the_gradient_of_the_ratio_is_that_of_finite_differences() {
        let hoyer = Penalty::Hoyer { weight: 0.7 };
        let v = [0.5f32, -1.0, 2.0, 0.25, -0.125, 0.75];
        let mut grad = [0.0f32; 6];
        hoyer.add_gradient(&v, 2, &mut grad);
        for i in 0..6 {
            let moved = |by: f32| {
                let mut v = v;
                v[i] += by;
                hoyer.value(&v, 2)
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((slope - f64::from(grad[i])).abs() < 1e-3, "{i}: {slope} {}", grad[i]);
        }
        // One layer alone has the smallest ratio there is, and silent layers stay silent.
        let mut grad = [0.0f32; 4];
        hoyer.add_gradient(&[3.0, 4.0, 0.0, 0.0], 2, &mut grad);
        assert!(grad.iter().all(|g| g.abs() < 1e-6));
        assert_eq!(hoyer.value(&[0.0; 4], 2), 0.0);
    }
}
