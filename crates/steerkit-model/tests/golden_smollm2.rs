//! SmolLM2-135M-Instruct, read from its Q4_1 file, against PyTorch on the same weights dequantised.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::path::Path;
use steerkit_model::{DeviceChoice, Keep, Model, OpenOptions, Pack};
use support::{DEVICES, Golden, max_diff};

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
