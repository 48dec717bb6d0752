//! Vector files: what is written comes back, and bad files are answered with an error that names the place.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use steerkit::vector::{DataUse, Provenance, SteeringVector};
use steerkit::{Result, SteerError};
use steerkit_model::{ErrorKind, ModelIdentity};

fn vector() -> SteeringVector {
    let base_model = ModelIdentity {
        name: "tiny".into(),
        architecture: "llama".into(),
        d_model: 4,
        n_layers: 3,
        vocab: 10,
        file_sha256: "ab".into(),
        tokenizer_sha256: None,
        template_sha256: Some("cd".into()),
    };
    let provenance = Provenance {
        name: "formality".into(),
        behaviour: Some("formal register".into()),
        method: "bipo".into(),
        objective: json!({"beta": 0.1}).as_object().unwrap().clone(),
        base_model: Some(base_model),
        system_prompt: Some("Be \"brief\".\n".into()),
        chat_template_sha256: Some("ef".into()),
        data: Some(DataUse::new("12".into(), &[3, 1, 2])),
        seed: Some(u64::MAX),
        steps: Some(8),
        residual_norm: Some(168.25),
        metrics: json!({"accuracy": [0.5, 0.75]}).as_object().unwrap().clone(),
        steerkit_version: "0.1.0".into(),
        ..Provenance::default()
    };
    SteeringVector { direction: vec![3.0, -0.0, -4.0, f32::MIN_POSITIVE], layer: 2, provenance }
}

/// A safetensors file from its header and data, whatever they are.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn load(bytes: &[u8]) -> Result<SteeringVector> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some-name.safetensors");
    std::fs::write(&path, bytes).unwrap();
    SteeringVector::load(&path)
}

fn refused(bytes: &[u8], says: &[&str]) {
    let error = load(bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    let text = format!("{error} | {}", error.hint().unwrap_or_default());
    for part in says {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

const ONE: &str = r#"{"direction.7":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

#[test]
fn a_saved_vector_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.safetensors");
    let vector = vector();
    vector.save(&path).unwrap();
    let back = SteeringVector::load(&path).unwrap();
    assert_eq!(back, vector);
    assert_eq!(floats(&back.direction), floats(&vector.direction), "the sign of zero too");

    let first = std::fs::read(&path).unwrap();
    let other = folder.path().join("other name.safetensors");
    back.save(&other).unwrap();
    assert_eq!(std::fs::read(&other).unwrap(), first, "the same vector gives the same bytes");
    vector.save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first, "an existing file is replaced");
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "no temporary file is left");
}

#[test]
fn the_file_is_plain_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.safetensors");
    vector().save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["direction.2"], json!({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}));
    assert_eq!(bytes[8 + length..], floats(&vector().direction));
    let ours: Value = serde_json::from_str(header["__metadata__"]["steerkit"].as_str().unwrap()).unwrap();
    assert_eq!(ours["layer"], 2);
    assert_eq!(ours["norm"], 5.0);
    assert_eq!(ours["token_scope"], "all");
    assert_eq!(ours["data"]["rows"], json!([3, 1, 2]));
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let usual =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&plain).unwrap().permissions());
        assert_eq!(mode, usual, "others may read it as they may read any new file");
    }
}

#[test]
fn the_summary_says_what_matters() {
    let summary = vector().summary();
    assert_eq!((summary.layer, summary.d_model, summary.norm, summary.max_abs), (2, 4, 5.0, 4.0));
    assert_eq!(summary.relative_norm, Some(5.0 / 168.25));
    assert!(summary.warnings.is_empty());
    assert_eq!(serde_json::to_value(&summary).unwrap()["provenance"]["method"], "bipo");
    let mut loud = vector();
    loud.provenance.residual_norm = Some(0.01);
    assert!(loud.summary().warnings[0].contains("500 times"));
}

#[test]
fn rows_are_listed_or_hashed() {
    let few = DataUse::new("0".into(), &[0, 1]);
    assert_eq!((few.count, few.rows), (2, Some(vec![0, 1])));
    // sha256 of 00*8 01 00*7, from Python's hashlib
    assert_eq!(few.rows_sha256, "9d34149fbd1fe777eb238799054c8cbfbce372255f219f8740838def9bfd02db");
    let many = DataUse::new("0".into(), &(0..5000).collect::<Vec<_>>());
    assert_eq!((many.count, many.rows), (5000, None));
}

