//! Kills, signals, full disks and closed pipes.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]
#![cfg(unix)]

mod common;

use common::{Sandbox, run, stderr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn vector(sandbox: &Sandbox, run: &str) -> Vec<u8> {
    std::fs::read(sandbox.path(run).join("vector.safetensors")).unwrap()
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

/// Waits until the run has written so many lines of metrics.
fn wait_for_metrics(folder: &Path, lines: usize) {
    let began = Instant::now();
    let count = || std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default().lines().count();
    while count() < lines {
        assert!(began.elapsed() < Duration::from_secs(60), "the run does not get going");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The vector is called like its folder, so runs that are compared share the last part of their paths.
#[test]
fn killed_twenty_times_and_resumed_the_vector_has_the_same_bytes() {
    let sandbox = Sandbox::new(8);
    let began = Instant::now();
    run(sandbox.train("whole/run", &[]), 0);
    // Moments that fall everywhere: into loading, caching, steps, checkpoints and the last evaluation.
    let length = began.elapsed();
    let mut state = 0x2545_f491_u32;
    for attempt in 0..20 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let delay = length.mul_f64(f64::from(state >> 16) / 65536.0);
        let more = ["--set", "checkpoint.every_steps=1", "--resume"];
        let mut command = sandbox.train("killed/run", if attempt == 0 { &more[..2] } else { &more });
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(delay);
        // It may have ended already; that is a moment like any other.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(sandbox.train("killed/run", &["--set", "checkpoint.every_steps=1", "--resume"]), 0);
    assert_eq!(vector(&sandbox, "whole/run"), vector(&sandbox, "killed/run"));
}

#[test]
fn sigterm_and_ctrl_c_save_the_state_and_say_how_to_go_on() {
    let sandbox = Sandbox::new(8);
    run(sandbox.train("whole/run", &["--set", "epochs=40"]), 0);
    for name in ["TERM", "INT"] {
        let folder = format!("{name}/run");
        let mut command = sandbox.train(&folder, &["--set", "epochs=40"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for_metrics(&sandbox.path(&folder), 3);
        let began = Instant::now();
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        let resume = format!("hint: resume with: steerkit train --out {folder} --resume");
        assert!(stderr(&output).contains(&resume), "{}", stderr(&output));
        assert!(!sandbox.path(&folder).join("vector.safetensors").exists());
        run(sandbox.steerkit(&["train", "--out", &folder, "--resume"]), 0);
        assert_eq!(vector(&sandbox, "whole/run"), vector(&sandbox, &folder));
    }
}

#[test]
fn a_folder_with_a_run_is_not_overwritten_by_chance() {
    let sandbox = Sandbox::new(8);
    run(sandbox.train("run", &[]), 0);
    let output = run(sandbox.train("run", &[]), 3);
    assert!(stderr(&output).contains("--overwrite"), "{}", stderr(&output));
    run(sandbox.train("run", &["--overwrite"]), 0);
    let output = run(sandbox.train("run", &["--resume", "--seed", "7"]), 3);
    assert!(stderr(&output).contains("seed: 42 -> 7"), "{}", stderr(&output));
}

#[test]
fn two_runs_in_one_folder_are_refused() {
    let sandbox = Sandbox::new(16);
    let mut command = sandbox.train("run", &["--set", "epochs=400"]);
    let mut first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_metrics(&sandbox.path("run"), 1);
    let output = run(sandbox.train("run", &["--set", "epochs=400", "--resume"]), 1);
    assert!(stderr(&output).contains("another run"), "{}", stderr(&output));
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn a_full_disk_ends_the_run_and_keeps_the_last_state() {
    let sandbox = Sandbox::new(16);
    run(sandbox.train("whole/run", &["--no-cache"]), 0);
    // No file may grow past 4 KiB: the metrics reach that within the run. Without the trap the signal would kill.
    let train = sandbox.train("full/run", &["--no-cache", "--set", "checkpoint.every_steps=1"]);
    let mut limited = Command::new("sh");
    limited.arg("-c").arg("trap '' XFSZ; ulimit -f 8; exec \"$@\"").arg("sh").arg(train.get_program());
    limited.args(train.get_args()).current_dir(sandbox.dir.path()).stdin(Stdio::null());
    limited.env("STEERKIT_HOME", sandbox.path("home"));
    let output = run(limited, 4);
    assert!(stderr(&output).contains("error: "), "{}", stderr(&output));
    run(sandbox.train("full/run", &["--no-cache", "--resume"]), 0);
    assert_eq!(vector(&sandbox, "whole/run"), vector(&sandbox, "full/run"));
}

#[test]
fn a_full_stdout_is_a_file_system_error() {
    let sandbox = Sandbox::new(8);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = sandbox.train("run", &["--json"]);
    let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("error: stdout: "));
    assert!(sandbox.path("run/vector.safetensors").is_file());
}

#[test]
fn a_folder_that_cannot_be_written_is_a_file_system_error() {
    let sandbox = Sandbox::new(8);
    let output = run(sandbox.train("/proc/steerkit", &[]), 4);
    assert!(stderr(&output).contains("/proc/steerkit"), "{}", stderr(&output));
}

#[test]
fn a_reader_that_has_gone_is_success() {
    let sandbox = Sandbox::new(8);
    let model = common::tiny_model();
    let commands: [&[&str]; 4] = [
        &["--help"],
        &["model", "inspect", &model],
        &["data", "check", "pairs.jsonl"],
        &["completions", "bash"],
    ];
    for args in commands {
        let mut child = sandbox.steerkit(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{args:?}");
    }
}
