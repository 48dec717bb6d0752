//! Broken model files: each is answered within a second, in little memory, by an error that names the place.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod parts;

use parts::{ARRAY, GgufParts, I32, STRING, U32, U64, array, f32v, safetensors, string, u32v};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use steerkit_model::{ErrorKind, ModelError, load};

/// A file of the repository's test data.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

/// Peak memory of this process in bytes, where the system tells.
fn peak_memory() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|kb| kb * 1024)
}

/// Loads a broken model and checks what every fault must keep to; returns the error's text and hint.
fn refused(case: &str, path: &Path, expected: &[&str]) -> ModelError {
    let (start, before) = (Instant::now(), peak_memory());
    let error = match load(path) {
        Ok(_) => panic!("{case}: loaded"),
        Err(e) => e,
    };
    assert!(start.elapsed() < Duration::from_secs(1), "{case}: {:?}", start.elapsed());
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        assert!(after.saturating_sub(before) < 64 << 20, "{case}: {before} to {after} bytes");
    }
    let text = format!("{error} hint: {}", error.hint().unwrap_or_default());
    for part in expected {
        assert!(text.contains(part), "{case}: no {part:?} in {text}");
    }
    let file = path.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(file), "{case}: no file name in {text}");
    assert!(matches!(error.kind(), ErrorKind::BadInput | ErrorKind::FileSystem), "{case}");
    error
}

fn refused_bytes(case: &str, bytes: &[u8], expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.gguf");
    fs::write(&path, bytes).unwrap();
    refused(case, &path, expected);
}

/// Breaks the parts of a valid file and checks the error.
fn refused_gguf(case: &str, expected: &[&str], change: impl FnOnce(&mut GgufParts)) {
    let mut parts = GgufParts::llama();
    change(&mut parts);
    refused_bytes(case, &parts.bytes(), expected);
}

#[test]
fn the_valid_file_loads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fine.gguf");
    for version in [2, 3] {
        let mut parts = GgufParts::llama();
        parts.version = version;
        fs::write(&path, parts.bytes()).unwrap();
        let m = load(&path).unwrap();
        assert_eq!((m.config.n_heads, m.config.n_kv_heads, m.config.head_dim), (2, 1, 16));
        assert_eq!(m.identity.name, "fine");
    }
}

#[test]
fn fault_01_no_gguf_at_all() {
    refused_bytes("empty", b"", &["offset 0", "an empty file", "\"GGUF\""]);
    refused_bytes("three bytes", b"GGU", &["offset 0, magic", "\"GGU\""]);
    refused_bytes("wrong magic", b"PK\x03\x04 and more", &["magic: found \"PK\\x03\\x04\""]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    refused_bytes("pointer", pointer, &["a git-LFS pointer", "the file itself", "git lfs pull"]);
}

/// Fault 1 in the small files of a folder.
#[test]
fn fault_01_folder_files_that_are_something_else() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    for name in ["config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"] {
        for (case, bytes, expected) in [
            ("empty", &b""[..], name),
            ("three bytes", b"{\"a", name),
            ("pointer", pointer, "a git-LFS pointer"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for file in fs::read_dir(data("tiny-llama-hf")).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
            }
            fs::write(dir.path().join(name), bytes).unwrap();
            refused(&format!("{case} {name}"), dir.path(), &[expected, name]);
        }
    }
}

#[test]
fn fault_02_versions() {
    for (version, found) in [(0, "found 0"), (1, "found 1"), (4, "found 4"), (u32::MAX, "found 4294967295")] {
        refused_gguf("version", &["offset 4, GGUF version", found, "2 or 3"], |p| p.version = version);
    }
    for version in [1u32, 2, 3] {
        let swapped = version.swap_bytes();
        refused_gguf("big-endian", &["GGUF version: found a big-endian file"], |p| p.version = swapped);
    }
}

