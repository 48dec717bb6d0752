//! Greedy generation, plain and steered, against PyTorch and llama.cpp.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "../../../tests/support/mod.rs"]
mod support;

use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use steerkit_model::gguf::Gguf;
use steerkit_model::{
    Completion, Edit, EditOp, Model, OpenOptions, Request, Run, Sampler, Sampling, Sequence,
};
use support::{DEVICES, Golden, golden_folders, golden_models, golden_name, long_context};

/// Steps at which the two best logits are closer than this decide nothing.
const MARGIN: f64 = 1e-3;

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(json: &Value) -> Vec<f64> {
    json.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn edit(layer: usize, v: &[f32], multiplier: f64) -> Edit {
    let v: Arc<[f32]> = v.iter().map(|x| x * multiplier as f32).collect();
    Edit::new(layer, EditOp::Add(v))
}

fn generate(model: &Model, requests: Vec<Request>, max_batch: usize) -> Vec<Completion> {
    model.generate(requests, max_batch, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Asserts equal tokens up to the first step that decides nothing. Gives the number of equal steps.
fn assert_same(name: &str, found: &[u32], expected: &[u32], margins: &[f64]) -> usize {
    let sure = margins.iter().position(|&m| m <= MARGIN).unwrap_or(expected.len());
    assert_eq!(found[..sure.min(found.len())], expected[..sure], "{name}");
    if sure == expected.len() {
        assert_eq!(found.len(), expected.len(), "{name}");
    }
    sure
}

#[test]
fn golden_tiny_models_continue_as_in_pytorch() {
    let folders = golden_folders();
    for (folder, &device) in folders.iter().flat_map(|f| DEVICES.iter().map(move |d| (f, d))) {
        let golden = Golden::open(&folder.join("golden.safetensors"));
        let json = json(&folder.join("golden.json"));
        let (v, layer) = (golden.f32("v"), json["layer"].as_u64().unwrap() as usize);
        let request = |m: f64| Request {
            prompt: golden.ids("prompt_ids"),
            edits: if m == 0.0 { vec![] } else { vec![edit(layer, &v, m)] },
            max_tokens: 24,
            ..Request::default()
        };
        for path in golden_models(folder) {
            let name = format!("{} on {device:?}", golden_name(folder, &path));
            let options =
                OpenOptions { device, long_context: long_context(folder), ..OpenOptions::default() };
            let model = Model::open(&path, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
            let found = generate(&model, [-1.0, 0.0, 1.0].map(request).to_vec(), 3);
            for (found, m) in found.iter().zip(["-1", "0", "1"]) {
                assert_eq!(found.tokens, ids(&json["greedy"][m]["tokens"]), "{name} at {m}");
            }
        }
    }
    println!("{} golden folders", folders.len());
    assert!(folders.len() >= 2);
}

#[test]
fn golden_smollm2_continues_as_in_pytorch() {
    const NAME: &str = "golden_smollm2_continues_as_in_pytorch";
    let Some(texts) = support::shared(NAME, "goldens/smollm2/greedy.json") else { return };
    let Some(file) = support::smollm2(NAME) else { return };
    let model = Model::open(&file, &OpenOptions::default()).unwrap();
    let v = Golden::open(&texts.with_file_name("steer_vec.safetensors")).f32("v");
    let golden = json(&texts);
    let layer = golden["layer"].as_u64().unwrap() as usize;
    let items = golden["items"].as_array().unwrap();
    let requests: Vec<Request> = items
        .iter()
        .map(|item| {
            let m = item["multiplier"].as_f64().unwrap();
            Request {
                prompt: ids(&item["prompt_ids"]),
                edits: if m == 0.0 { vec![] } else { vec![edit(layer, &v, m)] },
                max_tokens: 40,
                ..Request::default()
            }
        })
        .collect();
    let found = generate(&model, requests.clone(), items.len());
    let mut steps = 0;
    for (item, found) in items.iter().zip(&found) {
        let name = format!("{} at {}", item["question"], item["multiplier"]);
        steps += assert_same(&name, &found.tokens, &ids(&item["tokens"]), &numbers(&item["top2_gaps"]));
        if found.tokens == ids(&item["tokens"]) {
            assert_eq!(found.text, item["text"].as_str().unwrap(), "{name}");
        }
    }
    println!("{} texts, {steps} equal tokens", items.len());
    // Alone, the last text begins with the same tokens and log-probabilities, bit for bit.
    let last = found.last().unwrap();
    let request = Request { max_tokens: 8, ..requests.last().unwrap().clone() };
    let alone = generate(&model, vec![request], 1).remove(0);
    assert_eq!(alone.tokens, last.tokens[..8]);
    assert_eq!(alone.logprobs, last.logprobs[..8]);
}

/// The edits of a configuration: llama.cpp sums files, scales each, and adds `direction.N` after block N for
/// layers from `start` to `end`, where the model has them.
fn control_vectors(folder: &Path, config: &Value, n_layers: usize) -> Vec<Edit> {
    let files = config["cvecs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let last = config["end"].as_u64().map_or(n_layers - 1, |end| end as usize);
    let layers = config["start"].as_u64().unwrap_or(1) as usize..=last.min(n_layers - 1);
    let mut edits = Vec::new();
    for file in files {
        let gguf = Gguf::open(&folder.join(file[0].as_str().unwrap())).unwrap();
        for layer in layers.clone() {
            let name = format!("direction.{layer}");
            if let Some(tensor) = gguf.tensor(&name) {
                let v: Vec<f32> = tensor
                    .bytes
                    .as_slice()
                    .chunks(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect();
                edits.push(edit(layer, &v, file[1].as_f64().unwrap()));
            }
        }
    }
    edits
}

#[test]
fn golden_control_vectors_act_as_in_llama_cpp() {
    const NAME: &str = "golden_control_vectors_act_as_in_llama_cpp";
    let Some(texts) = support::shared(NAME, "goldens/llama.cpp/goldens.json") else { return };
    let Some(file) = support::smollm2(NAME) else { return };
    let model = Model::open(&file, &OpenOptions::default()).unwrap();
    let folder = texts.parent().unwrap();
    let golden = json(&texts);
    let configs = golden["configs"].as_array().unwrap();
    // A file with direction.0 is refused by llama.cpp and has an error in place of a text.
    let items: Vec<&Value> =
        golden["oracle_f32"].as_array().unwrap().iter().filter(|item| item.get("ids").is_some()).collect();
    let mut texts: Vec<Text<'_>> = items
        .iter()
        .map(|&item| {
            let config = configs.iter().find(|c| c["name"] == item["config"]).unwrap();
            let edits = control_vectors(folder, config, model.config().n_layers);
            let sequence = model.new_sequence(edits).unwrap();
            Text { item, sequence, unread: ids(&item["prompt_ids"]), ids: ids(&item["ids"]), steps: 0 }
        })
        .collect();

    let mut worst = 0f64;
    let mut left: Vec<&mut Text<'_>> = texts.iter_mut().collect();
    while !left.is_empty() {
        let mut runs: Vec<Run<'_>> =
            left.iter_mut().map(|t| Run { sequence: &mut t.sequence, tokens: &t.unread }).collect();
        let logits = model.advance(&mut runs).unwrap();
        for (text, logits) in left.iter_mut().zip(logits) {
            worst = worst.max(text.step(&logits.unwrap()));
        }
        left.retain(|t| t.steps < t.ids.len());
    }
    let steps: usize = texts.iter().map(|t| t.steps).sum();
    println!("{} texts, {steps} equal tokens, logits within {worst:.1e}", texts.len());
    assert!(worst < 1e-3);
}

/// A text of llama.cpp's being repeated.
struct Text<'g> {
    item: &'g Value,
    sequence: Sequence,
    unread: Vec<u32>,
    ids: Vec<u32>,
    steps: usize,
}

impl Text<'_> {
    /// Checks the next step. Gives the largest difference of a logit.
    fn step(&mut self, logits: &[f32]) -> f64 {
        let (item, step, id) = (self.item, self.steps, self.ids[self.steps]);
        let choice = Sampler::new(Sampling::default(), &[]).unwrap().sample(logits).unwrap();
        if item["margin12"][step].as_f64().unwrap() > MARGIN {
            assert_eq!(choice.token, id, "{} {}, step {step}", item["config"], item["prompt"]);
        }
        let found = f64::from(logits[id as usize]);
        let top = item["top1_logit"][step].as_f64().unwrap();
        let logprob = top - item["logsumexp"][step].as_f64().unwrap();
        let mut worst = (found - top).abs().max((f64::from(choice.logprob) - logprob).abs());
        for top in item["first_top10"].as_array().unwrap().iter().filter(|_| step == 0) {
            let found = f64::from(logits[top[0].as_u64().unwrap() as usize]);
            worst = worst.max((found - top[1].as_f64().unwrap()).abs());
        }
        self.steps += 1;
        self.unread = vec![id];
        worst
    }
}
