//! Adapters and vectors of several layers through a tiny Llama: losses, gradients and trajectories against PEFT and
//! PyTorch in double precision (`tests/data/make_trained.py`), and against finite differences of our own forward pass.

use super::{
    cache::{CachePolicy, CacheRequest, PairCache},
    pass::{Prepared, TokenPair},
    trainee::Trainee,
};
use crate::{
    objective::{Bipo, Direction, Objective},
    optim::{AdamW, Optimiser, Penalty, StepContext, Warmup},
    recipe::Precision,
    scope::{PromptShape, TokenScope},
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{path::PathBuf, sync::atomic::AtomicBool};
use steerkit_model::{
    Model, OpenOptions,
    lora::{LoraSettings, TrainableLora},
};

const STEPS: usize = 3;

#[derive(Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

#[derive(Deserialize)]
struct Lora {
    pairs: Vec<Pair>,
    references: Vec<[f64; 2]>,
    cases: Vec<LoraCase>,
}

#[derive(Deserialize)]
struct LoraCase {
    targets: Vec<String>,
    r: usize,
    alpha: f64,
    loss: f64,
    grad: Vec<f64>,
    trajectory: Option<Trajectory>,
}

#[derive(Deserialize)]
struct Trajectory {
    lr: f64,
    weight_decay: f64,
    losses: Vec<f64>,
    after: Vec<f64>,
}

#[derive(Deserialize)]
struct Layers {
    layers: Vec<usize>,
    pairs: Vec<Pair>,
    cases: Vec<LayersCase>,
    penalties: Vec<PenaltyCase>,
}

#[derive(Deserialize)]
struct LayersCase {
    scope: TokenScope,
    d: i32,
    loss: f64,
    grad: Vec<f64>,
}

#[derive(Deserialize)]
struct PenaltyCase {
    penalty: Penalty,
    value: f64,
    lr: f64,
    weight_decay: f64,
    after: Vec<f64>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/goldens")
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

fn open() -> Model {
    Model::open(&folder().join("llama"), &OpenOptions::default()).unwrap()
}

/// The numbers that the script makes by the same formula.
fn start(n: usize, size: f64) -> Vec<f32> {
    (0..n).map(|i| (size * (0.37 * i as f64 + 0.11).sin()) as f32).collect()
}

fn prepared<'a>(model: &'a Model, trainee: Trainee, pairs: &[Pair], scope: TokenScope) -> Prepared<'a> {
    let pair = |p: &Pair| TokenPair {
        prompt: p.prompt.clone(),
        chosen: p.chosen.clone(),
        rejected: p.rejected.clone(),
    };
    let pairs: Vec<TokenPair> = pairs.iter().map(pair).collect();
    let shape = |p: &TokenPair| PromptShape { len: p.prompt.len(), last_user: 0..0 };
    let scopes = pairs.iter().map(|p| scope.positions(&shape(p))).collect();
    let policy = CachePolicy::in_memory();
    // Two pairs do not fit into one micro-batch.
    let (layer, micro_batch_rows) = (trainee.constant_up_to(), 24);
    let precision = Precision::F32;
    let request = CacheRequest { model, layer, precision, split: "train", pairs: &pairs, micro_batch_rows };
    let never = AtomicBool::new(false);
    let cache = PairCache::prepare(&request, &policy, &mut |_: super::Event<'_>| {}, &never).unwrap();
    Prepared::new(model, trainee, pairs, scopes, cache, micro_batch_rows)
}

/// Loss and gradient of BiPO over all pairs.
fn at(ready: &Prepared<'_>, params: &[f32], d: Direction) -> (f64, Vec<f32>) {
    let batch: Vec<_> = (0..ready.pairs.len()).map(|i| (i, d)).collect();
    let objective = Objective::Bipo(Bipo::default());
    let ones = vec![1.0; batch.len()];
    let got = ready.gradient(&batch, &ones, params, &objective, &AtomicBool::new(false)).unwrap();
    (got.loss, got.grad)
}

/// How far `got` is from `want`, in units of its norm.
fn off(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let length = want.iter().map(|x| x * x).sum::<f64>().sqrt();
    got.iter().zip(want).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt() / length
}

/// Along the gradient the loss changes by its norm.
fn check_slope(ready: &Prepared<'_>, params: &[f32], grad: &[f32], d: Direction) {
    let length = crate::optim::norm(grad);
    let e = 2e-2 / length;
    let moved = |sign: f64| -> Vec<f32> {
        params.iter().zip(grad).map(|(&p, &g)| (f64::from(p) + sign * e * f64::from(g)) as f32).collect()
    };
    let slope = (at(ready, &moved(1.0), d).0 - at(ready, &moved(-1.0), d).0) / (2.0 * e * length);
    assert!((slope / length - 1.0).abs() < 1e-2, "{slope} {length}");
}

fn adamw(lr: f64, weight_decay: f64) -> Optimiser {
    Optimiser::AdamW(AdamW { lr, weight_decay, warmup: Warmup::Steps(0), ..AdamW::default() })
}

fn context(step: usize) -> StepContext {
    StepContext { step, total_steps: STEPS, steps_per_epoch: 1, residual_norm: 1.0 }
}

fn adapter<'a>(model: &'a Model, pairs: &[Pair], case: &LoraCase) -> (Prepared<'a>, TrainableLora) {
    let settings = LoraSettings { r: case.r, alpha: case.alpha, targets: case.targets.clone() };
    let lora = TrainableLora::new(model.config(), &settings).unwrap();
    (prepared(model, Trainee::Adapter(lora.clone()), pairs, TokenScope::All), lora)
}

