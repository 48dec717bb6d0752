//! The thread that owns the batch: it takes requests from the HTTP side, runs the decoder, and hands tokens back.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use steerkit_model::{Batcher, Event, Limits, Model, ModelError, NewToken, Request, RequestId};
use tokio::sync::mpsc::UnboundedSender;

use crate::metrics::Metrics;

/// News of one of a request's texts: which, and its next token or the error that ended it.
pub(crate) type News = (usize, Result<NewToken, ModelError>);

/// Where the news of a text go.
pub(crate) trait Sink: Send {
    /// Nobody wants the text any more.
    fn is_closed(&self) -> bool;
    fn send(&self, news: Result<NewToken, ModelError>);
}

/// A text of a request, by its number there.
pub(crate) struct Channel {
    pub(crate) index: usize,
    pub(crate) news: UnboundedSender<News>,
}

impl Sink for Channel {
    fn is_closed(&self) -> bool {
        self.news.is_closed()
    }

    fn send(&self, news: Result<NewToken, ModelError>) {
        // A receiver that has gone is noticed before the next step.
        let _ = self.news.send((self.index, news));
    }
}

/// A text to write.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) sink: Box<dyn Sink>,
    /// Its place among the texts that are running or waiting.
    pub(crate) place: Place,
}

/// A place among the texts that run or wait; free again when dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

enum Command {
    Run(Vec<Job>),
    /// Ends all texts with an error.
    Abort,
}

/// What the HTTP side holds of the engine.
pub(crate) struct Engine {
    commands: mpsc::Sender<Command>,
    /// Texts that run or wait.
    taken: Arc<AtomicUsize>,
    places: usize,
}

/// How much the engine takes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    /// Texts written at the same time.
    pub(crate) batch: usize,
    /// Texts that may wait.
    pub(crate) queue: usize,
    pub(crate) limits: Limits,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// A batch of 0; no thread to be had.
    pub(crate) fn start(
        model: Arc<Model>,
        capacity: Capacity,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, JoinHandle<()>), ModelError> {
        Self::stepping(model, capacity, metrics, |batcher| batcher.step())
    }

    /// [`Engine::start`] with another step.
    fn stepping(
        model: Arc<Model>,
        capacity: Capacity,
        metrics: Arc<Metrics>,
        step: Step,
    ) -> Result<(Self, JoinHandle<()>), ModelError> {
        // Refuses limits of 0 before the thread does.
        Batcher::new(&model, capacity.batch, capacity.limits)?;
        let (commands, orders) = mpsc::channel();
        let run = move || {
            let batcher = Batcher::new(&model, capacity.batch, capacity.limits);
            let batcher = batcher.expect("the limits were checked");
            Loop { batcher, step, jobs: HashMap::new(), metrics }.run(&orders);
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(run)?;
        let places = capacity.batch + capacity.queue;
        Ok((Self { commands, taken: Arc::default(), places }, thread))
    }

    /// Places for `n` texts; none when fewer are free.
    pub(crate) fn reserve(&self, n: usize) -> Option<Vec<Place>> {
        let reserve = |taken: usize| Some(taken + n).filter(|&sum| sum <= self.places);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve).ok()?;
        Some((0..n).map(|_| Place(Arc::clone(&self.taken))).collect())
    }

    /// Texts of one request at most.
    pub(crate) fn places(&self) -> usize {
        self.places
    }

    /// Puts texts into the queue, together.
    pub(crate) fn run(&self, jobs: Vec<Job>) {
        // An engine that has ended drops the jobs, and their receivers see that.
        let _ = self.commands.send(Command::Run(jobs));
    }

    /// Ends all texts.
    pub(crate) fn abort(&self) {
        let _ = self.commands.send(Command::Abort);
    }
}

/// A text in the batch or the queue.
struct Running {
    sink: Box<dyn Sink>,
    _place: Place,
    since: Instant,
    last_token: Option<Instant>,
    prompt_tokens: usize,
    tokens: usize,
}

/// A pass over the batch: [`Batcher::step`].
type Step = fn(&mut Batcher<'_>) -> Result<Vec<Event>, ModelError>;

struct Loop<'m> {
    batcher: Batcher<'m>,
    step: Step,
    jobs: HashMap<RequestId, Running>,
    metrics: Arc<Metrics>,
}

