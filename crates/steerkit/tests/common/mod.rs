//! What several tests of training share.
#![allow(dead_code)] // Each test file uses its part.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use steerkit::{
    Result,
    metrics::StepRecord,
    recipe::{Draft, Recipe},
    train::{Event, Outcome, RunData, Start, TokenPair, TokenSet, train_tokens},
};
use steerkit_model::{Model, OpenOptions};

/// The tiny Llama of the official run: 4 blocks of width 16.
pub fn tiny_model() -> Model {
    Model::open(&goldens().join("model"), &OpenOptions::default()).unwrap()
}

/// The golden files of the official run.
pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/goldens/official_run")
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// The ten pairs of the official run.
pub fn official_pairs() -> Vec<TokenPair> {
    let json = read_json(&goldens().join("official.json"));
    let response = |pair: &Value, side: &str| {
        let labels = pair[format!("{side}_labels")].as_array().unwrap();
        let start = labels.iter().position(|l| l.as_i64() != Some(-100)).unwrap();
        let mut prompt = ids(&pair[format!("{side}_input_ids")]);
        let response = prompt.split_off(start);
        (prompt, response)
    };
    let pair = |pair: &Value| {
        let ((prompt, chosen), (same, rejected)) = (response(pair, "chosen"), response(pair, "rejected"));
        assert_eq!(prompt, same);
        TokenPair { prompt, chosen, rejected }
    };
    json["tokens"].as_array().unwrap().iter().map(pair).collect()
}

pub fn token_set(pairs: Vec<TokenPair>) -> TokenSet {
    let rows = (0..pairs.len()).collect();
    TokenSet { pairs, rows, sha256: "data of a test".into() }
}

/// A recipe of `preset` at layer 1 into `out`, its cache off, with more settings.
pub fn recipe(preset: &str, out: &Path, more: &[(&str, &str)]) -> Recipe {
    let mut draft = Draft::default();
    for (key, value) in [("model", "tiny"), ("data.train", "pairs"), ("preset", preset)] {
        draft.set_text(key, value);
    }
    draft.set_text("out", out.to_str().unwrap());
    draft.set("layer", "1");
    draft.set("cache.enabled", "false");
    more.iter().for_each(|(key, value)| draft.set(key, value));
    draft.resolve().unwrap()
}

/// Trains without being disturbed and returns the steps with the outcome.
pub fn run(start: Start, model: &Model, recipe: &Recipe, data: &RunData) -> Result<(Outcome, Vec<StepRecord>)> {
    let mut steps = Vec::new();
    let mut observer = |event: Event<'_>| {
        if let Event::Step { record, .. } = event {
            steps.push(record.clone());
        }
    };
    let outcome = train_tokens(start, model, recipe, data, &mut observer, &AtomicBool::new(false))?;
    Ok((outcome, steps))
}
