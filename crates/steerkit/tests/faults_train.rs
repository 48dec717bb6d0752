//! Training that is stopped, killed, disturbed or misled.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use steerkit::{
    SteerError,
    metrics::Record,
    recipe::Recipe,
    train::{Event, RunData, RunLock, Start, train_tokens},
    vector::SteeringVector,
};
use steerkit_model::ErrorKind;

/// 3 epochs of 3 batches (3, 3, 2) with an evaluation and a vector after each, a checkpoint after every step.
fn small_recipe(out: &Path, more: &[(&str, &str)]) -> Recipe {
    let mut settings = vec![
        ("epochs", "3"),
        ("batch", "3"),
        ("optimiser.lr", "0.05"),
        ("optimiser.warmup.steps", "2"),
        ("optimiser.schedule_epochs", "3"),
        ("checkpoint.every_steps", "1"),
        ("micro_batch_rows", "10"),
    ];
    settings.extend(more);
    recipe("official", out, &settings)
}

/// Metrics without the seconds, which no two runs share.
fn metrics(recipe: &Recipe) -> Vec<Record> {
    let text = std::fs::read_to_string(recipe.out.join("metrics.jsonl")).unwrap();
    let record = |line| match serde_json::from_str(line).unwrap() {
        Record::Step(mut r) => {
            r.seconds = 0.0;
            Record::Step(r)
        }
        Record::Eval(mut r) => {
            r.seconds = 0.0;
            Record::Eval(r)
        }
    };
    text.lines().map(record).collect()
}

/// An uninterrupted run in `folder`.
fn reference(folder: &Path) -> Recipe {
    let recipe = small_recipe(&folder.join("whole").join("run"), &[]);
    run(Start::New, &tiny_model(), &recipe, &short_data()).unwrap();
    recipe
}

fn assert_same_run(a: &Recipe, b: &Recipe) {
    assert_eq!(vector_bytes(a), vector_bytes(b));
    assert_eq!(metrics(a), metrics(b));
}

#[test]
fn memory_and_threads_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let want = reference(folder.path());
    for (name, memory, threads) in [("one", "2000", 1), ("three", "2000", 3), ("disk", "0", 2)] {
        steerkit_model::set_threads(threads);
        let recipe = small_recipe(&folder.path().join(name).join("run"), &[("cache.memory_mb", memory)]);
        run(Start::New, &tiny_model(), &recipe, &short_data()).unwrap();
        assert_same_run(&recipe, &want);
    }
}

/// Pairs of a pass share rows, pairs of different passes do not: the same sums in another order.
#[test]
fn shared_rows_change_only_the_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let mut data = short_data();
    for pair in &mut data.train.pairs {
        pair.prompt.splice(0..0, [5, 6, 7]);
    }
    let vector = |rows: &str| {
        let recipe = small_recipe(&folder.path().join(rows).join("run"), &[("micro_batch_rows", rows)]);
        run(Start::New, &tiny_model(), &recipe, &data).unwrap().0.vectors.remove(0).direction
    };
    let (alone, together) = (vector("1"), vector("4096"));
    let size = alone.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert_ne!(alone, together, "the prompts begin alike, so that something is shared");
    for (a, b) in alone.iter().zip(&together) {
        assert!((a - b).abs() <= 1e-4 * size, "{a} {b}");
    }
}

/// Fault 38, and the library's side of 33: stopped after every single event, then resumed, to the end.
#[test]
fn a_run_stopped_anywhere_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let want = reference(folder.path());
    let recipe = small_recipe(&folder.path().join("run"), &[]);
    let (model, data) = (tiny_model(), short_data());
    let mut start = Start::New;
    let mut stops = 0;
    for allowed in [0, 1, 2, 4, 5, 3, 6, 5, 7, 4].into_iter().chain(std::iter::repeat(usize::MAX)) {
        let cancel = AtomicBool::new(allowed == 0);
        let mut seen = 0usize;
        let mut observer = |_: Event<'_>| {
            seen += 1;
            cancel.fetch_or(seen >= allowed, Ordering::Relaxed);
        };
        match train_tokens(start, &model, &recipe, &data, &mut observer, &cancel) {
            Ok(_) => break,
            Err(error) => {
                assert!(matches!(error, SteerError::Interrupted { .. }), "{error}");
                assert_eq!(error.kind(), ErrorKind::Interrupted);
                stops += 1;
            }
        }
        start = Start::Resume;
    }
    assert_eq!(stops, 10);
    assert_same_run(&recipe, &want);
}

