//! Gradients of an adapter and of additions to the residual stream, on every family and every device.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::path::Path;
use steerkit_model::lora::{LoraSettings, TrainableLora};
use steerkit_model::{DeviceChoice, Keep, Model, OpenOptions, Pack, Pass, Start};
use support::{DEVICES, golden_folders, golden_models, golden_name, long_context};

/// What a pass is changed by: adapter's numbers, and rows after the second and the last block.
struct Point {
    params: Vec<f32>,
    added: Vec<(usize, Vec<f32>)>,
}

impl Point {
    /// The point moved along a direction by `step`.
    fn moved(&self, along: &Point, step: f32) -> Point {
        let move_all = |x: &[f32], by: &[f32]| x.iter().zip(by).map(|(x, by)| x + step * by).collect();
        let added = self.added.iter().zip(&along.added);
        Point {
            params: move_all(&self.params, &along.params),
            added: added.map(|((layer, x), (_, by))| (*layer, move_all(x, by))).collect(),
        }
    }

    fn norm(&self) -> f64 {
        let all = self.params.iter().chain(self.added.iter().flat_map(|a| &a.1));
        all.map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
    }
}

struct Subject {
    model: Model,
    lora: TrainableLora,
    pack: Pack,
}

impl Subject {
    fn open(folder: &Path, path: &Path, device: DeviceChoice) -> Self {
        let long_context = long_context(folder);
        let options = OpenOptions { device, long_context, ..OpenOptions::default() };
        let model = Model::open(path, &options).unwrap();
        let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let fused = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"];
        let settings = |targets: &[&str]| LoraSettings {
            r: 2,
            alpha: 3.0,
            targets: targets.iter().map(|t| (*t).to_owned()).collect(),
        };
        let lora = TrainableLora::new(model.config(), &settings(&all))
            .or_else(|_| TrainableLora::new(model.config(), &settings(&fused)))
            .unwrap();
        let mut pack = Pack::default();
        pack.push_pair(&[5, 9, 4, 7], &[11, 8, 3], &[6, 12]);
        pack.push_pair(&[3, 14], &[10], &[13, 5, 9]);
        Self { model, lora, pack }
    }

    fn start(&self) -> Point {
        let wave = |n: usize, size: f32| (0..n).map(|i| size * (0.37 * i as f32 + 0.11).sin()).collect();
        let config = self.model.config();
        let rows = self.pack.len() * config.d_model;
        let layers = [1, config.n_layers - 1];
        let layers = layers.into_iter().collect::<std::collections::BTreeSet<_>>();
        Point {
            params: wave(self.lora.len(), 0.1),
            added: layers.into_iter().map(|l| (l, wave(rows, 0.1))).collect(),
        }
    }

    /// A weighted sum of log-probabilities, and its gradient.
    fn at(&self, point: &Point) -> (f64, Point) {
        let adapter = self.lora.additions(&point.params, 1.0);
        let pass =
            Pass { pack: &self.pack, start: Start::Tokens, added: &point.added, adapter: Some(&adapter) };
        let scores = self.model.score_pass(&pass, Keep::ForVjp).unwrap();
        let coef: Vec<f32> = (0..scores.logps().len()).map(|i| 0.5 - (0.9 * i as f32).cos()).collect();
        let value = scores.logps().iter().zip(&coef).map(|(&x, &c)| f64::from(x) * f64::from(c)).sum();
        let gradients = scores.gradients(&coef).unwrap();
        let mut params = vec![0.0; self.lora.len()];
        self.lora.add_gradient(&gradients.adapter, 1.0, &mut params);
        let layers = point.added.iter().map(|a| a.0);
        let added = layers.zip(gradients.added_td).collect();
        (value, Point { params: params.into_iter().map(|x| x as f32).collect(), added })
    }
}

/// The largest difference, in units of the largest number.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let size = a.iter().fold(0f32, |most, x| most.max(x.abs()));
    a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / size
}

#[test]
fn gradients_are_those_of_finite_differences_and_alike_everywhere() {
    for folder in golden_folders() {
        let mut first: Option<Point> = None;
        for path in golden_models(&folder) {
            for &device in DEVICES {
                let subject = Subject::open(&folder, &path, device);
                let start = subject.start();
                let (_, gradient) = subject.at(&start);
                let (length, name) = (gradient.norm(), golden_name(&folder, &path));
                for part in ["adapter", "rows"] {
                    let mut along = gradient.moved(&gradient, 0.0);
                    match part {
                        "adapter" => along.added.iter_mut().for_each(|a| a.1.fill(0.0)),
                        _ => along.params.fill(0.0),
                    }
                    let own = along.norm();
                    let step = (2e-2 / own) as f32;
                    let [up, down] = [step, -step].map(|step| subject.at(&start.moved(&along, step)).0);
                    let slope = (up - down) / (2.0 * f64::from(step) * own);
                    println!("{name} {device:?} {part}: slope {slope:.5} of {own:.5} (all {length:.3})");
                    assert!((slope / own - 1.0).abs() < 2e-2, "{name} {device:?} {part}: {slope} {own}");
                }
                // A GGUF file holds the same model with other rows of q and k; the numbers are a checkpoint's.
                let want = first.get_or_insert_with(|| gradient.moved(&gradient, 0.0));
                let mut far = apart(&want.params, &gradient.params);
                for (a, b) in want.added.iter().zip(&gradient.added) {
                    far = far.max(apart(&a.1, &b.1));
                }
                println!("{name} {device:?}: off {far:.1e}");
                assert!(far < 1e-3, "{name} {device:?}: {far}");
            }
        }
    }
}
