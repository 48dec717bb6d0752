//! `steerkit reproduce`: what it lists, prints, writes and refuses, on a tiny model.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Sandbox, json_lines, last_json, root, run, stderr, text, tiny_model};

#[test]
fn experiments_are_listed_run_and_taken_up_again() {
    let sandbox = Sandbox::new(1);
    let listed = json_lines(&run(sandbox.steerkit(&["reproduce", "list", "--json"]), 0));
    let ids: Vec<&str> = listed.iter().map(|known| known["id"].as_str().unwrap()).collect();
    for id in ["t1", "t4", "t15", "fig1", "fig9", "complexity", "sensitivity"] {
        assert!(ids.contains(&id), "{ids:?}");
    }
    let (model, data) = (tiny_model(), root().join("data"));
    let args = [
        "reproduce",
        "t6",
        "--quick",
        "--limit",
        "3",
        "--model",
        &model,
        "--data-root",
        data.to_str().unwrap(),
    ];
    let output = run(sandbox.steerkit(&args), 0);
    let shown = text(&output.stdout);
    assert!(shown.contains("sum of two") && shown.contains("paper") && shown.contains("2.67"), "{shown}");
    let folder = sandbox.path("runs/reproduce/t6-quick");
    assert!(std::fs::read_to_string(folder.join("table.tex")).unwrap().contains("\\toprule"));
    let vectors = std::fs::read_dir(folder.join("vectors")).unwrap().count();
    assert_eq!(vectors, 4, "a vector for each behaviour serves alone and in sums");
    let again = last_json(&run(sandbox.steerkit(&[&args[..], &["--json"]].concat()), 0));
    let saved: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("results.json")).unwrap()).unwrap();
    assert_eq!((&again["panels"], again["missing"].as_u64()), (&saved["panels"], Some(0)));
}

#[test]
fn wrong_use_and_what_is_missing_say_what_to_do() {
    let sandbox = Sandbox::new(1);
    let model = tiny_model();
    let refused = |args: &[&str], code: i32, what: &[&str]| {
        let output = run(sandbox.steerkit(&[&["reproduce"], args].concat()), code);
        what.iter().for_each(|what| assert!(stderr(&output).contains(what), "{what}: {}", stderr(&output)));
    };
    refused(&["fig1"], 2, &["no model", "--model"]);
    refused(&["fgi1", "--model", &model], 2, &["did you mean \"fig1\"?"]);
    refused(&["fig1", "--model", &model], 2, &["power-seeking", "--data-root"]);
    refused(&["t9", "--model", "nowhere.gguf"], 2, &["nowhere.gguf"]);
    refused(&["t5", "--model", &model, "--data", "mmlu"], 2, &["NAME=PATH"]);
    assert!(!sandbox.path("runs/reproduce").exists(), "nothing is begun");
}
