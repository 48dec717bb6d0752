//! Many texts continued at once: requests wait, run together in one batch, and leave it as they finish.

mod pace;
mod prefix;
mod text;

use crate::sample::{Choice, Sampler, Sampling, TokenLogprob, log_probs_of};
use crate::{Edit, Model, ModelError, Result, Run, Sequence};
use pace::Pace;
use prefix::PrefixCache;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;
use steerkit_kernels::parallel;
use text::TextStream;

pub use prefix::PrefixStats;

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
    /// How many of the most likely tokens are reported with each token.
    pub top_logprobs: usize,
    /// Whether the prompt's own tokens are reported ([`NewToken::prompt`]).
    pub prompt_logprobs: bool,
    /// Goes on after a token that ends a response.
    pub ignore_end: bool,
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
    /// The most likely tokens at its place, as many as [`Request::top_logprobs`] asks for.
    pub top: Vec<TokenLogprob>,
    /// With the first new token, where [`Request::prompt_logprobs`] asks for them: the prompt's tokens but the first,
    /// which nothing predicts.
    pub prompt: Vec<PromptToken>,
}

/// A token of a prompt as the model saw it coming.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    /// Log-probability of the token in nats ([`crate::Choice::logprob`]).
    pub logprob: f32,
    /// The most likely tokens at its place.
    pub top: Vec<TokenLogprob>,
}

/// How much a [`Batcher`] takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that may wait for a place in the batch.
    pub waiting: usize,
    /// Prompt tokens that one step reads, over all sequences: what a running text waits for at most between two
    /// of its tokens.
    pub prompt_tokens: usize,
    /// The same while some text is being continued, where that is fewer.
    pub prompt_tokens_beside: usize,
    /// While some text is being continued, so few prompt tokens are read that a step takes about this many times as
    /// long as one without prompts, as far as the steps before tell; 16 are always read. None: no such limit.
    pub slowdown_beside: Option<u32>,
    /// Tokens of ended texts whose keys and values are kept for texts that begin alike; 0 keeps none.
    pub cached_tokens: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting: usize::MAX,
            prompt_tokens: 256,
            prompt_tokens_beside: usize::MAX,
            slowdown_beside: None,
            cached_tokens: 0,
        }
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
    prefixes: PrefixCache,
    pace: Pace,
}

/// Rows of a prompt whose logits one pass gives for one text at most.
const SCORED_ROWS: usize = 64;

