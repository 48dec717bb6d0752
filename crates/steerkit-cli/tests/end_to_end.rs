//! From pairs to a steered answer, on a tiny random model.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod common;

use common::{Sandbox, json_lines, last_json, run, stderr, text, tiny_model};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;
use steerkit::SteeringVector;

/// A sandbox with a trained vector in `runs/pairs`.
fn trained() -> (Sandbox, Value) {
    let sandbox = Sandbox::new(16);
    let output = run(sandbox.train("runs/pairs", &["--json"]), 0);
    let result = last_json(&output);
    (sandbox, result)
}

fn generate(sandbox: &Sandbox, more: &[&str]) -> std::process::Command {
    let model = tiny_model();
    let mut args = vec!["generate", "--model", &model, "--max-tokens", "12"];
    args.extend(more);
    sandbox.steerkit(&args)
}

#[test]
fn pairs_become_a_vector_that_steers() {
    let (sandbox, result) = trained();
    let keys: Vec<&String> = result.as_object().unwrap().keys().collect();
    let contract = ["vector", "layer", "steps", "seconds", "norm", "relative_dose", "eval", "peak_rss_mb"];
    assert_eq!(keys[..8], contract);
    assert_eq!((&result["layer"], &result["steps"]), (&json!(1), &json!(24)));
    let eval = result["eval"].as_array().unwrap();
    let multipliers: Vec<f64> = eval.iter().map(|p| p["multiplier"].as_f64().unwrap()).collect();
    assert_eq!(multipliers, [-1.0, 0.0, 1.0]);
    let margins: Vec<f64> = eval.iter().map(|p| p["margin"].as_f64().unwrap()).collect();
    assert!(margins[0] < 0.0 && margins[1] == 0.0 && margins[2] > 0.0, "{margins:?}");
    for file in ["vector.safetensors", "recipe.toml", "metrics.jsonl"] {
        assert!(sandbox.path("runs/pairs").join(file).is_file(), "{file}");
    }

    let inspected = last_json(&run(sandbox.steerkit(&["vector", "inspect", "pairs", "--json"]), 0));
    assert_eq!(inspected["layer"], json!(1));
    assert_eq!(inspected["provenance"]["method"], json!("bipo"));

    let plain = last_json(&run(generate(&sandbox, &["--prompt", "Hello there", "--json"]), 0));
    let steered = ["--prompt", "Hello there", "--steer", "pairs=6", "--json"];
    let steered = last_json(&run(generate(&sandbox, &steered), 0));
    assert_ne!(plain["logprobs"], steered["logprobs"]);
    let plan = &steered["plan"][0];
    assert_eq!((&plan["layer"], &plan["multiplier"]), (&json!(1), &json!(6.0)));
    let dose = 6.0 * result["relative_dose"].as_f64().unwrap();
    assert!((plan["relative_dose"].as_f64().unwrap() / dose - 1.0).abs() < 1e-5);
}

#[test]
fn multiplier_zero_is_the_plain_model_alone_or_in_a_batch() {
    let (sandbox, _) = trained();
    let of = |more: &[&str]| json_lines(&run(generate(&sandbox, more), 0));
    let same =
        |a: &Value, b: &Value| ["text", "token_ids", "logprobs", "finish"].iter().all(|key| a[key] == b[key]);
    let plain = &of(&["--prompt", "What is tea?", "--json"])[0];
    assert!(!plain["token_ids"].as_array().unwrap().is_empty());
    let zero = &of(&["--prompt", "What is tea?", "--steer", "pairs=0", "--json"])[0];
    assert!(same(plain, zero), "{plain} {zero}");
    let three = ["--prompt", "What is tea?", "--steer", "pairs=4", "--multipliers", "-1,0,1", "--json"];
    let three = of(&three);
    assert_eq!(three.len(), 3);
    assert!(same(plain, &three[1]));
    assert!(!same(&three[0], &three[2]));
}

