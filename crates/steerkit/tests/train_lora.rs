//! Training an adapter, and vectors of several layers: files, bytes, and what can be done with them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use steerkit::{
    SteerError, SteeringPlan,
    interop::{self, ImportOptions},
    recipe::{Draft, Recipe},
    scope::PromptShape,
    train::{EvalPoint, Event, RunData, Start, TokenPair, train_tokens},
};
use steerkit_model::{LoraChoice, LoraMode, Model, OpenOptions, Pack};

fn settled(out: &Path, more: &[(&str, &str)]) -> Recipe {
    let mut draft = Draft::default();
    for (key, value) in [("model", "tiny"), ("data.train", "pairs"), ("out", out.to_str().unwrap())] {
        draft.set_text(key, value);
    }
    draft.set("cache.enabled", "false");
    more.iter().for_each(|(key, value)| draft.set(key, value));
    draft.resolve().unwrap()
}

fn lora_recipe(out: &Path, more: &[(&str, &str)]) -> Recipe {
    let mut settings = vec![
        ("method", "dpo-lora"),
        ("adapter.r", "2"),
        ("batch", "3"),
        ("optimiser.lr", "0.02"),
        ("optimiser.warmup.steps", "2"),
        ("eval.multipliers", "[-1, 0, 0.5, 1]"),
        ("checkpoint.every_steps", "1"),
        ("micro_batch_rows", "10"),
    ];
    settings.extend(more);
    settled(out, &settings)
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (name(&p), std::fs::read(&p).unwrap()))
        .collect();
    all.sort();
    all
}

/// Summed log-probabilities of both responses.
fn scored(model: &Model, pair: &TokenPair) -> [f64; 2] {
    let mut pack = Pack::default();
    let span = pack.push_pair(&pair.prompt, &pair.chosen, &pair.rejected);
    let logps = model.score(&pack).unwrap();
    [span.chosen, span.rejected].map(|range| logps[range].iter().map(|&x| f64::from(x)).sum())
}

#[test]
fn an_adapter_loads_with_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = lora_recipe(&folder.path().join("run"), &[]);
    // Measured on the pairs it was trained on: tokens without meaning teach nothing of others.
    let data = RunData { valid: None, ..short_data() };
    let (outcome, steps) = run(Start::New, &tiny_model(), &recipe, &data).unwrap();
    assert!(outcome.vectors.is_empty() && outcome.layers.is_empty() && outcome.relative_dose.is_none());
    assert_eq!((steps.len(), outcome.file.clone()), (6, recipe.out.join("adapter")));
    assert!(steps[5].norm > 0.0 && steps[5].loss < steps[0].loss);
    assert!((steps[0].loss - std::f64::consts::LN_2).abs() < 1e-9, "B is zero at first");
    let [_, zero, half, one]: [EvalPoint; 4] = outcome.eval.clone().try_into().unwrap();
    assert!(zero.margin == 0.0 && 0.0 < half.margin && half.margin < one.margin);
    let plain = tiny_model();
    for point in &outcome.eval {
        let choice = LoraChoice { path: outcome.file.clone(), weight: point.multiplier as f32 };
        let base = goldens().join("model");
        let loaded =
            Model::open_with_lora(&base, &[choice], LoraMode::Beside, &OpenOptions::default()).unwrap();
        let pairs = &data.train.pairs;
        let margin = |pair: &TokenPair| {
            let ([c, r], [pc, pr]) = (scored(&loaded, pair), scored(&plain, pair));
            (c - pc) - (r - pr)
        };
        let mean = pairs.iter().map(margin).sum::<f64>() / pairs.len() as f64;
        assert!((mean - point.margin).abs() < 2.4e-4, "{mean} {point:?}");
    }
    let names: Vec<String> = files(&outcome.file).into_iter().map(|f| f.0).collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors", "steerkit.json"]);
}

