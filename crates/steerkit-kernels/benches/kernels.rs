//! Kernels at the sizes of SmolLM2-135M, with as much memory behind them as the model has:
//! `cargo bench -p steerkit-kernels`.

#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::hint::black_box;
use std::sync::Arc;
use steerkit_kernels::attention::Heads;
use steerkit_kernels::gemm::{Interleaved, linear, linear_interleaved};
use steerkit_kernels::kv::{CachedText, KeyValues, attention_cached};
use steerkit_kernels::{BlockFormat, Bytes, Matrix, Precision};

const D: usize = 576;
const MODES: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

fn numbers(n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn matrix(format: BlockFormat, rows: usize, cols: usize) -> Matrix {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let len = rows * format.row_bytes(cols).expect("whole blocks");
    let mut bytes: Vec<u8> = (0..len).map(|_| rng.random()).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        // Scale and minimum of 2^-7: other bits might be infinite.
        (block[0], block[1]) = (0, 0x20);
        if format == BlockFormat::Q4_1 {
            (block[2], block[3]) = (0, 0x20);
        }
    }
    Matrix::new(format, rows, cols, Bytes::new(Arc::new(bytes)))
}

/// The gate and up projections of all blocks, and the head, one after the other.
fn few_rows(c: &mut Criterion) {
    let layers: Vec<Matrix> = (0..30).map(|_| matrix(BlockFormat::Q4_1, 3072, D)).collect();
    for (name, weights) in
        [("gate_up q4_1", layers), ("head q8_0", vec![matrix(BlockFormat::Q8_0, 49152, D)])]
    {
        let interleaved: Vec<_> =
            weights.iter().map(|w| Interleaved::new(w).expect("a format with codes")).collect();
        let rows = weights[0].rows();
        let mut group = c.benchmark_group(name);
        group.sample_size(20);
        group.throughput(Throughput::Elements((weights.len() * rows * D) as u64));
        for t in [1, 4, 16, 32] {
            let (x, mut y) = (numbers(t * D), vec![0.0; t * rows]);
            for precision in MODES {
                group.bench_function(BenchmarkId::new(format!("interleaved {precision:?}"), t), |b| {
                    b.iter(|| {
                        interleaved
                            .iter()
                            .for_each(|w| linear_interleaved(w, black_box(&x), t, &mut y, precision));
                    });
                });
            }
            group.bench_function(BenchmarkId::new("stored F32", t), |b| {
                b.iter(|| weights.iter().for_each(|w| linear(w, black_box(&x), t, &mut y, Precision::F32)));
            });
        }
    }
}

/// One new row of each of 16 texts over their caches.
fn cached_attention(c: &mut Criterion) {
    let heads = Heads { n: 9, k: 3, h: 64, scale: 0.125, softcap: None, window: None };
    let mut group = c.benchmark_group("cached attention");
    for keys in [100, 1000] {
        let caches: Vec<KeyValues> = (0..16)
            .map(|_| {
                let mut cache = KeyValues::default();
                cache.push(heads, &numbers(keys * heads.qkv_width()));
                cache
            })
            .collect();
        let texts: Vec<_> =
            caches.iter().enumerate().map(|(i, cache)| CachedText { cache, rows: (i, i + 1) }).collect();
        let (qkv, mut out) = (numbers(16 * heads.qkv_width()), vec![0.0; 16 * heads.n * heads.h]);
        group.bench_function(BenchmarkId::from_parameter(keys), |b| {
            b.iter(|| attention_cached(heads, black_box(&qkv), &texts, &mut out));
        });
    }
}

criterion_group!(benches, few_rows, cached_attention);
criterion_main!(benches);
