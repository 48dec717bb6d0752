//! How likely the plain model finds a text.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use steerkit_model::{Model, ModelError, Pack};

use crate::Result;

/// Perplexity of each continuation under the plain model: the exponential of minus its mean log-probability in
/// nats per token, given the prompt. A continuation without tokens has no perplexity and gives NaN.
///
/// # Errors
/// Those of [`Model::score`]; [`ModelError::Interrupted`] when `cancel` is set.
pub fn perplexities(
    model: &Model,
    texts: &[(&[u32], Vec<&[u32]>)],
    rows: usize,
    cancel: &AtomicBool,
) -> Result<Vec<Vec<f64>>> {
    let all = log_probabilities(model, texts, rows, cancel)?;
    Ok(all.iter().map(|own| own.iter().map(|logps| perplexity(logps)).collect()).collect())
}

/// Log-probabilities of each continuation's tokens under the plain model in nats, given the prompt: `[text][continuation]`.
///
/// Continuations of one prompt share its rows, and texts are packed up to `rows` rows a pass.
///
/// # Errors
/// Those of [`Model::score`]; [`ModelError::Interrupted`] when `cancel` is set.
pub(super) fn log_probabilities(
    model: &Model,
    texts: &[(&[u32], Vec<&[u32]>)],
    rows: usize,
    cancel: &AtomicBool,
) -> Result<Vec<Vec<Vec<f32>>>> {
    let mut all = Vec::with_capacity(texts.len());
    let mut pack = Pack::default();
    let mut spans: Vec<Vec<Range<usize>>> = Vec::new();
    for (i, (prompt, continuations)) in texts.iter().enumerate() {
        if continuations.iter().any(|tokens| !tokens.is_empty()) {
            let p = pack.push(None, prompt);
            let own = continuations.iter().map(|tokens| match tokens.is_empty() {
                true => pack.scored.len()..pack.scored.len(),
                false => pack.push_response(p, tokens),
            });
            spans.push(own.collect());
        } else {
            spans.push(vec![0..0; continuations.len()]);
        }
        if pack.len() >= rows || i + 1 == texts.len() {
            if cancel.load(Ordering::Relaxed) {
                return Err(ModelError::Interrupted.into());
            }
            let logps = if pack.is_empty() { Vec::new() } else { model.score(&pack)? };
            let of = |own: Vec<Range<usize>>| own.into_iter().map(|span| logps[span].to_vec()).collect();
            all.extend(spans.drain(..).map(of));
            pack = Pack::default();
        }
    }
    Ok(all)
}

/// Perplexity of a text from the log-probabilities of its tokens.
pub(super) fn perplexity(logps: &[f32]) -> f64 {
    let sum: f64 = logps.iter().map(|&x| f64::from(x)).sum();
    (-sum / logps.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_by_hand() {
        let halves = [0.5f32.ln(), 0.5f32.ln(), 0.5f32.ln()];
        assert!((perplexity(&halves) - 2.0).abs() < 1e-6);
        assert!(perplexity(&[]).is_nan());
    }
}
