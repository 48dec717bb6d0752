//! GGUF control vectors, as llama.cpp and repeng read and write them.
//!
//! Version 3, little-endian, alignment 32; `general.architecture` = `controlvector`, one F32 tensor `direction.N` `[d]`
//! per layer. Our own keys are beside theirs, the whole provenance as JSON under `controlvector.steerkit`.

use std::path::Path;

use serde_json::json;
use steerkit_model::gguf::Gguf;
use steerkit_model::source::TensorInfo;

use super::Raw;
use crate::error::malformed;
use crate::files::write_atomic;
use crate::vector::{self, Provenance, SteeringVector};
use crate::{Result, SteerError};

const ALIGNMENT: usize = 32;
const PREFIX: &str = "direction.";
/// Our provenance as JSON.
const KEY: &str = "controlvector.steerkit";

pub(super) fn read(path: &Path) -> Result<Raw> {
    let file = Gguf::open(path)?;
    let architecture = file.meta.text("general.architecture")?.unwrap_or("nothing");
    if architecture != "controlvector" {
        let found = format!("{architecture:?}");
        let hint = "a model file is not a vector; llama.cpp's and repeng's vectors say controlvector";
        return Err(malformed(path, "general.architecture", found, "\"controlvector\"", hint));
    }
    let mut warnings = Vec::new();
    if file.meta.type_name("controlvector.layer_count").as_deref() == Some("i32") {
        warnings.push(
            "the file looks like one of llama.cpp's cvector-generator, which computes direction.N from block N - 1 and \
             applies it after block N; --source-convention cvector-generator puts it after block N - 1"
                .into(),
        );
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("unnamed");
    let provenance = match file.meta.text(KEY)? {
        Some(text) => vector::provenance(path, text, None)?,
        None => Provenance { name: stem.into(), ..Provenance::default() },
    };
    let directions: Vec<&TensorInfo> = file.tensors().iter().filter(|t| t.name.starts_with(PREFIX)).collect();
    if directions.is_empty() {
        let names: Vec<&str> = file.tensors().iter().take(8).map(|t| t.name.as_str()).collect();
        let found = format!("{} tensors ({})", file.tensors().len(), names.join(", "));
        return Err(malformed(path, "tensors", found, "direction.N", "is this a control vector?"));
    }
    let one = |tensor: &&TensorInfo| -> Result<(Option<usize>, SteeringVector)> {
        let layer = vector::layer_of(path, &tensor.name)?;
        let [d] = tensor.shape[..] else {
            let found = format!("a tensor of {:?}", tensor.shape);
            return Err(malformed(
                path,
                &*tensor.name,
                found,
                "one row, [d_model]",
                "save one row per layer",
            ));
        };
        if d == 0 || tensor.bytes.as_slice().len() != 4 * d {
            let hint = "save the vector as 32-bit floats";
            return Err(malformed(path, &*tensor.name, format!("{d} numbers of another type"), "F32", hint));
        }
        let direction = tensor.to_f32();
        vector::check_numbers(path, &tensor.name, &direction)?;
        Ok((Some(layer), SteeringVector { direction, layer, provenance: provenance.clone() }))
    };
    let vectors = directions.iter().map(one).collect::<Result<Vec<_>>>()?;
    Ok(Raw { format: "GGUF control vector", vectors, warnings })
}

/// A metadata value.
enum Value {
    Text(String),
    U32(u32),
    F32(f32),
}

/// Writes vectors as one control vector.
///
/// # Errors
/// The file system's; [`SteerError::Export`] for layer 0, which llama.cpp rejects.
pub(super) fn write(path: &Path, vectors: &[SteeringVector]) -> Result<()> {
    vectors.iter().try_for_each(SteeringVector::check)?;
    if vectors.iter().any(|v| v.layer == 0) {
        return Err(SteerError::Export {
            path: path.into(),
            what: "llama.cpp rejects direction.0, and the vector belongs after block 0".into(),
            hint: "write safetensors, which takes every layer".into(),
        });
    }
    let keys = keys(vectors);
    let mut out = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
    out.extend((vectors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    for (key, value) in &keys {
        text(&mut out, key);
        match value {
            Value::U32(n) => {
                out.extend(4u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Value::F32(x) => {
                out.extend(6u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            Value::Text(t) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, t);
            }
        }
    }
    let mut offset = 0u64;
    for v in vectors {
        text(&mut out, &format!("{PREFIX}{}", v.layer));
        out.extend(1u32.to_le_bytes());
        out.extend((v.direction.len() as u64).to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += ((4 * v.direction.len()).next_multiple_of(ALIGNMENT)) as u64;
    }
    for v in vectors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(v.direction.iter().flat_map(|x| x.to_le_bytes()));
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok(write_atomic(path, &out)?)
}

fn keys(vectors: &[SteeringVector]) -> Vec<(String, Value)> {
    let made = &vectors[0].provenance;
    let base = made.base_model.as_ref();
    let mut keys = vec![
        ("general.architecture".to_owned(), Value::Text("controlvector".into())),
        (
            "controlvector.model_hint".into(),
            Value::Text(base.map_or("llama".into(), |m| m.architecture.clone())),
        ),
        ("controlvector.layer_count".into(), Value::U32(vectors.len() as u32)),
        ("controlvector.method".into(), Value::Text(made.method.clone())),
        ("controlvector.objective".into(), Value::Text(json!(made.objective).to_string())),
        ("controlvector.token_scope".into(), Value::Text(made.token_scope.to_string())),
        ("controlvector.multiplier".into(), Value::F32(1.0)),
    ];
    let mut push = |key: &str, value: Option<Value>| {
        keys.extend(value.map(|value| (format!("controlvector.{key}"), value)));
    };
    push("model_sha256", base.map(|m| Value::Text(m.file_sha256.clone())));
    push("template_sha256", made.chat_template_sha256.clone().map(Value::Text));
    push("residual_norm", made.residual_norm.map(Value::F32));
    push("steerkit", Some(Value::Text(json!(made).to_string())));
    keys
}