#[test]
fn an_adapters_bytes_depend_on_nothing_but_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (tiny_model(), short_data());
    let mut want = None;
    for threads in [1, 3] {
        steerkit_model::set_threads(threads);
        let recipe = lora_recipe(&folder.path().join(threads.to_string()).join("run"), &[]);
        run(Start::New, &model, &recipe, &data).unwrap();
        let got = files(&recipe.out.join("adapter"));
        assert_eq!(*want.get_or_insert(got.clone()), got);
    }
    // Stopped after every few events and resumed, to the end.
    let recipe = lora_recipe(&folder.path().join("stopped").join("run"), &[]);
    let (mut start, mut stops) = (Start::New, 0);
    for allowed in [1, 3, 2, 5, 4].into_iter().chain(std::iter::repeat(usize::MAX)) {
        let cancel = AtomicBool::new(false);
        let mut seen = 0usize;
        let mut observer = |_: Event<'_>| {
            seen += 1;
            cancel.fetch_or(seen >= allowed, Ordering::Relaxed);
        };
        match train_tokens(start, &model, &recipe, &data, &mut observer, &cancel) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, SteerError::Interrupted { .. }), "{error}"),
        }
        (start, stops) = (Start::Resume, stops + 1);
    }
    assert_eq!((stops, files(&recipe.out.join("adapter"))), (5, want.unwrap()));
}

#[test]
fn several_layers_are_trained_saved_and_applied_together() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (tiny_model(), RunData { valid: None, ..short_data() });
    let trained = |name: &str, more: &[(&str, &str)]| {
        let mut settings = vec![("layers", "[0, 1, 3]"), ("data.holdout", "0"), ("micro_batch_rows", "10")];
        settings.extend(more);
        let recipe = settled(&folder.path().join(name).join("run"), &settings);
        run(Start::New, &model, &recipe, &data).unwrap()
    };
    // A norm budget is one dose of all layers together.
    let (outcome, steps) = trained("auto", &[]);
    assert!((outcome.relative_dose.unwrap() - 0.095).abs() < 1e-6, "{:?}", outcome.layers);
    assert_eq!(outcome.layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [0, 1, 3]);
    assert!(outcome.layers.iter().all(|l| l.norm > 0.0));
    assert_eq!(steps[7].layer_norms, outcome.layers.iter().map(|l| l.norm).collect::<Vec<_>>());
    // The file holds them all, and a plan of them gives the margins that were measured.
    let imported = interop::import(&outcome.file, &ImportOptions::default()).unwrap();
    assert_eq!(imported.vectors, outcome.vectors);
    for (v, l) in imported.vectors.iter().zip(&outcome.layers) {
        assert!((v.relative_norm().unwrap() - l.relative_dose as f32).abs() < 1e-6);
    }
    let plan = imported.vectors.iter().try_fold(SteeringPlan::new(), |p, v| p.add(Arc::new(v.clone()), 1.0));
    let edits = plan.unwrap().edits(model.config(), &PromptShape::default()).unwrap();
    let logp = |edits: &[steerkit_model::Edit], prompt: &[u32], response: &[u32]| -> f64 {
        let mut sequence = model.new_sequence(edits.to_vec()).unwrap();
        let mut next = prompt.to_vec();
        let mut sum = 0.0;
        for &token in response {
            let run = steerkit_model::Run { sequence: &mut sequence, tokens: &next };
            let logits = model.advance(&mut [run]).unwrap().remove(0).unwrap();
            let most = logits.iter().fold(f32::MIN, |m, &x| m.max(x));
            let all: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
            sum += f64::from(logits[token as usize] - most) - all.ln();
            next = vec![token];
        }
        sum
    };
    let pairs = &data.train.pairs;
    let margin = |p: &TokenPair| {
        let of = |response: &[u32]| logp(&edits, &p.prompt, response) - logp(&[], &p.prompt, response);
        of(&p.chosen) - of(&p.rejected)
    };
    let mean = pairs.iter().map(margin).sum::<f64>() / pairs.len() as f64;
    let point = outcome.eval.iter().find(|p| p.multiplier == 1.0).unwrap();
    assert!(mean > 0.0 && (mean - point.margin).abs() < 2.4e-4, "{mean} {point:?}");
    let gguf = folder.path().join("v.gguf");
    // Such a file has no place for block 0.
    let above = &outcome.vectors[1..];
    interop::export(above, &gguf).unwrap();
    let back = interop::import(&gguf, &ImportOptions::default()).unwrap().vectors;
    assert_eq!(back.len(), above.len());
    assert!(back.iter().zip(above).all(|(a, b)| (a.layer, &a.direction) == (b.layer, &b.direction)));

    // A group lasso silences layers; what is silent is not in the file.
    let adamw = [
        ("optimiser.kind", "\"adamw\""),
        ("optimiser.lr", "0.05"),
        ("optimiser.warmup.steps", "0"),
        ("steps", "12"),
        ("penalty.kind", "\"group-lasso\""),
    ];
    let with = |weight| trained(weight, &[&adamw[..], &[("penalty.weight", weight)]].concat()).0;
    let (weak, strong) = (with("0.1"), with("3.0"));
    println!("{:?}\n{:?}", weak.layers, strong.layers);
    assert!(weak.vectors.len() == 3 && strong.norm < weak.norm);
    assert_eq!(strong.vectors.len(), strong.layers.iter().filter(|l| l.norm > 0.0).count());
}

