//! The default recipe on a real model and the authors' data, from the CSV file to the vector.
//!
//! Needs the reference files beside the checkout.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use common::*;
use std::{path::Path, sync::atomic::AtomicBool};
use steerkit::{
    recipe::Draft,
    train::{Event, RunData, train},
};
use steerkit_model::{Model, OpenOptions};

const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");

fn model() -> Option<Model> {
    const NAME: &str = "the default recipe on SmolLM2";
    support::shared(NAME, "data/bipo")?;
    let path = support::smollm2(NAME)?;
    Some(Model::open(&path, &OpenOptions::default()).unwrap())
}

/// A line of the process's status, in 10^6 bytes.
fn status_mb(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with(key));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0 / 1e6
}

fn draft(out: &Path) -> Draft {
    let mut draft = Draft::default();
    draft.set_text("model", "smollm2");
    draft.set_text("out", out.to_str().unwrap());
    draft.set_text("data.train", &format!("{SHARED}/data/bipo/power-seeking/train.csv"));
    draft.set("cache.enabled", "false");
    draft
}

/// The tokens that PyTorch's trainings used, from the same rows of the file.
#[test]
fn golden_tokens_of_the_training_pairs() {
    let Some(model) = model() else { return };
    let mut draft = draft(Path::new("unused"));
    draft.set("data.holdout", "0");
    let data = RunData::read(&model, &draft.resolve().unwrap(), &mut |_: Event<'_>| {}).unwrap();
    let want = read_json(&Path::new(SHARED).join("goldens/smollm2/trajectory_pairs.json"));
    for (row, want) in want.as_object().unwrap() {
        let got = &data.train.pairs[row.parse::<usize>().unwrap()];
        assert_eq!(got.prompt, ids(&want["prompt_ids"]), "row {row}");
        assert_eq!(got.chosen, ids(&want["chosen_ids"]), "row {row}");
        assert_eq!(got.rejected, ids(&want["rejected_ids"]), "row {row}");
    }
    println!("{} pairs agree", want.as_object().unwrap().len());
}

/// The norm budget at layer 15 separates held-out pairs on both sides, at exactly its dose.
#[test]
fn the_default_recipe_steers_both_ways() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut draft = draft(&folder.path().join("power"));
    draft.set("layer", "15");
    draft.set("data.holdout", "32");
    let recipe = draft.resolve().unwrap();
    let mut observer = |event: Event<'_>| match event {
        Event::Step { record, .. } => println!(
            "step {} loss {:.4} margin {:.3} |v| {:.3} {:.2} s",
            record.step, record.loss, record.margin, record.norm, record.seconds
        ),
        Event::Note(note) => println!("{note}"),
        _ => {}
    };
    let outcome = train(&model, &recipe, &mut observer, &AtomicBool::new(false)).unwrap();
    for p in &outcome.eval {
        println!(
            "{:+}: margin {:.2} +- {:.2}, accuracy {:.2}",
            p.multiplier, p.margin, p.margin_se, p.accuracy
        );
    }
    println!("median residual norm {:.2}, norm {:.3}", outcome.layers[0].residual_norm, outcome.norm);
    assert!((outcome.relative_dose.unwrap() - 0.095).abs() < 1e-6);
    assert!((outcome.layers[0].residual_norm - 168.0).abs() < 5.0);
    let [away, plain, toward] = &outcome.eval[..] else { panic!("three multipliers") };
    assert!(away.margin < -4.0 * away.margin_se && toward.margin > 4.0 * toward.margin_se);
    assert_eq!(plain.margin, 0.0);
}

/// Fault 37: the estimate is within 15% of the peak.
#[test]
fn the_memory_of_a_run_is_known_before() {
    let Some(model) = model() else { return };
    if status_mb("VmHWM") == 0.0 {
        println!("skipped: the system does not tell the peak");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut draft = draft(&folder.path().join("power"));
    for (key, value) in [
        ("layer", "15"),
        ("data.limit", "16"),
        ("data.holdout", "0"),
        ("steps", "1"),
        ("eval.multipliers", "[0]"),
    ] {
        draft.set(key, value);
    }
    let recipe = draft.resolve().unwrap();
    // Other tests of this process may have had a higher peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let model_mb = status_mb("VmRSS");
    let mut estimate = 0.0;
    let mut observer = |event: Event<'_>| {
        if let Event::Memory { bytes } = event {
            estimate = bytes as f64 / 1e6;
        }
    };
    train(&model, &recipe, &mut observer, &AtomicBool::new(false)).unwrap();
    let peak = status_mb("VmHWM");
    println!(
        "memory in MB: model {model_mb:.0}, estimate with it {:.0}, peak {peak:.0}",
        model_mb + estimate
    );
    assert!((model_mb + estimate - peak).abs() < 0.15 * peak);
}