impl Loop<'_> {
    /// Runs until nobody can send commands any more.
    fn run(mut self, orders: &mpsc::Receiver<Command>) {
        loop {
            if self.batcher.is_idle() {
                match orders.recv() {
                    Ok(command) => self.take(command),
                    Err(_) => return,
                }
            }
            while let Ok(command) = orders.try_recv() {
                self.take(command);
            }
            self.drop_abandoned();
            if !self.batcher.is_idle() {
                self.step();
            }
            self.metrics.set_load(&self.batcher);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Run(jobs) => jobs.into_iter().for_each(|job| self.submit(job)),
            Command::Abort => {
                for (id, job) in std::mem::take(&mut self.jobs) {
                    self.batcher.cancel(id);
                    deliver(&*job.sink, Err(ModelError::Interrupted));
                }
            }
        }
    }

    fn submit(&mut self, Job { request, sink, place }: Job) {
        let prompt_tokens = request.prompt.len();
        match self.batcher.submit(request) {
            Ok(id) => {
                let since = Instant::now();
                let job = Running { sink, _place: place, since, last_token: None, prompt_tokens, tokens: 0 };
                self.jobs.insert(id, job);
            }
            Err(error) => {
                deliver(&*sink, Err(error));
            }
        }
    }

    /// Takes texts out that nobody waits for.
    fn drop_abandoned(&mut self) {
        let (batcher, metrics) = (&mut self.batcher, &self.metrics);
        self.jobs.retain(|&id, job| {
            let closed = job.sink.is_closed();
            if closed {
                batcher.cancel(id);
                metrics.finished("abort");
            }
            !closed
        });
    }

    fn step(&mut self) {
        let events = match catch_unwind(AssertUnwindSafe(|| (self.step)(&mut self.batcher))) {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return self.fail_running(&error.to_string()),
            Err(_) => return self.fail_running("the decoder panicked"),
        };
        self.metrics.set_load(&self.batcher);
        for Event { id, news } in events {
            self.hand_out(id, news);
        }
    }

    /// Passes news on. A request that fails here fails alone.
    fn hand_out(&mut self, id: RequestId, news: Result<NewToken, ModelError>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let now = Instant::now();
        let finish = match &news {
            Ok(new) => {
                match job.last_token.replace(now) {
                    None => self.metrics.first_token(now - job.since, job.prompt_tokens),
                    Some(last) => self.metrics.next_token(now - last),
                }
                job.tokens += 1;
                new.finish.map(|finish| match finish {
                    steerkit_model::Finish::Length => "length",
                    _ => "stop",
                })
            }
            Err(_) => Some("error"),
        };
        let delivered = deliver(&*job.sink, news);
        if let Some(reason) = finish {
            self.metrics.finished(reason);
            self.metrics.request_done(job.since.elapsed(), job.tokens);
            self.jobs.remove(&id);
        } else if !delivered {
            self.batcher.cancel(id);
            self.metrics.finished("error");
            self.jobs.remove(&id);
        }
    }

    /// The batch is lost; the queue is not.
    fn fail_running(&mut self, message: &str) {
        let waiting: Vec<RequestId> = self.batcher.waiting_ids().collect();
        let lost: Vec<RequestId> = self.jobs.keys().copied().filter(|id| !waiting.contains(id)).collect();
        for id in lost {
            self.batcher.cancel(id);
            self.hand_out(id, Err(ModelError::Panicked(message.to_owned())));
        }
    }
}

