//! Asking another model: any OpenAI-compatible endpoint, or a local model in this process.
//!
//! What was answered is never asked for twice ([`Store`]), failures are tried again with growing waits
//! ([`Backoff`]), and nothing is sent that could go over the cap ([`Meter`]).

mod cost;
mod endpoint;
mod error;
mod local;
mod retry;
mod store;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use steerkit_model::ModelError;

use crate::Result;
use cost::Charge;
use endpoint::CallError;

pub use cost::{BYTES_PER_TOKEN, Cap, Estimate, Ledger, Meter, Prices, Usage, estimated_tokens};
pub use endpoint::Endpoint;
pub use error::AskError;
pub use local::Local;
pub use retry::{Backoff, retry_after};
pub use store::{Record, Store};

/// So many prompts refused, and none answered: the fault is not in the prompts.
const REFUSALS: usize = 5;
/// How long a wait goes on after the caller asked to stop, at most.
const SLICE: Duration = Duration::from_millis(50);

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// What the model is and does.
    pub system: String,
    /// The question.
    pub user: String,
    /// How the answer begins: a local model goes on from it, an endpoint is not told.
    pub begin: Option<String>,
}

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoding {
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Seed of the draws, where the endpoint keeps it.
    pub seed: u64,
}

/// A prompt with the key that its answer is stored under.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Hash of everything that the answer depends on.
    pub key: String,
    /// The prompt.
    pub prompt: Prompt,
    /// How its answer is written.
    pub decoding: Decoding,
}

/// An answer as it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    /// The text.
    pub(crate) text: String,
    /// It was as long as allowed, and would have gone on.
    pub(crate) cut: bool,
    /// Tokens, where the endpoint reported them.
    pub(crate) usage: Option<Usage>,
}

/// Who is asked.
pub enum Responder<'m> {
    /// An endpoint.
    Endpoint(Endpoint),
    /// A model of this process.
    Local(Local<'m>),
}

impl Responder<'_> {
    /// The model's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Endpoint(endpoint) => endpoint.model(),
            Self::Local(local) => &local.model().identity().name,
        }
    }

    /// What tells it from others: name and address, or name and hash of the file.
    pub fn identity(&self) -> String {
        match self {
            Self::Endpoint(endpoint) => format!("{} at {}", endpoint.model(), endpoint.url()),
            Self::Local(local) => {
                let identity = local.model().identity();
                format!("local {} sha256:{}", identity.name, identity.file_sha256)
            }
        }
    }

    /// Whether the model runs in this process.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }
}

/// How questions are asked.
pub struct Asker<'a> {
    /// Who is asked.
    pub responder: &'a Responder<'a>,
    /// Where answers are kept; without one they are asked for every time.
    pub store: Option<Store>,
    /// Prices and cap.
    pub meter: Meter,
    /// Repetition of calls that failed.
    pub backoff: Backoff,
    /// Calls in flight at most.
    pub concurrency: usize,
}

/// What the threads that ask share.
struct Shared<'s> {
    task: &'s str,
    /// Questions answered by the store.
    stored: usize,
    questions: Vec<&'s Question>,
    next: AtomicUsize,
    stop: AtomicBool,
    cancel: &'s AtomicBool,
    answered: AtomicUsize,
    refused: AtomicUsize,
    kept: Mutex<Kept<'s>>,
}

/// What came so far.
struct Kept<'s> {
    store: &'s mut Option<Store>,
    records: HashMap<String, Record>,
    on_answer: &'s mut (dyn FnMut(usize) + Send),
    error: Option<crate::SteerError>,
}

impl Asker<'_> {
    /// What asking `questions` takes at most.
    pub fn estimate(&self, questions: &[Question]) -> Estimate {
        let open = self.open(questions);
        let tokens: Usage = open.iter().map(|q| Usage::bound(&q.prompt, q.decoding.max_tokens)).sum();
        let cost = self.meter.prices().of(tokens);
        Estimate { calls: open.len(), stored: questions.len() - open.len(), tokens, cost }
    }

    /// The questions that are not answered in the store, each once.
    fn open<'q>(&self, questions: &'q [Question]) -> Vec<&'q Question> {
        let stored = |key: &str| self.store.as_ref().is_some_and(|store| store.get(key).is_some());
        let mut seen = std::collections::HashSet::new();
        questions.iter().filter(|q| !stored(&q.key) && seen.insert(q.key.as_str())).collect()
    }

    /// Answers to all questions, in their order; what is in the store is not asked again. `on_answer` is told how many
    /// are answered.
    ///
    /// # Errors
    /// [`AskError`]; those of the store and of a local model; [`ModelError::Interrupted`] when `cancel` is set. What
    /// was answered before is in the store.
    pub fn ask(
        &mut self,
        task: &str,
        questions: &[Question],
        cancel: &AtomicBool,
        on_answer: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Vec<Record>> {
        let open = self.open(questions);
        let stored = questions.len() - open.len();
        (0..stored).for_each(|_| self.meter.stored());
        on_answer(stored);
        let mut found: HashMap<String, Record> = HashMap::new();
        if let Some(store) = &self.store {
            found.extend(questions.iter().filter_map(|q| Some((q.key.clone(), store.get(&q.key)?.clone()))));
        }
        let shared = Shared {
            task,
            stored,
            questions: open,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            cancel,
            answered: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            kept: Mutex::new(Kept {
                store: &mut self.store,
                records: HashMap::new(),
                on_answer,
                error: None,
            }),
        };
        match self.responder {
            Responder::Endpoint(endpoint) => {
                let ask = Caller { endpoint, meter: &self.meter, backoff: self.backoff, shared: &shared };
                let threads = self.concurrency.clamp(1, 256).min(shared.questions.len());
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(|| ask.work());
                    }
                });
            }
            Responder::Local(local) => {
                if let Err(error) = ask_local(local, &self.meter, &shared) {
                    shared.fail(error);
                }
            }
        }
        let kept = shared.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = kept.error {
            return Err(error);
        }
        found.extend(kept.records);
        let of = |q: &Question| found.get(&q.key).cloned().ok_or_else(|| ModelError::Interrupted.into());
        questions.iter().map(of).collect()
    }
}

