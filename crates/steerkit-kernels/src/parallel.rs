//! Splitting work over threads.
//!
//! One pool serves the process. The thread that calls [`for_each`] works too; helpers join it when they get a
//! core, and the caller waits only for helpers that did join, so a busy machine slows the work down but does
//! not stall it. A call from inside a task, or from a second thread while the pool is taken, runs inline.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an idle helper watches for new work, and a caller for its helpers' end, before it sleeps: on a machine
/// with other work the core is better given back.
const SPIN: Duration = Duration::from_micros(40);

/// Pieces per thread that a call is cut into when it has many tasks.
const PIECES_PER_THREAD: usize = 16;

static POOL: Pool = Pool {
    threads: AtomicUsize::new(0),
    taken: AtomicBool::new(false),
    epoch: AtomicUsize::new(0),
    busy: AtomicUsize::new(0),
    state: Mutex::new(State { job: None, active: 0, helpers: 0, sleeping: 0, waiting: false }),
    work: Condvar::new(),
    done: Condvar::new(),
};

struct Pool {
    /// Threads in use, the caller included; 0 = not chosen yet.
    threads: AtomicUsize,
    /// A `for_each` owns the pool.
    taken: AtomicBool,
    /// Counts jobs, so that idle helpers can watch without the lock.
    epoch: AtomicUsize,
    /// `State::active`, so that the caller can watch without the lock.
    busy: AtomicUsize,
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
}

struct State {
    job: Option<JobRef>,
    /// Helpers inside the present job.
    active: usize,
    /// Helper threads started so far; they live as long as the process.
    helpers: usize,
    sleeping: usize,
    /// The caller sleeps until `active` is 0.
    waiting: bool,
}

/// One call of `for_each`, on its caller's stack.
struct Job<'f> {
    run: &'f (dyn Fn(usize) + Sync),
    n: usize,
    piece: usize,
    next: AtomicUsize,
    /// Helpers with a smaller index take part.
    helpers: usize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct JobRef(*const Job<'static>);

// SAFETY: the job is shared state made of Sync parts; `Pool::run` keeps it alive until every helper that
// obtained the pointer has left it.
unsafe impl Send for JobRef {}

impl Job<'_> {
    /// Takes pieces until none are left. The first panic ends the job.
    fn work(&self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let start = self.next.fetch_add(self.piece, Ordering::Relaxed);
                if start >= self.n {
                    break;
                }
                (start..(start + self.piece).min(self.n)).for_each(self.run);
            }
        }));
        if let Err(payload) = outcome {
            self.next.store(self.n, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }
}

