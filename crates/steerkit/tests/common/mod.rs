//! What several tests of training share.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "test code")]

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
pub(crate) fn tiny_model() -> Model {
    Model::open(&goldens().join("model"), &OpenOptions::default()).unwrap()
}

/// The golden files of the official run.
pub(crate) fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/goldens/official_run")
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// The ten pairs of the official run.
pub(crate) fn official_pairs() -> Vec<TokenPair> {
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

pub(crate) fn token_set(pairs: Vec<TokenPair>) -> TokenSet {
    let rows = (0..pairs.len()).collect();
    TokenSet { pairs, rows, sha256: "data of a test".into(), ..TokenSet::default() }
}

/// A recipe of `preset` at layer 1 into `out`, its cache off, with more settings.
pub(crate) fn recipe(preset: &str, out: &Path, more: &[(&str, &str)]) -> Recipe {
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
pub(crate) fn run(
    start: Start,
    model: &Model,
    recipe: &Recipe,
    data: &RunData,
) -> Result<(Outcome, Vec<StepRecord>)> {
    let mut steps = Vec::new();
    let mut observer = |event: Event<'_>| {
        if let Event::Step { record, .. } = event {
            steps.push(record.clone());
        }
    };
    let outcome = train_tokens(start, model, recipe, data, &mut observer, &AtomicBool::new(false))?;
    Ok((outcome, steps))
}

/// Twelve short pairs, made of token ids without meaning.
pub(crate) fn short_pairs() -> Vec<TokenPair> {
    let tokens =
        |pair: u32, from: u32, n: u32| (0..n).map(|i| 100 + (pair * 37 + from + i * 11) % 900).collect();
    let pair = |i: u32| TokenPair {
        prompt: tokens(i, 0, 3 + i % 4),
        chosen: tokens(i, 300, 2 + i % 3),
        rejected: tokens(i, 600, 2 + (i + 1) % 4),
    };
    (0..12).map(pair).collect()
}

/// [`short_pairs`] as the data of a run, the last four as `valid`.
pub(crate) fn short_data() -> RunData {
    let mut train = short_pairs();
    let valid = train.split_off(8);
    RunData { train: token_set(train), valid: Some(token_set(valid)), ..RunData::default() }
}

/// The bytes of a run's vector.
pub(crate) fn vector_bytes(recipe: &Recipe) -> Vec<u8> {
    std::fs::read(recipe.out.join("vector.safetensors")).unwrap()
}
