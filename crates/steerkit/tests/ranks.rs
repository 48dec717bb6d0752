//! A run that several processes share, which are threads here: the same bytes however many there are.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::*;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use steerkit::{
    Result, SteerError,
    ranks::{Ranks, Shared},
    train::{Event, Outcome, RunData, Start, train_tokens},
};

#[derive(Debug)]
struct Thread {
    rank: usize,
    count: usize,
    all: Arc<(Barrier, Mutex<Vec<Vec<u8>>>)>,
}

impl Ranks for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn exchange(&self, own: Vec<u8>) -> Vec<Vec<u8>> {
        let (barrier, slots) = &*self.all;
        slots.lock().unwrap()[self.rank] = own;
        barrier.wait();
        let all = slots.lock().unwrap().clone();
        barrier.wait();
        all
    }
}

/// What `work` gives on each of `count` ranks.
fn on_ranks<T: Send>(count: usize, work: impl Fn(usize, Shared) -> T + Sync) -> Vec<T> {
    let all = Arc::new((Barrier::new(count), Mutex::new(vec![Vec::new(); count])));
    std::thread::scope(|scope| {
        let start = |rank| {
            let (work, all) = (&work, Arc::clone(&all));
            scope.spawn(move || work(rank, Some(Arc::new(Thread { rank, count, all }))))
        };
        let threads: Vec<_> = (0..count).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Micro-batches of one or two pairs, several to a step; an evaluation at the end.
const SETTINGS: [(&str, &str); 4] = [
    ("batch", "5"),
    ("micro_batch_rows", "12"),
    ("eval.multipliers", "[-1, 1]"),
    ("checkpoint.every_steps", "1"),
];

fn train(out: &Path, ranks: Shared, start: Start, cancel_after: usize) -> Result<Outcome> {
    let recipe = recipe("auto", out, &SETTINGS);
    let data = RunData { ranks, ..short_data() };
    let (cancel, mut steps) = (AtomicBool::new(false), 0);
    let mut observer = |event: Event<'_>| {
        steps += usize::from(matches!(event, Event::Step { .. }));
        cancel.store(steps >= cancel_after, Ordering::Relaxed);
    };
    train_tokens(start, &tiny_model(), &recipe, &data, &mut observer, &cancel)
}

fn vector(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("vector.safetensors")).unwrap()
}

/// Folders of equal name, which the vector's file holds.
fn folders(root: &Path, name: &str, count: usize) -> Vec<PathBuf> {
    (0..count).map(|rank| root.join(format!("{name}-{rank}")).join("run")).collect()
}

#[test]
fn bytes_do_not_depend_on_the_number_of_ranks() {
    let root = tempfile::tempdir().unwrap();
    let alone = root.path().join("alone").join("run");
    let one = train(&alone, None, Start::New, usize::MAX).unwrap();
    for count in [1, 2, 4] {
        let outs = folders(root.path(), &count.to_string(), count);
        let got = on_ranks(count, |rank, ranks| train(&outs[rank], ranks, Start::New, usize::MAX).unwrap());
        for (out, outcome) in outs.iter().zip(got) {
            assert_eq!(vector(out), vector(&alone), "{count} ranks");
            assert_eq!(outcome.eval, one.eval, "{count} ranks");
        }
    }
}

#[test]
fn a_rank_that_is_stopped_stops_all_and_they_resume_to_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let alone = root.path().join("alone").join("run");
    train(&alone, None, Start::New, usize::MAX).unwrap();
    let outs = folders(root.path(), "stopped", 3);
    let stopped = on_ranks(3, |rank, ranks| {
        train(&outs[rank], ranks, Start::New, if rank == 1 { 1 } else { usize::MAX })
    });
    for got in stopped {
        assert!(matches!(got, Err(SteerError::Interrupted { step: 1, .. })), "{got:?}");
    }
    on_ranks(3, |rank, ranks| train(&outs[rank], ranks, Start::Resume, usize::MAX).unwrap());
    assert!(outs.iter().all(|out| vector(out) == vector(&alone)));
}

#[test]
fn a_rank_that_fails_ends_all() {
    let root = tempfile::tempdir().unwrap();
    let outs = folders(root.path(), "failed", 2);
    let got = on_ranks(2, |rank, ranks| {
        // One rank holds numbers that another does not: its pass cannot be computed.
        let mut data = RunData { ranks, ..short_data() };
        if rank == 1 {
            data.train.pairs.iter_mut().for_each(|pair| pair.chosen[0] = u32::MAX);
        }
        let never = AtomicBool::new(false);
        let recipe = recipe("auto", &outs[rank], &SETTINGS);
        train_tokens(Start::New, &tiny_model(), &recipe, &data, &mut |_: Event<'_>| {}, &never)
    });
    assert!(got.iter().all(Result::is_err), "{got:?}");
    let told = got[0].as_ref().unwrap_err().to_string();
    assert!(told.starts_with("rank 1: "), "{told}");
}