/// Sends news; false when the sink panicked.
fn deliver(sink: &dyn Sink, news: Result<NewToken, ModelError>) -> bool {
    catch_unwind(AssertUnwindSafe(|| sink.send(news))).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Mutex;
    use std::time::Duration;
    use steerkit_model::OpenOptions;

    fn model() -> Arc<Model> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/data/tiny-llama-gguf/tiny-llama-f32.gguf");
        Arc::new(Model::open(&path, &OpenOptions::default()).unwrap())
    }

    fn request() -> Request {
        Request { prompt: vec![5, 6, 7], max_tokens: 12, ignore_end: true, ..Request::default() }
    }

    fn alone(model: &Model) -> Vec<u32> {
        let all = model.generate(vec![request()], 1, &mut |_| std::ops::ControlFlow::Continue(()));
        all.unwrap().remove(0).tokens
    }

    /// All places are free again: a moment after the last news of their texts.
    fn all_free(engine: &Engine, places: usize) -> bool {
        (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            engine.reserve(places).is_some()
        })
    }

    /// Collects tokens; panics at token number `panics_at`.
    struct Collect {
        tokens: Arc<Mutex<Vec<u32>>>,
        done: mpsc::Sender<()>,
        panics_at: usize,
    }

    impl Sink for Collect {
        fn is_closed(&self) -> bool {
            false
        }

        fn send(&self, news: Result<NewToken, ModelError>) {
            let new = news.unwrap();
            let mut tokens = self.tokens.lock().unwrap_or_else(|e| e.into_inner());
            tokens.push(new.token);
            if new.finish.is_some() {
                self.done.send(()).unwrap();
            }
            assert!(tokens.len() < self.panics_at, "a bug in one request");
        }
    }

    #[test]
    fn a_panic_in_one_request_leaves_the_others_alone() {
        let model = model();
        let alone = alone(&model);
        let capacity = Capacity { batch: 4, queue: 4, limits: Limits::default() };
        let (engine, thread) = Engine::start(model, capacity, Arc::default()).unwrap();
        let (done, ended) = mpsc::channel();
        let mut all = Vec::new();
        let jobs = (0..3).zip(engine.reserve(3).unwrap()).map(|(i, place)| {
            let tokens = Arc::default();
            all.push(Arc::clone(&tokens));
            let sink = Collect { tokens, done: done.clone(), panics_at: if i == 1 { 4 } else { usize::MAX } };
            Job { request: request(), sink: Box::new(sink), place }
        });
        engine.run(jobs.collect());
        for _ in 0..2 {
            ended.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        let tokens: Vec<Vec<u32>> =
            all.iter().map(|t| t.lock().unwrap_or_else(|e| e.into_inner()).clone()).collect();
        assert_eq!((&tokens[0], &tokens[2]), (&alone, &alone));
        assert_eq!(tokens[1], alone[..4]);
        assert!(all_free(&engine, 8));
        assert!(engine.reserve(9).is_none());
        drop(engine);
        thread.join().unwrap();
    }

    /// Fails once, in the third step.
    fn panics_in_the_third_step(batcher: &mut Batcher<'_>) -> Result<Vec<Event>, ModelError> {
        static STEPS: AtomicUsize = AtomicUsize::new(0);
        assert_ne!(STEPS.fetch_add(1, Ordering::Relaxed), 2, "a bug in the decoder");
        batcher.step()
    }

    #[test]
    fn a_panic_in_the_decoder_ends_the_batch_and_not_the_queue() {
        let model = model();
        let alone = alone(&model);
        let capacity = Capacity { batch: 2, queue: 2, limits: Limits::default() };
        let (engine, thread) =
            Engine::stepping(model, capacity, Arc::default(), panics_in_the_third_step).unwrap();
        let (sender, mut news) = tokio::sync::mpsc::unbounded_channel();
        let jobs = engine.reserve(4).unwrap().into_iter().enumerate().map(|(index, place)| {
            let sink = Box::new(Channel { index, news: sender.clone() });
            Job { request: request(), sink, place }
        });
        engine.run(jobs.collect());
        drop(sender);
        let mut tokens = vec![Vec::new(); 4];
        let mut failed = Vec::new();
        while let Some((index, new)) = news.blocking_recv() {
            match new {
                Ok(new) => tokens[index].push(new.token),
                Err(ModelError::Panicked(_)) => failed.push(index),
                Err(other) => panic!("{other}"),
            }
        }
        failed.sort_unstable();
        assert_eq!(failed, [0, 1]);
        assert_eq!((&tokens[0][..], &tokens[1][..]), (&alone[..2], &alone[..2]));
        assert_eq!((&tokens[2], &tokens[3]), (&alone, &alone), "those in the queue are as if alone");
        assert!(all_free(&engine, 4));
        drop(engine);
        thread.join().unwrap();
    }
}