impl<'m> Batcher<'m> {
    /// An empty batch of up to `max_batch` texts.
    ///
    /// # Errors
    /// `max_batch` or a limit on prompt tokens of 0.
    pub fn new(model: &'m Model, max_batch: usize, limits: Limits) -> Result<Self> {
        at_least_one("max_batch", max_batch)?;
        at_least_one("prompt_tokens", limits.prompt_tokens)?;
        at_least_one("prompt_tokens_beside", limits.prompt_tokens_beside)?;
        let (waiting, running) = (VecDeque::new(), Vec::new());
        let prefixes = PrefixCache::new(limits.cached_tokens);
        Ok(Self { model, max_batch, limits, submitted: 0, waiting, running, prefixes, pace: Pace::default() })
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

    /// Tokens that the sequences of the batch hold.
    pub fn tokens_held(&self) -> usize {
        self.running.iter().map(|text| text.sequence.len()).sum()
    }

    /// What the prefix cache did so far.
    pub fn prefix_stats(&self) -> PrefixStats {
        self.prefixes.stats
    }

    /// The requests in the queue, in order.
    pub fn waiting_ids(&self) -> impl Iterator<Item = RequestId> {
        self.waiting.iter().map(|text| text.id)
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
        self.admit()?;
        let began = Instant::now();
        let mut texts = std::mem::take(&mut self.running);
        let counts = self.counts(&texts);
        let written = texts.iter().filter(|text| !text.reads_prompt()).count();
        let prompt_rows = counts.iter().sum::<usize>() - written;
        let read = texts.iter_mut().zip(&counts).filter(|(_, n)| **n > 0);
        let (wanted, mut runs): (Vec<usize>, Vec<Run<'_>>) =
            read.map(|(text, &n)| (text.wanted(n), text.run(n))).unzip();
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let mut logits = self.model.advance_with(&mut runs, &wanted)?.into_iter();
        let mut passes: Vec<Pass<'m>> = texts
            .into_iter()
            .zip(counts)
            .map(|(text, n)| Pass {
                logits_rv: if n > 0 { logits.next() } else { None },
                text,
                n,
                scores: Vec::new(),
                choice: None,
            })
            .collect();
        self.score_prompts(&mut passes);
        parallel::for_each_mut(&mut passes, |pass| pass.choose(self.model.config().vocab));
        let mut events = Vec::new();
        for Pass { mut text, choice, .. } in passes {
            let Some(choice) = choice else {
                self.running.push(text);
                continue;
            };
            let news = choice.and_then(|chosen| guarded(|| Ok(text.next(self.model, chosen))));
            let ended = news.as_ref().ok().map(|new| new.finish.is_some());
            events.push(Event { id: text.id, news });
            match ended {
                Some(false) => self.running.push(text),
                Some(true) => self.prefixes.keep(text.sequence),
                None => {}
            }
        }
        if written > 0 {
            self.pace.note(prompt_rows, began.elapsed());
        }
        Ok(events)
    }

    /// Fills free places from the queue. What an earlier text has read of a prompt is not read again.
    fn admit(&mut self) -> Result<()> {
        while self.running.len() < self.max_batch {
            let Some(mut text) = self.waiting.pop_front() else { return Ok(()) };
            if !text.scores_prompt
                && let Some(begun) = self.prefixes.begin(self.model, &text.unread, text.sequence.edits())?
            {
                text.read = begun.len();
                text.sequence = begun;
            }
            self.running.push(text);
        }
        Ok(())
    }

    /// Log-probabilities of the prompt tokens that the rows of this pass predict.
    fn score_prompts(&self, passes: &mut [Pass<'m>]) {
        let rows = |(i, pass): (usize, &Pass<'m>)| (0..pass.predicted()).map(move |row| (i, row));
        let rows: Vec<(usize, usize)> = passes.iter().enumerate().flat_map(rows).collect();
        let vocab = self.model.config().vocab;
        let scores = parallel::map(rows.len(), |at| {
            let (i, row) = rows[at];
            passes[i].score(row, vocab)
        });
        for ((i, _), score) in rows.into_iter().zip(scores) {
            passes[i].scores.extend(score);
        }
    }

    /// How many tokens each text reads in this step: running ones their last, the others a part of their prompts,
    /// the oldest first. Texts with the same prompt read the same part, so that what they have in common is computed
    /// once.
    fn counts(&self, texts: &[Text<'_>]) -> Vec<usize> {
        let writes = texts.iter().any(|text| text.generated > 0);
        let paced = self.limits.slowdown_beside.map_or(usize::MAX, |factor| self.pace.rows(factor));
        let beside = if writes { self.limits.prompt_tokens_beside.min(paced) } else { usize::MAX };
        let mut budget = self.limits.prompt_tokens.min(beside);
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
            let rows = if twins.iter().any(|&i| texts[i].scores_prompt) { SCORED_ROWS } else { usize::MAX };
            let n = share.min(prompt.len() - read).min(rows);
            budget = budget.saturating_sub(n * twins.len());
            twins.iter().for_each(|&i| counts[i] = Some(n));
        }
        counts.into_iter().map(|n| n.expect("every text was counted")).collect()
    }
}

/// Runs the computation for one text; a panic is that text's error.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(ModelError::Panicked(said.unwrap_or("a panic without a message").to_owned()))
    })
}

/// A text in one step.
struct Pass<'m> {
    text: Text<'m>,
    /// Tokens that it read.
    n: usize,
    /// Logits of its last rows, `[r, v]`.
    logits_rv: Option<Result<Vec<f32>>>,
    /// Of the prompt tokens that these rows predict.
    scores: Vec<PromptToken>,
    choice: Option<Result<Chosen>>,
}

