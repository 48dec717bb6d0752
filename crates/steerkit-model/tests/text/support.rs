//! Where the tests find SmolLM2 and the shared reference data.

use std::path::PathBuf;

use steerkit_model::gguf::Gguf;

/// SmolLM2-135M-Instruct as a GGUF file: named by STEERKIT_SMOLLM2, or in the cache of downloaded models. Says so where
/// there is none.
fn smollm2_path() -> Option<PathBuf> {
    let from_cache = || {
        let home = std::env::var_os("STEERKIT_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/steerkit")))?;
        Some(home.join("models/smollm2-135m.gguf"))
    };
    let path = std::env::var_os("STEERKIT_SMOLLM2").map(PathBuf::from).or_else(from_cache);
    let path = path.filter(|path| path.exists());
    if path.is_none() {
        println!("skipped: no SmolLM2 (set STEERKIT_SMOLLM2, or `steerkit model pull smollm2-135m`)");
    }
    path
}

/// SmolLM2's file.
pub(super) fn smollm2() -> Option<Gguf> {
    smollm2_path().map(|path| Gguf::open(&path).expect("SmolLM2's file opens"))
}

/// A file of the shared reference data beside the checkout; says so where there is none.
pub(super) fn shared(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(path);
    if !path.exists() {
        println!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}

/// A JSON file of the shared reference data.
pub(super) fn shared_json(path: &str) -> Option<serde_json::Value> {
    let bytes = std::fs::read(shared(path)?).expect("the file can be read");
    Some(serde_json::from_slice(&bytes).expect("the file is JSON"))
}

/// A JSON list of ids.
pub(super) fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}