#[test]
fn fault_03_counts_and_lengths_beyond_the_file() {
    refused_gguf("keys", &["key count: found 18446744073709551615"], |p| p.n_keys = u64::MAX);
    refused_gguf("tensors", &["tensor count: found 18446744073709551615"], |p| p.n_tensors = u64::MAX);
    refused_gguf("one key more", &["offset"], |p| p.n_keys += 1);
    refused_gguf("one tensor more", &["name of tensor 11"], |p| p.n_tensors += 1);
    for len in [u64::MAX, 64 << 30] {
        let expected = format!("expected {len} bytes");
        let payload = len.to_le_bytes().to_vec();
        refused_gguf("string", &["value of \"general.name\"", &expected, "bytes to the end"], |p| {
            p.keys.insert(0, ("general.name".to_owned(), (STRING, payload)));
        });
        let mut bytes = GgufParts::llama().bytes();
        bytes[24..32].copy_from_slice(&len.to_le_bytes());
        refused_bytes("key", &bytes, &["offset 32, name of key 0", &expected]);
    }
    for (element, len) in [(STRING, 1 << 60), (U32, 1 << 60), (U64, u64::MAX), (ARRAY, 1 << 60)] {
        refused_gguf("array", &["array \"x\"", "bytes to the end of the file"], |p| {
            p.append("x", array(element, len, &[]));
        });
    }
}

#[test]
fn fault_04_nested_arrays() {
    let level = array(ARRAY, 1, &[]).1;
    let payload = level.repeat(200_000);
    refused_gguf("nested", &["array \"x\"", "more than 4 arrays inside each other"], |p| {
        p.append("x", (ARRAY, payload));
    });
}

#[test]
fn fault_05_types_and_keys() {
    refused_gguf("unknown type", &["type of \"x\": found 13", "0 to 12"], |p| {
        p.append("x", (13, vec![0; 8]))
    });
    let element = array(99, 1, &[0; 8]);
    refused_gguf("element type", &["value of \"x\": found 99"], |p| p.append("x", element));
    refused_gguf("duplicate", &["\"llama.block_count\" a second time"], |p| {
        p.append("llama.block_count", u32v(1));
    });
    refused_gguf("empty key", &["name of key", "0 bytes"], |p| p.append("", u32v(1)));
    refused_gguf("bool", &["bool \"x\": found 2", "0 or 1"], |p| p.append("x", (7, vec![2])));
    refused_gguf("wrong type", &["key \"llama.block_count\": found string, expected an integer"], |p| {
        p.set("llama.block_count", string("1"));
    });
    refused_gguf("array", &["key \"llama.block_count\": found array of 1 u32"], |p| {
        p.set("llama.block_count", array(U32, 1, &[1, 0, 0, 0]));
    });
    refused_gguf("negative", &["key \"llama.block_count\": found -1"], |p| {
        p.set("llama.block_count", (I32, (-1i32).to_le_bytes().to_vec()));
    });
    refused_gguf("float", &["epsilon\": found u32, expected f32 or f64"], |p| {
        p.set("llama.attention.layer_norm_rms_epsilon", u32v(0));
    });
    refused_gguf("not UTF-8", &["key \"tokenizer.chat_template\"", "not UTF-8 at offset"], |p| {
        p.set("tokenizer.chat_template", (STRING, [&1u64.to_le_bytes()[..], &[0xff]].concat()));
    });
}

#[test]
fn fault_06_alignment() {
    for value in [0u32, 13, 48] {
        let found = format!("found {value}, expected a u32 that is a power of two");
        refused_gguf("alignment", &["key \"general.alignment\"", &found], |p| {
            p.set("general.alignment", u32v(value));
        });
    }
    refused_gguf("type", &["general.alignment\": found string"], |p| {
        p.set("general.alignment", string("32"));
    });
    refused_gguf("huge", &["a multiple of the alignment 2147483648"], |p| {
        p.set("general.alignment", u32v(1 << 31))
    });
}

