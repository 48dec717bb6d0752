//! Two PyTorch trainings of SmolLM2-135M, step by step.
//!
//! Needs the reference files beside the checkout.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use common::*;
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};
use steerkit::{
    objective::Direction,
    train::{Batch, Order, RunData, Start, TokenPair},
};
use steerkit_model::{Model, OpenOptions};

/// Replays trajectory `name` and compares every step.
fn replay(model: &Model, shared: &Path, name: &str) {
    let json = read_json(&shared.join("trajectory.json"))[name].clone();
    let (config, want) = (&json["config"], json["steps"].as_array().unwrap());
    let (pairs, places) = pairs(&read_json(&shared.join("trajectory_pairs.json")));
    let batch = |step: &Value| {
        let d = if step["d"].as_f64() == Some(1.0) { Direction::Toward } else { Direction::Away };
        let pairs = ids(&step["csv_rows"]).iter().map(|row| (places[row], d)).collect();
        Batch { pairs, epoch: 1, ends_epoch: false }
    };
    let order = Order { batches: want.iter().map(batch).collect(), steps_per_epoch: want.len() };
    let folder = tempfile::tempdir().unwrap();
    let setting = |key: &str| config[key].to_string();
    let settings = [
        ("layer", setting("layer")),
        ("steps", want.len().to_string()),
        ("optimiser.lr", setting("lr")),
        ("optimiser.weight_decay", setting("wd")),
        ("optimiser.warmup.steps", setting("warm")),
        ("optimiser.clip", setting("clip")),
        ("eval.multipliers", "[1]".into()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let recipe = recipe("paper", &folder.path().join("run"), &settings);
    let data = RunData { train: token_set(pairs), order: Some(order), ..RunData::default() };
    let (outcome, steps) = run(Start::New, model, &recipe, &data).unwrap();
    let (mut loss_off, mut norm_off) = (0f64, 0f64);
    for (got, want) in steps.iter().zip(want) {
        loss_off = loss_off.max((got.loss - want["loss"].as_f64().unwrap()).abs());
        norm_off = norm_off.max((got.norm - want["vec_norm_after"].as_f64().unwrap()).abs());
    }
    let cosine = cosine(&outcome.vectors[0].direction, &final_vector(shared, name));
    println!(
        "{name}: {} steps, largest loss difference {loss_off:.2e}, norm {norm_off:.2e}, 1 - cosine {:.2e}, median residual norm {:.1}",
        steps.len(),
        1.0 - cosine,
        outcome.layers[0].residual_norm
    );
    assert_eq!(steps.len(), want.len());
    assert!(loss_off < 2e-4 && cosine > 0.9999);
}

fn pairs(json: &Value) -> (Vec<TokenPair>, BTreeMap<u32, usize>) {
    let (mut pairs, mut places) = (Vec::new(), BTreeMap::new());
    for (row, pair) in json.as_object().unwrap() {
        places.insert(row.parse().unwrap(), pairs.len());
        pairs.push(TokenPair {
            prompt: ids(&pair["prompt_ids"]),
            chosen: ids(&pair["chosen_ids"]),
            rejected: ids(&pair["rejected_ids"]),
        });
    }
    (pairs, places)
}

fn final_vector(shared: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(shared.join("trajectory.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(&format!("final_vec_{name}")).unwrap();
    let (numbers, _) = tensor.data().as_chunks::<4>();
    numbers.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn golden_smollm2_trajectories() {
    const NAME: &str = "golden_smollm2_trajectories";
    let Some(shared) = support::shared(NAME, "goldens/smollm2") else { return };
    let Some(model) = support::smollm2(NAME) else { return };
    let model = Model::open(&model, &OpenOptions::default()).unwrap();
    replay(&model, &shared, "A");
    replay(&model, &shared, "B");
}