/// The child of the next test: trains in the folder that the parent names.
#[test]
fn child_trains() {
    if let Some(out) = std::env::var_os("STEERKIT_TEST_TRAIN_IN") {
        let recipe = small_recipe(Path::new(&out), &[]);
        run(Start::Resume, &tiny_model(), &recipe, &short_data()).unwrap();
    }
}

/// Fault 33: killed at 20 moments, resumed each time, then finished.
#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let want = reference(folder.path());
    let recipe = small_recipe(&folder.path().join("run"), &[]);
    let mut reached = Vec::new();
    for i in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_trains"])
            .env("STEERKIT_TEST_TRAIN_IN", &recipe.out)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(10 + i * 7919 % 400));
        child.kill().unwrap();
        child.wait().unwrap();
        let lines = std::fs::read_to_string(recipe.out.join("metrics.jsonl")).unwrap_or_default();
        reached.push(lines.matches("\"type\":\"step\"").count());
    }
    run(Start::Resume, &tiny_model(), &recipe, &short_data()).unwrap();
    println!("steps of 9 when killed: {reached:?}");
    assert_same_run(&recipe, &want);
}

/// Fault 34.
#[test]
fn a_damaged_checkpoint_falls_back_one() {
    let folder = tempfile::tempdir().unwrap();
    let want = reference(folder.path());
    let (model, data) = (tiny_model(), short_data());
    let recipe = small_recipe(&folder.path().join("run"), &[]);
    let cancel = AtomicBool::new(false);
    let mut stop = |event: Event<'_>| {
        if let Event::Step { record, .. } = event {
            cancel.fetch_or(record.step == 5, Ordering::Relaxed);
        }
    };
    let error = train_tokens(Start::New, &model, &recipe, &data, &mut stop, &cancel).unwrap_err();
    assert!(matches!(error, SteerError::Interrupted { step: 5, total: 9, .. }), "{error}");
    let latest = recipe.out.join("checkpoints/latest.checkpoint");
    let bytes = std::fs::read(&latest).unwrap();
    std::fs::write(&latest, &bytes[..bytes.len() / 2]).unwrap();
    let mut notes = Vec::new();
    let mut observer = |event: Event<'_>| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
    };
    train_tokens(Start::Resume, &model, &recipe, &data, &mut observer, &AtomicBool::new(false)).unwrap();
    assert!(notes.iter().any(|n| n.contains("latest.checkpoint") && n.contains("step 5")), "{notes:?}");
    assert_same_run(&recipe, &want);
}

/// Fault 35: what cannot be written is an error of the file system, and the last checkpoint stays.
#[test]
fn a_folder_that_cannot_be_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error =
        run(Start::New, &tiny_model(), &small_recipe(&file.join("run"), &[]), &short_data()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FileSystem, "{error}");
    assert!(error.to_string().contains("file"), "{error}");

    let recipe = small_recipe(&folder.path().join("run"), &[]);
    std::fs::create_dir_all(&recipe.out).unwrap();
    std::fs::write(recipe.out.join("checkpoints"), "in the way").unwrap();
    let error = run(Start::New, &tiny_model(), &recipe, &short_data()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FileSystem, "{error}");
}