/// Watches while `go_on`, up to [`SPIN`].
fn spin_while(go_on: impl Fn() -> bool) {
    let since = Instant::now();
    while go_on() && since.elapsed() < SPIN {
        for _ in 0..8 {
            std::hint::spin_loop();
        }
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `job` on this thread and the helpers; the caller has set `taken`.
    fn run(&'static self, job: &Job<'_>) {
        let mut state = self.lock();
        while state.helpers < job.helpers {
            let index = state.helpers;
            let spawned = std::thread::Builder::new()
                .name(format!("steerkit-{}", index + 1))
                .spawn(move || self.help(index));
            if spawned.is_err() {
                break; // fewer helpers than wished: the caller does their share
            }
            state.helpers += 1;
        }
        state.job = Some(JobRef(std::ptr::from_ref(job).cast()));
        self.epoch.fetch_add(1, Ordering::Release);
        let wake = state.sleeping > 0;
        drop(state);
        if wake {
            self.work.notify_all();
        }
        job.work();
        self.lock().job = None;
        // Nobody joins any more, and those that did are in their last pieces.
        spin_while(|| self.busy.load(Ordering::Acquire) > 0);
        let mut state = self.lock();
        state.waiting = true;
        while state.active > 0 {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting = false;
    }

    fn help(&self, index: usize) {
        let mut seen = 0;
        loop {
            spin_while(|| self.epoch.load(Ordering::Acquire) == seen);
            let mut state = self.lock();
            while self.epoch.load(Ordering::Acquire) == seen {
                state.sleeping += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping -= 1;
            }
            seen = self.epoch.load(Ordering::Acquire);
            let Some(job) = state.job else { continue };
            // SAFETY: `state.job` is set, so the job's owner is inside `Pool::run` and has yet to take the lock
            // that we hold; once `active` counts us it waits for us to leave.
            let job = unsafe { &*job.0 };
            if index >= job.helpers {
                continue;
            }
            state.active += 1;
            self.busy.store(state.active, Ordering::Release);
            drop(state);
            job.work();
            let mut state = self.lock();
            state.active -= 1;
            self.busy.store(state.active, Ordering::Release);
            if state.active == 0 && state.waiting {
                self.done.notify_one();
            }
        }
    }
}

/// Threads that [`for_each`] uses, the caller included: what [`set_threads`] chose, else the cores that the
/// system grants this process.
pub fn threads() -> usize {
    match POOL.threads.load(Ordering::Relaxed) {
        0 => {
            let n = std::thread::available_parallelism().map_or(1, usize::from);
            POOL.threads.store(n, Ordering::Relaxed);
            n
        }
        n => n,
    }
}

/// Chooses how many threads [`for_each`] uses from its next call on. Results do not depend on it.
///
/// # Panics
/// When `n` is 0.
pub fn set_threads(n: usize) {
    assert!(n > 0, "at least one thread");
    POOL.threads.store(n, Ordering::Relaxed);
}

/// Runs `f(0), …, f(n - 1)`, each at most once, in any order and on any thread; all of them have run when it
/// returns.
///
/// # Panics
/// When a call of `f` panics: with that call's payload, after running calls have ended. Calls that had not
/// started are skipped.
pub fn for_each(n: usize, f: impl Fn(usize) + Sync) {
    let threads = threads().min(n);
    if threads <= 1 || POOL.taken.swap(true, Ordering::Acquire) {
        (0..n).for_each(f);
        return;
    }
    let job = Job {
        run: &f,
        n,
        piece: (n / (threads * PIECES_PER_THREAD)).max(1),
        next: AtomicUsize::new(0),
        helpers: threads - 1,
        panic: Mutex::new(None),
    };
    POOL.run(&job);
    POOL.taken.store(false, Ordering::Release);
    if let Some(payload) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(payload);
    }
}

/// Calls `f` with every item, by [`for_each`].
///
/// # Panics
/// As [`for_each`].
pub fn for_each_mut<T: Send>(items: &mut [T], f: impl Fn(&mut T) + Sync) {
    crate::shared::for_rows(items, 1, 1, |_, item| f(&mut item[0]));
}

/// `f(0), …, f(n - 1)` computed by [`for_each`].
///
/// # Panics
/// As [`for_each`].
pub fn map<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut results: Vec<Option<T>> = (0..n).map(|_| None).collect();
    crate::shared::for_rows(&mut results, 1, 1, |i, result| result[0] = Some(f(i)));
    results.into_iter().map(|result| result.expect("every call has run")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn each_once(n: usize) {
        let counts: Vec<AtomicU32> = (0..n).map(|_| AtomicU32::new(0)).collect();
        for_each(n, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{n}");
    }

    #[test]
    fn every_index_runs_once() {
        for n in [0, 1, 2, 3, 7, 64, 1000, 12345] {
            each_once(n);
        }
    }

    #[test]
    fn many_short_calls() {
        for _ in 0..5000 {
            each_once(5);
        }
    }

    #[test]
    fn helpers_wake_from_sleep() {
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(2));
            each_once(100);
        }
    }

    #[test]
    fn nested_and_concurrent_calls() {
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        for_each(6, |_| each_once(9));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for bad in [0, 13, 99] {
            let caught = catch_unwind(|| for_each(100, |i| assert!(i != bad, "task {bad}")));
            let payload = caught.expect_err("the panic is passed on");
            assert_eq!(payload.downcast_ref::<String>().map(String::as_str), Some(&*format!("task {bad}")));
            each_once(50);
        }
    }

    #[test]
    fn thread_count_may_change() {
        for n in [1, 4, 2, 3] {
            set_threads(n);
            each_once(100);
        }
    }
}
