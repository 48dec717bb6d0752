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

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
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
/// Threads that ask at most.
const MAX_THREADS: usize = 256;
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
    /// Prices and cap.
    pub meter: Meter,
    /// Repetition of calls that failed.
    pub backoff: Backoff,
    /// Calls in flight at most.
    pub concurrency: usize,
    store: Mutex<Option<Store>>,
}

/// What the threads that ask share.
struct Shared<'s> {
    task: &'s str,
    questions: Vec<&'s Question>,
    next: AtomicUsize,
    stop: AtomicBool,
    cancel: &'s AtomicBool,
    answered: AtomicUsize,
    refused: AtomicUsize,
}

/// What came so far, kept by the thread that asked.
struct Kept<'s> {
    store: &'s mut Option<Store>,
    records: HashMap<String, Record>,
    /// Questions answered by the store.
    stored: usize,
    on_answer: &'s mut dyn FnMut(usize),
}

impl<'a> Asker<'a> {
    /// Asks `responder` one question at a time, for nothing and without a cap; answers go to `store`, and without one
    /// are asked for every time.
    pub fn new(responder: &'a Responder<'a>, store: Option<Store>) -> Self {
        Self {
            responder,
            meter: Meter::default(),
            backoff: Backoff::default(),
            concurrency: 1,
            store: Mutex::new(store),
        }
    }

    fn store(&self) -> MutexGuard<'_, Option<Store>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What asking `questions` takes at most.
    pub fn estimate(&self, questions: &[Question]) -> Estimate {
        let open = open(questions, self.store().as_ref());
        let tokens: Usage = open.iter().map(|q| Usage::bound(&q.prompt, q.decoding.max_tokens)).sum();
        let cost = self.meter.prices().of(tokens);
        Estimate { calls: open.len(), stored: questions.len() - open.len(), tokens, cost }
    }

    /// Answers to all questions, in their order; what is in the store is not asked again, and of equal questions one.
    /// `on_answer` is told how many are answered.
    ///
    /// # Errors
    /// [`AskError`]; those of the store and of a local model; [`ModelError::Interrupted`] when `cancel` is set. What
    /// was answered before is in the store.
    pub fn ask(
        &self,
        task: &str,
        questions: &[Question],
        cancel: &AtomicBool,
        on_answer: &mut dyn FnMut(usize),
    ) -> Result<Vec<Record>> {
        let mut store = self.store();
        let open = open(questions, store.as_ref());
        let stored = questions.len() - open.len();
        self.meter.stored(stored);
        on_answer(stored);
        let known = store.iter().flat_map(|store| questions.iter().filter_map(move |q| store.get(&q.key)));
        let records = known.map(|record| (record.key.clone(), record.clone())).collect();
        let mut kept = Kept { store: &mut store, records, stored, on_answer };
        let shared = Shared {
            task,
            questions: open,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            cancel,
            answered: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        };
        match self.responder {
            Responder::Endpoint(endpoint) => self.ask_endpoint(endpoint, &shared, &mut kept)?,
            Responder::Local(local) => self.ask_local(local, &shared, &mut kept)?,
        }
        let of =
            |q: &Question| kept.records.get(&q.key).cloned().ok_or_else(|| ModelError::Interrupted.into());
        questions.iter().map(of).collect()
    }

