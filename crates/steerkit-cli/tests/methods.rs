//! Every method, one engine: training by each of them, and what can be done with the vectors, on a tiny model.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod common;

use common::{Sandbox, json_lines, last_json, root, run, stderr, text, tiny_model};
use serde_json::json;
use std::process::Command;
use steerkit::SteeringVector;
use steerkit::recipe::Method;

fn train(sandbox: &Sandbox, method: &str, more: &[&str]) -> Command {
    let model = tiny_model();
    let out = format!("runs/{method}");
    let mut args = vec!["train", "--model", &model, "--data", "pairs.jsonl", "--layer", "1", "--out", &out];
    args.extend(["--method", method, "--threads", "1", "--steps", "3", "--batch", "4", "--json"]);
    args.extend(more);
    sandbox.steerkit(&args)
}

#[test]
fn every_method_trains_and_says_what_it_is() {
    let sandbox = Sandbox::new(12);
    for method in Method::ALL.into_iter().filter(|method| *method != Method::DpoLora) {
        let name = method.name();
        let result = last_json(&run(train(&sandbox, name, &[]), 0));
        let vector = SteeringVector::load(&sandbox.path(&format!("runs/{name}/vector.safetensors"))).unwrap();
        assert_eq!(vector.provenance.method, name);
        assert!(vector.norm() > 0.0 && result["eval"].as_array().unwrap().len() == 3, "{name}");
        assert_eq!(result["steps"], json!(if method.is_extraction() { 0 } else { 3 }));
        let again = sandbox.path(&format!("runs/{name}/vector.safetensors"));
        let first = std::fs::read(&again).unwrap();
        run(train(&sandbox, name, &["--overwrite"]), 0);
        assert_eq!(std::fs::read(&again).unwrap(), first, "{name}: the same bytes");
    }
    let prosv = SteeringVector::load(&sandbox.path("runs/prosv/vector.safetensors")).unwrap();
    assert_eq!(prosv.provenance.token_scope.to_string(), "first-2+last-2");
    let output = run(train(&sandbox, "bipo", &["--overwrite", "--scope", "everywhere"]), 2);
    assert!(stderr(&output).contains("last-user"), "{}", stderr(&output));
}

#[test]
fn an_adapter_and_vectors_of_several_layers_are_trained_and_used() {
    let sandbox = Sandbox::new(12);
    let model = tiny_model();
    let logprobs = |more: &[&str]| {
        let mut args = vec!["generate", "--model", &model, "--max-tokens", "6", "--prompt", "What is tea?"];
        args.extend(["--json"].iter().chain(more));
        last_json(&run(sandbox.steerkit(&args), 0))
    };
    let plain = logprobs(&[])["logprobs"].clone();

    let output = run(train(&sandbox, "dpo-lora", &["--set", "optimiser.lr=0.01"]), 0);
    assert!(stderr(&output).contains("the layer is not used"), "{}", stderr(&output));
    let result = last_json(&output);
    let adapter = result["adapter"].as_str().unwrap().to_owned();
    assert!(result["vector"].is_null() && result["norm"].as_f64().unwrap() > 0.0);
    assert_eq!((&result["eval"][1]["margin"], &result["relative_dose"]), (&json!(0.0), &json!(null)));
    assert_ne!(logprobs(&["--lora", &adapter])["logprobs"], plain);
    assert_ne!(logprobs(&["--lora", &format!("{adapter}=-1")])["logprobs"], plain);
    assert_eq!(logprobs(&["--lora", &format!("{adapter}=0")])["logprobs"], plain);
    run(train(&sandbox, "dpo-lora", &[]), 3);
    run(train(&sandbox, "dpo-lora", &["--overwrite", "--set", "adapter.targets=[\"query\"]"]), 2);

    let args = ["train", "--model", &model, "--data", "pairs.jsonl", "--layers", "1,2", "--out", "runs/two"];
    let result = last_json(&run(sandbox.steerkit(&[&args[..], &["--json"]].concat()), 0));
    assert_eq!(result["layers"][1]["layer"], json!(2));
    let steered = logprobs(&["--steer", "two=2"]);
    assert_eq!((&steered["plan"][0]["layer"], &steered["plan"][1]["layer"]), (&json!(1), &json!(2)));
    assert!(steered["logprobs"] != plain && steered["plan"][1]["relative_dose"].as_f64().unwrap() > 0.0);
    assert_eq!(logprobs(&["--steer", "two=0"])["logprobs"], plain);
    let inspected = json_lines(&run(sandbox.steerkit(&["vector", "inspect", "two", "--json"]), 0));
    assert_eq!(inspected.iter().map(|v| v["layer"].clone()).collect::<Vec<_>>(), [json!(1), json!(2)]);
    run(sandbox.steerkit(&["vector", "convert", "two", "two.gguf"]), 0);
    assert_eq!(logprobs(&["--steer", "two.gguf=2", "--force"])["logprobs"], steered["logprobs"]);
    run(sandbox.steerkit(&[&args[..], &["--layer", "1"]].concat()), 2);
}

