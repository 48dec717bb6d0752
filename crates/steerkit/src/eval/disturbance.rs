//! How much a plan changes a model's predictions: Kullback-Leibler divergences, and the multiplier for a given one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use steerkit_model::{Edit, Model, ModelError, Run, Sequence};

use crate::vector::{Calibration, SteeringVector};
use crate::{PromptShape, Result, SteerError, SteeringPlan};

/// Steps of the search for a multiplier at most.
const STEPS: usize = 8;
/// Relative error of the divergence that is good enough.
const CLOSE: f64 = 0.05;
/// Relative error above which the search has failed: a divergence of few tokens is a staircase.
const FAR: f64 = 0.25;
/// The share of tokens that a calibration looks at.
const PERCENTILE: f64 = 0.95;

/// Texts written at the same time.
const AT_ONCE: usize = 8;

/// A prompt and the edits of its text.
#[derive(Clone, Debug)]
pub struct EditedPrompt {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// What steers it.
    pub edits: Vec<Edit>,
}

/// KL(steered || plain) in nats of every predicted token, over the texts that the steered model writes greedily, at most
/// `tokens` each. Both models read the same text.
///
/// # Errors
/// Those of the model; [`ModelError::Interrupted`] when `cancel` is set.
pub fn divergences(
    model: &Model,
    prompts: &[EditedPrompt],
    tokens: usize,
    cancel: &AtomicBool,
) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for prompts in prompts.chunks(AT_ONCE) {
        let mut texts = prompts.iter().map(|p| Text::new(model, p, tokens)).collect::<Result<Vec<_>>>()?;
        while texts.iter().any(|text| text.left > 0) {
            if cancel.load(Ordering::Relaxed) {
                return Err(ModelError::Interrupted.into());
            }
            step(model, &mut texts)?;
        }
        all.extend(texts.into_iter().flat_map(|text| text.found));
    }
    Ok(all)
}

/// A text that both models read.
struct Text {
    steered: Sequence,
    plain: Sequence,
    next: Vec<u32>,
    left: usize,
    found: Vec<f64>,
}

impl Text {
    fn new(model: &Model, prompt: &EditedPrompt, tokens: usize) -> Result<Self> {
        Ok(Self {
            steered: model.new_sequence(prompt.edits.clone())?,
            plain: model.new_sequence(Vec::new())?,
            left: tokens.min(model.config().context.saturating_sub(prompt.tokens.len())),
            next: prompt.tokens.clone(),
            found: Vec::new(),
        })
    }
}

/// One token more of every text that goes on. A text's numbers do not depend on the others.
fn step(model: &Model, texts: &mut [Text]) -> Result<()> {
    let mut live: Vec<&mut Text> = texts.iter_mut().filter(|text| text.left > 0).collect();
    let mut runs = Vec::with_capacity(2 * live.len());
    for text in &mut live {
        let Text { steered, plain, next, .. } = &mut **text;
        runs.push(Run { sequence: steered, tokens: next });
        runs.push(Run { sequence: plain, tokens: next });
    }
    let mut logits = model.advance(&mut runs)?.into_iter();
    for text in live {
        let mut take = || logits.next().expect("one result per run");
        let (p, q) = (take()?, take()?);
        text.found.push(divergence(&p, &q));
        let token = likeliest(&p);
        text.left -= 1;
        if model.tokenizer().is_ok_and(|t| t.is_end(token)) {
            text.left = 0;
        }
        text.next = vec![token];
    }
    Ok(())
}

fn likeliest(logits_v: &[f32]) -> u32 {
    let best = logits_v
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best });
    best.0 as u32
}

/// `Σ p (ln p - ln q)` of two rows of logits, in f64; at least 0.
fn divergence(p_v: &[f32], q_v: &[f32]) -> f64 {
    let log_sum = |x: &[f32]| {
        let top = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        top + x.iter().map(|&x| (f64::from(x) - top).exp()).sum::<f64>().ln()
    };
    let (of_p, of_q) = (log_sum(p_v), log_sum(q_v));
    let terms = p_v.iter().zip(q_v).map(|(&p, &q)| {
        let log_p = f64::from(p) - of_p;
        log_p.exp() * (log_p - (f64::from(q) - of_q))
    });
    terms.sum::<f64>().max(0.0)
}

/// The value below which a share `at` of the values lies (the nearest one); NaN of none.
pub fn percentile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (at * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// Finds the positive multiplier at which the 95th percentile of [`divergences`] is `target` nats: a secant in the
/// logarithms of both, begun where the vector is a tenth of the residual stream (or at 1).
///
/// # Errors
/// [`SteerError::Calibration`] when no multiplier that was tried comes near; those of the plan and the model.
pub fn calibrate(
    model: &Model,
    vector: &Arc<SteeringVector>,
    prompts: &[(Vec<u32>, PromptShape)],
    target: f64,
    tokens: usize,
    cancel: &AtomicBool,
) -> Result<Calibration> {
    let measure = |log_m: f64| -> Result<f64> {
        let plan = SteeringPlan::new().add(Arc::clone(vector), log_m.exp() as f32)?;
        let edited = prompts.iter().map(|(tokens, shape)| {
            Ok(EditedPrompt { tokens: tokens.clone(), edits: plan.edits(model.config(), shape)? })
        });
        let edited = edited.collect::<Result<Vec<_>>>()?;
        Ok(percentile(&divergences(model, &edited, tokens, cancel)?, PERCENTILE))
    };
    let start = vector.relative_norm().map_or(0.0, |relative| (0.1 / f64::from(relative)).ln());
    // Small disturbances grow with the square of the multiplier.
    let (mut log_m, mut slope) = (start, 2.0);
    let mut before: Option<(f64, f64)> = None;
    let mut best = (f64::INFINITY, log_m, f64::NAN);
    for _ in 0..STEPS {
        let kl = measure(log_m)?;
        let off = (kl / target).ln();
        if off.abs() < best.0 {
            best = (off.abs(), log_m, kl);
        }
        if off.abs() < CLOSE || !off.is_finite() {
            break;
        }
        if let Some((m0, off0)) = before
            && (log_m - m0).abs() > 1e-3
        {
            slope = ((off - off0) / (log_m - m0)).clamp(0.5, 4.0);
        }
        before = Some((log_m, off));
        log_m -= (off / slope).clamp(-2.0, 2.0);
    }
    let (off, log_m, kl) = best;
    if off.is_nan() || off > FAR {
        let name = vector.provenance.name.clone();
        return Err(SteerError::Calibration { name, target, multiplier: log_m.exp(), found: kl });
    }
    Ok(Calibration { multiplier: log_m.exp() as f32, kl: kl as f32, prompts: prompts.len(), tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// p = (1/2, 1/2), q = (1/4, 3/4): ln 2 / 2 + ln(2/3) / 2 = 0.143841.
    #[test]
    fn a_divergence_by_hand() {
        let got = divergence(&[7.0, 7.0], &[0.0, 3f32.ln()]);
        assert!((got - 0.143_841_036).abs() < 1e-6, "{got}");
        assert_eq!(divergence(&[1.0, -2.0, 300.0], &[1.0, -2.0, 300.0]), 0.0);
    }

    #[test]
    fn percentiles_by_hand() {
        let values: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.95), 19.0);
        assert_eq!((percentile(&values, 0.0), percentile(&values, 1.0)), (1.0, 20.0));
        assert!(percentile(&[], 0.5).is_nan());
        assert_eq!(likeliest(&[0.0, 2.0, 2.0]), 1);
    }
}
