//! Safetensors files of other programs: psyctl and steering-lite.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use super::Raw;
use crate::Result;
use crate::error::malformed;
use crate::vector::{self, Provenance, SteeringVector};

type Metadata = HashMap<String, String>;

/// Reads a file whose tensors are named as psyctl (`steering_vector`, `layer_{i}`) or steering-lite (`layer{L}.v`) name
/// them; none for any other safetensors file.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Option<Raw>> {
    // What is no safetensors file at all is reported by the reader of our own.
    let Ok(file) = SafeTensors::deserialize(bytes) else { return Ok(None) };
    let metadata = SafeTensors::read_metadata(bytes).ok();
    let metadata = metadata.and_then(|(_, header)| header.metadata().clone()).unwrap_or_default();
    let mut names: Vec<&str> = file.names().into_iter().collect();
    names.sort_by_key(|name| (name.len(), name.to_string()));
    let raw = match names[..] {
        [] => return Ok(None),
        ["steering_vector"] => psyctl_single(path, &file, &metadata)?,
        _ if names.iter().all(|name| numbered(name, "layer_").is_some()) => {
            psyctl_layers(path, &file, &names, &metadata)?
        }
        _ if metadata.contains_key("cfg") => steering_lite(path, &file, &names, &metadata)?,
        _ => return Ok(None),
    };
    Ok(Some(raw))
}

fn numbered(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.parse().ok().filter(|&n: &usize| n < 10_000)
}

/// The block in `model.layers[13].mlp.down_proj` or `model.layers.13`.
fn block_in(name: &str) -> Option<usize> {
    let behind = &name[name.find("layers")? + "layers".len()..];
    let digits: String =
        behind.trim_start_matches(['[', '.']).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|&n: &usize| n < 10_000)
}

fn made_by(path: &Path, method: Option<&String>) -> Provenance {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("unnamed");
    let method = method.map_or("unknown".into(), |m| m.chars().take(80).collect());
    Provenance { name: stem.into(), method, ..Provenance::default() }
}

/// psyctl's older layout: one tensor, its layer in the metadata if anywhere.
fn psyctl_single(path: &Path, file: &SafeTensors<'_>, metadata: &Metadata) -> Result<Raw> {
    let direction = numbers(path, file, "steering_vector")?;
    let layer = metadata.get("layer").or(metadata.get("layer_name"));
    let layer = layer.and_then(|text| text.parse().ok().or_else(|| block_in(text)));
    let provenance = made_by(path, metadata.get("method"));
    let vector = SteeringVector { direction, layer: 0, provenance };
    Ok(Raw { format: "psyctl", vectors: vec![(layer, vector)], warnings: Vec::new() })
}

/// psyctl's newer layout: `layer_i` is the i-th of the modules that the metadata lists. What is added to the output of a
/// block's last module is added to the block's output.
fn psyctl_layers(path: &Path, file: &SafeTensors<'_>, names: &[&str], metadata: &Metadata) -> Result<Raw> {
    let modules: Vec<&str> = match metadata.get("layer_names") {
        Some(list) => list.split(['\'', '"']).skip(1).step_by(2).collect(),
        None => Vec::new(),
    };
    let mut warnings = Vec::new();
    if modules.is_empty() {
        warnings.push("the file lists no modules: layer_N is taken for block N".into());
    }
    let mut vectors = Vec::with_capacity(names.len());
    for name in names {
        let index = numbered(name, "layer_").expect("the caller looked at every name");
        let layer = match modules.get(index) {
            None if modules.is_empty() => index,
            module => module.and_then(|module| block_in(module)).ok_or_else(|| {
                let found = format!("{:?} for {name}", module.unwrap_or(&"nothing"));
                let expected = "a module such as model.layers[13].mlp";
                malformed(path, "metadata key \"layer_names\"", found, expected, "name one layer per tensor")
            })?,
        };
        let provenance = made_by(path, metadata.get("method"));
        let direction = numbers(path, file, name)?;
        vectors.push((Some(layer), SteeringVector { direction, layer, provenance }));
    }
    Ok(Raw { format: "psyctl", vectors, warnings })
}

/// steering-lite: `layer{L}.v` and a JSON `cfg` with method and coefficient. The coefficient is multiplied in, so that
/// multiplier 1 does what the file does there.
fn steering_lite(path: &Path, file: &SafeTensors<'_>, names: &[&str], metadata: &Metadata) -> Result<Raw> {
    let place = "metadata key \"cfg\"";
    let hint = "steerkit reads steering-lite's vectors that are added, such as mean_diff";
    let cfg: Value = metadata
        .get("cfg")
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| malformed(path, place, "no JSON", "the settings of a vector", hint))?;
    let coefficient = match cfg.get("coeff") {
        None => 1.0,
        Some(x) => x.as_f64().filter(|x| x.is_finite() && *x != 0.0).ok_or_else(|| {
            malformed(path, place, format!("the coefficient {x}"), "a finite number other than 0", hint)
        })?,
    };
    let mut vectors = Vec::with_capacity(names.len());
    for name in names {
        let layer = name.strip_suffix(".v").and_then(|name| numbered(name, "layer")).ok_or_else(|| {
            let shown: String = name.chars().take(80).collect();
            malformed(path, "tensors", format!("the tensor {shown:?}"), "layer{L}.v only", hint)
        })?;
        let direction = numbers(path, file, name)?;
        let direction = direction.iter().map(|&x| (f64::from(x) * coefficient) as f32).collect();
        let method = cfg.get("method").and_then(Value::as_str).map(str::to_owned);
        let provenance = made_by(path, method.as_ref());
        vectors.push((Some(layer), SteeringVector { direction, layer, provenance }));
    }
    Ok(Raw { format: "steering-lite", vectors, warnings: Vec::new() })
}

/// One row of 16-, 32- or 64-bit floats, `[d]` or `[1, d]`.
fn numbers(path: &Path, file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>> {
    let hint = "save the vector as one row of floats";
    let broken = |e: safetensors::SafeTensorError| malformed(path, name, e.to_string(), "a tensor", hint);
    let tensor: TensorView<'_> = file.tensor(name).map_err(broken)?;
    if !matches!(*tensor.shape(), [d] | [1, d] if d > 0) {
        let found = format!("a tensor of {:?}", tensor.shape());
        return Err(malformed(path, name, found, "one row, [d_model] or [1, d_model]", hint));
    }
    let data = tensor.data();
    let direction: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        other => return Err(malformed(path, name, format!("{other:?}"), "F16, BF16, F32 or F64", hint)),
    };
    vector::check_numbers(path, name, &direction)?;
    Ok(direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_in_module_names() {
        assert_eq!(block_in("model.layers[13].mlp.down_proj"), Some(13));
        assert_eq!(block_in("model.layers.7"), Some(7));
        assert_eq!((block_in("lm_head"), block_in("layers")), (None, None));
    }
}