/// Fault 36.
#[test]
fn a_run_that_explodes_stops_with_its_last_finite_vector() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        [("optimiser.lr", "150"), ("optimiser.warmup.steps", "0"), ("optimiser.schedule_epochs", "100")];
    let recipe = small_recipe(&folder.path().join("run"), &settings);
    let error = run(Start::New, &tiny_model(), &recipe, &short_data()).unwrap_err();
    let SteerError::Diverged { step, saved: Some(saved), .. } = &error else { panic!("{error}") };
    assert!(*step > 1, "{error}");
    assert!(SteeringVector::load(saved).unwrap().norm() > 0.0);
    let hint = error.hint().unwrap();
    assert!(hint.contains("optimiser.lr") && hint.contains("objective.beta"), "{hint}");
    assert_eq!(error.kind(), ErrorKind::Diverged);

    let settings = [("optimiser.lr", "1e38"), ("optimiser.warmup.steps", "0")];
    let recipe = small_recipe(&folder.path().join("at once"), &settings);
    let error = run(Start::New, &tiny_model(), &recipe, &short_data()).unwrap_err();
    assert!(matches!(error, SteerError::Diverged { step: 1, saved: None, .. }), "{error}");
}

/// Fault 39.
#[test]
fn another_run_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = reference(folder.path());
    let model = tiny_model();
    let refused = |recipe: &Recipe, data: &RunData| match run(Start::Resume, &model, recipe, data) {
        Err(SteerError::ResumeMismatch { differences, .. }) => differences.join("\n"),
        other => panic!("{:?}", other.err()),
    };
    let changed = small_recipe(&recipe.out, &[("seed", "7"), ("objective.beta", "0.2")]);
    let differences = refused(&changed, &short_data());
    assert_eq!(differences, "objective.beta: 0.1 -> 0.2\nseed: 42 -> 7");
    let mut data = short_data();
    data.train.pairs[3].chosen[0] += 1;
    let differences = refused(&recipe, &data);
    assert!(differences.starts_with("train tokens: ") && differences.contains(" -> "), "{differences}");
    // What cannot change the result may change.
    let same = small_recipe(&recipe.out, &[("cache.memory_mb", "1")]);
    run(Start::Resume, &model, &same, &short_data()).unwrap();
}

/// Fault 39, second half.
#[test]
fn two_runs_in_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = reference(folder.path());
    let (model, data) = (tiny_model(), short_data());
    let bytes = vector_bytes(&recipe);
    let error = run(Start::New, &model, &recipe, &data).unwrap_err();
    assert!(matches!(error, SteerError::RunExists { .. }), "{error}");
    let lock = RunLock::take(&recipe.out).unwrap();
    for start in [Start::New, Start::Overwrite, Start::Resume] {
        let error = run(start, &model, &recipe, &data).unwrap_err();
        assert!(matches!(error, SteerError::Locked { .. }), "{error}");
    }
    drop(lock);
    assert_eq!(vector_bytes(&recipe), bytes);
    run(Start::Overwrite, &model, &recipe, &data).unwrap();
    assert_eq!(vector_bytes(&recipe), bytes);
}

