//! `steerkit eval`: what it prints and writes, and what it refuses, on a tiny model.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod common;

use common::{Sandbox, json_lines, last_json, root, run, stderr, text, tiny_model};
use serde_json::json;

/// A folder with pairs and a trained vector `v`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new(6);
    let model = tiny_model();
    let args = ["train", "--model", &model, "--data", "pairs.jsonl", "--layer", "1", "--out", "runs/v"];
    let more = ["--method", "mean-diff", "--steps", "1", "--batch", "4"];
    run(sandbox.steerkit(&[&args[..], &more].concat()), 0);
    sandbox
}

#[test]
fn an_evaluation_prints_and_writes_its_results() {
    let sandbox = sandbox();
    let model = tiny_model();
    let args = ["eval", "preference", "--model", &model, "--steer", "v", "--data", "pairs.jsonl"];
    let more = ["--multipliers", "-1,1", "--limit", "4", "--seed", "5", "--out", "e"];
    let all = [&args[..], &more].concat();
    let output = run(sandbox.steerkit(&all), 0);
    assert!(text(&output.stdout).contains("Preference pairs by multiplier"));
    let result = last_json(&run(sandbox.steerkit(&[&all[..], &["--json"]].concat()), 0));
    assert_eq!(result["results"]["pairs"], 4);
    assert_eq!(result["spec"]["multipliers"], json!([-1.0, 0.0, 1.0]), "the plain model is always measured");
    assert_eq!(result["sha256"].as_object().unwrap().len(), 3, "model, vector, data");
    let saved: serde_json::Value =
        serde_json::from_slice(&std::fs::read(sandbox.path("e/results.json")).unwrap()).unwrap();
    assert_eq!(saved["results"], result["results"]);
    let report = std::fs::read_to_string(sandbox.path("e/report.html")).unwrap();
    assert!(report.contains("<svg") && !report.contains(" src="));
    let names = report.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
    assert_eq!(report.matches("://").count(), names, "nothing is fetched");
    for file in ["table.csv", "table.md", "half-spread.csv", "margin.svg", "ranks-chosen.svg"] {
        assert!(sandbox.path("e").join(file).is_file(), "{file}");
    }
    // The saved evaluation runs again with the same results.
    let again = ["eval", "e/evaluation.toml", "--model", &model, "--steer", "v", "--json"];
    assert_eq!(last_json(&run(sandbox.steerkit(&again), 0))["results"], result["results"]);
}

#[test]
fn every_kind_runs() {
    let sandbox = sandbox();
    let model = tiny_model();
    let choices = |name: &str| root().join("tests/data/choices").join(name).to_str().unwrap().to_owned();
    std::fs::write(
        sandbox.path("dose.toml"),
        "name = \"d\"\nmultipliers = [-1.0, 1.0]\n[task]\nkind = \"dose-response\"\ndata = \"pairs.jsonl\"\n\
         [task.damage]\nprompts = 2\nmax_tokens = 4\n",
    )
    .unwrap();
    std::fs::write(
        sandbox.path("own.toml"),
        "name = \"own\"\n[task]\nkind = \"multiple-choice\"\nscoring = \"completion-per-byte\"\nchat = true\n\
         prompt = \"{question}\"\ncolumns = { group = \"subject\" }\n\
         [damage]\nprompts = 2\nmax_tokens = 4\n",
    )
    .unwrap();
    let of = |args: &[&str]| {
        let all = [&["eval"], args, &["--model", &model, "--steer", "v=3", "--operator", "ablate", "--json"]]
            .concat();
        last_json(&run(sandbox.steerkit(&all), 0))
    };
    assert_eq!(of(&["letters", "--data", "pairs.jsonl"])["results"]["questions"], 6);
    assert_eq!(
        of(&["mmlu", "--data", &choices("questions.jsonl"), "--limit", "5"])["results"]["questions"],
        5
    );
    assert_eq!(of(&["truthfulqa", "--data", &choices("truths.csv")])["results"]["questions"], 5);
    assert_eq!(of(&["dose.toml"])["results"]["damage"].as_array().unwrap().len(), 3);
    let own = of(&["own.toml", "--data", &choices("questions.jsonl")]);
    assert_eq!(own["tables"].as_array().unwrap().len(), 3, "choices, groups, damage");
}

#[test]
fn the_plain_model_is_evaluated_without_vectors() {
    let sandbox = Sandbox::new(3);
    let model = tiny_model();
    let args = ["eval", "preference", "--model", &model, "--data", "pairs.jsonl", "--json"];
    let result = last_json(&run(sandbox.steerkit(&args), 0));
    assert_eq!(result["results"]["points"].as_array().unwrap().len(), 1);
    let listed = json_lines(&run(sandbox.steerkit(&["eval", "list", "--json"]), 0));
    assert!(listed.iter().any(|known| known["name"] == "mmlu" && known["kind"] == "multiple-choice"));
}

#[test]
fn wrong_use_and_bad_input_say_what_is_wrong() {
    let sandbox = sandbox();
    let model = tiny_model();
    let refused = |args: &[&str], code: i32, what: &str| {
        let output = run(sandbox.steerkit(&[&["eval"], args].concat()), code);
        assert!(stderr(&output).contains(what), "{}", stderr(&output));
    };
    refused(&["mmul", "--model", &model], 2, "did you mean \"mmlu\"?");
    refused(&["mmlu"], 2, "no model");
    refused(&["mmlu", "--model", &model], 2, "--data");
    refused(&["mmlu", "--model", &model, "--multipliers", "1"], 2, "--steer");
    refused(&["mmlu", "--model", &model, "--data", "nowhere.jsonl"], 4, "nowhere.jsonl");
    std::fs::write(sandbox.path("e.toml"), "name = \"e\"\n[task]\nkind = \"mmlu\"\n").unwrap();
    refused(&["e.toml", "--model", &model], 3, "e.toml: line 3, column 8: unknown variant `mmlu`");
    std::fs::write(sandbox.path("empty.jsonl"), "\n").unwrap();
    refused(&["preference", "--model", &model, "--data", "empty.jsonl"], 3, "found no rows");
    std::fs::write(sandbox.path("q.jsonl"), "{\"question\": \"Why?\", \"choices\": [\"a\", \"b\"]}\n")
        .unwrap();
    refused(&["mmlu", "--model", &model, "--data", "q.jsonl"], 3, "no answer column");
    let other = root().join("tests/data/tiny-llama-hf");
    let other = other.to_str().unwrap();
    refused(&["preference", "--model", other, "--steer", "v", "--data", "pairs.jsonl"], 3, "--force");
}
