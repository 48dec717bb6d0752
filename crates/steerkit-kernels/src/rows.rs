//! Whole rows: adding, and adding one vector to many.

use crate::isa::multiversion;
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
    for x_d in x_td.chunks_exact_mut(v_d.len()) {
        add_row(x_d, v_d);
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
}
