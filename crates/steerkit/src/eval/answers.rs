//! The same questions answered at several multipliers.

use std::ops::ControlFlow;
use std::sync::Arc;

use steerkit_model::prompting::Prompting;
use steerkit_model::{Completion, Model, Request, Sampling};

use super::shading::Asked;
use crate::{Result, SteeringPlan, SteeringVector};

/// What to answer, and how.
#[derive(Clone, Copy, Debug)]
pub struct AnswerRequest<'a> {
    /// The questions.
    pub questions: &'a [&'a str],
    /// Each question is answered once per multiplier.
    pub multipliers: &'a [f64],
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens per answer at most.
    pub max_tokens: usize,
    /// Answers computed at the same time.
    pub max_batch: usize,
}

/// Answers to every question at every multiplier.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The multipliers.
    pub multipliers: Vec<f64>,
    /// Tokens of each question's prompt.
    pub prompts: Vec<Vec<u32>>,
    /// The answers to each question, one per multiplier.
    pub completions: Vec<Vec<Completion>>,
}

impl Answers {
    /// Texts of the answers at the multiplier with index `m`, in the order of the questions.
    pub fn texts(&self, m: usize) -> Vec<&str> {
        self.completions.iter().map(|row| row[m].text.as_str()).collect()
    }

    /// The questions with what a report needs of their answers.
    pub(crate) fn asked<'a>(&'a self, questions: &[&'a str]) -> Vec<Asked<'a>> {
        let of = |((&question, prompt), row): ((&&'a str, &'a Vec<u32>), &'a Vec<Completion>)| Asked {
            question,
            prompt,
            answers: self.multipliers.iter().copied().zip(row).collect(),
        };
        questions.iter().zip(&self.prompts).zip(&self.completions).map(of).collect()
    }
}

/// Answers every question at every multiplier, all in one batch. `on_answer` is told how many answers are complete
/// and may end it.
///
/// # Errors
/// Those of [`SteeringPlan::edits`] and [`Model::generate`].
pub fn answer(
    model: &Model,
    prompting: &Prompting<'_>,
    vector: &Arc<SteeringVector>,
    request: &AnswerRequest<'_>,
    on_answer: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Answers> {
    let prompts = request.questions.iter().map(|q| prompting.prompt(q)).collect::<Result<Vec<_>, _>>()?;
    let mut requests = Vec::with_capacity(prompts.len() * request.multipliers.len());
    for (question, prompt) in request.questions.iter().zip(&prompts) {
        for &multiplier in request.multipliers {
            let plan = SteeringPlan::new().add(Arc::clone(vector), multiplier as f32)?;
            requests.push(Request {
                prompt: prompt.clone(),
                edits: plan.edits(model.config(), &plan.shape(prompting, question, prompt.len())?)?,
                sampling: request.sampling,
                max_tokens: request.max_tokens,
                ..Request::default()
            });
        }
    }
    let mut done = 0;
    let mut completions = model
        .generate(requests, request.max_batch, &mut |event| {
            let ended = event.news.as_ref().is_ok_and(|new| new.finish.is_some());
            done += usize::from(ended);
            if ended { on_answer(done) } else { ControlFlow::Continue(()) }
        })?
        .into_iter();
    let n = request.multipliers.len();
    let completions = prompts.iter().map(|_| completions.by_ref().take(n).collect()).collect();
    Ok(Answers { multipliers: request.multipliers.to_vec(), prompts, completions })
}