impl Shared<'_> {
    /// Whether to begin no more calls.
    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.cancel.load(Ordering::Relaxed)
    }

    /// Keeps the first error and ends the work.
    fn fail(&self, error: crate::SteerError) {
        self.stop.store(true, Ordering::Relaxed);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.error.get_or_insert(error);
    }

    /// Keeps an answer; a refusal cost nothing and is not stored.
    fn keep(&self, record: Record) -> Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = kept.store.as_mut().filter(|_| record.reply.is_some()) {
            store.append(record.clone())?;
        }
        kept.records.insert(record.key.clone(), record);
        let done = self.stored + kept.records.len();
        (kept.on_answer)(done);
        Ok(())
    }
}

/// The record of an answer.
fn record(task: &str, model: &str, key: &str, reply: Option<Reply>, refusal: Option<String>) -> Record {
    let cut = reply.as_ref().is_some_and(|reply| reply.cut).then(|| "cut at its longest".to_owned());
    Record {
        key: key.into(),
        task: task.into(),
        model: model.into(),
        note: refusal.or(cut),
        usage: reply.as_ref().and_then(|reply| reply.usage),
        reply: reply.map(|reply| reply.text),
    }
}

/// A thread that asks an endpoint.
struct Caller<'a, 's> {
    endpoint: &'a Endpoint,
    meter: &'a Meter,
    backoff: Backoff,
    shared: &'a Shared<'s>,
}

impl Caller<'_, '_> {
    fn work(&self) {
        let shared = self.shared;
        while !shared.over() {
            let i = shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(question) = shared.questions.get(i) else { return };
            if let Err(error) = self.one(i, question) {
                return shared.fail(error);
            }
        }
    }

    /// One question, asked until there is an answer.
    fn one(&self, i: usize, question: &Question) -> Result<()> {
        let (shared, model) = (self.shared, self.endpoint.model());
        let bound = Usage::bound(&question.prompt, question.decoding.max_tokens);
        let mut attempt = 1;
        loop {
            let room = self.meter.reserve(bound, 1)?;
            if shared.over() {
                self.meter.settle(room, Charge::Nothing);
                return Ok(());
            }
            match self.endpoint.call(&question.prompt, &question.decoding) {
                Ok(reply) => {
                    self.meter.settle(room, Charge::Answered(reply.usage));
                    shared.answered.fetch_add(1, Ordering::Relaxed);
                    return shared.keep(record(shared.task, model, &question.key, Some(reply), None));
                }
                Err(CallError::Prompt { status, message }) => {
                    self.meter.settle(room, Charge::Nothing);
                    return self.refused(question, status, message);
                }
                Err(CallError::Always(error)) => {
                    self.meter.settle(room, Charge::Nothing);
                    return Err(error.into());
                }
                Err(CallError::Transient { what, wait, sent }) => {
                    self.meter.settle(room, if sent { Charge::Lost } else { Charge::Nothing });
                    if attempt >= self.backoff.attempts {
                        let url = self.endpoint.url().to_owned();
                        return Err(AskError::Unreachable { url, what, attempts: attempt }.into());
                    }
                    self.sleep(self.backoff.wait(i, attempt, wait));
                    attempt += 1;
                }
            }
        }
    }

    /// A prompt that the endpoint does not take: an answer without text, unless nothing else comes.
    fn refused(&self, question: &Question, status: u16, message: String) -> Result<()> {
        let refused = self.shared.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if refused >= REFUSALS && self.shared.answered.load(Ordering::Relaxed) == 0 {
            let url = self.endpoint.url().to_owned();
            return Err(AskError::Refused { url, status, message }.into());
        }
        let note = format!("refused with status {status}: {message}");
        self.shared.keep(record(self.shared.task, self.endpoint.model(), &question.key, None, Some(note)))
    }

    fn sleep(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while !self.shared.over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(SLICE));
        }
    }
}

/// Asks a local model, a batch at a time.
fn ask_local(local: &Local<'_>, meter: &Meter, shared: &Shared<'_>) -> Result<()> {
    for batch in shared.questions.chunks(local.batch()) {
        if shared.over() {
            return Ok(());
        }
        let bound = |q: &&Question| Usage::bound(&q.prompt, q.decoding.max_tokens);
        let room = meter.reserve(batch.iter().map(bound).sum(), batch.len())?;
        let replies = local.ask(batch, shared.cancel);
        let took = replies.iter().flatten().flatten().filter_map(|reply| reply.usage).sum();
        meter.settle(room, Charge::Answered(Some(took)));
        for (question, reply) in batch.iter().zip(replies?) {
            let too_long = reply.is_none().then(|| "longer than the model's context".to_owned());
            let name = &local.model().identity().name;
            shared.keep(record(shared.task, name, &question.key, reply, too_long))?;
        }
    }
    Ok(())
}
