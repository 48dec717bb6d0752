//! The gate of the MLP (Shazeer 2020): `act(gate) · up`, SwiGLU with SiLU, GeGLU with the tanh form of GELU.

use crate::isa::multiversion;
use crate::math::sigmoid;
use crate::shared::for_rows;

const ROWS_PER_TASK: usize = 2;

/// The activation of a gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`.
    #[default]
    Silu,
    /// `x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³)))`, the tanh form of GELU (Hendrycks & Gimpel 2016).
    GeluTanh,
}

/// `√(2/π)`, and the weight of the cube.
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

/// `y_tf = act(gate) · up` of rows `gate | up` `[t, 2f]`.
pub fn gated(activation: Activation, gate_up: &[f32], f: usize, y_tf: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * y_tf.len());
    for_rows(y_tf, f, ROWS_PER_TASK, |i, y_f| {
        let gate_up = &gate_up[2 * i * f..2 * (i + 1) * f];
        match activation {
            Activation::Silu => swiglu_row(gate_up, y_f),
            Activation::GeluTanh => geglu_row(gate_up, y_f),
        }
    });
}

multiversion! {
    fn swiglu_row(gate_up: &[f32], y_f: &mut [f32]) {
        let (gate, up) = gate_up.split_at(y_f.len());
        for (i, y) in y_f.iter_mut().enumerate() {
            *y = gate[i] * sigmoid(gate[i]) * up[i];
        }
    }
}

multiversion! {
    /// `(1 + tanh u)/2` is `σ(2u)`.
    fn geglu_row(gate_up: &[f32], y_f: &mut [f32]) {
        let (gate, up) = gate_up.split_at(y_f.len());
        for (i, y) in y_f.iter_mut().enumerate() {
            let x = gate[i];
            *y = x * sigmoid(2.0 * GELU.0 * (x + GELU.1 * x * x * x)) * up[i];
        }
    }
}

/// The VJP of [`gated`], in place: `gate_up` becomes its own gradient.
pub fn gated_vjp(activation: Activation, gate_up: &mut [f32], f: usize, dy_tf: &[f32]) {
    assert_eq!(gate_up.len(), 2 * dy_tf.len());
    for_rows(gate_up, 2 * f, ROWS_PER_TASK, |i, gate_up| {
        let dy_f = &dy_tf[i * f..(i + 1) * f];
        match activation {
            Activation::Silu => swiglu_row_vjp(gate_up, dy_f),
            Activation::GeluTanh => geglu_row_vjp(gate_up, dy_f),
        }
    });
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

multiversion! {
    fn geglu_row_vjp(gate_up: &mut [f32], dy_f: &[f32]) {
        let (gate, up) = gate_up.split_at_mut(dy_f.len());
        for (i, &dy) in dy_f.iter().enumerate() {
            let x = gate[i];
            let s = sigmoid(2.0 * GELU.0 * (x + GELU.1 * x * x * x));
            let slope = 2.0 * GELU.0 * (1.0 + 3.0 * GELU.1 * x * x);
            gate[i] = dy * up[i] * (s + x * s * (1.0 - s) * slope);
            up[i] = dy * x * s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_vjp, noise};

    const BOTH: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

    #[test]
    fn vjp_matches_finite_differences() {
        let (t, f) = (3, 19);
        let (x, dy) = (noise(1, t * 2 * f), noise(2, t * f));
        for activation in BOTH {
            let mut dx = x.clone();
            gated_vjp(activation, &mut dx, f, &dy);
            assert_vjp(&x, &dy, &dx, |x| {
                let mut y = vec![0.0; t * f];
                gated(activation, x, f, &mut y);
                y
            });
        }
    }

    #[test]
    fn values_of_the_definitions() {
        let (x, up) = (0.8f64, 1.5f32);
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
        let truths = [x / (1.0 + (-x).exp()), x / 2.0 * (1.0 + inner.tanh())];
        for (activation, truth) in BOTH.into_iter().zip(truths) {
            let mut y = [0.0];
            gated(activation, &[x as f32, up], 1, &mut y);
            assert!((f64::from(y[0]) - truth * f64::from(up)).abs() < 1e-6, "{activation:?} {y:?}");
        }
    }

    #[test]
    fn large_gates_saturate() {
        for activation in BOTH {
            let mut y = [0.0; 2];
            gated(activation, &[-200.0, 200.0, 1.0, 1.0], 2, &mut y);
            assert!(y[0].abs() < 1e-30 && y[1] == 200.0, "{y:?}");
        }
    }
}