#[test]
fn fault_07_shapes() {
    const Q: &str = "blk.0.attn_q.weight";
    let in_directory = "number of dimensions of tensor \"blk.0.attn_q.weight\"";
    let mut bytes = GgufParts::llama().bytes();
    let at = bytes.windows(Q.len()).position(|w| w == Q.as_bytes()).unwrap() + Q.len();
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    refused_bytes("n_dims", &bytes, &[in_directory, "found 4294967295, expected 1 to 4"]);
    for dims in [vec![1 << 40; 4], vec![32, 0], vec![0], vec![32, u64::MAX], vec![u64::MAX; 2]] {
        refused_gguf("dims", &["dimensions of tensor \"blk.0.attn_q.weight\"", "offset"], |p| {
            p.tensor(Q).dims = dims;
        });
    }
    refused_gguf("row", &["multiple of 32 numbers", "[33, 32] in Q8_0"], |p| {
        p.tensor(Q).dims = vec![33, 32];
        p.tensor(Q).format = 8;
    });
    refused_gguf(
        "shape",
        &["tensor \"blk.0.attn_q.weight\": found shape [16, 32], expected shape [32, 32]"],
        |p| {
            p.tensor(Q).dims = vec![32, 16];
        },
    );
    refused_gguf("format", &["block format of tensor", "\"IQ2_XXS\" is not supported", "Q4_K"], |p| {
        p.tensor(Q).format = 16;
    });
    refused_gguf("unknown format", &["\"number 77\" is not supported"], |p| p.tensor(Q).format = 77);
}

#[test]
fn fault_08_offsets() {
    const Q: &str = "blk.0.attn_q.weight";
    for offset in [1 << 30, u64::MAX - 31] {
        refused_gguf("past the end", &["data of tensor \"blk.0.attn_q.weight\"", "inside the file's"], |p| {
            p.tensor(Q).offset = offset;
        });
    }
    for offset in [33, u64::MAX] {
        refused_gguf("unaligned", &["offset of tensor", "a multiple of the alignment 32"], |p| {
            p.tensor(Q).offset = offset;
        });
    }
    refused_gguf("overlap", &["bytes shared with \"token_embd.weight\""], |p| p.tensor(Q).offset = 0);
    refused_gguf("twice", &["name of a tensor", "\"token_embd.weight\" a second time"], |p| {
        p.tensor(Q).name = "token_embd.weight".to_owned();
    });
}

#[test]
fn fault_09_truncation() {
    let whole = fs::read(data("tiny-llama-gguf/tiny-llama-f32.gguf")).unwrap();
    let header = whole.windows(4).rposition(|w| w == b"blk.").unwrap() + 128;
    let data_cuts = (1..20).map(|i| header + (whole.len() - header) * i / 20).chain([whole.len() - 1]);
    for cut in (0..header).step_by(64).chain(data_cuts) {
        refused_bytes("cut", &whole[..cut], &["offset"]);
    }
    let shard = fs::read(data("goldens/llama/model.safetensors")).unwrap();
    let config = fs::read_to_string(data("goldens/llama/config.json")).unwrap();
    for cut in (0..5000).step_by(64).chain((1..20).map(|i| shard.len() * i / 20)) {
        refused_folder("cut", &config, &shard[..cut], &["cut short"]);
    }
}

