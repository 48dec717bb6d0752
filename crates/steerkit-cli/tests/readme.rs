//! README.md and the checks agree.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::Path;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// Lines of the README's shell blocks.
fn commands(readme: &str) -> Vec<String> {
    let blocks = readme.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap());
    blocks.flat_map(|b| b.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn ci_runs_the_readmes_test_command() {
    let commands = commands(&read("README.md"));
    let tests: Vec<_> = commands.iter().filter(|c| c.starts_with("cargo test")).collect();
    let [test] = tests[..] else { panic!("one test command in the README: {commands:?}") };
    assert!(read(".ci/run").lines().any(|l| l.trim_end_matches(" --locked") == *test), "{test}");
}

#[test]
fn the_readmes_commands_parse() {
    for command in commands(&read("README.md")).iter().filter(|c| c.starts_with("steerkit ")) {
        // Every option before the last is real: `--help` at the end is answered only when the rest parses.
        let words: Vec<&str> =
            command.split('"').step_by(2).flat_map(str::split_whitespace).skip(1).collect();
        let sub: Vec<&str> =
            words.iter().take_while(|w| !w.starts_with('-') && !w.contains('/')).copied().collect();
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_steerkit"))
            .args(&sub)
            .arg("--help")
            .output()
            .unwrap();
        let help = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success(), "{command}");
        for option in words.iter().filter(|w| w.starts_with("--")) {
            assert!(help.contains(option), "{command}: no {option}");
        }
    }
}
