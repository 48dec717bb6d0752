//! Loading whole models: the repository's tiny ones, and SmolLM2 where `STEERKIT_TEST_SMOLLM2` names its file.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::{Path, PathBuf};
use steerkit_kernels::Matrix;
use steerkit_model::{
    Loaded, Specials,
    config::{DecoderConfig, RopePairing, RopeScaling},
    load,
};

/// A file of the repository's test data.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

fn rows(m: &Matrix) -> Vec<Vec<f32>> {
    (0..m.rows())
        .map(|i| {
            let mut row = vec![0.0; m.cols()];
            m.expand_row(i, &mut row);
            row
        })
        .collect()
}

/// The row of a checkpoint that stands in row `i` of a GGUF file's q or k.
fn unpermuted(i: usize, head_dim: usize) -> usize {
    let (head, within) = (i / head_dim, i % head_dim);
    head * head_dim + within % 2 * (head_dim / 2) + within / 2
}

#[test]
fn folder_and_gguf_hold_the_same_model() {
    let hf = load(&data("tiny-llama-hf")).unwrap();
    let gguf = load(&data("tiny-llama-gguf/tiny-llama-f32.gguf")).unwrap();
    let mut rope = gguf.config.rope.clone();
    assert_eq!((rope.pairing, hf.config.rope.pairing), (RopePairing::Adjacent, RopePairing::Halves));
    rope.pairing = RopePairing::Halves;
    assert_eq!(DecoderConfig { rope, ..gguf.config.clone() }, hf.config);
    assert_eq!(gguf.chat_template, hf.chat_template);
    assert!(gguf.chat_template.as_ref().is_some_and(|t| t.contains("a tiny model for tests")));
    let text = "You are 7 times <|im_end|>\n quicker, aren't you? \u{e9}\u{4e16}";
    let ids = [&gguf, &hf].map(|m| {
        let tokenizer = m.tokenizer.as_ref().unwrap();
        assert_eq!((tokenizer.eos(), tokenizer.add_bos(), tokenizer.vocab_size()), (Some(2), false, 384));
        let ids = tokenizer.encode(text, Specials::Parse).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        ids
    });
    assert_eq!(ids[0], ids[1]);
    assert_eq!(gguf.identity.template_sha256, hf.identity.template_sha256);
    assert_eq!((gguf.identity.name.as_str(), hf.identity.name.as_str()), ("tiny llama", "tiny-llama-hf"));

    let (a, b) = (&gguf.weights, &hf.weights);
    assert_eq!(rows(&a.embed), rows(&b.embed));
    assert_eq!(rows(&a.head), rows(&b.head));
    assert_eq!(a.final_norm, b.final_norm);
    let c = &hf.config;
    let turned = (c.n_heads + c.n_kv_heads) * c.head_dim;
    for (a, b) in a.layers.iter().zip(&b.layers) {
        assert_eq!((&a.attn_norm, &a.ffn_norm), (&b.attn_norm, &b.ffn_norm));
        let (qkv, theirs) = (rows(&a.qkv.matrix), rows(&b.qkv.matrix));
        for (i, row) in qkv.iter().enumerate() {
            let j = if i < turned { unpermuted(i, c.head_dim) } else { i };
            assert_eq!(row, &theirs[j]);
        }
        for (a, b) in [(&a.attn_out, &b.attn_out), (&a.gate_up, &b.gate_up), (&a.down, &b.down)] {
            assert_eq!(rows(&a.matrix), rows(&b.matrix));
        }
    }
}

/// Root mean square of the difference over that of `b`.
fn distance(a: &Matrix, b: &Matrix) -> f64 {
    let (a, b) = (rows(a).concat(), rows(b).concat());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = a.iter().zip(&b).map(|(&a, &b)| square(a - b)).sum();
    (difference / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

#[test]
fn quantised_gguf_is_near_the_plain_one() {
    let plain = load(&data("tiny-llama-gguf/tiny-llama-f32.gguf")).unwrap();
    let mixed = load(&data("tiny-llama-gguf/tiny-llama-mixed.gguf")).unwrap();
    assert_eq!(plain.config, mixed.config);
    assert!(distance(&mixed.weights.embed, &plain.weights.embed) < 0.01);
    for (a, b) in mixed.weights.layers.iter().zip(&plain.weights.layers) {
        assert_eq!(a.attn_norm, b.attn_norm);
        assert!(distance(&a.attn_out.matrix, &b.attn_out.matrix) < 0.01, "Q8_0");
        assert!(distance(&a.qkv.matrix, &b.qkv.matrix) < 0.1, "Q4_1, F16 and Q5_0");
        assert!(distance(&a.gate_up.matrix, &b.gate_up.matrix) < 0.12, "Q4_1 and Q4_0");
        assert_eq!(rows(&a.down.matrix), rows(&b.down.matrix), "BF16 holds these weights exactly");
    }
}

#[test]
fn golden_models_load() {
    for (name, tied) in [("llama", false), ("llama3rope", true)] {
        let m = load(&data("goldens").join(name)).unwrap();
        assert_eq!((m.config.n_layers, m.config.d_model, m.config.vocab), (4, 64, 320));
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 16,
        };
        assert_eq!(m.config.rope.scaling, if tied { scaling } else { RopeScaling::None });
        assert_eq!(m.config.rope.theta, if tied { 5e5 } else { 1e4 });
        assert_eq!(rows(&m.weights.embed) == rows(&m.weights.head), tied);
        assert!(m.chat_template.is_none() && m.tokenizer.is_none());
        let json = serde_json::to_string(&m.identity).unwrap();
        assert_eq!(serde_json::from_str::<steerkit_model::ModelIdentity>(&json).unwrap(), m.identity);
    }
}

#[test]
fn smollm2_loads() {
    let Some(path) = std::env::var_os("STEERKIT_TEST_SMOLLM2") else {
        println!("skipped: STEERKIT_TEST_SMOLLM2 names no file");
        return;
    };
    let start = std::time::Instant::now();
    let Loaded { config: c, identity, chat_template, .. } = load(path.as_ref()).unwrap();
    println!("loaded in {:?}", start.elapsed());
    assert_eq!((c.n_layers, c.d_model, c.n_heads, c.n_kv_heads, c.head_dim), (30, 576, 9, 3, 64));
    assert_eq!((c.d_ff, c.vocab, c.context, c.norm_eps), (1536, 49152, 8192, 1e-5));
    assert_eq!(
        (c.rope.theta, c.rope.pairing, c.rope.scaling),
        (1e5, RopePairing::Adjacent, RopeScaling::None)
    );
    let sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
    assert_eq!(identity.file_sha256, sha256);
    assert!(chat_template.is_some_and(|t| t.contains("SmolLM, trained by Hugging Face")));
}