    /// Asks an endpoint from several threads; this one keeps what they bring.
    fn ask_endpoint(&self, endpoint: &Endpoint, shared: &Shared<'_>, kept: &mut Kept<'_>) -> Result<()> {
        let caller = Caller { endpoint, meter: &self.meter, backoff: self.backoff, shared };
        let threads = self.concurrency.clamp(1, MAX_THREADS).min(shared.questions.len());
        let (give, take) = mpsc::channel();
        let mut first = Ok(());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let give = give.clone();
                let caller = &caller;
                scope.spawn(move || caller.work(&give));
            }
            drop(give);
            for brought in take {
                // The first error ends the work; what others bring meanwhile is kept.
                if let Err(error) = brought.and_then(|record| kept.keep(record)) {
                    shared.stop.store(true, Ordering::Relaxed);
                    if first.is_ok() {
                        first = Err(error);
                    }
                }
            }
        });
        first
    }

    /// Asks a local model, a batch at a time.
    fn ask_local(&self, local: &Local<'_>, shared: &Shared<'_>, kept: &mut Kept<'_>) -> Result<()> {
        for batch in shared.questions.chunks(local.batch()) {
            if shared.over() {
                return Ok(());
            }
            let bound = |q: &&Question| Usage::bound(&q.prompt, q.decoding.max_tokens);
            let room = self.meter.reserve(batch.iter().map(bound).sum(), batch.len())?;
            let replies = local.ask(batch, shared.cancel);
            let took: Usage = replies.iter().flatten().flatten().filter_map(|reply| reply.usage).sum();
            self.meter.settle(room, Charge::Answered(Some(took)));
            for (question, reply) in batch.iter().zip(replies?) {
                let too_long = reply.is_none().then(|| "longer than the model's context".to_owned());
                let name = &local.model().identity().name;
                kept.keep(record(shared.task, name, &question.key, reply, too_long))?;
            }
        }
        Ok(())
    }
}

/// The questions that the store does not answer, each once.
fn open<'q>(questions: &'q [Question], store: Option<&Store>) -> Vec<&'q Question> {
    let mut seen = HashSet::new();
    let stored = |key: &str| store.is_some_and(|store| store.get(key).is_some());
    questions.iter().filter(|q| !stored(&q.key) && seen.insert(q.key.as_str())).collect()
}

impl Kept<'_> {
    /// Keeps an answer; a refusal cost nothing and is not stored.
    fn keep(&mut self, record: Record) -> Result<()> {
        if let Some(store) = self.store.as_mut().filter(|_| record.reply.is_some()) {
            store.append(record.clone())?;
        }
        self.records.insert(record.key.clone(), record);
        self.stored += 1;
        (self.on_answer)(self.stored);
        Ok(())
    }
}

impl Shared<'_> {
    /// Whether to begin no more calls.
    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.cancel.load(Ordering::Relaxed)
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
    fn work(&self, give: &mpsc::Sender<Result<Record>>) {
        let shared = self.shared;
        while !shared.over() {
            let i = shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(question) = shared.questions.get(i) else { return };
            let brought = self.one(i, question).transpose();
            let failed = matches!(brought, Some(Err(_)));
            if failed {
                shared.stop.store(true, Ordering::Relaxed);
            }
            // The receiver outlives the threads.
            if brought.is_none_or(|brought| give.send(brought).is_err()) || failed {
                return;
            }
        }
    }

    /// One question, asked until there is an answer; `None` when the work is over before.
    fn one(&self, i: usize, question: &Question) -> Result<Option<Record>> {
        let (shared, model) = (self.shared, self.endpoint.model());
        let bound = Usage::bound(&question.prompt, question.decoding.max_tokens);
        let mut attempt = 1;
        loop {
            let room = self.meter.reserve(bound, 1)?;
            if shared.over() {
                self.meter.settle(room, Charge::NotMade);
                return Ok(None);
            }
            match self.endpoint.call(&question.prompt, &question.decoding) {
                Ok(reply) => {
                    self.meter.settle(room, Charge::Answered(reply.usage));
                    shared.answered.fetch_add(1, Ordering::Relaxed);
                    return Ok(Some(record(shared.task, model, &question.key, Some(reply), None)));
                }
                Err(CallError::Prompt { status, message }) => {
                    self.meter.settle(room, Charge::Nothing);
                    return self.refused(question, status, message).map(Some);
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
    fn refused(&self, question: &Question, status: u16, message: String) -> Result<Record> {
        let refused = self.shared.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if refused >= REFUSALS && self.shared.answered.load(Ordering::Relaxed) == 0 {
            let url = self.endpoint.url().to_owned();
            return Err(AskError::Refused { url, status, message }.into());
        }
        let note = format!("refused with status {status}: {message}");
        Ok(record(self.shared.task, self.endpoint.model(), &question.key, None, Some(note)))
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
