//! The default recipe on the tiny model.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use steerkit::{
    SteerError,
    train::{RunData, Start},
};

#[test]
fn the_norm_budget_ends_at_its_dose() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe("auto", &folder.path().join("run"), &[("layer", "\"auto\""), ("batch", "4")]);
    let (outcome, steps) = run(Start::New, &tiny_model(), &recipe, &short_data()).unwrap();
    let dose = outcome.relative_dose.unwrap();
    assert!((dose - 0.095).abs() < 1e-6, "{dose}");
    assert_eq!((outcome.layer, outcome.steps, outcome.split.as_str()), (2, 8, "valid"));
    for (i, step) in steps.iter().enumerate() {
        let want = outcome.norm * (i + 1) as f64 / 8.0;
        assert!((step.norm - want).abs() < 1e-6 * want, "step {}", step.step);
        assert_eq!((step.pairs, step.toward, step.lr), (4, 2, None));
    }
    assert!(steps[7].loss < steps[0].loss && steps[7].margin > 0.0);
    let saved = steerkit::SteeringVector::load(&recipe.out.join("vector.safetensors")).unwrap();
    assert_eq!((saved.direction, saved.layer), (outcome.vectors[0].direction.clone(), 2));
}

#[test]
fn a_layer_is_chosen_on_held_out_pairs_only() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe("auto", &folder.path().join("run"), &[("layer", "\"auto\"")]);
    let data = RunData { valid: None, test: short_data().valid, ..short_data() };
    let error = run(Start::New, &tiny_model(), &recipe, &data).unwrap_err();
    assert!(matches!(&error, SteerError::Recipe { place, .. } if place == "layer"), "{error}");
    assert!(error.hint().unwrap().contains("data.valid"));
}