#[test]
fn files_without_our_metadata_are_accepted() {
    let vector = load(&file(ONE, &floats(&[1.0, 2.0]))).unwrap();
    assert_eq!((vector.layer, vector.direction.as_slice()), (7, &[1.0, 2.0][..]));
    assert_eq!(
        (vector.provenance.name.as_str(), vector.provenance.method.as_str()),
        ("some-name", "unknown")
    );
    assert_eq!(vector.summary().warnings.len(), 1);
    let newer = ONE.replacen('{', r#"{"__metadata__":{"steerkit":"{\"name\":\"n\",\"from_2030\":[1]}"},"#, 1);
    assert_eq!(load(&file(&newer, &floats(&[1.0, 2.0]))).unwrap().provenance.name, "n");
}

#[test]
fn fault_21_22_bad_numbers() {
    let name = Path::new("/nowhere/v");
    for bad in [f32::NAN, f32::INFINITY] {
        refused(
            &file(ONE, &floats(&[1.0, bad])),
            &["some-name", "direction.7: found 1 of 2 values that are not finite"],
        );
        let mut vector = vector();
        vector.direction[0] = bad;
        assert_eq!(vector.save(name).unwrap_err().kind(), ErrorKind::BadInput);
    }
    refused(&file(ONE, &floats(&[0.0, -0.0])), &["direction.7: found zeros only"]);
    let zero = SteeringVector { direction: vec![0.0; 4], ..vector() };
    assert!(matches!(zero.save(name), Err(SteerError::ZeroVector { .. })));
    let error = vector().save(name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FileSystem);
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

#[test]
fn broken_files_are_refused() {
    let data = floats(&[1.0, 2.0]);
    refused(b"", &["0 bytes", "a safetensors file"]);
    refused(b"abc", &["3 bytes"]);
    refused(b"GGUF\x03\0\0\0\0\0\0\0", &["a GGUF file", "vector convert"]);
    refused(b"PK\x03\x04 and so on", &["PyTorch", "vector convert"]);
    refused(b"version https://git-lfs.github.com/spec/v1", &["git-LFS", "pull"]);
    refused(&u64::MAX.to_le_bytes(), &["header of 18446744073709551615 bytes", "the 0 bytes that follow"]);
    refused(&[&(100u64 << 20).to_le_bytes()[..], &[b' '; 64]].concat(), &["header of 104857600 bytes"]);
    refused(&file(ONE, &data[..4]), &["header", "cover"]);
    refused(&file(ONE, &[&data[..], b"x"].concat()), &["header"]);
    refused(&file("{", &data), &["header", "JSON"]);
    refused(&file("\u{FEFF}{}", &data), &["header"]);
    refused(&file("{}", b""), &["0 tensors"]);
    refused(&file(&ONE.replace("F32", "F16").replace("[2]", "[4]"), &data), &["F16 [4]", "F32 [d_model]"]);
    refused(&file(&ONE.replace("[2]", "[1,2]"), &data), &["F32 [1, 2]", "F32 [d_model]"]);
    refused(&file(&ONE.replace("[2]", "[]").replace("0,8", "0,4"), &data[..4]), &["F32 []"]);
    refused(&file(&ONE.replace("[2]", "[0]").replace("0,8", "0,0"), b""), &["F32 [0]"]);
    refused(&file(&ONE.replace("[2]", "[3]"), &data), &["header", "invalid"]);
    for name in ["layer_7", "direction.", "direction.-1", "direction.+7", "direction.07", "direction.99999"] {
        refused(&file(&ONE.replace("direction.7", name), &data), &[name, "direction.{layer}"]);
    }
    let two = r#"{"direction.10":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                  "direction.9":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    refused(&file(two, &data), &["2 tensors (direction.9, direction.10)", "one"]);
    let huge = r#"{"direction.7":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
    refused(&file(huge, &data), &["header", "overflow"]);
    refused(&file(&format!("{{\"a\":{}", "[".repeat(200_000)), b""), &["header"]);
    for (metadata, says) in [
        ("{", "EOF"),
        ("[]", "expected"),
        (r#"{\"layer\":3}"#, "layer 3"),
        (r#"{\"name\":5}"#, "invalid type"),
        (r#"{\"residual_norm\":0}"#, "residual_norm 0"),
        (r#"{\"residual_norm\":1e300}"#, "residual_norm"),
    ] {
        let header = ONE.replacen('{', &format!(r#"{{"__metadata__":{{"steerkit":"{metadata}"}},"#), 1);
        refused(&file(&header, &data), &["metadata key \"steerkit\"", says]);
    }
}

#[test]
fn large_files_are_not_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse.safetensors");
    std::fs::File::create(&path).unwrap().set_len(8 << 30).unwrap();
    let error = SteeringVector::load(&path).unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");
    assert!(SteeringVector::load(folder.path()).is_err());
}

fn saved() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.safetensors");
    vector().save(&path).unwrap();
    std::fs::read(&path).unwrap()
}

#[test]
fn truncated_files_are_refused() {
    let bytes = saved();
    for end in 0..bytes.len() {
        refused(&bytes[..end], &["some-name.safetensors", "expected"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_do_not_panic(
        files in proptest::collection::vec(proptest::collection::vec((any::<usize>(), any::<u8>(), 0..3u8), 1..5), 30),
    ) {
        let valid = saved();
        for edits in files {
            let mut bytes = valid.clone();
            for (at, byte, what) in edits {
                let at = at % bytes.len();
                match what {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let _ = load(&bytes);
        }
    }
}