#[test]
fn cached_residual_streams_are_used_again_and_never_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let want = reference(folder.path());
    let cache = folder.path().join("cache");
    let (model, data) = (tiny_model(), short_data());
    // The run's folder has one name throughout: it is the name in the vector's file.
    let train = |name: &str, memory: &str| {
        let more = [
            ("cache.enabled", "true"),
            ("cache.folder", cache.to_str().unwrap()),
            ("cache.memory_mb", memory),
        ];
        let recipe = small_recipe(&folder.path().join(name).join("run"), &more);
        let (mut computed, mut notes) = (BTreeSet::new(), Vec::new());
        let mut observer = |event: Event<'_>| match event {
            Event::Caching { split, .. } => drop(computed.insert(split.to_owned())),
            Event::Note(note) if note.contains("residual streams") => notes.push(note),
            _ => {}
        };
        train_tokens(Start::New, &model, &recipe, &data, &mut observer, &AtomicBool::new(false)).unwrap();
        assert_same_run(&recipe, &want);
        (computed.len(), notes)
    };
    let files = || -> Vec<_> { std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect() };
    assert_eq!(train("first", "100"), (2, vec![]));
    assert_eq!(files().len(), 2);
    assert_eq!(train("again", "100"), (0, vec![]));
    assert_eq!(train("from disk", "0"), (0, vec![]));
    for (i, damage) in [8usize, 50, 2000].into_iter().enumerate() {
        for file in files() {
            let mut bytes = std::fs::read(&file).unwrap();
            let at = damage.min(bytes.len() - 1);
            bytes[at] ^= 1;
            std::fs::write(file, bytes).unwrap();
        }
        let (computed, notes) = train(&format!("damaged {i}"), "100");
        assert_eq!((computed, notes.len()), (2, 2), "{notes:?}");
    }
    let cut = files().remove(0);
    std::fs::write(&cut, &std::fs::read(&cut).unwrap()[..100]).unwrap();
    assert_eq!(train("cut", "0").0, 1);
    std::fs::remove_dir_all(&cache).unwrap();
    std::fs::write(&cache, "a file in the way").unwrap();
    let (computed, notes) = train("no folder", "100");
    assert_eq!(computed, 2);
    assert!(notes.iter().all(|n| n.contains("not kept") || n.contains("ignored")), "{notes:?}");
}

#[test]
fn residual_streams_in_bf16_take_half_the_space_and_give_one_vector() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (tiny_model(), short_data());
    let recipe = |name: &str, precision: &str, more: &[(&str, &str)]| {
        let (cache, precision) = (folder.path().join(precision), format!("{precision:?}"));
        let mut all = vec![
            ("cache.enabled", "true"),
            ("cache.folder", cache.to_str().unwrap()),
            ("cache.precision", precision.as_str()),
        ];
        all.extend(more);
        small_recipe(&folder.path().join(name).join("run"), &all)
    };
    let trained = |recipe: &Recipe| {
        run(Start::New, &model, recipe, &data).unwrap();
        vector_bytes(recipe)
    };
    let bytes_of_files = |precision: &str| -> u64 {
        let files = std::fs::read_dir(folder.path().join(precision)).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };

    let exact = recipe("exact", "f32", &[]);
    let made = recipe("made", "bf16", &[]);
    let (exact_bytes, bytes) = (trained(&exact), trained(&made));
    assert_ne!(exact_bytes, bytes);
    // Two files with 44 bytes each and 24 bytes for each of twelve pairs, and the rows.
    let headers = 2 * 44 + 12 * 24;
    assert_eq!(bytes_of_files("f32") - headers, 2 * (bytes_of_files("bf16") - headers));

    for (name, more) in [
        ("found", [("cache.memory_mb", "100"), ("seed", "42")]),
        ("read from disk", [("cache.memory_mb", "0"), ("seed", "42")]),
        ("never kept", [("cache.enabled", "false"), ("seed", "42")]),
    ] {
        assert_eq!(trained(&recipe(name, "bf16", &more)), bytes, "{name}");
    }

    let stopped = recipe("stopped", "bf16", &[]);
    let stop = AtomicBool::new(false);
    let mut observer = |event: Event<'_>| {
        if let Event::Step { record, .. } = event {
            stop.store(record.step == 4, Ordering::Relaxed);
        }
    };
    train_tokens(Start::New, &model, &stopped, &data, &mut observer, &stop).unwrap_err();
    let other = recipe("stopped", "f32", &[]);
    let error = run(Start::Resume, &model, &other, &data).unwrap_err();
    assert!(error.to_string().contains("cache.precision"), "{error}");
    run(Start::Resume, &model, &stopped, &data).unwrap();
    assert_eq!(vector_bytes(&stopped), bytes);

    let vector = |recipe: &Recipe| SteeringVector::load(&recipe.out.join("vector.safetensors")).unwrap();
    let (a, b) = (vector(&exact).direction, vector(&made).direction);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    println!("cosine with the vector from f32: {cosine:.6}");
    assert!(cosine >= 0.999, "{cosine}");
}
