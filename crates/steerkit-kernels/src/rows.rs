//! Whole rows: adding, scaling, capping, and adding one vector to many.

use crate::isa::multiversion;
use crate::math::tanh;
use crate::shared::for_rows;

const CHUNK: usize = 4096;

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    let whole = x.len() / CHUNK * CHUNK;
    for_rows(&mut x[..whole], CHUNK, 4, |i, x| add_row(x, &y[i * CHUNK..(i + 1) * CHUNK]));
    add_row(&mut x[whole..], &y[whole..]);
}

/// Adds `v_d` to every row of `x`.
pub fn add_to_rows(x_td: &mut [f32], v_d: &[f32]) {
    for_rows(x_td, v_d.len(), 16, |_, x_d| add_row(x_d, v_d));
}

/// `x *= factor`; its own VJP.
pub fn scale(x: &mut [f32], factor: f32) {
    for_chunks(x, |x| scale_row(x, factor));
}

/// `x ← cap · tanh(x / cap)`.
pub fn softcap(x: &mut [f32], cap: f32) {
    for_chunks(x, |x| softcap_row(x, cap));
}

/// Calls `f` for pieces that cover `x`, over all threads.
fn for_chunks(x: &mut [f32], f: impl Fn(&mut [f32]) + Sync) {
    let whole = x.len() / CHUNK * CHUNK;
    for_rows(&mut x[..whole], CHUNK, 4, |_, x| f(x));
    f(&mut x[whole..]);
}

multiversion! {
    fn scale_row(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

multiversion! {
    pub(crate) fn softcap_row(x: &mut [f32], cap: f32) {
        for x in x.iter_mut() {
            *x = cap * tanh(*x / cap);
        }
    }
}

multiversion! {
    pub(crate) fn add_row(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += *y;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_every_element_once() {
        let mut x: Vec<f32> = (0..CHUNK * 3 + 7).map(|i| i as f32).collect();
        let y = vec![0.5; x.len()];
        add(&mut x, &y);
        assert!(x.iter().enumerate().all(|(i, &x)| x == i as f32 + 0.5));
        let mut rows = vec![1.0; 6];
        add_to_rows(&mut rows, &[1.0, 2.0]);
        assert_eq!(rows, [2.0, 3.0, 2.0, 3.0, 2.0, 3.0]);
    }

    #[test]
    fn scales_and_caps_every_element() {
        let mut x: Vec<f32> = (0..CHUNK + 7).map(|i| i as f32 / 100.0).collect();
        scale(&mut x, 2.0);
        assert!(x.iter().enumerate().all(|(i, &x)| x == i as f32 / 100.0 * 2.0));
        let before = x.clone();
        softcap(&mut x, 30.0);
        assert!(x.iter().zip(&before).all(|(y, x)| (y - 30.0 * (x / 30.0).tanh()).abs() < 1e-5));
    }
}
