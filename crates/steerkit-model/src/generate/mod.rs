//! Many texts continued at once: requests wait, run together in one batch, and leave it as they finish.

mod text;

use crate::sample::{Choice, Sampler, Sampling};
use crate::{Edit, Model, ModelError, Result, Run, Sequence};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use steerkit_kernels::parallel;
use text::TextStream;

/// A text to continue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Tokens to continue, at least one.
    pub prompt: Vec<u32>,
    /// Edits of the residual stream, at the prompt's tokens and at the new ones. None: the plain model.
    pub edits: Vec<Edit>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// New tokens at most, at least one. The model's context ends a text too.
    pub max_tokens: usize,
    /// Texts before which the completion ends; each up to [`MAX_STOP_BYTES`], together up to [`MAX_STOPS`].
    pub stop: Vec<String>,
}

/// Stop strings of a request at most.
pub const MAX_STOPS: usize = 16;
/// Length of a stop string at most, in bytes.
pub const MAX_STOP_BYTES: usize = 512;

/// Why a text ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// The model gave a token that ends a response.
    End,
    /// A stop string came.
    Stop,
    /// As many tokens as were asked for, or as the model's context holds; also for a completion cut off otherwise.
    #[default]
    Length,
}

/// A continued text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// The new tokens, all that were chosen: with the one that ends the response, and those of a stop string.
    pub tokens: Vec<u32>,
    /// The new text, without the token that ends the response and without the stop string and what follows it.
    /// Empty for a model that has no tokeniser.
    pub text: String,
    /// Log-probability of each of `tokens`, in nats ([`crate::Choice::logprob`]).
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Names a request of one [`Batcher`]: they are numbered from 0 in the order of their submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// News of a request.
#[derive(Debug)]
pub struct Event {
    /// The request.
    pub id: RequestId,
    /// Its next token, or the error that ended it.
    pub news: Result<NewToken>,
}

/// A token of a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct NewToken {
    /// The token.
    pub token: u32,
    /// Its log-probability in nats ([`crate::Choice::logprob`]).
    pub logprob: f32,
    /// The text that is now certain, if any. The pieces put together are [`Completion::text`]; one lags behind its
    /// token while a character is not complete or while it may become a stop string.
    pub text: Option<String>,
    /// Set with the last token.
    pub finish: Option<Finish>,
}

/// How much a [`Batcher`] takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that may wait for a place in the batch.
    pub waiting: usize,
    /// Prompt tokens that one step reads, over all sequences: what a running text waits for at most between two
    /// of its tokens.
    pub prompt_tokens: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { waiting: usize::MAX, prompt_tokens: 256 }
    }
}

/// Continues many texts at once. A text's tokens and log-probabilities are the same, bit for bit, whatever else is
/// in the batch.
pub struct Batcher<'m> {
    model: &'m Model,
    max_batch: usize,
    limits: Limits,
    submitted: u64,
    waiting: VecDeque<Text<'m>>,
    /// In the order in which they were admitted.
    running: Vec<Text<'m>>,
}

impl<'m> Batcher<'m> {
    /// An empty batch of up to `max_batch` texts.
    ///
    /// # Errors
    /// `max_batch` or `limits.prompt_tokens` of 0.
    pub fn new(model: &'m Model, max_batch: usize, limits: Limits) -> Result<Self> {
        at_least_one("max_batch", max_batch)?;
        at_least_one("prompt_tokens", limits.prompt_tokens)?;
        Ok(Self { model, max_batch, limits, submitted: 0, waiting: VecDeque::new(), running: Vec::new() })
    }