#[test]
fn what_does_not_go_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |settings: &[(&str, &str)]| {
        let mut draft = Draft::parse("model = \"m\"\nout = \"o\"\n[data]\ntrain = \"t\"\n");
        settings.iter().for_each(|(key, value)| draft.set(key, value));
        draft.resolve().unwrap_err().to_string()
    };
    for (settings, what) in [
        (&[("layers", "[3, 1]")][..], "ascend"),
        (&[("layers", "[1, 3]"), ("layer", "2")], "either `layer` or `layers`"),
        (&[("layers", "[1, 3]"), ("method", "caa")], "one layer"),
        (&[("layers", "[1, 3]"), ("method", "reps")], "one layer"),
        (&[("layers", "[1, 3]"), ("method", "prosv")], "norm-budget"),
        (&[("layers", "[1, 3]"), ("method", "dpo-lora")], "all blocks"),
        (&[("penalty.kind", "hoyer"), ("penalty.weight", "1")], "several `layers`"),
        (&[("penalty.kind", "ridge"), ("penalty.weight", "1")], "unknown variant `ridge`"),
        (&[("layers", "[1, 3]"), ("penalty.kind", "hoyer"), ("penalty.weight", "-1")], "above 0"),
        (&[("adapter.r", "8")], "only for the method"),
        (&[("method", "dpo-lora"), ("scope", "prompt")], "every token"),
        (&[("method", "dpo-lora"), ("directions", "both")], "one direction"),
        (&[("method", "dpo-lora"), ("optimiser.kind", "norm-budget")], "adamw"),
        (&[("method", "dpo-lora"), ("adapter.alpha", "nan")], "above 0"),
        (&[("method", "dpo-lora"), ("adapter.rank", "4")], "unknown key `rank`"),
    ] {
        let message = refused(settings);
        assert!(message.contains(what), "{settings:?}: {message}");
    }
    let out = folder.path().join("run");
    let of_model = |recipe: &Recipe| {
        run(Start::Overwrite, &tiny_model(), recipe, &short_data()).unwrap_err().to_string()
    };
    let message = of_model(&lora_recipe(&out, &[("adapter.targets", "[\"query\"]")]));
    assert!(message.contains("q_proj, k_proj"), "{message}");
    let message = of_model(&lora_recipe(&out, &[("adapter.r", "64")]));
    assert!(message.contains("adapter.r is 64"), "{message}");
    let message = of_model(&settled(&out, &[("layers", "[1, 4]")]));
    assert!(message.contains("blocks 0 to 3"), "{message}");
    let data = RunData { valid: None, ..short_data() };
    assert!(run(Start::Overwrite, &tiny_model(), &lora_recipe(&out, &[]), &data).is_ok());
}
