//! Choosing the next token from logits.

use crate::model::check_numbers;
use crate::{ModelError, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use steerkit_kernels::logprob::log_sum_exp;

/// How the next token is chosen. The filters act in the order of Hugging Face's `generate`
/// (`transformers/generation/utils.py`: `repetition_penalty`, `temperature`, `top_k`, `top_p`, `min_p`); top-k
/// does not depend on the temperature. llama.cpp differs in applying the temperature last.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits, 0 to 10; 0 takes the most likely token and ignores `top_k`, `top_p`, `min_p` and `seed`.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens up to the first at which their probabilities sum to this, 0 to 1; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as likely as the most likely one, 0 to 1; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens that the prompt or the generated text has
    /// already, 0.01 to 100; 1 changes nothing (Keskar et al. 2019, arXiv 1909.05858, section 4.1).
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens that the generated text has already, -2 to 2; 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken off a token's logit as many times as the generated text has it, -2 to 2; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Seed of the random numbers of one sequence.
    pub seed: u64,
}

impl Default for Sampling {
    /// The most likely token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Whether every number is in its range.
    ///
    /// # Errors
    /// [`ModelError::OutOfRange`] with the first that is not.
    pub fn validate(&self) -> Result<()> {
        within("temperature", self.temperature, 0.0, 10.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
    }
}

fn within(name: &str, value: f32, low: f32, high: f32) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(ModelError::OutOfRange {
        name: name.to_owned(),
        found: value.to_string(),
        allowed: format!("{low} to {high}"),
    })
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its log-probability in nats under the model: `log softmax` of the logits as they are, before the
    /// repetition penalty, the temperature and the filters. The same number as [`crate::Model::score`] gives.
    pub logprob: f32,
}

/// A token and its log-probability in nats under the model, as in [`Choice`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
}

/// The log-probability of `token`, and the `count` most likely tokens in order, the lowest id first of equals. A token
/// that is in both has the same number in both.
///
/// # Shapes
/// `logits_v`: one per token id.
pub fn log_probs_of(logits_v: &[f32], token: u32, count: usize) -> (TokenLogprob, Vec<TokenLogprob>) {
    let total = log_sum_exp(logits_v);
    let of = |token: u32| TokenLogprob { token, logprob: logits_v[token as usize] - total };
    if count == 0 {
        return (of(token), Vec::new());
    }
    let mut candidates: Vec<Candidate> =
        (0..).zip(logits_v).map(|(id, &score)| Candidate { id, score, weight: 0.0 }).collect();
    sort_top(&mut candidates, count);
    (of(token), candidates.iter().take(count).map(|c| of(c.id)).collect())
}

/// What sampling remembers of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// Tokens of the prompt and the generated text; left empty when nothing is penalised.
    seen: BTreeSet<u32>,
    /// How often the generated text has each token; left empty when that is not penalised.
    generated: BTreeMap<u32, u32>,
}

impl Sampler {
    /// A sampler for the text after `prompt`.
    ///
    /// # Errors
    /// A number of `sampling` out of its range.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Result<Self> {
        sampling.validate()?;
        let penalised = sampling.repetition_penalty != 1.0;
        let seen = if penalised { prompt.iter().copied().collect() } else { BTreeSet::new() };
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self { sampling, rng, seen, generated: BTreeMap::new() })
    }

    /// Chooses a token and remembers it. Equal logits: the lowest id first.
    ///
    /// # Shapes
    /// `logits_v`: one per token id, at least one.
    ///
    /// # Errors
    /// A logit that is not finite.
    pub fn sample(&mut self, logits_v: &[f32]) -> Result<Choice> {
        check_numbers("logits", logits_v)?;
        let token = match self.penalised(logits_v) {
            Some(scores_v) => self.choose(&scores_v),
            None => self.choose(logits_v),
        };
        self.remember(token);
        Ok(Choice { token, logprob: logits_v[token as usize] - log_sum_exp(logits_v) })
    }

    fn remember(&mut self, token: u32) {
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.generated.entry(token).or_default() += 1;
        }
    }

    fn penalised(&self, logits_v: &[f32]) -> Option<Vec<f32>> {
        if self.seen.is_empty() && self.generated.is_empty() {
            return None;
        }
        let penalty = self.sampling.repetition_penalty;
        let mut scores_v = logits_v.to_vec();
        for &token in &self.seen {
            if let Some(score) = scores_v.get_mut(token as usize) {
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
                *score = score.clamp(f32::MIN, f32::MAX);
            }
        }
        let Sampling { presence_penalty, frequency_penalty, .. } = self.sampling;
        for (&token, &times) in &self.generated {
            if let Some(score) = scores_v.get_mut(token as usize) {
                *score -= presence_penalty + frequency_penalty * times as f32;
                *score = score.clamp(f32::MIN, f32::MAX);
            }
        }
        Some(scores_v)
    }

    fn choose(&mut self, scores_v: &[f32]) -> u32 {
        if self.sampling.temperature == 0.0 { most_likely(scores_v) } else { self.draw(scores_v) }
    }

    fn draw(&mut self, scores_v: &[f32]) -> u32 {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let top = scores_v[most_likely(scores_v) as usize];
        let weigh = |score: f32| ((f64::from(score) - f64::from(top)) / f64::from(temperature)).exp();
        let mut kept: Vec<Candidate> =
            (0..).zip(scores_v).map(|(id, &score)| Candidate { id, score, weight: weigh(score) }).collect();
        if top_k > 0 {
            sort_top(&mut kept, top_k);
            kept.truncate(top_k);
        }
        if top_p < 1.0 {
            keep_nucleus(&mut kept, f64::from(top_p));
        }
        // The most likely token weighs 1.
        kept.retain(|c| c.weight >= f64::from(min_p));
        let total: f64 = kept.iter().map(|c| c.weight).sum();
        let mut left = self.rng.random::<f64>() * total;
        for c in &kept {
            left -= c.weight;
            if left < 0.0 {
                return c.id;
            }
        }
        // Rounding can leave a rest.
        kept.iter().rev().find(|c| c.weight > 0.0).expect("the most likely token weighs 1").id
    }
}

