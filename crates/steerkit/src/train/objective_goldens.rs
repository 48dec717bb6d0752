//! Every objective through a tiny Llama: loss and gradient against PyTorch autograd in double precision
//! (`tests/data/make_objectives.py`), and against finite differences of our own forward pass.

use super::{
    cache::{CachePolicy, CacheRequest, PairCache},
    pass::{Prepared, TokenPair},
    trainee::Trainee,
};
use crate::{
    objective::{Direction, Objective},
    recipe::Precision,
    scope::{PromptShape, TokenScope},
};
use serde::Deserialize;
use std::{path::Path, sync::atomic::AtomicBool};
use steerkit_model::{Model, OpenOptions};

#[derive(Deserialize)]
struct Goldens {
    layer: usize,
    v: Vec<f32>,
    pairs: Vec<Pair>,
    references: Vec<[f64; 2]>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    objective: Objective,
    scope: TokenScope,
    d: i32,
    factors: Vec<f32>,
    loss: f64,
    grad: Vec<f64>,
}

fn prepared<'a>(model: &'a Model, goldens: &Goldens, scope: TokenScope) -> Prepared<'a> {
    let pairs: Vec<TokenPair> = goldens
        .pairs
        .iter()
        .map(|p| TokenPair {
            prompt: p.prompt.clone(),
            chosen: p.chosen.clone(),
            rejected: p.rejected.clone(),
        })
        .collect();
    let shape = |p: &TokenPair| PromptShape { len: p.prompt.len(), last_user: 0..0 };
    let scopes = pairs.iter().map(|p| scope.positions(&shape(p))).collect();
    let policy = CachePolicy::in_memory();
    // Two pairs do not fit into one micro-batch.
    let (layer, micro_batch_rows) = (goldens.layer, 24);
    let request = CacheRequest {
        model,
        layer: Some(layer),
        precision: Precision::F32,
        split: "train",
        pairs: &pairs,
        micro_batch_rows,
    };
    let cache = PairCache::prepare(&request, &policy, &mut |_: super::Event<'_>| {}, &AtomicBool::new(false))
        .unwrap();
    let trainee = Trainee::vector(model, layer);
    Prepared::new(model, trainee, pairs, scopes, cache, micro_batch_rows)
}

#[test]
fn golden_losses_and_gradients_of_every_objective() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/goldens");
    let goldens: Goldens =
        serde_json::from_slice(&std::fs::read(folder.join("objectives.json")).unwrap()).unwrap();
    let model = Model::open(&folder.join("llama"), &OpenOptions::default()).unwrap();
    let never = AtomicBool::new(false);
    for case in &goldens.cases {
        let ready = prepared(&model, &goldens, case.scope);
        for (i, want) in goldens.references.iter().enumerate() {
            let got = ready.cache.reference(i);
            assert!((got.chosen - want[0]).abs() < 2.4e-4 && (got.rejected - want[1]).abs() < 2.4e-4);
        }
        let d = if case.d > 0 { Direction::Toward } else { Direction::Away };
        let batch: Vec<_> = (0..ready.pairs.len()).map(|i| (i, d)).collect();
        let at = |v: &[f32]| ready.gradient(&batch, &case.factors, v, &case.objective, &never).unwrap();
        let got = at(&goldens.v);
        let length = case.grad.iter().map(|g| g * g).sum::<f64>().sqrt();
        let off: f64 =
            got.grad.iter().zip(&case.grad).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
        println!(
            "{:<30} {:<15} d {:+}: loss {:.6} off {:.1e}, gradient {:.4} off {:.1e}",
            case.name,
            case.scope.to_string(),
            case.d,
            case.loss,
            (got.loss - case.loss).abs(),
            length,
            off / length
        );
        assert!((got.loss - case.loss).abs() < 2.4e-4, "{}: {} {}", case.name, got.loss, case.loss);
        assert!(off / length < 1e-4, "{}", case.name);
        // Along the gradient the loss changes by its norm.
        let e = 2e-2 / length;
        let moved = |sign: f64| -> Vec<f32> {
            goldens.v.iter().zip(&case.grad).map(|(&v, g)| (f64::from(v) + sign * e * g) as f32).collect()
        };
        let slope = (at(&moved(1.0)).loss - at(&moved(-1.0)).loss) / (2.0 * e * length);
        assert!((slope / length - 1.0).abs() < 1e-2, "{}: {slope} {length}", case.name);
    }
}