#[test]
fn golden_adapter_losses_gradients_and_trajectory() {
    let goldens: Lora = read("dpo_lora.json");
    let model = open();
    for case in &goldens.cases {
        let (ready, lora) = adapter(&model, &goldens.pairs, case);
        for (i, want) in goldens.references.iter().enumerate() {
            let got = ready.cache.reference(i);
            assert!((got.chosen - want[0]).abs() < 2.4e-4 && (got.rejected - want[1]).abs() < 2.4e-4);
        }
        let mut params = start(lora.len(), 0.1);
        let (loss, grad) = at(&ready, &params, Direction::Toward);
        let far = off(&grad, &case.grad);
        println!("{:?}: loss off {:.1e}, gradient off {far:.1e}", case.targets, (loss - case.loss).abs());
        assert!((loss - case.loss).abs() < 2.4e-4 && far < 1e-4, "{loss} {}", case.loss);
        check_slope(&ready, &params, &grad, Direction::Toward);
        let Some(want) = &case.trajectory else { continue };
        let optimiser = adamw(want.lr, want.weight_decay);
        let (mut state, _) = optimiser.start(params.len(), 0);
        for (step, loss) in want.losses.iter().enumerate() {
            let (got, grad) = at(&ready, &params, Direction::Toward);
            assert!((got - loss).abs() < 2.4e-4, "step {step}: {got} {loss}");
            optimiser.step(&mut state, &mut params, grad, context(step));
        }
        let far = off(&params, &want.after);
        println!("after {STEPS} steps: off {far:.1e}");
        assert!(far < 1e-4);
    }
}

/// At multiplier 0, and with `B = 0`, an adapter is the plain model bit for bit.
#[test]
fn an_adapter_of_nothing_is_the_plain_model() {
    let goldens: Lora = read("dpo_lora.json");
    let model = open();
    let (ready, lora) = adapter(&model, &goldens.pairs, &goldens.cases[1]);
    let never = AtomicBool::new(false);
    let score = |params: &[f32], m: f32| {
        let items: Vec<_> = (0..ready.pairs.len()).map(|i| (i, m)).collect();
        ready.score(&items, params, &never).unwrap()
    };
    let plain: Vec<_> = (0..ready.pairs.len()).map(|i| ready.cache.reference(i)).collect();
    assert_eq!(score(&lora.start(3), 1.0), plain);
    assert_eq!(score(&start(lora.len(), 0.1), 0.0), plain);
    assert_ne!(score(&start(lora.len(), 0.1), -1.0), plain);
}

#[test]
fn golden_gradients_and_trajectories_of_several_layers() {
    let goldens: Layers = read("joint_layers.json");
    let model = open();
    let d = model.config().d_model;
    let trainee = Trainee::Vectors { layers: goldens.layers.clone(), d };
    let v = start(goldens.layers.len() * d, 0.4);
    for case in &goldens.cases {
        let ready = prepared(&model, trainee.clone(), &goldens.pairs, case.scope);
        let direction = if case.d > 0 { Direction::Toward } else { Direction::Away };
        let (loss, grad) = at(&ready, &v, direction);
        let far = off(&grad, &case.grad);
        println!(
            "{} d {:+}: loss off {:.1e}, gradient off {far:.1e}",
            case.scope,
            case.d,
            (loss - case.loss).abs()
        );
        assert!((loss - case.loss).abs() < 2.4e-4 && far < 1e-4, "{loss} {}", case.loss);
        check_slope(&ready, &v, &grad, direction);
    }
    let ready = prepared(&model, trainee, &goldens.pairs, TokenScope::All);
    for case in &goldens.penalties {
        let (mut v, optimiser) = (v.clone(), adamw(case.lr, case.weight_decay));
        assert!((case.penalty.value(&v, d) / case.value - 1.0).abs() < 1e-5);
        let (mut state, _) = optimiser.start(v.len(), 0);
        for step in 0..STEPS {
            let (_, mut grad) = at(&ready, &v, Direction::Toward);
            case.penalty.add_gradient(&v, d, &mut grad);
            let update = optimiser.step(&mut state, &mut v, grad, context(step));
            case.penalty.shrink(&mut v, d, update.lr.unwrap());
        }
        let far = off(&v, &case.after);
        println!("{:?}: off {far:.1e}", case.penalty);
        assert!(far < 1e-4, "{far}");
    }
}
