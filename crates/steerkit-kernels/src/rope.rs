//! Rotary position embedding (Su et al. 2021) of query and key heads, of all their numbers or of the first ones.

use crate::isa::multiversion;
use crate::shared::for_rows;

/// Cosines and sines per row of a batch, `[t, h/2]` each.
#[derive(Clone, Debug, Default)]
pub struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Angles {
    /// Angles at `positions` for angular `frequencies` `[h/2]`: the position times the frequency in single
    /// precision, as the checkpoints were trained with. Cosines and sines are multiplied by `magnitude`, 1 but for
    /// some scalings to long texts.
    pub fn new(positions: &[usize], frequencies: &[f64], magnitude: f64) -> Self {
        let half = frequencies.len();
        let angle = |p: usize, f: f64| f64::from(p as f32 * f as f32);
        let each = positions.iter().flat_map(|&p| frequencies.iter().map(move |&f| angle(p, f)));
        let (sin, cos) = each.map(|a| ((a.sin() * magnitude) as f32, (a.cos() * magnitude) as f32)).unzip();
        Self { cos, sin, half }
    }

    /// Angles per row: half the numbers of a head that turn.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Cosines, `[t, h/2]`.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Sines, `[t, h/2]`.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }
}

/// Which two numbers of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `(i, i + h/2)`.
    Halves,
    /// `(2i, 2i + 1)`.
    Adjacent,
}

/// The direction of turning: forward for the op, backward for its VJP (the transpose of a scaled rotation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// By the angle.
    Forward,
    /// By minus the angle.
    Back,
}

/// Turns the first `heads` heads of `h` numbers of every row of `x` (rows `width` apart) in place: of each head the
/// first `2 · angles.half()` numbers, the others stay.
pub fn rope(
    x: &mut [f32],
    width: usize,
    (heads, h): (usize, usize),
    angles: &Angles,
    pairing: Pairing,
    turn: Turn,
) {
    let half = angles.half;
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    assert!(heads * h <= width && 2 * half <= h);
    assert_eq!(x.len() / width * half, angles.cos.len());
    for_rows(x, width, 16, |row, x| {
        let at = row * half..(row + 1) * half;
        let (cos, sin) = (&angles.cos[at.clone()], &angles.sin[at]);
        for head in x.chunks_exact_mut(h).take(heads) {
            let head = &mut head[..2 * half];
            match pairing {
                Pairing::Halves => turn_halves(head, cos, sin, sign),
                Pairing::Adjacent => turn_adjacent(head, cos, sin, sign),
            }
        }
    });
}

multiversion! {
    fn turn_halves(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let (a, b) = head.split_at_mut(cos.len());
        for i in 0..cos.len() {
            let (x, y, s) = (a[i], b[i], sign * sin[i]);
            a[i] = x * cos[i] - y * s;
            b[i] = x * s + y * cos[i];
        }
    }
}

multiversion! {
    fn turn_adjacent(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for (pair, (&c, &s)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
            let (x, y, s) = (pair[0], pair[1], sign * s);
            pair[0] = x * c - y * s;
            pair[1] = x * s + y * c;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_vjp, noise};

    #[test]
    fn a_quarter_turn() {
        let angles = Angles { cos: vec![0.0], sin: vec![1.0], half: 1 };
        for pairing in [Pairing::Halves, Pairing::Adjacent] {
            let mut x = [2.0, 3.0, 7.0];
            rope(&mut x, 3, (1, 2), &angles, pairing, Turn::Forward);
            assert_eq!(x, [-3.0, 2.0, 7.0]);
        }
    }

    #[test]
    fn vjp_matches_finite_differences() {
        let angles = Angles::new(&[0, 5, 9], &[1.0, 0.1, 0.01], 1.3);
        let width = 3 * 8;
        let (x, dy) = (noise(1, 3 * width), noise(2, 3 * width));
        for pairing in [Pairing::Halves, Pairing::Adjacent] {
            let turned = |x: &[f32], turn| {
                let mut y = x.to_vec();
                rope(&mut y, width, (2, 8), &angles, pairing, turn);
                y
            };
            assert_vjp(&x, &dy, &turned(&dy, Turn::Back), |x| turned(x, Turn::Forward));
        }
    }

    #[test]
    fn the_last_numbers_of_a_head_stay() {
        let angles = Angles::new(&[3], &[1.0], 1.0);
        let x = noise(1, 8);
        let mut y = x.clone();
        rope(&mut y, 8, (2, 4), &angles, Pairing::Halves, Turn::Forward);
        for head in 0..2 {
            assert_ne!(y[4 * head], x[4 * head]);
            assert_eq!(y[4 * head + 2..4 * head + 4], x[4 * head + 2..4 * head + 4]);
        }
    }
}