/// The next token of a text, and the likeliest at its place.
struct Chosen {
    choice: Choice,
    top: Vec<TokenLogprob>,
}

impl Pass<'_> {
    /// How many tokens of the prompt the rows of this pass predict that shall be reported.
    fn predicted(&self) -> usize {
        let read =
            matches!(self.logits_rv, Some(Ok(_))) && self.text.reads_prompt() && self.text.scores_prompt;
        if read { self.n.min(self.text.unread.len() - 1 - self.text.read) } else { 0 }
    }

    fn score(&self, row: usize, vocab: usize) -> Option<PromptToken> {
        let logits_rv = self.logits_rv.as_ref()?.as_ref().ok()?;
        let target = self.text.unread[self.text.read + row + 1];
        let (own, top) = log_probs_of(&logits_rv[row * vocab..][..vocab], target, self.text.top_logprobs);
        Some(PromptToken { logprob: own.logprob, top })
    }

    /// Takes note of what was read and chooses the next token; none while some of the prompt is left.
    fn choose(&mut self, vocab: usize) {
        let text = &mut self.text;
        text.read += self.n;
        text.prompt.append(&mut self.scores);
        self.choice = match self.logits_rv.take() {
            None => None,
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(_)) if text.read < text.unread.len() => None,
            Some(Ok(logits_rv)) => Some(guarded(|| {
                let logits_v = &logits_rv[logits_rv.len() - vocab..];
                let choice = text.sampler.sample(logits_v)?;
                let top = match text.top_logprobs {
                    0 => Vec::new(),
                    count => log_probs_of(logits_v, choice.token, count).1,
                };
                Ok(Chosen { choice, top })
            })),
        };
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
    top_logprobs: usize,
    scores_prompt: bool,
    /// The scored tokens of the prompt so far.
    prompt: Vec<PromptToken>,
    ignore_end: bool,
    /// None for a model without tokeniser.
    text: Option<TextStream<'m>>,
}

impl<'m> Text<'m> {
    fn new(model: &'m Model, id: RequestId, request: Request) -> Result<Self> {
        let Request { prompt, edits, sampling, max_tokens, stop, .. } = request;
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
            top_logprobs: request.top_logprobs,
            scores_prompt: request.prompt_logprobs,
            prompt: Vec::new(),
            ignore_end: request.ignore_end,
            text,
        })
    }

    fn run(&mut self, n: usize) -> Run<'_> {
        Run { sequence: &mut self.sequence, tokens: &self.unread[self.read..self.read + n] }
    }

    fn reads_prompt(&self) -> bool {
        self.generated == 0
    }

    /// Of how many of the next `n` tokens the logits are needed.
    fn wanted(&self, n: usize) -> usize {
        match self.reads_prompt() && self.scores_prompt {
            true => n,
            false => usize::from(self.read + n == self.unread.len()),
        }
    }

    /// Takes up the next token.
    fn next(&mut self, model: &Model, chosen: Chosen) -> NewToken {
        let Chosen { choice: Choice { token, logprob }, top } = chosen;
        self.generated += 1;
        self.unread = vec![token];
        self.read = 0;
        let mut finish = (self.generated == self.room).then_some(Finish::Length);
        let mut piece = String::new();
        if let Some(mut stream) = self.text.take() {
            let ends = !self.ignore_end && model.tokenizer().is_ok_and(|t| t.is_end(token));
            let shown = match ends {
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
        NewToken { token, logprob, text, finish, top, prompt: std::mem::take(&mut self.prompt) }
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

#[cfg(test)]
mod tests;
