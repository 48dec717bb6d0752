//! Loading the reference models, where they lie beside the checkout.

use std::path::{Path, PathBuf};
use steerkit_model::{
    config::{RopePairing, RopeScaling},
    load,
};

/// A file of the reference data, or `None` with a line that says so.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(name);
    if !path.exists() {
        println!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn smollm2_gguf_loads() {
    let Some(path) = std::env::var_os("STEERKIT_TEST_SMOLLM2").map(PathBuf::from) else {
        println!("skipped: STEERKIT_TEST_SMOLLM2 names no file");
        return;
    };
    let start = std::time::Instant::now();
    let m = load(&path).unwrap();
    println!("loaded in {:?}", start.elapsed());
    assert_eq!(
        (m.config.n_layers, m.config.d_model, m.config.n_heads, m.config.n_kv_heads, m.config.head_dim),
        (30, 576, 9, 3, 64)
    );
    assert_eq!((m.config.d_ff, m.config.vocab, m.config.context), (1536, 49152, 8192));
    assert_eq!(m.config.norm_eps, 1e-5);
    assert_eq!(m.config.rope.theta, 1e5);
    assert_eq!(m.config.rope.pairing, RopePairing::Adjacent);
    assert_eq!(m.identity.file_sha256, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
    assert!(m.chat_template.unwrap().contains("SmolLM, trained by Hugging Face"));
}

#[test]
fn golden_tiny_llamas_load() {
    for (name, tied) in [("llama", false), ("llama3rope", true)] {
        let Some(path) = shared(&format!("goldens/tiny/{name}")) else { return };
        let m = load(&path).unwrap();
        assert_eq!((m.config.n_layers, m.config.d_model, m.config.vocab), (4, 64, 320));
        assert_eq!(m.config.rope.pairing, RopePairing::Halves);
        assert_eq!(matches!(m.config.rope.scaling, RopeScaling::Llama3 { .. }), tied);
        let (mut a, mut b) = (vec![0.0; 64], vec![0.0; 64]);
        m.weights.embed.expand_row(17, &mut a);
        m.weights.head.expand_row(17, &mut b);
        assert_eq!(a == b, tied);
    }
}
