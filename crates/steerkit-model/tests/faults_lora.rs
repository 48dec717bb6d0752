//! Broken LoRA adapters (faults A of model files, for PEFT folders and GGUF adapters): each is answered by an error that
//! names the file, and the base model stays usable.

#![allow(clippy::unwrap_used, reason = "a test")]

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use steerkit_model::{ErrorKind, LoraChoice, LoraMode, Model, OpenOptions};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

/// Opens the tiny Llama with the adapter and expects an error with these words.
fn refused(case: &str, adapter: &Path, expected: &[&str]) {
    let began = Instant::now();
    let base = data("families/llama_llama3/model.gguf");
    let choice = LoraChoice { path: adapter.to_owned(), weight: 1.0 };
    let error = match Model::open_with_lora(&base, &[choice], LoraMode::Beside, &OpenOptions::default()) {
        Ok(_) => panic!("{case}: opened"),
        Err(error) => error,
    };
    assert!(began.elapsed() < Duration::from_secs(1), "{case}: {:?}", began.elapsed());
    let text = format!("{error} hint: {}", error.hint().unwrap_or_default());
    for part in expected {
        assert!(text.contains(part), "{case}: no {part:?} in {text}");
    }
    let name = adapter.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(name), "{case}: no {name:?} in {text}");
    assert!(matches!(error.kind(), ErrorKind::BadInput | ErrorKind::FileSystem), "{case}");
}

/// Shapes and numbers of a PEFT folder, free to be broken.
struct Peft {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Peft {
    fn read() -> Self {
        let folder = data("lora/llama/first");
        let config = fs::read_to_string(folder.join("adapter_config.json")).unwrap();
        let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter().map(|(name, t)| {
            assert_eq!(t.dtype(), Dtype::BF16);
            let number = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            let numbers = t.data().chunks(2).map(number).collect();
            (name.to_owned(), (t.shape().to_vec(), numbers))
        });
        Self { config: serde_json::from_str(&config).unwrap(), tensors: tensors.collect() }
    }

    fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("adapter_config.json"), self.config.to_string()).unwrap();
        let bytes: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, (shape, numbers))| {
                (name, shape, numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, b)| (name, TensorView::new(Dtype::F32, shape.to_vec(), b).unwrap()));
        let file = safetensors::serialize(views, None).unwrap();
        fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
    }

    /// The name of a tensor that ends so.
    fn name(&self, end: &str) -> String {
        self.tensors.keys().find(|name| name.ends_with(end)).unwrap().clone()
    }

    fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.tensors.remove(from).unwrap();
        self.tensors.insert(to.to_owned(), tensor);
    }
}

fn refused_peft(case: &str, expected: &[&str], change: impl FnOnce(&mut Peft)) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("adapter");
    let mut peft = Peft::read();
    change(&mut peft);
    peft.write(&folder);
    refused(case, &folder, expected);
}

#[test]
fn the_rewritten_adapter_opens() {
    let dir = tempfile::tempdir().unwrap();
    Peft::read().write(dir.path());
    let choice = LoraChoice { path: dir.path().to_owned(), weight: 1.0 };
    let base = data("families/llama_llama3/model.gguf");
    Model::open_with_lora(&base, &[choice], LoraMode::Beside, &OpenOptions::default()).unwrap();
}

#[test]
fn peft_configurations() {
    refused_peft("another kind", &["peft_type", "IA3", "LORA"], |p| p.config["peft_type"] = json!("IA3"));
    refused_peft("DoRA", &["use_dora"], |p| p.config["use_dora"] = json!(true));
    refused_peft("no alpha", &["lora_alpha"], |p| {
        p.config.as_object_mut().unwrap().remove("lora_alpha");
    });
    refused_peft("alpha is a text", &["lora_alpha"], |p| p.config["lora_alpha"] = json!("sixteen"));
    refused_peft("trained biases", &["bias"], |p| p.config["bias"] = json!("all"));
    refused_peft("saved modules", &["modules_to_save"], |p| p.config["modules_to_save"] = json!(["lm_head"]));
}

