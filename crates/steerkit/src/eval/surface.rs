//! How answers read, counted without a judge.

use std::sync::atomic::AtomicBool;

use serde::Serialize;
use steerkit_model::Model;

use super::answers::Answers;
use super::perplexity::{perplexities, perplexity};
use crate::Result;
use crate::surface::SurfaceMetric;
use crate::text_stats::{Bootstrap, distinct_n, mean_words, median};

/// Rows per pass when answers are read again by the plain model.
const ROWS: usize = 2048;

/// How the answers at one multiplier read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SurfacePoint {
    /// The vector was added this many times.
    pub multiplier: f64,
    /// Answers.
    pub n: usize,
    /// What `value` measures.
    pub metric: SurfaceMetric,
    /// Its mean over the answers.
    pub value: f64,
    /// 95% bootstrap interval of `value`.
    pub interval: Option<(f64, f64)>,
    /// Mean words per answer.
    pub words: f64,
    /// Different word trigrams over all of them.
    pub distinct_3: f64,
    /// `distinct_3` over that at multiplier 0.
    pub distinct_3_ratio: f64,
    /// Median perplexity of the answers under the plain model.
    pub perplexity: f64,
    /// `perplexity` over that at multiplier 0.
    pub perplexity_ratio: f64,
}

/// Measures the answers at each multiplier; one of the multipliers is 0, and the answers there are the unit of the
/// ratios. What cannot be computed (no words, no tokens) is NaN.
///
/// # Errors
/// Those of [`perplexities`].
pub fn surface_points(
    model: &Model,
    answers: &Answers,
    metric: SurfaceMetric,
    cancel: &AtomicBool,
) -> Result<Vec<SurfacePoint>> {
    let perplexity = median_perplexities(model, answers, cancel)?;
    let mut points: Vec<SurfacePoint> = answers
        .multipliers
        .iter()
        .enumerate()
        .map(|(m, &multiplier)| {
            let texts = answers.texts(m);
            let mean = Bootstrap::default().mean(&metric.scores(&texts));
            SurfacePoint {
                multiplier,
                n: texts.len(),
                metric,
                value: mean.map_or(f64::NAN, |mean| mean.value),
                interval: mean.and_then(|mean| mean.interval),
                words: mean_words(&texts).unwrap_or(f64::NAN),
                distinct_3: distinct_n(&texts, 3).unwrap_or(f64::NAN),
                distinct_3_ratio: f64::NAN,
                perplexity: perplexity[m],
                perplexity_ratio: f64::NAN,
            }
        })
        .collect();
    if let Some(plain) = points.iter().find(|point| point.multiplier == 0.0).cloned() {
        for point in &mut points {
            point.distinct_3_ratio = point.distinct_3 / plain.distinct_3;
            point.perplexity_ratio = point.perplexity / plain.perplexity;
        }
    }
    Ok(points)
}

/// One median per multiplier. The plain model's own answers have their log-probabilities from being written; the
/// others are read once more.
fn median_perplexities(model: &Model, answers: &Answers, cancel: &AtomicBool) -> Result<Vec<f64>> {
    let steered: Vec<usize> =
        (0..answers.multipliers.len()).filter(|&m| answers.multipliers[m] != 0.0).collect();
    let texts: Vec<(&[u32], Vec<&[u32]>)> = answers
        .prompts
        .iter()
        .zip(&answers.completions)
        .map(|(prompt, row)| {
            (prompt.as_slice(), steered.iter().map(|&m| row[m].tokens.as_slice()).collect())
        })
        .collect();
    let read = if steered.is_empty() { Vec::new() } else { perplexities(model, &texts, ROWS, cancel)? };
    let of = |m: usize| -> Vec<f64> {
        match steered.iter().position(|&s| s == m) {
            Some(s) => read.iter().map(|row| row[s]).collect(),
            None => answers.completions.iter().map(|row| perplexity(&row[m].logprobs)).collect(),
        }
    };
    Ok((0..answers.multipliers.len()).map(|m| median(&of(m)).unwrap_or(f64::NAN)).collect())
}