    /// Puts a request at the end of the queue.
    ///
    /// # Errors
    /// A request that cannot be run: an empty prompt, one that leaves no room in the context, unknown tokens or
    /// layers, settings out of range, stop strings without a tokeniser; [`ModelError::QueueFull`].
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        if self.waiting.len() >= self.limits.waiting {
            return Err(ModelError::QueueFull { waiting: self.waiting.len() });
        }
        let id = RequestId(self.submitted);
        self.waiting.push_back(Text::new(self.model, id, request)?);
        self.submitted += 1;
        Ok(id)
    }

    /// Drops a request, waiting or running. Gives whether there was one; it has no further events.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let before = self.waiting.len() + self.running.len();
        self.waiting.retain(|text| text.id != id);
        self.running.retain(|text| text.id != id);
        self.waiting.len() + self.running.len() < before
    }

    /// Requests in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Nothing is waiting or running.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// One pass of the model: fills free places from the queue, reads a part of the prompts, and gives every text
    /// whose prompt is read its next token. A text that ended has left when this returns.
    ///
    /// # Errors
    /// The pass itself failed: all running texts are dropped, without events; those waiting stay.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let free = self.max_batch - self.running.len();
        self.running.extend(self.waiting.drain(..free.min(self.waiting.len())));
        let mut texts = std::mem::take(&mut self.running);
        let counts = self.counts(&texts);
        let mut runs: Vec<Run<'_>> =
            texts.iter_mut().zip(&counts).filter(|(_, n)| **n > 0).map(|(text, &n)| text.run(n)).collect();
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let mut logits = self.model.advance(&mut runs)?.into_iter();
        let mut read: Vec<_> = texts
            .into_iter()
            .zip(counts)
            .map(|(text, n)| (text, n, if n > 0 { logits.next() } else { None }, None))
            .collect();
        parallel::for_each_mut(&mut read, |(text, n, logits_v, choice)| {
            *choice = logits_v.take().and_then(|logits_v| text.choose(*n, logits_v));
        });
        let mut events = Vec::new();
        for (text, _, _, choice) in read {
            let Some(choice) = choice else {
                self.running.push(text);
                continue;
            };
            let (event, text) = text.next(self.model, choice);
            events.push(event);
            self.running.extend(text);
        }
        Ok(events)
    }

    /// How many tokens each text reads in this step: running ones their last, the others a part of their prompts,
    /// the oldest first. Texts with the same prompt read the same part, so that what they have in common is computed
    /// once.
    fn counts(&self, texts: &[Text<'_>]) -> Vec<usize> {
        let mut budget = self.limits.prompt_tokens;
        let mut counts: Vec<Option<usize>> =
            texts.iter().map(|text| (text.generated > 0).then_some(1)).collect();
        for first in 0..texts.len() {
            if counts[first].is_some() {
                continue;
            }
            let (prompt, read) = (&texts[first].unread, texts[first].read);
            let alike = |text: &Text<'_>| text.generated == 0 && text.read == read && text.unread == *prompt;
            let twins: Vec<usize> = (first..texts.len()).filter(|&i| alike(&texts[i])).collect();
            // At least one token each: a crowd of twins shall not wait for ever.
            let share = if budget == 0 { 0 } else { (budget / twins.len()).max(1) };
            let n = share.min(prompt.len() - read);
            budget = budget.saturating_sub(n * twins.len());
            twins.iter().for_each(|&i| counts[i] = Some(n));
        }
        counts.into_iter().map(|n| n.expect("every text was counted")).collect()
    }
}

/// A text being read or continued.
struct Text<'m> {
    id: RequestId,
    sequence: Sequence,
    /// The prompt, then the last token chosen.
    unread: Vec<u32>,
    /// How many of `unread` the sequence has read.
    read: usize,
    generated: usize,
    /// New tokens at most.
    room: usize,
    sampler: Sampler,
    /// None for a model without tokeniser.
    text: Option<TextStream<'m>>,
}

impl<'m> Text<'m> {
    fn new(model: &'m Model, id: RequestId, request: Request) -> Result<Self> {
        let Request { prompt, edits, sampling, max_tokens, stop } = request;
        if prompt.is_empty() {
            return Err(out_of_range("prompt", "empty", "one token or more"));
        }
        at_least_one("max_tokens", max_tokens)?;
        model.check_tokens(&prompt, prompt.len() + 1)?;
        check_stops(&stop)?;
        let text = match model.tokenizer() {
            Ok(tokenizer) => Some(TextStream::new(tokenizer.decode_stream(), stop)),
            Err(e) if !stop.is_empty() => return Err(e),
            Err(_) => None,
        };
        Ok(Self {
            id,
            sequence: model.new_sequence(edits)?,
            room: max_tokens.min(model.config().context - prompt.len()),
            sampler: Sampler::new(sampling, &prompt)?,
            unread: prompt,
            read: 0,
            generated: 0,
            text,
        })
    }

