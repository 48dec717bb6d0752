//! Clipping a gradient by its norm.

use super::norm;

/// Scales `grad` to norm `limit` when it is longer, as `torch.nn.utils.clip_grad_norm_` does
/// (factor `limit / (norm + 1e-6)`, at most 1). Returns the norm before; no limit leaves `grad` alone.
pub fn clip_by_norm(grad: &mut [f32], limit: Option<f64>) -> f64 {
    let before = norm(grad);
    if let Some(limit) = limit {
        let factor = (limit / (before + 1e-6)).min(1.0) as f32;
        if factor < 1.0 {
            grad.iter_mut().for_each(|g| *g *= factor);
        }
    }
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_gradients_are_scaled_and_short_ones_are_not() {
        let mut long = [3.0, 4.0];
        assert_eq!(clip_by_norm(&mut long, Some(1.0)), 5.0);
        assert!((long[0] - 0.6).abs() < 1e-6 && (long[1] - 0.8).abs() < 1e-6);
        let mut short = [0.3, 0.4];
        clip_by_norm(&mut short, Some(1.0));
        assert_eq!(short, [0.3, 0.4]);
        let mut free = [30.0, 40.0];
        assert_eq!(clip_by_norm(&mut free, None), 50.0);
        assert_eq!(free, [30.0, 40.0]);
    }
}
