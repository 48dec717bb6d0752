//! Measuring the speed of reading prompts and of writing many texts at once.

use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use steerkit_model::{Edit, EditOp, Model, Run, Sampler, Sampling, Sequence, parallel};

use crate::Result;
use crate::text_stats::{Bootstrap, median};

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeBench {
    /// Texts written at the same time.
    pub batch: usize,
    /// Different vectors among them, taken in turn; 0: the plain model.
    pub plans: usize,
    /// The block after which the vectors are added.
    pub layer: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens that each text writes.
    pub tokens: usize,
}

/// What a run measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodeSpeed {
    /// Prompt tokens per second, all prompts in passes of at most 256 tokens, no two prompts alike.
    pub prefill_tok_s: f64,
    /// Written tokens per second of all texts together: the batch over the median step.
    pub decode_tok_s: f64,
    /// Median milliseconds of a step, in which every text gets one token.
    pub ms_per_step: f64,
    /// Texts written at the same time.
    pub batch: usize,
    /// Different vectors among them.
    pub plans: usize,
}

/// The relative difference in time of a batch against another, in alternating blocks of steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodeDifference {
    /// Different vectors in the batch that is compared.
    pub plans: usize,
    /// Different vectors in the batch that it is compared with.
    pub against_plans: usize,
    /// Texts in each batch.
    pub batch: usize,
    /// Pairs of blocks.
    pub blocks: usize,
    /// Steps of a block.
    pub steps_per_block: usize,
    /// Mean over the pairs of (time - time of the other) / time of the other.
    pub difference: f64,
    /// The 95 % bootstrap interval of that mean.
    pub interval: (f64, f64),
}

/// Steps of a block.
const STEPS_PER_BLOCK: usize = 4;

/// Prompt tokens in one pass.
const PASS: usize = 256;

/// Reads the prompts and writes the texts.
///
/// # Errors
/// Those of the model.
pub fn decode_speed(model: &Model, bench: &DecodeBench) -> Result<DecodeSpeed> {
    // The first pass of a process lays the weights out.
    Texts::read(model, &DecodeBench { batch: 1, prompt_tokens: 1, ..*bench })?.step()?;
    let began = Instant::now();
    let mut texts = Texts::read(model, bench)?;
    let reading = began.elapsed().as_secs_f64();
    let seconds = (0..bench.tokens).map(|_| texts.step()).collect::<Result<Vec<f64>>>()?;
    let step = median(&seconds).unwrap_or(f64::NAN);
    Ok(DecodeSpeed {
        prefill_tok_s: (bench.batch * bench.prompt_tokens) as f64 / reading,
        decode_tok_s: bench.batch as f64 / step,
        ms_per_step: 1e3 * step,
        batch: bench.batch,
        plans: bench.plans,
    })
}

/// Times `bench` against itself with `against_plans` vectors, in `blocks` pairs of blocks of four steps; which comes first
/// changes from pair to pair.
///
/// # Errors
/// Those of the model.
pub fn decode_difference(
    model: &Model,
    bench: &DecodeBench,
    against_plans: usize,
    blocks: usize,
) -> Result<DecodeDifference> {
    let mut texts = Texts::read(model, bench)?;
    let mut others = Texts::read(model, &DecodeBench { plans: against_plans, ..*bench })?;
    let mut differences = Vec::with_capacity(blocks);
    // The pair before the first is a warm-up.
    for pair in 0..=blocks {
        let (mut time, mut other) = (0.0, 0.0);
        if pair % 2 == 0 {
            time = texts.block()?;
        }
        other += others.block()?;
        if pair % 2 == 1 {
            time = texts.block()?;
        }
        if pair > 0 {
            differences.push((time - other) / other);
        }
    }
    let estimate = Bootstrap::default().mean(&differences);
    Ok(DecodeDifference {
        plans: bench.plans,
        against_plans,
        batch: bench.batch,
        blocks,
        steps_per_block: STEPS_PER_BLOCK,
        difference: estimate.as_ref().map_or(f64::NAN, |e| e.value),
        interval: estimate.and_then(|e| e.interval).unwrap_or((f64::NAN, f64::NAN)),
    })
}

/// Texts whose prompts are read.
struct Texts<'m> {
    model: &'m Model,
    sequences: Vec<Sequence>,
    next: Vec<u32>,
}

impl<'m> Texts<'m> {
    /// Reads random prompts; the same for the same bench.
    fn read(model: &'m Model, bench: &DecodeBench) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (d, vocab) = (model.config().d_model, model.config().vocab as u32);
        let vectors: Vec<Edit> = (0..bench.plans)
            .map(|_| {
                let v: Vec<f32> = (0..d).map(|_| rng.random_range(-0.5..0.5)).collect();
                Edit::new(bench.layer, EditOp::Add(v.into()))
            })
            .collect();
        let edits = |i: usize| vectors.get(i % vectors.len().max(1)).cloned().into_iter().collect();
        let sequences = (0..bench.batch).map(|i| model.new_sequence(edits(i))).collect::<Result<_, _>>()?;
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let prompts: Vec<Vec<u32>> = (0..bench.batch)
            .map(|_| (0..bench.prompt_tokens).map(|_| rng.random_range(0..vocab)).collect())
            .collect();
        let mut texts = Self { model, sequences, next: Vec::new() };
        // As many prompts in a pass as fit; longer ones in parts.
        let together = (PASS / bench.prompt_tokens).max(1);
        for first in (0..bench.batch).step_by(together) {
            let group = first..bench.batch.min(first + together);
            let parts = |prompt: &Vec<u32>| prompt.chunks(PASS).map(<[u32]>::to_vec).collect::<Vec<_>>();
            let parts: Vec<_> = prompts[group.clone()].iter().map(parts).collect();
            for part in 0..parts[0].len() {
                let tokens: Vec<&[u32]> = parts.iter().map(|p| p[part].as_slice()).collect();
                let next = advance(model, &mut texts.sequences[group.clone()], &tokens)?;
                if part + 1 == parts[0].len() {
                    texts.next.extend(next);
                }
            }
        }
        Ok(texts)
    }

    /// Gives every text its likeliest next token; the seconds that took.
    fn step(&mut self) -> Result<f64> {
        let began = Instant::now();
        let tokens: Vec<&[u32]> = self.next.iter().map(std::slice::from_ref).collect();
        self.next = advance(self.model, &mut self.sequences, &tokens)?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Seconds of a block of steps.
    fn block(&mut self) -> Result<f64> {
        (0..STEPS_PER_BLOCK).map(|_| self.step()).sum()
    }
}

/// Feeds each sequence its tokens and takes the likeliest next ones.
fn advance(model: &Model, sequences: &mut [Sequence], tokens: &[&[u32]]) -> Result<Vec<u32>> {
    let mut runs: Vec<Run<'_>> =
        sequences.iter_mut().zip(tokens).map(|(sequence, tokens)| Run { sequence, tokens }).collect();
    let logits = model.advance(&mut runs)?;
    let choices = parallel::map(logits.len(), |i| match &logits[i] {
        Ok(logits_v) => Some(Sampler::new(Sampling::default(), &[]).and_then(|mut s| s.sample(logits_v))),
        Err(_) => None,
    });
    let choices = choices.into_iter().zip(logits).map(|(choice, logits_v)| match choice {
        Some(choice) => Ok(choice?.token),
        None => Ok(logits_v.map(|_| 0)?),
    });
    choices.collect()
}