#[test]
fn peft_tensors() {
    let shape = ["adapter of", "outputs"];
    refused_peft("wrong width", &shape, |p| {
        let name = p.name("q_proj.lora_A.weight");
        let (shape, numbers) = p.tensors.get_mut(&name).unwrap();
        shape[1] += 1;
        numbers.resize(shape[0] * shape[1], 0.0);
    });
    refused_peft("ranks differ", &["[r, in] and [out, r]"], |p| {
        let name = p.name("q_proj.lora_B.weight");
        let (shape, numbers) = p.tensors.get_mut(&name).unwrap();
        shape[1] += 1;
        numbers.resize(shape[0] * shape[1], 0.0);
    });
    refused_peft("three axes", &["two matrices"], |p| {
        let name = p.name("q_proj.lora_A.weight");
        p.tensors.get_mut(&name).unwrap().0.push(1);
    });
    refused_peft("one factor", &["lora_B", "no such tensor"], |p| {
        let name = p.name("q_proj.lora_B.weight");
        p.tensors.remove(&name);
    });
    refused_peft("unknown part", &["not adapted here", "self_attn.q_proj"], |p| {
        let names = ["lora_A", "lora_B"].map(|side| p.name(&format!("q_proj.{side}.weight")));
        names.iter().for_each(|name| p.rename(name, &name.replace("q_proj", "router")));
    });
    refused_peft("a block too many", &["block 99"], |p| {
        let names =
            ["lora_A", "lora_B"].map(|side| p.name(&format!("layers.0.self_attn.q_proj.{side}.weight")));
        names.iter().for_each(|name| p.rename(name, &name.replace("layers.0.", "layers.99.")));
    });
    for path in ["../../../etc/passwd", "/etc/passwd", "a\u{0}b"] {
        refused_peft("a path as a name", &["not adapted here"], |p| {
            let name = p.name("q_proj.lora_A.weight");
            p.rename(&name, path);
        });
    }
    for bad in [f32::NAN, f32::INFINITY] {
        refused_peft("not finite", &["adapter of", "self_attn"], |p| {
            let name = p.name("q_proj.lora_A.weight");
            p.tensors.get_mut(&name).unwrap().1[3] = bad;
        });
    }
}

#[test]
fn peft_folders() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("adapter");
    let file = folder.join("adapter_model.safetensors");
    Peft::read().write(&folder);
    let whole = fs::read(&file).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        fs::write(&file, &whole[..at]).unwrap();
        refused("cut", &folder, &["adapter_model.safetensors"]);
    }
    fs::remove_file(&file).unwrap();
    refused("no weights", &folder, &["adapter_model.safetensors"]);
    fs::write(&file, &whole).unwrap();
    fs::write(folder.join("adapter_config.json"), "{\"peft_type\": ").unwrap();
    refused("half a configuration", &folder, &["adapter_config.json"]);
    fs::remove_file(folder.join("adapter_config.json")).unwrap();
    refused("no configuration", &folder, &["adapter_config.json"]);
    refused("no folder", &dir.path().join("none"), &[]);
}

#[test]
fn gguf_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("adapter.gguf");
    let whole = fs::read(data("lora/llama/first.gguf")).unwrap();
    let at = |bytes: &[u8]| whole.windows(bytes.len()).position(|w| w == bytes).unwrap();
    for cut in (0..whole.len()).step_by(64) {
        fs::write(&file, &whole[..cut]).unwrap();
        refused("cut", &file, &[]);
    }
    let change = |case: &str, expected: &[&str], from: &[u8], to: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at(from)..][..to.len()].copy_from_slice(to);
        fs::write(&file, bytes).unwrap();
        refused(case, &file, expected);
    };
    change(
        "another kind",
        &["adapter.type", "lorb", "lora"],
        b"\x04\0\0\0\0\0\0\0lora",
        b"\x04\0\0\0\0\0\0\0lorb",
    );
    change(
        "another family",
        &["general.architecture", "blama"],
        b"\x05\0\0\0\0\0\0\0llama",
        b"\x05\0\0\0\0\0\0\0blama",
    );
    change(
        "unknown part",
        &["not adapted here"],
        b"blk.0.attn_q.weight.lora_a",
        b"blk.0.attn_q.weight.lora_x",
    );
    change(
        "a path as a name",
        &["not adapted here"],
        b"blk.0.attn_q.weight.lora_a",
        b"../../../../../etc/passwd0",
    );
    change("one factor", &["lora_"], b"blk.0.attn_q.weight.lora_b", b"blk.9.attn_q.weight.lora_b");
    // The file's last numbers are a factor's.
    let mut bytes = whole.clone();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    refused("not finite", &file, &["adapter of"]);
    refused("a model", &data("families/llama_llama3/model.gguf"), &["general.type", "adapter"]);
}
