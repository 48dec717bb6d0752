//! What these tests read from outside the repository.

#[path = "../../../../tests/support/mod.rs"]
mod common;

use std::path::PathBuf;
use steerkit_model::gguf::Gguf;

/// SmolLM2's file.
pub(super) fn smollm2(test: &str) -> Option<Gguf> {
    common::smollm2(test).map(|path| Gguf::open(&path).expect("SmolLM2's file opens"))
}

/// A file of the reference data beside the checkout.
pub(super) fn shared(path: &str) -> Option<PathBuf> {
    common::shared("a golden of the tokeniser", path)
}

/// A JSON file of the reference data.
pub(super) fn shared_json(path: &str) -> Option<serde_json::Value> {
    let bytes = std::fs::read(shared(path)?).expect("the file can be read");
    Some(serde_json::from_slice(&bytes).expect("the file is JSON"))
}

/// A JSON list of ids.
pub(super) fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}