    fn run(&mut self, n: usize) -> Run<'_> {
        Run { sequence: &mut self.sequence, tokens: &self.unread[self.read..self.read + n] }
    }

    /// Chooses the next token after `n` more tokens were read; none while some of the prompt is left.
    fn choose(&mut self, n: usize, logits_v: Result<Vec<f32>>) -> Option<Result<Choice>> {
        self.read += n;
        match logits_v {
            Ok(_) if self.read < self.unread.len() => None,
            Ok(logits_v) => Some(self.sampler.sample(&logits_v)),
            Err(error) => Some(Err(error)),
        }
    }

    /// Takes up the next token. Gives the text back unless it ended.
    fn next(mut self, model: &Model, choice: Result<Choice>) -> (Event, Option<Self>) {
        let id = self.id;
        let choice = match choice {
            Ok(choice) => choice,
            Err(error) => return (Event { id, news: Err(error) }, None),
        };
        let token = choice.token;
        self.generated += 1;
        self.unread = vec![token];
        self.read = 0;
        let mut finish = (self.generated == self.room).then_some(Finish::Length);
        let mut piece = String::new();
        if let Some(mut stream) = self.text.take() {
            let shown = match model.tokenizer().is_ok_and(|t| t.is_end(token)) {
                true => {
                    finish = Some(Finish::End);
                    Default::default()
                }
                false => stream.push(token),
            };
            piece = shown.text;
            if shown.stopped {
                finish = Some(Finish::Stop);
            } else if finish.is_some() {
                let rest = stream.finish();
                piece.push_str(&rest.text);
                finish = if rest.stopped { Some(Finish::Stop) } else { finish };
            } else {
                self.text = Some(stream);
            }
        }
        let text = Some(piece).filter(|p| !p.is_empty());
        let news = Ok(NewToken { token, logprob: choice.logprob, text, finish });
        (Event { id, news }, finish.is_none().then_some(self))
    }
}

fn out_of_range(name: &str, found: impl ToString, allowed: impl ToString) -> ModelError {
    let (name, found, allowed) = (name.to_owned(), found.to_string(), allowed.to_string());
    ModelError::OutOfRange { name, found, allowed }
}

fn at_least_one(name: &str, value: usize) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(out_of_range(name, 0, "1 or more")) }
}

fn check_stops(stops: &[String]) -> Result<()> {
    if stops.len() > MAX_STOPS {
        return Err(out_of_range("stop", format!("{} texts", stops.len()), format!("up to {MAX_STOPS}")));
    }
    match stops.iter().find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        Some(s) => Err(out_of_range(
            "stop",
            format!("a text of {} bytes", s.len()),
            format!("1 to {MAX_STOP_BYTES}"),
        )),
        None => Ok(()),
    }
}

impl Model {
    /// Continues all of `requests`, up to `max_batch` at a time, and gives the completions in their order.
    /// `on_event` sees every token as it comes; [`RequestId`] is the request's index.
    ///
    /// # Errors
    /// The first request that cannot be run, before any is; the first that fails while it runs;
    /// [`ModelError::Interrupted`] when `on_event` breaks. [`Batcher`] keeps the other requests going instead.
    pub fn generate(
        &self,
        requests: Vec<Request>,
        max_batch: usize,
        on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>> {
        let mut batcher = Batcher::new(self, max_batch, Limits::default())?;
        let mut completions = Vec::with_capacity(requests.len());
        for request in requests {
            batcher.submit(request)?;
            completions.push(Completion::default());
        }
        while !batcher.is_idle() {
            for event in batcher.step()? {
                if on_event(&event).is_break() {
                    return Err(ModelError::Interrupted);
                }
                completions[event.id.0 as usize].push(&event.news?);
            }
        }
        Ok(completions)
    }
}

impl Completion {
    /// Adds a token; a completion is the default one with all of its request's tokens added.
    pub fn push(&mut self, new: &NewToken) {
        self.tokens.push(new.token);
        self.logprobs.push(new.logprob);
        self.text.push_str(new.text.as_deref().unwrap_or_default());
        self.finish = new.finish.unwrap_or(self.finish);
    }
}
