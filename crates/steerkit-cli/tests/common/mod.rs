//! Running the real binary.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "test support")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A random four-block Llama with a tokeniser and a chat template.
pub fn tiny_model() -> String {
    let path = root().join("tests/data/tiny-llama-gguf/tiny-llama-f32.gguf");
    path.to_str().unwrap().to_owned()
}

/// A folder of its own for everything that a test writes.
pub struct Sandbox {
    pub dir: TempDir,
}

impl Sandbox {
    /// An empty folder with `pairs.jsonl`: the first `n` pairs of the formality data.
    pub fn new(n: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let all = std::fs::read_to_string(root().join("data/formality/train.jsonl")).unwrap();
        let lines: String = all.lines().take(n).map(|line| format!("{line}\n")).collect();
        std::fs::write(dir.path().join("pairs.jsonl"), lines).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary, to be run inside the folder and keeping its caches there.
    pub fn steerkit(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steerkit"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("STEERKIT_HOME", self.path("home")).env_remove("NO_COLOR").env_remove("COLUMNS");
        command
    }

    /// A training command on the tiny model: 24 steps of 4 pairs.
    pub fn train(&self, out: &str, more: &[&str]) -> Command {
        let model = tiny_model();
        let mut args = vec!["train", "--model", &model, "--data", "pairs.jsonl", "--layer", "1", "--out", out];
        args.extend(["--preset", "paper", "--epochs", "6", "--threads", "1"]);
        args.extend(["--set", "optimiser.warmup=2", "--set", "optimiser.lr=0.01"]);
        args.extend(more);
        self.steerkit(&args)
    }
}

/// Runs the command and expects this exit code.
pub fn run(mut command: Command, code: i32) -> Output {
    let output = command.output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{command:?}\nstdout:\n{out}\nstderr:\n{err}");
    assert!(!err.contains("panicked"), "{err}");
    assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'), "escape codes off a terminal");
    output
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Every line of stdout as JSON.
pub fn json_lines(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The last line of stdout as JSON.
pub fn last_json(output: &Output) -> Value {
    json_lines(output).pop().expect("a line of JSON")
}

pub fn stderr(output: &Output) -> String {
    text(&output.stderr)
}
