//! The commands around sweeps and gates, on a tiny model.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Sandbox, json_lines, last_json, run, stderr, text, tiny_model};
use serde_json::json;

fn sweep_file(sandbox: &Sandbox, layers: &str) {
    let text = format!(
        "[base]\nmodel = {:?}\ndata.train = \"pairs.jsonl\"\nbatch = 4\nsteps = 1\n[[grid]]\nmethod = \
         [\"bipo\", \"random\"]\nlayer = {layers}\n[measure]\nresamples = 10\nprompts = 2\ntokens = 3\n",
        tiny_model()
    );
    std::fs::write(sandbox.path("s.toml"), text).unwrap();
}

#[test]
fn a_sweep_prints_its_table_and_its_exit_code_tells_of_failures() {
    let sandbox = Sandbox::new(10);
    sweep_file(&sandbox, "[1, 2]");
    let steerkit = |args: &[&str], code| run(sandbox.steerkit(args), code);
    let listed = json_lines(&steerkit(&["sweep", "s.toml", "--list", "--json"], 0));
    assert_eq!((listed.len(), &listed[0]["keys"]["layer"]), (4, &json!("1")));
    let output = steerkit(&["sweep", "s.toml", "--out", "whole"], 0);
    assert!(text(&output.stdout).contains("equal norm, two-sided"), "{}", text(&output.stdout));
    assert!(stderr(&output).contains("4 of 4: "), "{}", stderr(&output));
    for shard in ["1/2", "2/2"] {
        let out = format!("part-{}", &shard[..1]);
        steerkit(&["sweep", "s.toml", "--shard", shard, "--out", &out], 0);
    }
    let output = steerkit(&["sweep", "merge", "part-1", "--out", "half"], 1);
    assert!(stderr(&output).contains("2 jobs were not run"), "{}", stderr(&output));
    let merged =
        last_json(&steerkit(&["sweep", "merge", "part-1", "part-2", "--out", "merged", "--json"], 0));
    assert_eq!((&merged["failed"], &merged["valid"]["done"]), (&json!(0), &json!(4)));
    let read = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
    assert_eq!(read("merged/results.json"), read("whole/results.json"));

    sweep_file(&sandbox, "[1, 40]");
    let output = steerkit(&["sweep", "s.toml", "--out", "bad"], 1);
    assert!(stderr(&output).contains("2 of 4 jobs failed"), "{}", stderr(&output));
    assert!(read("bad/results.md").windows(7).any(|w| w == b"failed:"));
    steerkit(&["sweep", "s.toml", "--shard", "3/2"], 2);
    steerkit(&["sweep"], 2);
    std::fs::write(sandbox.path("s.toml"), "[[grid]]\nlayer = [1]\nwat = 2\n").unwrap();
    steerkit(&["sweep", "s.toml"], 3);
    steerkit(&["sweep", "none.toml"], 4);
}

#[test]
fn one_vector_per_layer() {
    let sandbox = Sandbox::new(10);
    let model = tiny_model();
    let args = [
        "train",
        "--model",
        &model,
        "--data",
        "pairs.jsonl",
        "--method",
        "mean-diff",
        "--each-layer",
        "2,0",
        "--out",
        "runs/l",
        "--json",
    ];
    let runs = json_lines(&run(sandbox.steerkit(&args), 0));
    assert_eq!(runs.iter().map(|r| r["layer"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2]);
    assert!(sandbox.path("runs/l/layer-2/vector.safetensors").exists());
    run(sandbox.steerkit(&[&args[..], &["--layer", "1"]].concat()), 2);
    run(sandbox.steerkit(&[&args[..], &["--layers", "1,2"]].concat()), 2);
    let mut adapter = args;
    adapter[6] = "dpo-lora";
    let output = run(sandbox.steerkit(&adapter), 3);
    assert!(stderr(&output).contains("\"dpo-lora\" makes an adapter"), "{}", stderr(&output));
}

#[test]
fn a_gate_lets_a_vector_act_on_some_prompts_only() {
    let sandbox = Sandbox::new(10);
    let model = tiny_model();
    let args = [
        "train",
        "--model",
        &model,
        "--data",
        "pairs.jsonl",
        "--method",
        "mean-diff",
        "--layer",
        "1",
        "--out",
        "runs/v",
        "--set",
        "extract.dose=3",
    ];
    run(sandbox.steerkit(&args), 0);
    let lines = |words: [&str; 4]| words.map(|w| format!("\"{w} {w} {w} {w}\"\n")).concat();
    std::fs::write(sandbox.path("tea.jsonl"), lines(["tea", "tea time", "cup", "tea cup"])).unwrap();
    std::fs::write(sandbox.path("war.jsonl"), lines(["1 2 3", "77", "4 5", "9 1"])).unwrap();
    let gate = |more: &[&str], code| {
        let mut args = vec!["vector", "gate", "tea", "--model", &model, "--json"];
        args.extend(["--positive", "tea.jsonl", "--negative", "war.jsonl"]);
        args.extend(more);
        run(sandbox.steerkit(&args), code)
    };
    gate(&[], 3);
    let made = last_json(&gate(&["--layer", "2"], 0));
    assert_eq!((&made["f1"], &made["positives"], &made["negatives"]), (&json!(1.0), &json!(2), &json!(2)));
    let again = last_json(&gate(&[], 0));
    assert_eq!((&again["layer"], &again["positives"]), (&json!(2), &json!(4)));
    gate(&["--layer", "44"], 3);
    let inspected = last_json(&run(sandbox.steerkit(&["vector", "inspect", "tea", "--json"]), 0));
    assert_eq!(inspected["provenance"]["gate"]["threshold"], again["threshold"]);

    std::fs::write(sandbox.path("both.jsonl"), "\"tea tea tea tea\"\n\"1 2 3 1 2 3\"\n").unwrap();
    let answers = |more: &[&str]| {
        let mut args = vec!["generate", "--model", &model, "--max-tokens", "6", "--json"];
        args.extend(["--prompts", "both.jsonl"]);
        args.extend(more);
        json_lines(&run(sandbox.steerkit(&args), 0))
    };
    let (plain, steered) = (answers(&[]), answers(&["--steer", "v=1"]));
    assert_ne!(plain[1]["logprobs"], steered[1]["logprobs"]);
    for batch in ["1", "2"] {
        let gated = answers(&["--steer", "v=1", "--gate", "tea", "--batch", batch]);
        assert_eq!((&gated[0]["gate"]["open"], &gated[1]["gate"]["open"]), (&json!(true), &json!(false)));
        assert_eq!(gated[0]["logprobs"], steered[0]["logprobs"], "an open gate changes nothing");
        assert_eq!(gated[1]["logprobs"], plain[1]["logprobs"], "a closed gate is the plain model");
    }
    let closed = answers(&["--steer", "v=1", "--gate", "tea:1"]);
    assert_eq!(closed[0]["logprobs"], plain[0]["logprobs"]);
    let output = run(
        sandbox.steerkit(&["generate", "--model", &model, "--prompt", "x", "--steer", "v", "--gate", "v"]),
        3,
    );
    assert!(stderr(&output).contains("no gate threshold"), "{}", stderr(&output));
}
