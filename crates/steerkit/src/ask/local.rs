//! A local model that is asked in this process.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use steerkit_model::{Finish, Message, Model, ModelError, Prompting, Request, Sampling, Specials};

use super::cost::Usage;
use super::{Prompt, Question, Reply};
use crate::Result;

/// A model of this process.
#[derive(Clone, Copy)]
pub struct Local<'m> {
    model: &'m Model,
    /// Texts at the same time.
    batch: usize,
}

impl<'m> Local<'m> {
    /// Asks `model`, `batch` prompts at a time.
    pub fn new(model: &'m Model, batch: usize) -> Self {
        Self { model, batch: batch.max(1) }
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Prompts that are asked at the same time.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// Answers to some questions, one reply each; `None` for a prompt that leaves no room in the model's context.
    ///
    /// # Errors
    /// Those of the model; [`ModelError::Interrupted`].
    pub(super) fn ask(&self, questions: &[&Question], cancel: &AtomicBool) -> Result<Vec<Option<Reply>>> {
        let context = self.model.config().context;
        let mut requests = Vec::new();
        let mut lengths = Vec::with_capacity(questions.len());
        for Question { prompt, decoding, .. } in questions {
            let tokens = self.tokens(prompt)?;
            lengths.push(Some(tokens.len()).filter(|&len| len < context));
            let sampling =
                Sampling { temperature: decoding.temperature, seed: decoding.seed, ..Sampling::default() };
            if tokens.len() < context {
                let max_tokens = decoding.max_tokens;
                requests.push(Request { prompt: tokens, sampling, max_tokens, ..Request::default() });
            }
        }
        let completions = self.model.generate(requests, self.batch, &mut |_| {
            if cancel.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let mut completions = completions.into_iter();
        let reply = |(question, length): (&&Question, Option<usize>)| -> Option<Reply> {
            let (input, completion) = (length? as u64, completions.next()?);
            Some(Reply {
                text: format!("{}{}", question.prompt.begin.as_deref().unwrap_or_default(), completion.text),
                cut: completion.finish == Finish::Length,
                usage: Some(Usage { input, output: completion.tokens.len() as u64 }),
            })
        };
        Ok(questions.iter().zip(lengths).map(reply).collect())
    }

    /// The prompt's ids, with the beginning of the answer. A template without system prompt gets it before the
    /// question; without a template both are plain text.
    fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, ModelError> {
        let prompting = Prompting::new(self.model.tokenizer()?, self.model.chat_template()?);
        let together = format!("{}\n\n{}", prompt.system, prompt.user);
        let mut tokens = match prompting.template {
            Some(template) if template.supports_system() => prompting.conversation(&[
                Message::new("system", &prompt.system),
                Message::new("user", &prompt.user),
            ])?,
            Some(_) => prompting.conversation(&[Message::new("user", &together)])?,
            None => prompting.prompt(&format!("{together}\n\n"))?,
        };
        if let Some(begin) = &prompt.begin {
            tokens.extend(prompting.tokenizer.encode(begin, Specials::AsText)?);
        }
        Ok(tokens)
    }
}
