//! The decoder and its gradient against PyTorch, on every golden folder.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use steerkit_model::arch::FAMILIES;
use steerkit_model::{DeviceChoice, Edit, EditOp, Keep, LoraChoice, LoraMode, Model, OpenOptions, Pack, Run};
use support::{DEVICES, Golden, golden_folders, golden_models, golden_name, long_context, max_diff, root};

const LOGITS: f64 = 2e-4;
const GRADIENT: f64 = 1e-5;

struct Case {
    name: String,
    device: DeviceChoice,
    model: Model,
    golden: Golden,
    json: serde_json::Value,
    layer: usize,
}

fn case(folder: &Path, model: &Path, device: DeviceChoice) -> Case {
    let name = format!("{} on {device:?}", golden_name(folder, model));
    let long_context = long_context(folder);
    let model = Model::open(model, &OpenOptions { device, long_context, ..OpenOptions::default() })
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    with_golden(name, folder, model, device)
}

fn with_golden(name: String, folder: &Path, model: Model, device: DeviceChoice) -> Case {
    let json = std::fs::read_to_string(folder.join("golden.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let layer = json["layer"].as_u64().unwrap() as usize;
    Case { name, device, model, golden: Golden::open(&folder.join("golden.safetensors")), json, layer }
}

impl Case {
    fn edits(&self, multiplier: f32) -> Vec<Edit> {
        let v: Arc<[f32]> = self.golden.f32("v").iter().map(|x| x * multiplier).collect();
        vec![Edit::new(self.layer, EditOp::Add(v))]
    }

    fn hidden_states(&self) {
        let mut pack = Pack::default();
        pack.push(None, &self.golden.ids("input_ids"));
        for layer in 0..self.model.config().n_layers {
            let h = self.model.residual(&pack, layer).unwrap();
            let truth = self.golden.numbers(&format!("hidden.{layer}"));
            let scale = truth.iter().fold(1f64, |m, x| m.max(x.abs()));
            let diff = max_diff(&h, &truth) / scale;
            assert!(diff < 1e-5, "{}: block {layer} differs by {diff:e}", self.name);
        }
    }

    /// Logits token by token over a cache, and the last row in one piece.
    fn logits(&self) {
        let ids = self.golden.ids("input_ids");
        for (multiplier, tensor) in
            [(0.0, "logits"), (1.0, "logits_steered_pos"), (-1.0, "logits_steered_neg")]
        {
            let edits = if multiplier == 0.0 { vec![] } else { self.edits(multiplier) };
            let mut sequence = self.model.new_sequence(edits.clone()).unwrap();
            let mut logits = Vec::new();
            for id in &ids {
                let run = Run { sequence: &mut sequence, tokens: std::slice::from_ref(id) };
                logits.push(self.model.advance(&mut [run]).unwrap().remove(0).unwrap());
            }
            let diff = max_diff(&logits.concat(), &self.golden.numbers(tensor));
            println!("{}: {tensor} within {diff:.1e}", self.name);
            assert!(diff < LOGITS, "{}: {tensor} differ by {diff:e}", self.name);
            let mut whole = self.model.new_sequence(edits).unwrap();
            let last = self.model.advance(&mut [Run { sequence: &mut whole, tokens: &ids }]).unwrap();
            let (whole, cached) = (last[0].as_ref().unwrap(), logits.last().unwrap());
            if self.device == DeviceChoice::Cpu {
                assert_eq!(whole, cached, "{}: cached and whole differ", self.name);
            } else {
                let cached: Vec<f64> = cached.iter().map(|&x| x.into()).collect();
                assert!(max_diff(whole, &cached) < LOGITS, "{}: cached and whole differ", self.name);
            }
        }
    }

    /// Loss and gradient of the BiPO objective, written out here from the paper's Eq 3.
    fn gradients(&self) {
        let beta = self.json["beta"].as_f64().unwrap();
        let v = self.golden.f32("v");
        let mut pack = Pack::default();
        let [prompt, chosen, rejected] =
            ["prompt_ids", "chosen_ids", "rejected_ids"].map(|n| self.golden.ids(n));
        let span = pack.push_pair(&prompt, &chosen, &rejected);
        let h = self.model.residual(&pack, self.layer).unwrap();
        let margin = |logps: &[f32]| {
            let sum =
                |r: &std::ops::Range<usize>| logps[r.clone()].iter().map(|&x| f64::from(x)).sum::<f64>();
            sum(&span.chosen) - sum(&span.rejected)
        };
        let reference = margin(self.model.score_from(self.layer, &h, &pack, Keep::Nothing).unwrap().logps());
        for (d, side) in [(1.0, "pos"), (-1.0, "neg")] {
            let mut steered = h.clone();
            for row in steered.chunks_mut(v.len()) {
                row.iter_mut().zip(&v).for_each(|(h, &v)| *h += d as f32 * v);
            }
            let scores = self.model.score_from(self.layer, &steered, &pack, Keep::ForVjp).unwrap();
            let z = d * beta * (margin(scores.logps()) - reference);
            let loss = (-z).exp().ln_1p();
            let expected = self.json["fp64"][format!("loss_{side}")].as_f64().unwrap();
            assert!((loss - expected).abs() < 1e-5, "{}: loss {loss}, expected {expected}", self.name);

            let slope = (-d * beta / (1.0 + z.exp())) as f32;
            let coef: Vec<f32> = (0..pack.scored.len())
                .map(|i| if span.chosen.contains(&i) { slope } else { -slope })
                .collect();
            let dh = scores.vjp(&coef).unwrap();
            let gradient: Vec<f32> =
                (0..v.len()).map(|j| d as f32 * dh.chunks(v.len()).map(|row| row[j]).sum::<f32>()).collect();
            let truth = self.golden.numbers(&format!("grad_v_{side}_f64"));
            let scale = truth.iter().fold(0f64, |m, x| m.max(x.abs()));
            let diff = max_diff(&gradient, &truth) / scale;
            println!("{}: gradient at d = {d} within {diff:.1e}", self.name);
            assert!(diff < GRADIENT, "{}: gradient at d = {d} differs by {diff:e}", self.name);
        }
    }
}

#[test]
fn golden_logits_and_gradients() {
    let folders = golden_folders();
    let mut families = BTreeSet::new();
    for (folder, &device) in folders.iter().flat_map(|f| DEVICES.iter().map(move |d| (f, d))) {
        for model in golden_models(folder) {
            let case = case(folder, &model, device);
            case.hidden_states();
            case.logits();
            case.gradients();
            families.insert((case.model.config().architecture.clone(), model.is_file()));
        }
    }
    println!("{} golden folders", folders.len());
    for family in FAMILIES {
        for (name, is_file) in [(family.gguf, true), (family.hf.trim_end_matches("_text"), false)] {
            assert!(name.is_empty() || families.contains(&(name.to_owned(), is_file)), "no golden of {name}");
        }
    }
}

/// Both kinds of adapters on both kinds of base models, beside the weights and merged.
#[test]
fn golden_lora_adapters() {
    let mut cases = 0;
    for folder in ["llama", "phi3"].map(|name| root().join("tests/data/lora").join(name)) {
        let text = std::fs::read_to_string(folder.join("lora.json")).unwrap();
        let lora: serde_json::Value = serde_json::from_str(&text).unwrap();
        let base = root().join("tests/data/families").join(lora["base"].as_str().unwrap());
        let weights = lora["adapters"].as_object().unwrap();
        for (base, kind, mode) in golden_models(&base)
            .iter()
            .flat_map(|base| ["", ".gguf"].map(|kind| (base, kind)))
            .flat_map(|(base, kind)| [LoraMode::Beside, LoraMode::Merged].map(|mode| (base, kind, mode)))
        {
            let adapters: Vec<LoraChoice> = weights
                .iter()
                .map(|(name, weight)| LoraChoice {
                    path: folder.join(format!("{name}{kind}")),
                    weight: weight.as_f64().unwrap() as f32,
                })
                .collect();
            for &device in DEVICES {
                let base_name = base.file_name().unwrap().to_string_lossy();
                let name = format!("{base_name} + lora{kind} {mode:?} on {device:?}");
                let options = OpenOptions { device, ..OpenOptions::default() };
                let model = Model::open_with_lora(base, &adapters, mode, &options)
                    .unwrap_or_else(|e| panic!("{name}: {e}"));
                let case = with_golden(name, &folder, model, device);
                case.hidden_states();
                case.logits();
                case.gradients();
                cases += 1;
            }
        }
    }
    assert!(cases >= 16);
}