#[test]
fn prompts_come_from_a_file_or_stdin() {
    let sandbox = Sandbox::new(1);
    std::fs::write(sandbox.path("q.jsonl"), "\"One?\"\n\n{\"prompt\": \"Two?\"}\n").unwrap();
    let answers = json_lines(&run(generate(&sandbox, &["--prompts", "q.jsonl", "--json"]), 0));
    let prompts: Vec<&Value> = answers.iter().map(|a| &a["prompt"]).collect();
    assert_eq!(prompts, [&json!("One?"), &json!("Two?")]);

    let mut child =
        generate(&sandbox, &["--json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"One?\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(last_json(&output)["token_ids"], answers[0]["token_ids"]);

    std::fs::write(sandbox.path("bad.jsonl"), "\"One?\"\n{\"text\": 1}\n").unwrap();
    let output = run(generate(&sandbox, &["--prompts", "bad.jsonl"]), 3);
    assert!(stderr(&output).contains("bad.jsonl: line 2: found an object with the keys text"));
}

#[test]
fn the_same_seed_gives_the_same_sample() {
    let sandbox = Sandbox::new(1);
    let draw = |seed: &str| {
        let sampled = ["--prompt", "Tea", "--temperature", "1", "--seed", seed, "--json"];
        last_json(&run(generate(&sandbox, &sampled), 0))["token_ids"].clone()
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

#[test]
fn chat_reads_lines_and_moves_the_vector() {
    let (sandbox, _) = trained();
    let model = tiny_model();
    let args = ["chat", "--model", &model, "--max-tokens", "4", "--steer", "pairs=0", "--json"];
    let mut chat = sandbox.steerkit(&args);
    let mut child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = b"Hello\n/steer pairs 5\n/reset\nHello\n/save chat.json\n";
    child.stdin.take().unwrap().write_all(lines).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answers = json_lines(&output);
    let multipliers: Vec<&Value> = answers.iter().map(|a| &a["plan"][0]["multiplier"]).collect();
    assert_eq!(multipliers, [&json!(0.0), &json!(5.0)]);
    assert_ne!(answers[0]["logprobs"], answers[1]["logprobs"]);
    let saved: Value = serde_json::from_slice(&std::fs::read(sandbox.path("chat.json")).unwrap()).unwrap();
    assert_eq!(saved["messages"].as_array().unwrap().len(), 3);
}

#[test]
fn a_plan_without_effect_is_refused() {
    let (sandbox, _) = trained();
    let mut vector = SteeringVector::load(&sandbox.path("runs/pairs/vector.safetensors")).unwrap();
    vector.direction.iter_mut().for_each(|x| *x = 1e-30);
    vector.save(&sandbox.path("tiny.safetensors")).unwrap();
    let output = run(generate(&sandbox, &["--prompt", "Hi", "--steer", "tiny=1"]), 2);
    assert!(stderr(&output).contains("changes nothing"), "{}", stderr(&output));
    run(generate(&sandbox, &["--prompt", "Hi", "--steer", "tiny=0"]), 0);
}

#[test]
fn a_vector_of_another_model_is_refused() {
    let (sandbox, _) = trained();
    let mut vector = SteeringVector::load(&sandbox.path("runs/pairs/vector.safetensors")).unwrap();
    vector.provenance.base_model.as_mut().unwrap().file_sha256 = "0".repeat(64);
    vector.save(&sandbox.path("other.safetensors")).unwrap();
    let output = run(generate(&sandbox, &["--prompt", "Hi", "--steer", "other=1"]), 3);
    assert!(stderr(&output).contains("--force"));
    run(generate(&sandbox, &["--prompt", "Hi", "--steer", "other=1", "--force"]), 0);
    vector.direction.truncate(32);
    vector.save(&sandbox.path("narrow.safetensors")).unwrap();
    let output = run(generate(&sandbox, &["--prompt", "Hi", "--steer", "narrow=1", "--force"]), 3);
    assert!(stderr(&output).contains("made for another model?"));
    let output = run(generate(&sandbox, &["--prompt", "Hi", "--steer", "pars=1"]), 3);
    assert!(stderr(&output).contains("did you mean \"pairs\"?"), "{}", stderr(&output));
}

#[test]
fn data_is_imported() {
    let sandbox = Sandbox::new(3);
    let csv = "question,matching,not_matching\n\"a, b\",yes,no\n\"a, b\",yes,no\nc,\"x\ny\",z\n";
    std::fs::write(sandbox.path("in.csv"), csv).unwrap();
    run(sandbox.steerkit(&["data", "import", "in.csv", "out.jsonl", "--dedup"]), 0);
    let imported = std::fs::read_to_string(sandbox.path("out.jsonl")).unwrap();
    assert_eq!(
        imported,
        "{\"prompt\":\"a, b\",\"chosen\":\"yes\",\"rejected\":\"no\"}\n\
         {\"prompt\":\"c\",\"chosen\":\"x\\ny\",\"rejected\":\"z\"}\n"
    );
    run(sandbox.steerkit(&["data", "import", "in.csv", "out.jsonl"]), 2);
    assert_eq!(std::fs::read_to_string(sandbox.path("out.jsonl")).unwrap(), imported);
    let again = last_json(&run(
        sandbox.steerkit(&["data", "import", "in.csv", "out.jsonl", "--overwrite", "--json"]),
        0,
    ));
    assert_eq!(again["pairs"], json!(3));
}

#[test]
fn steps_are_timed() {
    let sandbox = Sandbox::new(8);
    let model = tiny_model();
    let args = [
        "bench",
        "train",
        "--model",
        &model,
        "--data",
        "pairs.jsonl",
        "--layer",
        "1",
        "--steps",
        "3",
        "--json",
    ];
    let result = last_json(&run(sandbox.steerkit(&args), 0));
    let keys = [
        "seconds_per_step",
        "seconds_per_token",
        "setup_seconds",
        "tokens_per_step",
        "scored_rows_per_step",
        "gflops",
        "peak_rss_mb",
    ];
    for key in keys {
        assert!(result[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {result}");
    }
    let decode = ["bench", "decode", "--model", &model, "--tokens", "3", "--json"];
    let result = last_json(&run(sandbox.steerkit(&decode), 0));
    for key in ["prefill_tok_s", "decode_tok_s", "ms_per_step", "weights_gb_s", "bandwidth_gb_s"] {
        assert!(result[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {result}");
    }
    run(sandbox.steerkit(&["bench", "load", "--model", &model, "--json"]), 0);
}

/// Batches of all sizes, whose tensors are large enough for an allocator to give their memory back.
#[cfg(target_os = "linux")]
#[test]
fn a_step_in_the_steady_state_maps_no_pages() {
    let sandbox = Sandbox::new(61);
    let model = tiny_model();
    let mut args = vec!["bench", "train", "--model", &model, "--data", "pairs.jsonl", "--layer", "1"];
    args.extend(["--batch", "7", "--steps", "80", "--threads", "2", "--json"]);
    for precision in ["f32", "bf16"] {
        let result = last_json(&run(sandbox.steerkit(&[&args[..], &["--precision", precision]].concat()), 0));
        assert_eq!(result["page_faults_per_step"], json!(0.0), "{precision}: {result}");
    }
}

#[test]
fn completions_name_the_commands() {
    let sandbox = Sandbox::new(0);
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&run(sandbox.steerkit(&["completions", shell]), 0).stdout);
        assert!(script.contains("generate") && script.contains("multipliers"), "{shell}");
    }
}
