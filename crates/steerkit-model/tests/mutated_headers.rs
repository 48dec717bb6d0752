//! Every family's tiny GGUF file with a damaged header: an answer within a second, and no panic.

#![allow(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use steerkit_model::{Model, OpenOptions, Pack};

/// The files with the lengths of their headers.
fn files() -> &'static [(PathBuf, Vec<u8>, usize)] {
    static FILES: OnceLock<Vec<(PathBuf, Vec<u8>, usize)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/families");
        let mut found: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().join("model.gguf"))
            .filter(|path| path.exists())
            .map(|path| {
                let bytes = std::fs::read(&path).unwrap();
                let gguf = steerkit_model::gguf::Gguf::open(&path).unwrap();
                let data: usize = gguf.tensors().iter().map(|t| t.bytes.as_slice().len()).sum();
                let header = bytes.len() - data;
                (path, bytes, header)
            })
            .collect();
        found.sort();
        found
    })
}

/// Opens the file and runs a short text, if it opens.
fn try_to_run(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let began = std::time::Instant::now();
    if let Ok(model) = Model::open(&path, &OpenOptions::default()) {
        let mut pack = Pack::default();
        pack.push(None, &[1, 2, 3]);
        let _ = model.residual(&pack, model.config().n_layers - 1);
    }
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes(file in any::<prop::sample::Index>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let (_, bytes, header) = file.get(files());
        let mut bytes = bytes.clone();
        for (at, value) in changes {
            bytes[at.index(*header)] = value;
        }
        try_to_run(&bytes);
    }

    #[test]
    fn changed_numbers(file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), value in prop_oneof![Just(0u64), Just(u64::MAX), Just(1 << 31), Just(1 << 40), any::<u64>()]) {
        let (_, bytes, header) = file.get(files());
        let mut bytes = bytes.clone();
        let at = at.index(*header - 8);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        try_to_run(&bytes);
    }
}

#[test]
fn cut_files() {
    for (_, bytes, header) in files() {
        for at in (0..*header).step_by(64).chain((0..20).map(|i| header + i * (bytes.len() - header) / 20)) {
            try_to_run(&bytes[..at]);
        }
    }
    assert!(files().len() >= 10);
}
