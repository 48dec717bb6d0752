//! Models from the command line: adapters, logits, devices, and vectors on other models.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Sandbox, last_json, root, run, stderr, text, tiny_model};
use safetensors::SafeTensors;
use serde_json::Value;

/// The tensor `logits` of a file, and its shape.
fn logits(sandbox: &Sandbox, more: &[&str]) -> (Vec<usize>, Vec<f32>) {
    let mut args = vec!["model", "logits", "--out", "logits.safetensors"];
    args.extend(more);
    run(sandbox.steerkit(&args), 0);
    let bytes = std::fs::read(sandbox.path("logits.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("logits").unwrap();
    let numbers = tensor.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (tensor.shape().to_vec(), numbers.collect())
}

fn max_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A model of tests/data/families, an adapter of tests/data/lora.
fn data(path: &str) -> String {
    root().join("tests/data").join(path).display().to_string()
}

/// The numbers of PEFT, from the golden that the library is tested with.
#[test]
fn golden_logits_with_adapters() {
    let sandbox = Sandbox::new(0);
    let golden = std::fs::read(data("lora/llama/golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let ids = golden.tensor("input_ids").unwrap();
    let ids: Vec<String> =
        ids.data().chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()).to_string()).collect();
    let ids = ids.join(",");
    let want = golden.tensor("logits").unwrap();
    let want: Vec<f32> = want.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let first = format!("{}=1", data("lora/llama/first"));
    let second = format!("{}=0.5", data("lora/llama/second.gguf"));
    let (folder, gguf) = (data("families/llama_llama3"), data("families/llama_llama3/model.gguf"));
    for (model, merged) in [(&folder, false), (&gguf, false), (&gguf, true)] {
        let mut args = vec!["--model", model, "--ids", &ids, "--lora", &first, "--lora", &second];
        args.extend(merged.then_some("--merge-lora"));
        let (shape, got) = logits(&sandbox, &args);
        assert_eq!(shape[0], ids.split(',').count());
        assert!(max_diff(&got, &want) < 2e-4, "{model} {}", max_diff(&got, &want));
    }
    let (_, plain) = logits(&sandbox, &["--model", &gguf, "--ids", &ids]);
    assert!(max_diff(&plain, &want) > 0.01, "the adapters change something");
    let (_, none) = logits(
        &sandbox,
        &["--model", &gguf, "--ids", &ids, "--lora", &format!("{}=0", data("lora/llama/first"))],
    );
    assert_eq!(none, plain);
    let out =
        run(sandbox.steerkit(&["model", "logits", "--model", &gguf, "--ids", "1,9999", "--out", "x"]), 3);
    assert!(stderr(&out).contains("9999"), "{}", stderr(&out));
}

/// A PEFT adapter for the tiny Llama with a tokeniser, of rank 2 on every query projection.
fn adapter(sandbox: &Sandbox, name: &str, size: f32) -> String {
    let (d, r, blocks) = tiny_shape();
    let folder = sandbox.path(name);
    std::fs::create_dir(&folder).unwrap();
    let config = r#"{"peft_type": "LORA", "lora_alpha": 4, "r": 2, "bias": "none"}"#;
    std::fs::write(folder.join("adapter_config.json"), config).unwrap();
    let number = |i: usize| size * ((i * 2_654_435_761 % 1000) as f32 / 500.0 - 1.0);
    let bytes: Vec<u8> = (0..d * r).flat_map(|i| number(i).to_le_bytes()).collect();
    let views = (0..blocks).flat_map(|l| {
        let name =
            |side: &str| format!("base_model.model.model.layers.{l}.self_attn.o_proj.lora_{side}.weight");
        let view = |shape: [usize; 2]| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &bytes).unwrap()
        };
        [(name("A"), view([r, d])), (name("B"), view([d, r]))]
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
    name.to_owned()
}

/// Width, rank of the adapters, and blocks of the tiny Llama.
fn tiny_shape() -> (usize, usize, usize) {
    let config = std::fs::read_to_string(data("tiny-llama-hf/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let number = |name: &str| config[name].as_u64().unwrap() as usize;
    (number("hidden_size"), 2, number("num_hidden_layers"))
}

#[test]
fn adapters_generate_train_and_transfer() {
    let sandbox = Sandbox::new(12);
    let model = tiny_model();
    let (a, b) = (adapter(&sandbox, "a", 0.5), adapter(&sandbox, "b", -0.3));
    let write = |more: &[&str]| {
        let mut args =
            vec!["generate", "--model", &model, "--prompt", "What is tea?", "--max-tokens", "8", "--json"];
        args.extend(more);
        last_json(&run(sandbox.steerkit(&args), 0))["logprobs"].clone()
    };
    let half = format!("{a}=0.5");
    let (plain, beside) = (write(&[]), write(&["--lora", &half, "--lora", &b]));
    let merged = write(&["--lora", &half, "--lora", &b, "--merge-lora"]);
    assert_ne!(plain, beside);
    let numbers =
        |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect::<Vec<_>>();
    assert!(max_diff(&numbers(&beside), &numbers(&merged)) < 1e-4, "{beside} {merged}");

    let train = |out: &str, more: &[&str]| {
        let mut args =
            vec!["train", "--model", &model, "--data", "pairs.jsonl", "--layer", "1", "--steps", "2"];
        args.extend(["--batch", "4", "--out", out, "--json"]);
        args.extend(more);
        last_json(&run(sandbox.steerkit(&args), 0))
    };
    let trained = train("base", &[]);
    assert!(trained["memory_estimate_mb"].as_f64().unwrap() > 1.0, "{trained}");
    train("adapted", &["--lora", &a]);
    let bytes = |out: &str| std::fs::read(sandbox.path(out).join("vector.safetensors")).unwrap();
    assert_ne!(bytes("base"), bytes("adapted"));
    let other =
        ["generate", "--model", &model, "--steer", "base/vector.safetensors", "--lora", &a, "--prompt", "Hi"];
    let out = run(sandbox.steerkit(&other), 3);
    assert!(stderr(&out).contains("--force"), "{}", stderr(&out));

    let check = |to: &str, more: &[&str]| {
        let mut args = vec!["vector", "transfer-check", "--from", &model, "--to", to, "--vector", "base"];
        args.extend(["--data", "pairs.jsonl", "--limit", "6", "--questions", "1", "--max-tokens", "4"]);
        args.extend(more);
        sandbox.steerkit(&args)
    };
    // On the same model the vector does the same.
    let same = last_json(&run(check(&model, &["--json"]), 0));
    assert_eq!(same["norm_ratio"], 1.0);
    assert_eq!(same["from"], same["to"]);
    assert_eq!(same["from"]["margins"].as_array().unwrap().len(), 7);
    assert_eq!(same["from"]["answers"].as_array().unwrap().len(), 21, "one question and twenty in German");
    let more = ["--to-lora", "a", "--rescale", "--html", "t.html", "--translated", "pairs.jsonl", "--json"];
    let adapted = last_json(&run(check(&model, &more), 0));
    let ratio = adapted["norm_ratio"].as_f64().unwrap();
    assert!(ratio != 1.0 && (adapted["to"]["factor"].as_f64().unwrap() - ratio).abs() < 1e-9, "{ratio}");
    assert_ne!(adapted["from"]["margins"], adapted["to"]["margins"]);
    assert_eq!(adapted["to"]["margins"], adapted["to"]["translated"]);
    let page = std::fs::read_to_string(sandbox.path("t.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("Answers of") && !page.contains(" src="));
    let table = text(&run(check(&model, &[]), 0).stdout);
    assert!(table.contains("-1.5") && table.contains("cosine with the mean difference"), "{table}");
    let out = run(check(&data("families/llama_llama3/model.gguf"), &[]), 3);
    assert!(stderr(&out).contains("it cannot be transferred"), "{}", stderr(&out));
}

#[test]
fn devices_are_refused_where_the_build_has_none() {
    let sandbox = Sandbox::new(0);
    let model = tiny_model();
    let args = |device: &'static str| {
        sandbox
            .steerkit(&["model", "logits", "--model", &model, "--ids", "1", "--out", "o", "--device", device])
    };
    run(args("cpu"), 0);
    for (device, word) in
        [("gpu", "expected cpu"), ("cuda:x", "expected a number"), ("cpu:1", "expected cpu")]
    {
        assert!(stderr(&run(args(device), 2)).contains(word), "{device}");
    }
    if !cfg!(feature = "metal") {
        assert!(stderr(&run(args("metal"), 2)).contains("--features metal"));
    }
    let long = ["model", "logits", "--model", &model, "--ids", "1", "--out", "o", "--long-context"];
    assert!(stderr(&run(sandbox.steerkit(&long), 3)).contains("no LongRoPE"));
}