/// Fault 9 in the folder of every family; `mutated_headers.rs` cuts their GGUF files.
#[test]
fn fault_09_truncated_folders_of_every_family() {
    let mut families = 0;
    for entry in fs::read_dir(data("families")).unwrap() {
        let folder = entry.unwrap().path();
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        let weights = fs::read(folder.join("model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        let data_cuts = (0..20).map(|i| header + (weights.len() - header) * i / 20);
        for cut in (0..header).step_by(64).chain(data_cuts) {
            refused_folder("cut", &config, &weights[..cut], &["model.safetensors"]);
        }
        families += 1;
    }
    assert!(families >= 14);
}

fn refused_folder(case: &str, config: &str, weights: &[u8], expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config).unwrap();
    fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    refused(case, dir.path(), expected);
}

#[test]
fn fault_10_safetensors() {
    let config = fs::read_to_string(data("goldens/llama/config.json")).unwrap();
    let check = |case: &str, weights: &[u8], expected: &[&str]| {
        refused_folder(case, &config, weights, &[&["model.safetensors"], expected].concat());
    };
    let entry = |offsets: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
    let one = |offsets: &str| format!(r#"{{"a":{}}}"#, entry(offsets));
    let two = |a: &str, b: &str| format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b));
    check("empty", b"", &["header length: found an empty file"]);
    check("short", b"abc", &["header length: found 3 bytes"]);
    check("over 100 MB", &[&200_000_000u64.to_le_bytes()[..], b"{}"].concat(), &["found 200000000"]);
    check("over the file", &[&3u64.to_le_bytes()[..], b"{}"].concat(), &["header length: found 3"]);
    check("2^64-1", &[0xff; 32], &["header length: found 18446744073709551615"]);
    check("not UTF-8", &[&3u64.to_le_bytes()[..], b"{\xff}"].concat(), &["offset 9", "not UTF-8"]);
    check("not JSON", &safetensors("{nonsense", b""), &["line 1, column 2"]);
    check("a list", &safetensors("[]", b""), &["expected an object of tensors"]);
    check("overlap", &safetensors(&two("[0,8]", "[4,12]"), &[0; 12]), &["tensor \"b\"", "a start at 8"]);
    check("hole", &safetensors(&two("[0,8]", "[12,20]"), &[0; 20]), &["tensor \"b\": found bytes 12 to 20"]);
    check("bytes", &safetensors(&one("[0,4]"), &[0; 4]), &["data of tensor \"a\"", "8 bytes for [2]"]);
    check("backwards", &safetensors(&one("[0,-8]"), &[0; 8]), &["tensor \"a\""]);
    check("beyond", &safetensors(&one("[0,8]"), &[0; 4]), &["inside the 4 bytes of data"]);
    check("trailing", &safetensors(&one("[0,8]"), &[0; 9]), &["found 1 bytes behind the last tensor"]);
    let twice = format!(r#"{{"a":{},"a":{}}}"#, entry("[0,8]"), entry("[8,16]"));
    check("duplicate", &safetensors(&twice, &[0; 16]), &["\"a\" twice"]);
    let f64s = r#"{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#;
    check("dtype", &safetensors(f64s, &[0; 8]), &["dtype of tensor \"a\" \"F64\"", "F32, F16, BF16"]);
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
    check("overflow", &safetensors(huge, &[0; 8]), &["shape of tensor \"a\""]);
    let nested = format!(r#"{{"a":{}}}"#, "[".repeat(200_000));
    check("nested", &safetensors(&nested, b""), &["tensor \"a\""]);
    let nested = format!(r#"{{"__metadata__":{}}}"#, "[".repeat(200_000));
    check("nested metadata", &safetensors(&nested, b""), &["line 1, column 200017"]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    check("pointer", pointer, &["a git-LFS pointer"]);
}

#[test]
fn fault_11_index() {
    let check = |case: &str, expected: &[&str], change: &dyn Fn(&mut Value)| {
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(data("tiny-llama-hf")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        let path = dir.path().join("model.safetensors.index.json");
        let mut index = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut index);
        fs::write(&path, index.to_string()).unwrap();
        refused(case, dir.path(), expected);
    };
    const NORM: &str = "model.norm.weight";
    for outside in ["../../x", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "C:x"] {
        check("outside", &["file of tensor \"model.norm.weight\"", "a plain file name"], &|index| {
            index["weight_map"][NORM] = json!(outside);
        });
    }
    check("missing shard", &["model-00003.safetensors"], &|i| {
        i["weight_map"][NORM] = json!("model-00003.safetensors")
    });
    check("wrong shard", &["file of tensor \"", "which holds it"], &|i| {
        let other = i["weight_map"]["model.embed_tokens.weight"].clone();
        assert_ne!(i["weight_map"][NORM], other);
        i["weight_map"][NORM] = other;
    });
    check("no such tensor", &["tensor \"ghost\": found no such tensor"], &|i| {
        i["weight_map"]["ghost"] = i["weight_map"][NORM].clone();
    });
    check("no entry", &["file of tensor \"model.norm.weight\": found no entry"], &|i| {
        i["weight_map"].as_object_mut().unwrap().remove(NORM);
    });
    check("no map", &["weight_map"], &|i| *i = json!({}));
}

#[test]
fn fault_12_config_json() {
    let weights = fs::read(data("goldens/llama/model.safetensors")).unwrap();
    let text = fs::read_to_string(data("goldens/llama/config.json")).unwrap();
    let valid: Value = serde_json::from_str(&text).unwrap();
    let check = |expected: &str, field: &str, value: Value| {
        let mut config = valid.clone();
        *config.pointer_mut(field).unwrap_or_else(|| panic!("no {field}")) = value;
        refused_folder(field, &config.to_string(), &weights, &[expected]);
    };
    let null = || Value::Null;
    check("field \"num_hidden_layers\": found 0, expected 1 to 1024", "/num_hidden_layers", json!(0));
    check("found 2147483648, expected 1 to 1024", "/num_hidden_layers", json!(1u64 << 31));
    check("found -1, expected an integer", "/num_hidden_layers", json!(-1));
    check("field \"num_hidden_layers\": found \"4\"", "/num_hidden_layers", json!("4"));
    check(
        "tensor \"model.layers.4.input_layernorm.weight\": found no such tensor",
        "/num_hidden_layers",
        json!(5),
    );
    check("without a role in a llama model", "/num_hidden_layers", json!(3));
    check("field \"hidden_size\": found nothing", "/hidden_size", null());
    check("field \"vocab_size\": found 1000000000000", "/vocab_size", json!(1_000_000_000_000u64));
    check("found shape [320, 64], expected shape [321, 64]", "/vocab_size", json!(321));
    check(
        "\"num_key_value_heads\": found 3, expected a divisor of the 4 query heads",
        "/num_key_value_heads",
        json!(3),
    );
    check("field \"head_dim\": found 15, expected an even number", "/head_dim", json!(15));
    check("field \"rms_norm_eps\": found 0, expected a finite number above 0", "/rms_norm_eps", json!(0.0));
    check("field \"rms_norm_eps\"", "/rms_norm_eps", json!(1e-300));
    check("\"rope_parameters.rope_theta\": found -1", "/rope_parameters/rope_theta", json!(-1.0));
    check("rope type \"spiral\" is not supported", "/rope_parameters/rope_type", json!("spiral"));
    for kind in ["linear", "yarn"] {
        check("\"rope_parameters.factor\": found nothing", "/rope_parameters/rope_type", json!(kind));
    }
    let longrope = "\"rope_parameters.short_factor\": found nothing, expected 8 numbers above 0";
    check(longrope, "/rope_parameters/rope_type", json!("longrope"));
    check(
        "\"rope_parameters.low_freq_factor\": found nothing",
        "/rope_parameters/rope_type",
        json!("llama3"),
    );
    check("activation \"gelu\" is not supported (supported: silu)", "/hidden_act", json!("gelu"));
    check("\"model.layers.0.self_attn.q_proj.bias\": found no such", "/attention_bias", json!(true));
    check("\"model.layers.0.mlp.gate_proj.bias\": found no such tensor", "/mlp_bias", json!(true));
    check("model_type \"qwen9\" is not supported (supported: llama", "/model_type", json!("qwen9"));
    check("field \"model_type\": found no such field, expected llama", "/model_type", null());
    check("tensor \"lm_head.weight\": found other numbers", "/tie_word_embeddings", json!(true));

    let nan = text.replace("1e-05", "NaN");
    refused_folder("NaN", &nan, &weights, &["config.json: line 23, column", "JSON"]);
    let mut config = valid.clone();
    config.as_object_mut().unwrap().remove("head_dim");
    config["num_attention_heads"] = json!(5);
    config["num_key_value_heads"] = json!(5);
    let expected = "\"num_attention_heads\": found 5, expected a divisor of the width 64";
    refused_folder("heads", &config.to_string(), &weights, &[expected]);
    // What another family computes is refused by name where this one does not.
    for (field, value) in [
        ("sliding_window", json!(4096)),
        ("attn_logit_softcapping", json!(50.0)),
        ("query_pre_attn_scalar", json!(256)),
        ("num_local_experts", json!(8)),
        ("residual_multiplier", json!(0.22)),
        ("partial_rotary_factor", json!(1.5)),
        ("clip_qkv", json!(8.0)),
    ] {
        let mut config = valid.clone();
        config[field] = value;
        refused_folder(field, &config.to_string(), &weights, &[field]);
    }
    config = valid.clone();
    config["rope_parameters"]["twist"] = json!(2);
    refused_folder("twist", &config.to_string(), &weights, &["rope parameter \"twist\" is not supported"]);
    config = valid.clone();
    config["quantization_config"] = json!({"quant_method": "gptq"});
    refused_folder("gptq", &config.to_string(), &weights, &["quantization_config \"gptq\" is not supported"]);
    refused_folder("list", "[]", &weights, &["config.json", "expected a map"]);
    refused_folder("long", &" ".repeat(2 << 20), &weights, &["config.json", "size: found 2097152 bytes"]);
    refused_folder("nested", &"[".repeat(200_000), &weights, &["config.json", "line 1"]);
}

#[test]
fn fault_12_gguf_keys() {
    refused_gguf("unknown", &["architecture \"mamba\" is not supported (supported: llama"], |p| {
        p.set("general.architecture", string("mamba"));
    });
    refused_gguf("missing", &["key \"general.architecture\": found no such key, expected llama"], |p| {
        p.remove("general.architecture");
    });
    for (key, x, expected) in [
        ("block_count", 0, "found 0, expected 1 to 1024"),
        ("block_count", 1 << 31, "found 2147483648, expected 1 to 1024"),
        ("block_count", 2, "tensor \"blk.1.attn_norm.weight\": found no such tensor"),
        ("attention.head_count", 3, "expected a divisor of the width 32"),
        ("attention.head_count", 0, "found 0, expected 1 to"),
        ("attention.head_count_kv", 0, "found 0, expected 1 to"),
        ("attention.value_length", 8, "llama.attention.value_length \"8\" is not supported (supported: 16)"),
        ("rope.dimension_count", 7, "found 7, expected an even number"),
        ("rope.dimension_count", 32, "found 32, expected 1 to 16"),
        ("attention.clamp_kqv", 8, "llama.attention.clamp_kqv \"8\" is not supported"),
        ("expert_count", 8, "llama.expert_count \"8\" is not supported"),
        ("vocab_size", 9, "\"llama.vocab_size\": found 9, expected 8, the rows"),
    ] {
        refused_gguf(key, &[expected], |p| p.set(&format!("llama.{key}"), u32v(x)));
    }
    for (key, x) in [("rope.freq_base", -1.0), ("rope.freq_base", f32::INFINITY)]
        .into_iter()
        .chain([("attention.layer_norm_rms_epsilon", f32::NAN), ("attention.layer_norm_rms_epsilon", 2.0)])
    {
        refused_gguf(key, &[key, "expected a"], |p| p.set(&format!("llama.{key}"), f32v(x)));
    }
    refused_gguf("spiral", &["rope scaling type \"spiral\" is not supported"], |p| {
        p.set("llama.rope.scaling.type", string("spiral"));
    });
    refused_gguf("yarn", &["key \"llama.rope.scaling.factor\": found no such key"], |p| {
        p.set("llama.rope.scaling.type", string("yarn"));
    });
    refused_gguf("split", &["key \"split.count\"", "llama-gguf-split --merge"], |p| {
        p.set("split.count", u32v(2));
    });
    refused_gguf("bias", &["tensor \"blk.0.attn_k.bias\": found no such tensor"], |p| {
        p.add("blk.0.attn_q.bias", &[32], &[0.0; 32]);
    });
    refused_gguf("role", &["tensor \"blk.0.attn_sinks.weight\": found a tensor without a role"], |p| {
        p.add("blk.0.attn_sinks.weight", &[32], &[0.0; 32]);
    });
    refused_gguf("divisors", &["tensor \"rope_freqs.weight\": found shape [4]"], |p| {
        p.add("rope_freqs.weight", &[4], &[1.0; 4]);
    });
    refused_gguf("divisors", &["tensor \"rope_freqs.weight\": found -1, expected divisors"], |p| {
        p.add("rope_freqs.weight", &[8], &[-1.0; 8]);
    });
}

#[test]
fn fault_13_more_tokens_than_rows() {
    let tokens = |texts: &[&str]| {
        let payload: Vec<u8> = texts.iter().flat_map(|t| string(t).1).collect();
        array(STRING, texts.len() as u64, &payload)
    };
    let with_vocabulary = |p: &mut GgufParts, n: usize| {
        p.set("tokenizer.ggml.model", string("gpt2"));
        p.set("tokenizer.ggml.pre", string("smollm"));
        p.set("tokenizer.ggml.tokens", tokens(&["a", "b", "c", "d", "e", "f", "g", "h", "i"][..n]));
        p.set("tokenizer.ggml.merges", tokens(&[]));
    };
    refused_gguf("tokens", &["tokeniser: found ids up to 8, expected ids below 8"], |p| {
        with_vocabulary(p, 9)
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fine.gguf");
    let mut parts = GgufParts::llama();
    with_vocabulary(&mut parts, 8);
    fs::write(&path, parts.bytes()).unwrap();
    assert!(load(&path).unwrap().tokenizer.is_some());
}

#[test]
fn fault_15_norms_that_are_not_finite() {
    for x in [f32::NAN, f32::INFINITY] {
        refused_gguf("norm", &["tensor \"blk.0.ffn_norm.weight\": 1 of 32 values are not finite"], |p| {
            let at = p.tensor("blk.0.ffn_norm.weight").offset as usize + 12;
            p.data[at..at + 4].copy_from_slice(&x.to_le_bytes());
        });
    }
}

#[test]
fn fault_15_norms_of_a_folder_that_are_not_finite() {
    let config = fs::read_to_string(data("goldens/llama/config.json")).unwrap();
    let valid = fs::read(data("goldens/llama/model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(valid[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&valid[8..header]).unwrap();
    let start = tensors["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    for x in [f32::NAN, f32::NEG_INFINITY] {
        let mut weights = valid.clone();
        weights[header + start..header + start + 4].copy_from_slice(&x.to_le_bytes());
        let expected = "tensor \"model.norm.weight\": 1 of 64 values are not finite";
        refused_folder("norm", &config, &weights, &[expected]);
    }
}

#[test]
fn fault_16_a_loaded_model_does_not_need_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, GgufParts::llama().bytes()).unwrap();
    let m = load(&path).unwrap();
    fs::write(&path, b"").unwrap();
    let mut row = vec![0.0; 32];
    m.weights.layers[0].down.matrix.expand_row(31, &mut row);
    assert_eq!(row[31], (1023 % 7) as f32 - 3.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever bytes change, loading answers; it may even succeed when only weights changed.
    #[test]
    fn changed_gguf_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = GgufParts::llama().bytes();
        // Most of the file is weights; half of the changes go to the header.
        let header = 1400;
        for (i, (at, byte)) in changes.iter().enumerate() {
            let len = if i % 2 == 0 { header } else { bytes.len() };
            bytes[at.index(len)] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, &bytes).unwrap();
        let start = Instant::now();
        let _ = load(&path);
        prop_assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn changed_safetensors_bytes_never_panic(
        changes in prop::collection::vec((0usize..4500, any::<u8>()), 1..8),
        cut in prop::option::of(0usize..9000),
    ) {
        let mut bytes = fs::read(data("goldens/llama/model.safetensors")).unwrap();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        let dir = tempfile::tempdir().unwrap();
        fs::copy(data("goldens/llama/config.json"), dir.path().join("config.json")).unwrap();
        fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        let _ = load(dir.path());
    }
}
