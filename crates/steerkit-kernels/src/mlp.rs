//! The gate of the MLP: SwiGLU (Shazeer 2020), `silu(gate) · up`.

use crate::isa::multiversion;
use crate::math::sigmoid;
use crate::shared::for_rows;

const ROWS_PER_TASK: usize = 2;

/// `y_tf = silu(gate) · up` of rows `gate | up` `[t, 2f]`.
pub fn swiglu(gate_up: &[f32], f: usize, y_tf: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * y_tf.len());
    for_rows(y_tf, f, ROWS_PER_TASK, |i, y_f| swiglu_row(&gate_up[2 * i * f..2 * (i + 1) * f], y_f));
}

multiversion! {
    fn swiglu_row(gate_up: &[f32], y_f: &mut [f32]) {
        let (gate, up) = gate_up.split_at(y_f.len());
        for (i, y) in y_f.iter_mut().enumerate() {
            *y = gate[i] * sigmoid(gate[i]) * up[i];
        }
    }
}

/// The VJP of [`swiglu`], in place: `gate_up` becomes its own gradient.
pub fn swiglu_vjp(gate_up: &mut [f32], f: usize, dy_tf: &[f32]) {
    assert_eq!(gate_up.len(), 2 * dy_tf.len());
    for_rows(gate_up, 2 * f, ROWS_PER_TASK, |i, gate_up| swiglu_row_vjp(gate_up, &dy_tf[i * f..(i + 1) * f]));
}

multiversion! {
    fn swiglu_row_vjp(gate_up: &mut [f32], dy_f: &[f32]) {
        let (gate, up) = gate_up.split_at_mut(dy_f.len());
        for (i, &dy) in dy_f.iter().enumerate() {
            let s = sigmoid(gate[i]);
            let silu = gate[i] * s;
            gate[i] = dy * up[i] * (s + silu * (1.0 - s));
            up[i] = dy * silu;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_vjp, noise};

    #[test]
    fn vjp_matches_finite_differences() {
        let (t, f) = (3, 19);
        let (x, dy) = (noise(1, t * 2 * f), noise(2, t * f));
        let mut dx = x.clone();
        swiglu_vjp(&mut dx, f, &dy);
        assert_vjp(&x, &dy, &dx, |x| {
            let mut y = vec![0.0; t * f];
            swiglu(x, f, &mut y);
            y
        });
    }

    #[test]
    fn large_gates_saturate() {
        let mut y = [0.0; 2];
        swiglu(&[-200.0, 200.0, 1.0, 1.0], 2, &mut y);
        assert!(y[0].abs() < 1e-30 && y[1] == 200.0, "{y:?}");
    }
}