#[test]
fn scopes_and_operators_steer() {
    let sandbox = Sandbox::new(8);
    run(train(&sandbox, "mean-diff", &[]), 0);
    let model = tiny_model();
    let logprobs = |more: &[&str]| {
        let mut args =
            vec!["generate", "--model", &model, "--max-tokens", "6", "--prompt", "What is tea?", "--json"];
        args.extend(more);
        last_json(&run(sandbox.steerkit(&args), 0))["logprobs"].clone()
    };
    let plain = logprobs(&[]);
    let all = logprobs(&["--steer", "mean-diff=40"]);
    let mut seen = vec![plain.clone(), all];
    for scope in ["prompt", "generated", "last-prompt", "first-1+last-2", "last-user", "all-but-first"] {
        let got = logprobs(&["--steer", "mean-diff=40", "--scope", scope]);
        assert!(!seen.contains(&got), "{scope}");
        // The first token after the prompt does not see an edit of the generated ones.
        assert_eq!(got[0] == plain[0], scope == "generated", "{scope}");
        assert_eq!(logprobs(&["--steer", "mean-diff=0", "--scope", scope]), plain, "{scope}");
        seen.push(got);
    }
    for operator in ["ablate", "one-sided:5", "clamp:3:4"] {
        let got = logprobs(&["--steer", "mean-diff=1", "--operator", operator]);
        assert!(!seen.contains(&got), "{operator}");
        assert_eq!(logprobs(&["--steer", "mean-diff=0", "--operator", operator]), plain, "{operator}");
        seen.push(got);
    }
    let args = ["generate", "--model", &model, "--prompt", "x", "--steer", "mean-diff", "--operator", "abl"];
    assert!(stderr(&run(sandbox.steerkit(&args), 2)).contains("clamp:LOW:HIGH"));
}

