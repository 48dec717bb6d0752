//! SmolLM2-135M-Instruct, read from its Q4_1 file, against PyTorch on the same weights dequantised.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::ops::Range;
use std::path::Path;
use steerkit_model::{DeviceChoice, Keep, Model, OpenOptions, Pack, Precision};
use support::{DEVICES, Golden, max_diff};

const LAYER: usize = 15;
const BETA: f64 = 0.1;

#[test]
fn golden_forward_and_gradient() {
    const NAME: &str = "golden_forward_and_gradient";
    let Some(tensors) = support::shared(NAME, "goldens/smollm2/forward.safetensors") else { return };
    let Some(path) = support::smollm2(NAME) else { return };
    for &device in DEVICES {
        println!("{device:?}");
        forward_and_gradient(&tensors, &path, device);
    }
}

fn forward_and_gradient(tensors: &Path, path: &Path, device: DeviceChoice) {
    let json = std::fs::read_to_string(tensors.with_extension("json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let golden = Golden::open(tensors);
    let model = Model::open(path, &OpenOptions { device, ..OpenOptions::default() }).unwrap();
    let (d, layer) = (model.config().d_model, json["layer"].as_u64().unwrap() as usize);

    let mut text = Pack::default();
    let ids = golden.ids("input_ids");
    text.push(None, &ids);
    let hidden = golden.numbers("hidden");
    for l in 0..model.config().n_layers {
        let truth = &hidden[l * ids.len() * d..(l + 1) * ids.len() * d];
        let h = model.residual(&text, l).unwrap();
        // The first position's norm is 25,000, the others' 168: compare each row to its own size.
        for (row, truth) in h.chunks(d).zip(truth.chunks(d)) {
            let size = truth.iter().fold(1f64, |m, x| m.max(x.abs()));
            let diff = max_diff(row, truth) / size;
            assert!(diff < 2e-4, "block {l} differs by {diff:e}");
        }
    }

    let mut pack = Pack::default();
    let span =
        pack.push_pair(&golden.ids("prompt_ids"), &golden.ids("chosen_ids"), &golden.ids("rejected_ids"));
    let h = model.residual(&pack, layer).unwrap();
    let reference = model.score_from(layer, &h, &pack, Keep::Nothing).unwrap();
    for (name, range) in [("chosen", &span.chosen), ("rejected", &span.rejected)] {
        let diff =
            max_diff(&reference.logps()[range.clone()], &golden.numbers(&format!("ref_{name}_token_logps")));
        println!("{name} token log-probabilities within {diff:.1e}");
        assert!(diff < 2e-4);
    }
    let margin = |logps: &[f32]| {
        let sum = |r: &std::ops::Range<usize>| logps[r.clone()].iter().map(|&x| f64::from(x)).sum::<f64>();
        sum(&span.chosen) - sum(&span.rejected)
    };
    let (beta, v) = (json["beta"].as_f64().unwrap(), golden.f32("v"));
    for (sign, side) in [(1.0, "pos"), (-1.0, "neg")] {
        let mut steered = h.clone();
        for row in steered.chunks_mut(d) {
            row.iter_mut().zip(&v).for_each(|(h, &v)| *h += sign as f32 * v);
        }
        let scores = model.score_from(layer, &steered, &pack, Keep::ForVjp).unwrap();
        let z = sign * beta * (margin(scores.logps()) - margin(reference.logps()));
        let loss = (-z).exp().ln_1p();
        let expected = json["fp32"][format!("loss_{side}")].as_f64().unwrap();
        assert!((loss - expected).abs() < 2e-4, "loss {loss}, expected {expected}");
        let slope = (-sign * beta / (1.0 + z.exp())) as f32;
        let coef = |i| if span.chosen.contains(&i) { slope } else { -slope };
        let dh = scores.vjp(&(0..pack.scored.len()).map(coef).collect::<Vec<_>>()).unwrap();
        let gradient: Vec<f32> =
            (0..d).map(|j| sign as f32 * dh.chunks(d).map(|r| r[j]).sum::<f32>()).collect();
        let truth = golden.numbers(&format!("grad_v_{side}"));
        let size = truth.iter().fold(0f64, |m, x| m.max(x.abs()));
        let diff = max_diff(&gradient, &truth) / size;
        println!("d = {sign}: loss {loss:.6} ({expected:.6}), gradient within {diff:.1e} of PyTorch f32");
        // PyTorch f32 is itself 2.5e-5 from f64 here.
        assert!(diff < 3e-5);
    }
}

/// The BiPO gradient of a batch of four pairs on products rounded to bf16 points where that in f32 does.
#[test]
fn golden_bf16_gradient_of_a_batch() {
    const NAME: &str = "golden_bf16_gradient_of_a_batch";
    let Some(pairs) = support::shared(NAME, "goldens/smollm2/trajectory_pairs.json") else { return };
    let Some(tensors) = support::shared(NAME, "goldens/smollm2/forward.safetensors") else { return };
    let Some(path) = support::smollm2(NAME) else { return };
    let pairs: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(pairs).unwrap()).unwrap();
    let mut pack = Pack::default();
    let spans: Vec<_> = pairs
        .as_object()
        .unwrap()
        .values()
        .take(4)
        .map(|pair| {
            let ids = |key: &str| serde_json::from_value::<Vec<u32>>(pair[key].clone()).unwrap();
            pack.push_pair(&ids("prompt_ids"), &ids("chosen_ids"), &ids("rejected_ids"))
        })
        .collect();
    let v = Golden::open(&tensors).f32("v");
    let gradient = |precision| {
        let model = Model::open(&path, &OpenOptions { precision, ..OpenOptions::default() }).unwrap();
        let mut h = model.residual(&pack, LAYER).unwrap();
        let reference = model.score_from(LAYER, &h, &pack, Keep::Nothing).unwrap();
        h.chunks_mut(v.len()).for_each(|row| row.iter_mut().zip(&v).for_each(|(h, &v)| *h += v));
        let scores = model.score_from(LAYER, &h, &pack, Keep::ForVjp).unwrap();
        let mut coef = vec![0.0; pack.scored.len()];
        for span in &spans {
            let sum =
                |logps: &[f32], r: &Range<usize>| logps[r.clone()].iter().map(|&x| f64::from(x)).sum::<f64>();
            let margin = |logps: &[f32]| sum(logps, &span.chosen) - sum(logps, &span.rejected);
            let z = BETA * (margin(scores.logps()) - margin(reference.logps()));
            let slope = (-BETA / (1.0 + z.exp())) as f32;
            coef[span.chosen.clone()].fill(slope);
            coef[span.rejected.clone()].fill(-slope);
        }
        let dh = scores.vjp(&coef).unwrap();
        let column = |j: usize| dh.chunks(v.len()).map(|row| f64::from(row[j])).sum::<f64>();
        (0..v.len()).map(column).collect::<Vec<f64>>()
    };
    let (exact, rounded) = (gradient(Precision::F32), gradient(Precision::Bf16));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = dot(&exact, &rounded) / (dot(&exact, &exact) * dot(&rounded, &rounded)).sqrt();
    println!("{} pairs, cosine {cosine:.6}", spans.len());
    assert_eq!(spans.len(), 4);
    assert!(cosine >= 0.9995, "{cosine}");
}
