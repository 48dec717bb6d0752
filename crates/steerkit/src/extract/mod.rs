//! Vectors from activations, or from one gradient: no steps, one look at every pair.
//!
//! All of them read the residual streams that training caches too, one pair at a time.

mod letters;
mod pca;

pub use letters::letter_pair;

use std::sync::atomic::AtomicBool;

use crate::objective::Direction;
use crate::optim::{norm, random_direction};
use crate::recipe::{Method, Recipe};
use crate::train::observer::{Halt, check};
use crate::train::order::{Stream, generator};
use crate::train::pass::{Prepared, TokenPair};

/// The vector of an extraction method over the prepared pairs `[d]`. All zeros where the pairs show no difference.
pub(crate) fn extract(pairs: &Prepared<'_>, recipe: &Recipe, cancel: &AtomicBool) -> Result<Vec<f32>, Halt> {
    let d = pairs.model.config().d_model;
    let vector = match recipe.method {
        Method::Random => random_direction(d, 1.0, &mut generator(recipe.seed, Stream::Random)),
        Method::Grad0 => {
            let batch: Vec<_> = (0..pairs.pairs.len()).map(|i| (i, Direction::Toward)).collect();
            let ones = vec![1.0; batch.len()];
            let got = pairs.gradient(&batch, &ones, &vec![0.0; d], &recipe.objective, cancel)?;
            got.grad.into_iter().map(|g| -g).collect()
        }
        Method::Pca => {
            let mut differences = Vec::new();
            each_contrast(pairs, Method::MeanDiff, cancel, |c| {
                differences.extend(c.iter().map(|&x| x as f32))
            })?;
            pca::first_component(&differences, d, recipe.extract.pca)
        }
        method => mean_contrast(pairs, method, cancel)?,
    };
    Ok(match recipe.extract.dose {
        Some(dose) => scaled(vector, dose * pairs.cache.residual_norm()),
        None => vector,
    })
}

/// The mean difference of the residual streams on chosen and rejected responses `[d]`.
pub(crate) fn mean_difference(pairs: &Prepared<'_>, cancel: &AtomicBool) -> Result<Vec<f32>, Halt> {
    mean_contrast(pairs, Method::MeanDiff, cancel)
}

fn mean_contrast(pairs: &Prepared<'_>, method: Method, cancel: &AtomicBool) -> Result<Vec<f32>, Halt> {
    let (mut sum, mut n) = (vec![0f64; pairs.model.config().d_model], 0u32);
    each_contrast(pairs, method, cancel, |contrast| {
        sum.iter_mut().zip(contrast).for_each(|(s, x)| *s += x);
        n += 1;
    })?;
    Ok(sum.into_iter().map(|s| (s / f64::from(n.max(1))) as f32).collect())
}

/// The vector at norm `length`; zeros stay zeros.
fn scaled(vector: Vec<f32>, length: f64) -> Vec<f32> {
    let found = norm(&vector);
    let scale = if found > 0.0 { length / found } else { 0.0 };
    vector.into_iter().map(|x| (f64::from(x) * scale) as f32).collect()
}

/// Gives the difference of the two responses' residual streams for every pair, in order.
fn each_contrast(
    pairs: &Prepared<'_>,
    method: Method,
    cancel: &AtomicBool,
    mut take: impl FnMut(&[f64]),
) -> Result<(), Halt> {
    let d = pairs.model.config().d_model;
    let mut rows_td = Vec::new();
    for (i, pair) in pairs.pairs.iter().enumerate() {
        check(cancel)?;
        rows_td.resize(pair.rows() * d, 0f32);
        pairs.cache.read(i, &mut rows_td)?;
        let mut contrast = vec![0f64; d];
        let [chosen, rejected] = measured_rows(pair, method);
        for (rows, sign) in [(chosen, 1.0), (rejected, -1.0)] {
            let weight = sign / rows.len() as f64;
            for row in rows {
                let row = &rows_td[row * d..(row + 1) * d];
                contrast.iter_mut().zip(row).for_each(|(c, &x)| *c += weight * f64::from(x));
            }
        }
        take(&contrast);
    }
    Ok(())
}

/// The rows of a packed pair whose mean stands for the chosen and for the rejected response.
///
/// The end token has no row. A response without any other token is stood for by the prompt's last row.
fn measured_rows(pair: &TokenPair, method: Method) -> [Vec<usize>; 2] {
    let prompt = pair.prompt.len();
    let (chosen, rejected) = (pair.chosen.len() - 1, pair.rejected.len() - 1);
    [(prompt, chosen), (prompt + chosen, rejected)].map(|(first, n)| {
        // The row of the response's token k from 0; before it stand the prompt's rows.
        let row = |k: isize| if k < 0 { prompt.saturating_sub(k.unsigned_abs()) } else { first + k as usize };
        match method {
            Method::Caa => vec![row(n as isize - 1)],
            Method::Freeform => vec![row(n as isize - 2)],
            _ if n == 0 => vec![row(-1)],
            _ => (first..first + n).collect(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_by_hand() {
        // Rows: prompt 0 1 2, chosen 3 4, rejected 5; the last token of each response is its end.
        let pair = TokenPair { prompt: vec![1, 2, 3], chosen: vec![4, 5, 9], rejected: vec![6, 9] };
        assert_eq!(measured_rows(&pair, Method::MeanDiff), [vec![3, 4], vec![5]]);
        assert_eq!(measured_rows(&pair, Method::Caa), [vec![4], vec![5]]);
        assert_eq!(measured_rows(&pair, Method::Freeform), [vec![3], vec![2]]);
        let empty = TokenPair { rejected: vec![9], ..pair };
        assert_eq!(measured_rows(&empty, Method::MeanDiff)[1], [2]);
        assert_eq!(measured_rows(&empty, Method::Freeform)[1], [1]);
    }

    #[test]
    fn scaling_keeps_the_direction() {
        assert_eq!(scaled(vec![3.0, -4.0], 10.0), [6.0, -8.0]);
        assert_eq!(scaled(vec![0.0, 0.0], 10.0), [0.0, 0.0]);
    }
}