#[test]
fn vectors_are_converted_combined_compared_and_calibrated() {
    let sandbox = Sandbox::new(8);
    for method in ["mean-diff", "random"] {
        run(train(&sandbox, method, &["--set", "extract.dose=0.2"]), 0);
    }
    let steerkit = |args: &[&str], code| run(sandbox.steerkit(args), code);
    let converted = last_json(&steerkit(&["vector", "convert", "random", "r.gguf", "--json"], 0));
    assert_eq!(
        (&converted["format"], &converted["vectors"][0]["layer"]),
        (&json!("steerkit safetensors"), &json!(1))
    );
    let inspected = last_json(&steerkit(&["vector", "inspect", "r.gguf", "--json"], 0));
    assert_eq!(inspected["provenance"]["method"], json!("random"));
    steerkit(&["vector", "convert", "random", "r.gguf"], 2);
    steerkit(&["vector", "convert", "r.gguf", "r.npz"], 2);
    std::fs::write(sandbox.path("bad_layer1.pt"), b"PK\x03\x04 nothing").unwrap();
    let output = steerkit(&["vector", "convert", "bad_layer1.pt", "b.gguf"], 3);
    assert!(stderr(&output).contains("bad_layer1.pt: archive"), "{}", stderr(&output));
    assert!(!sandbox.path("b.gguf").exists());

    let model = tiny_model();
    let sum = [
        "vector",
        "combine",
        "mean-diff - 0.5*r.gguf",
        "--out",
        "sum.safetensors",
        "--model",
        &model,
        "--json",
    ];
    let sum = last_json(&steerkit(&sum, 0));
    assert_eq!(sum["terms"][1]["weight"], json!(-0.5));
    assert!(sum["kl"].as_f64().unwrap() > 0.0 && sum["terms"][0]["kl"].as_f64().unwrap() > 0.0);
    let args = [
        "vector",
        "combine",
        "random",
        "--orthogonal-to",
        "mean-diff",
        "--norm",
        "2",
        "--out",
        "o.safetensors",
    ];
    steerkit(&args, 0);
    let compared = ["vector", "compare", "o.safetensors", "mean-diff", "--svg", "c.svg", "--json"];
    let compared = last_json(&steerkit(&compared, 0));
    assert!(compared["cosines"][0][1].as_f64().unwrap().abs() < 1e-6);
    assert!((compared["norms"][0].as_f64().unwrap() - 2.0).abs() < 1e-5);
    assert!(text(&std::fs::read(sandbox.path("c.svg")).unwrap()).starts_with("<svg"));
    steerkit(&["vector", "combine", "random - random", "--out", "z.safetensors"], 3);

    let calibrate = ["vector", "calibrate", "mean-diff", "--model", &model, "--tokens", "4", "--json"];
    let unit = last_json(&steerkit(&calibrate, 0));
    assert!((unit["kl"].as_f64().unwrap() - 1.0).abs() < 0.2, "{unit}");
    let before = std::fs::read(sandbox.path("runs/mean-diff/vector.safetensors")).unwrap();
    let output = steerkit(&[&calibrate[..], &["--kl", "100000"]].concat(), 1);
    assert!(stderr(&output).contains("no multiplier of vector"), "{}", stderr(&output));
    assert_eq!(std::fs::read(sandbox.path("runs/mean-diff/vector.safetensors")).unwrap(), before);
    let answer = |more: &[&str]| {
        let mut args = vec!["generate", "--model", &model, "--prompt", "Tea?", "--max-tokens", "3", "--json"];
        args.extend(more);
        last_json(&run(sandbox.steerkit(&args), 0))
    };
    let by_unit = answer(&["--steer", "mean-diff=1", "--calibrated"]);
    assert!(
        (by_unit["plan"][0]["multiplier"].as_f64().unwrap() / unit["multiplier"].as_f64().unwrap() - 1.0)
            .abs()
            < 1e-5
    );
    let args = ["generate", "--model", &model, "--prompt", "Tea?", "--steer", "random=1", "--calibrated"];
    assert!(stderr(&run(sandbox.steerkit(&args), 3)).contains("vector calibrate random"));
}

/// Row counts of the published files, where they lie beside the checkout.
#[test]
fn published_data_sets_are_imported() {
    let shared = root().join("../shared/data");
    let sandbox = Sandbox::new(1);
    let cases = [
        ("anthropic-evals/wealth-seeking-inclination.jsonl", "anthropic", 985),
        ("caa/sycophancy/generate_dataset.json", "caa", 1000),
        ("caa/sycophancy/test_dataset_ab.json", "caa", 50),
    ];
    for (file, layout, pairs) in cases {
        let path = shared.join(file);
        if !path.exists() {
            println!("left out: {file} (no reference data beside the checkout)");
            continue;
        }
        let args = [
            "data",
            "import",
            path.to_str().unwrap(),
            "o.jsonl",
            "--layout",
            layout,
            "--overwrite",
            "--json",
        ];
        assert_eq!(last_json(&run(sandbox.steerkit(&args), 0))["pairs"], json!(pairs), "{file}");
    }
    let path = shared.join("truthfulqa/TruthfulQA.csv");
    if path.exists() {
        let args = ["data", "import", path.to_str().unwrap(), "t.jsonl", "--layout", "truthfulqa", "--json"];
        let pairs = json_lines(&run(sandbox.steerkit(&args), 0)).pop().unwrap()["pairs"].as_u64().unwrap();
        // Counted from the file by itself.
        let mut rows = csv::Reader::from_path(&path).unwrap();
        let count = |cell: &str| cell.split(';').filter(|a| !a.trim().is_empty()).count() as u64;
        let want: u64 = rows.records().map(|r| r.unwrap()).map(|r| count(&r[4]) * count(&r[5])).sum();
        println!("TruthfulQA: {pairs} pairs");
        assert_eq!(pairs, want);
    }
}