/// A token that may be drawn.
#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    score: f32,
    /// Its probability over that of the most likely token.
    weight: f64,
}

fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

/// Brings the `count` most likely candidates to the front, in order.
fn sort_top(candidates: &mut [Candidate], count: usize) {
    let count = count.min(candidates.len());
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, by_rank);
    }
    candidates[..count].sort_unstable_by(by_rank);
}

/// Keeps the most likely candidates up to the first at which their share reaches `top_p`, at least one.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let enough = top_p * candidates.iter().map(|c| c.weight).sum::<f64>();
    let (mut mass, mut sorted) = (0.0, 0);
    // A nucleus is small as a rule: sort a little, then four times as many.
    while sorted < candidates.len() {
        let more = (3 * sorted).max(64).min(candidates.len() - sorted);
        sort_top(&mut candidates[sorted..], more);
        for (i, c) in candidates.iter().enumerate().skip(sorted).take(more) {
            mass += c.weight;
            if mass >= enough {
                candidates.truncate(i + 1);
                return;
            }
        }
        sorted += more;
    }
}

/// The lowest id of those with the largest score.
fn most_likely(scores_v: &[f32]) -> u32 {
    let top = steerkit_kernels::logprob::max(scores_v);
    scores_v.iter().position(|&score| score == top).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(sampling, &[]).expect("valid")
    }

    /// How often each token is drawn.
    fn counts(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut sampler = sampler(sampling);
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).expect("finite").token as usize] += 1;
        }
        counts
    }

    fn drawn(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let counts = counts(sampling, logits, 2000);
        (0..counts.len()).filter(|&id| counts[id] > 0).collect()
    }

    /// Logits of these probabilities.
    fn logits_of(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + 3.0).collect()
    }

    const ONE: Sampling = Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 1,
    };

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let choice = sampler(Sampling::default()).sample(&[1.0, 4.0, 4.0, -2.0]).expect("finite");
        assert_eq!(choice.token, 1);
        // -ln(e^-3 + 2 + e^-6)
        assert!((choice.logprob + 0.718_944).abs() < 1e-5, "{}", choice.logprob);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits: Vec<f32> = (0..8).map(|i| ((i * 37) % 11) as f32 * 0.2).collect();
        for temperature in [0.5, 1.0, 2.0] {
            let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            let n = 50_000;
            let found = counts(Sampling { temperature: temperature as f32, ..ONE }, &logits, n);
            let chi2: f64 = found
                .iter()
                .zip(&weights)
                .map(|(&f, w)| (n as f64 * w / total, f as f64))
                .map(|(e, f)| (f - e).powi(2) / e)
                .sum();
            // 24.3 is the 99.9% point of chi-square with 7 degrees of freedom.
            assert!(chi2 < 24.3, "temperature {temperature}: chi-square {chi2}");
        }
    }

    #[test]
    fn filters_keep_what_they_should() {
        let logits = logits_of(&[0.1, 0.4, 0.05, 0.25, 0.2]);
        assert_eq!(drawn(ONE, &logits), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(Sampling { top_k: 2, ..ONE }, &logits), [1, 3]);
        assert_eq!(drawn(Sampling { top_k: 99, ..ONE }, &logits), [0, 1, 2, 3, 4]);
        // 0.4 + 0.25 = 0.65 is short of 0.7; with 0.2 it is reached.
        assert_eq!(drawn(Sampling { top_p: 0.7, ..ONE }, &logits), [1, 3, 4]);
        assert_eq!(drawn(Sampling { top_p: 0.0, ..ONE }, &logits), [1]);
        // 0.3 of 0.4 is 0.12.
        assert_eq!(drawn(Sampling { min_p: 0.3, ..ONE }, &logits), [1, 3, 4]);
        // Among the first three, of 0.85, the share 0.5 takes 0.4 / 0.85 = 0.47 and one more.
        assert_eq!(drawn(Sampling { top_k: 3, top_p: 0.5, ..ONE }, &logits), [1, 3]);
        // A high temperature makes them alike before the nucleus is cut: 0.7 of five needs four.
        assert_eq!(drawn(Sampling { temperature: 10.0, top_p: 0.7, ..ONE }, &logits), [0, 1, 3, 4]);
    }

    #[test]
    fn a_large_nucleus_is_the_same_as_sorting_everything() {
        let logits: Vec<f32> =
            (0..5000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 2e4).collect();
        for top_p in [0.01, 0.3, 0.9, 0.999_999] {
            let mut kept: Vec<Candidate> = (0..)
                .zip(&logits)
                .map(|(id, &score)| Candidate { id, score, weight: f64::from(score).exp() })
                .collect();
            let mut sorted = kept.clone();
            sorted.sort_by(by_rank);
            let total: f64 = sorted.iter().map(|c| c.weight).sum();
            keep_nucleus(&mut kept, top_p);
            let before: f64 = sorted[..kept.len() - 1].iter().map(|c| c.weight).sum();
            assert!(before < top_p * total + 1e-6);
            assert!(before + sorted[kept.len() - 1].weight >= top_p * total - 1e-6);
            let ids = |c: &[Candidate]| c.iter().map(|c| c.id).collect::<Vec<_>>();
            assert_eq!(ids(&kept), ids(&sorted[..kept.len()]));
        }
    }

    #[test]
    fn repetition_is_penalised_in_prompt_and_text() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[0, 9]).expect("valid");
        let logits = [5.0, 4.0, 3.0, -1.0];
        let found: Vec<Choice> = (0..4).map(|_| sampler.sample(&logits).expect("finite")).collect();
        // 5 counts as 2.5, then 4 as 2, then 3 as 1.5.
        assert_eq!(found.iter().map(|c| c.token).collect::<Vec<_>>(), [1, 2, 0, 0]);
        // The log-probability is that of the model.
        let total: f32 = logits.iter().map(|l: &f32| l.exp()).sum();
        assert!((found[0].logprob - (4.0 - total.ln())).abs() < 1e-6);
    }

    #[test]
    fn presence_and_frequency_count_the_generated_text_only() {
        let sampling = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[0, 0, 0]).expect("valid");
        let logits = [5.0, 4.4, 4.0];
        let found: Vec<u32> = (0..5).map(|_| sampler.sample(&logits).expect("finite").token).collect();
        // 5, then 4.25 (5 - 0.75) against 4.4, then 4.25 against 3.65 and 4, then 4 (5 - 1) against 4.0: the lowest
        // id, then 3.75 against 4.0.
        assert_eq!(found, [0, 1, 0, 0, 2]);
    }

    #[test]
    fn ranked_log_probabilities_hold_the_number_of_the_choice() {
        let logits = [1.0, 4.0, 4.0, -2.0, 3.5];
        let choice = sampler(Sampling::default()).sample(&logits).expect("finite");
        let (chosen, top) = log_probs_of(&logits, choice.token, 3);
        assert_eq!(top.iter().map(|t| t.token).collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!(
            (chosen.logprob, top[0].logprob, top[1].logprob),
            (choice.logprob, choice.logprob, choice.logprob)
        );
        assert_eq!(log_probs_of(&logits, 0, 9).1.len(), 5);
        assert!(log_probs_of(&logits, 0, 0).1.is_empty());
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits = vec![0.0; 1000];
        let draw = |seed| {
            let mut sampler = sampler(Sampling { seed, ..ONE });
            (0..20).map(|_| sampler.sample(&logits).expect("finite").token).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn a_tiny_temperature_is_greedy() {
        let sampling = Sampling { temperature: f32::MIN_POSITIVE / 8.0, ..ONE };
        assert_eq!(drawn(sampling, &[-3e38, 3e38, 2.9e38]), [1]);
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for sampling in [Sampling::default(), ONE] {
                let e = sampler(sampling).sample(&[1.0, bad, 2.0]).expect_err("not finite");
                assert_eq!(e.to_string(), "logits: 1 of 3 values are not finite");
            }
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let check = |s: Sampling| s.validate().expect_err("out of range").to_string();
        assert_eq!(
            check(Sampling { temperature: f32::NAN, ..ONE }),
            "temperature is NaN, allowed is 0 to 10"
        );
        assert_eq!(check(Sampling { temperature: -1.0, ..ONE }), "temperature is -1, allowed is 0 to 10");
        assert_eq!(check(Sampling { top_p: 2.0, ..ONE }), "top_p is 2, allowed is 0 to 1");
        assert_eq!(check(Sampling { min_p: -0.5, ..ONE }), "min_p is -0.5, allowed is 0 to 1");
        assert_eq!(
            check(Sampling { repetition_penalty: f32::INFINITY, ..ONE }),
            "repetition_penalty is inf, allowed is 0.01 to 100"
        );
        assert!(Sampling::default().validate().is_ok());
    }
}
