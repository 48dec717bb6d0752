//! The authors' own code on a tiny Llama, step by step.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use serde_json::Value;
use steerkit::{
    objective::Direction,
    train::{Batch, Order, RunData, Start},
};

/// The order that the official run drew.
fn official_order(steps: &[Value]) -> Order {
    let batch = |(i, step): (usize, &Value)| {
        let d = if step["d"].as_f64() == Some(1.0) { Direction::Toward } else { Direction::Away };
        let pairs = ids(&step["rows"]).into_iter().map(|row| (row as usize, d)).collect();
        Batch { pairs, epoch: i / 3 + 1, ends_epoch: i % 3 == 2 }
    };
    Order { batches: steps.iter().enumerate().map(batch).collect(), steps_per_epoch: 3 }
}

#[test]
fn golden_official_run() {
    let json = read_json(&goldens().join("official.json"));
    let want = json["steps"].as_array().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("epochs", "3"),
        ("optimiser.lr", "0.05"),
        ("optimiser.warmup.steps", "3"),
        ("optimiser.schedule_epochs", "3"),
    ];
    let recipe = recipe("official", &folder.path().join("run"), &settings);
    let data = RunData {
        train: token_set(official_pairs()),
        order: Some(official_order(want)),
        ..RunData::default()
    };
    let (outcome, steps) = run(Start::New, &tiny_model(), &recipe, &data).unwrap();
    assert_eq!(steps.len(), want.len());
    let mut worst = [0f64; 3];
    for (i, (got, want)) in steps.iter().zip(want).enumerate() {
        let number = |key: &str| want[key].as_f64().unwrap();
        let before = if i == 0 { 0.0 } else { steps[i - 1].norm };
        let off = [
            (got.loss - number("loss")).abs(),
            (got.grad_norm - number("grad_norm")).abs(),
            (before - number("vec_before_norm")).abs(),
        ];
        assert!(off[0] < 1e-5 && off[1] < 1e-4 && off[2] < 1e-5, "step {i}: {off:?}");
        let d = number("d");
        // Their margin is in units of reward: beta times the relative margin.
        assert!((0.1 * d * got.margin - number("margin")).abs() < 1e-5, "step {i}");
        worst.iter_mut().zip(off).for_each(|(w, o)| *w = w.max(o));
    }
    let last: Vec<f64> = json["final_vec"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    let off = outcome.vectors[0].direction.iter().zip(&last).map(|(a, b)| (f64::from(*a) - b).abs());
    let off = off.fold(0.0, f64::max);
    assert!(off < 5e-6, "{off}");
    println!("largest differences: loss, gradient norm, |v| {worst:?}; final vector {off:e}");
    assert_eq!(
        steps[0].loss,
        std::f64::consts::LN_2,
        "cached and scored log-probabilities are the same bits"
    );
    for epoch in 1..=3 {
        assert!(recipe.out.join(format!("vectors/epoch-{epoch:03}.safetensors")).exists());
    }
}
