//! A steering vector, where it came from, and its file.
//!
//! The file is safetensors: one tensor `direction.{N}`, F32, `[d]`, and under the metadata key `steerkit` one JSON
//! object with the fields of [`Provenance`], `layer` and `norm`. `N` counts blocks from 0; the vector is added to
//! the output of block `N`, at every position. The bytes depend on nothing but the vector: no time, no path.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use steerkit_model::{ModelError, ModelIdentity};

use crate::error::malformed;
use crate::files::{sha256, write_atomic};
use crate::scope::TokenScope;
use crate::{Result, SteerError};

/// Largest file that is read: no vector with its provenance comes near it.
pub(crate) const MAX_FILE: u64 = 16 << 20;
/// Most row numbers that a file lists; of more it holds the count and the hash.
const MAX_ROWS: usize = 4096;
/// A vector this many times as long as the residual stream drowns it.
pub(crate) const MAX_RELATIVE_NORM: f32 = 100.0;
/// The metadata key.
const KEY: &str = "steerkit";
/// Where a file of several layers holds their residual norms.
const NORMS: &str = "residual_norms";

/// A direction in the residual stream after one block.
#[derive(Clone, Debug, PartialEq)]
pub struct SteeringVector {
    /// The numbers, `[d]`, at multiplier 1.
    pub direction: Vec<f32>,
    /// The block (from 0) after which it is added.
    pub layer: usize,
    /// How it was made.
    pub provenance: Provenance,
}

/// How a vector was made. Fields of a file that this version does not know are ignored; missing ones take the
/// values of [`Provenance::default`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// What the vector is called.
    pub name: String,
    /// The behaviour that a positive multiplier brings out.
    pub behaviour: Option<String>,
    /// How it was made: `bipo`, `caa`, …; `unknown` for a file that does not say.
    pub method: String,
    /// The objective and its hyperparameters.
    pub objective: Map<String, Value>,
    /// The tokens it acts on.
    pub token_scope: TokenScope,
    /// The model it was made with.
    pub base_model: Option<ModelIdentity>,
    /// The system prompt of training; `None` if there was none.
    pub system_prompt: Option<String>,
    /// SHA-256 of the chat template that was used, which may be another than the model's own.
    pub chat_template_sha256: Option<String>,
    /// The pairs it was trained on.
    pub data: Option<DataUse>,
    /// Seed of the run.
    pub seed: Option<u64>,
    /// Optimiser steps.
    pub steps: Option<u64>,
    /// Median norm of the residual stream after block `layer` over the training texts, position 0 excluded.
    pub residual_norm: Option<f32>,
    /// The multiplier that counts as a unit dose, where that was measured.
    pub calibration: Option<Calibration>,
    /// The threshold of a condition vector, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateCalibration>,
    /// What training measured.
    pub metrics: Map<String, Value>,
    /// The steerkit that made it.
    pub steerkit_version: String,
}

impl Default for Provenance {
    /// Nothing known: method `unknown`, scope `all`, no version.
    fn default() -> Self {
        Self {
            name: "unnamed".into(),
            behaviour: None,
            method: "unknown".into(),
            objective: Map::new(),
            token_scope: TokenScope::All,
            base_model: None,
            system_prompt: None,
            chat_template_sha256: None,
            data: None,
            seed: None,
            steps: None,
            residual_norm: None,
            calibration: None,
            gate: None,
            metrics: Map::new(),
            steerkit_version: String::new(),
        }
    }
}

/// The multiplier at which a vector disturbs its model by a set amount, so that vectors of different methods compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The multiplier.
    pub multiplier: f32,
    /// The 95th percentile over tokens of KL(steered || plain) there, in nats.
    pub kl: f32,
    /// Prompts that were answered.
    pub prompts: usize,
    /// Greedy tokens per answer at most.
    pub tokens: usize,
}

/// The similarity above which a prompt meets the condition of a vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateCalibration {
    /// The similarity, from -1 to 1.
    pub threshold: f32,
    /// F1 of telling the prompts apart.
    pub f1: f32,
    /// Prompts that meet the condition.
    pub positives: usize,
    /// Prompts that do not.
    pub negatives: usize,
}

/// Which rows of which file were trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataUse {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Rows used.
    pub count: usize,
    /// The rows, counted from 0, in the order of the dataset; `None` when there are more than 4096.
    pub rows: Option<Vec<usize>>,
    /// SHA-256 of the row numbers, each as 8 bytes, lowest first.
    pub rows_sha256: String,
}

impl DataUse {
    /// The record of `rows` of the file with hash `sha256`.
    pub fn new(file_sha256: String, rows: &[usize]) -> Self {
        let bytes: Vec<u8> = rows.iter().flat_map(|&row| (row as u64).to_le_bytes()).collect();
        Self {
            sha256: file_sha256,
            count: rows.len(),
            rows: (rows.len() <= MAX_ROWS).then(|| rows.to_vec()),
            rows_sha256: sha256(&bytes),
        }
    }
}

/// What `steerkit vector inspect` shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VectorSummary {
    /// The block (from 0) after which it is added.
    pub layer: usize,
    /// Numbers of the vector.
    pub d_model: usize,
    /// Euclidean norm.
    pub norm: f32,
    /// Largest absolute value.
    pub max_abs: f32,
    /// Norm over the median residual norm, where the file has that.
    pub relative_norm: Option<f32>,
    /// How it was made.
    pub provenance: Provenance,
    /// What a user should know before using it.
    pub warnings: Vec<String>,
}

impl SteeringVector {
    /// Euclidean norm.
    pub fn norm(&self) -> f32 {
        self.direction.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32
    }

    /// Norm over the median residual norm at the layer, where that is known.
    pub fn relative_norm(&self) -> Option<f32> {
        self.provenance.residual_norm.map(|residual| self.norm() / residual)
    }

    /// What there is to know about the vector.
    pub fn summary(&self) -> VectorSummary {
        let mut warnings = Vec::new();
        if self.provenance.method == "unknown" {
            warnings.push("the file does not say how the vector was made".into());
        }
        if let Some(relative) = self.relative_norm().filter(|&relative| relative > MAX_RELATIVE_NORM) {
            warnings.push(format!("the vector is {relative:.0} times as long as the residual stream"));
        }
        VectorSummary {
            layer: self.layer,
            d_model: self.direction.len(),
            norm: self.norm(),
            max_abs: self.direction.iter().fold(0.0, |max: f32, x| max.max(x.abs())),
            relative_norm: self.relative_norm(),
            provenance: self.provenance.clone(),
            warnings,
        }
    }

    /// Writes the vector: a temporary file in the same folder, flushed and renamed. The same vector gives the same
    /// bytes.
    ///
    /// # Errors
    /// The file system's; [`ModelError::NonFinite`] and [`SteerError::ZeroVector`] for what [`Self::load`] would
    /// refuse.
    pub fn save(&self, path: &Path) -> Result<()> {
        save_all(path, std::slice::from_ref(self))
    }

    /// Reads a vector. A file without our metadata is accepted, with a provenance that says `unknown` and the
    /// file's name as name. [`crate::interop::import`] reads other programs' files and files of several layers too.
    ///
    /// # Errors
    /// The file system's; [`SteerError::Malformed`] for a file that is no safetensors file with one tensor
    /// `direction.{N}` of F32 `[d]`, finite and not all zero.
    pub fn load(path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        fs_err::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        let mut all = parse(path, &bytes)?;
        match all.len() {
            1 => Ok(all.remove(0)),
            n => {
                let shown: Vec<String> =
                    all.iter().take(8).map(|v| format!("direction.{}", v.layer)).collect();
                let found = format!("{n} tensors ({})", shown.join(", "));
                let hint = "choose one: steerkit vector convert FILE OUT.safetensors --layer N";
                Err(malformed(path, "tensors", found, "one, direction.{layer}", hint))
            }
        }
    }

    /// Finite and not all zero.
    pub(crate) fn check(&self) -> Result<()> {
        let found = self.direction.iter().filter(|x| !x.is_finite()).count();
        if found > 0 {
            let place = format!("vector {:?}", self.provenance.name);
            return Err(ModelError::NonFinite { place, found, total: self.direction.len() }.into());
        }
        if self.direction.iter().all(|&x| x == 0.0) {
            return Err(SteerError::ZeroVector { name: self.provenance.name.clone() });
        }
        Ok(())
    }
}

/// Writes vectors of several layers to one file, with the provenance of the first.
pub(crate) fn save_all(path: &Path, vectors: &[SteeringVector]) -> Result<()> {
    vectors.iter().try_for_each(SteeringVector::check)?;
    let mut metadata = match serde_json::to_value(&vectors[0].provenance) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("a struct of plain fields is a JSON object"),
    };
    if let [only] = vectors {
        metadata.insert("layer".into(), only.layer.into());
        metadata.insert("norm".into(), only.norm().into());
    } else {
        // It belongs to one layer.
        metadata.insert("residual_norm".into(), Value::Null);
        let norms =
            vectors.iter().filter_map(|v| Some((v.layer.to_string(), v.provenance.residual_norm?.into())));
        metadata.insert(NORMS.into(), Value::Object(norms.collect()));
    }
    let metadata = HashMap::from([(KEY.to_owned(), Value::Object(metadata).to_string())]);
    let bytes = |v: &SteeringVector| v.direction.iter().flat_map(|x| x.to_le_bytes()).collect();
    let data: Vec<Vec<u8>> = vectors.iter().map(bytes).collect();
    let tensors = vectors.iter().zip(&data).map(|(v, data)| {
        let tensor = TensorView::new(Dtype::F32, vec![v.direction.len()], data);
        (format!("direction.{}", v.layer), tensor.expect("the bytes are those of the shape"))
    });
    let bytes = safetensors::serialize(tensors, Some(metadata)).expect("a few tensors always fit");
    Ok(write_atomic(path, &bytes)?)
}

/// The vectors of a safetensors file in our layout, lowest layer first; at least one.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<SteeringVector>> {
    let file = open(path, bytes)?;
    let mut names = file.names();
    names.sort_by_key(|name| (name.len(), name.to_string()));
    if names.is_empty() {
        let hint = "the file holds no vector";
        return Err(malformed(path, "tensors", "0 tensors", "one, direction.{layer}", hint));
    }
    let directions = names.iter().map(|name| Ok((layer_of(path, name)?, numbers(path, &file, name)?)));
    let directions = directions.collect::<Result<Vec<_>>>()?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| broken(path, &error.to_string()))?;
    let provenance = match header.metadata().as_ref().and_then(|metadata| metadata.get(KEY)) {
        Some(text) => provenance(path, text, Some(directions[0].0).filter(|_| directions.len() == 1))?,
        None => {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("unnamed");
            Provenance { name: stem.into(), ..Provenance::default() }
        }
    };
    let norms = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY)).map(|text| norms(text));
    let vector = |(layer, direction): (usize, _)| {
        let mut provenance = provenance.clone();
        if let Some(norm) = norms.as_ref().and_then(|norms| norms.get(&layer.to_string())) {
            provenance.residual_norm = Some(*norm);
        }
        SteeringVector { direction, layer, provenance }
    };
    Ok(directions.into_iter().map(vector).collect())
}

/// The median residual norms that the metadata of a file of several layers holds, by layer.
fn norms(text: &str) -> HashMap<String, f32> {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let norms = value.get(NORMS).and_then(Value::as_object).into_iter().flatten();
    let finite = |x: &f32| x.is_finite() && *x > 0.0;
    norms.filter_map(|(l, x)| Some((l.clone(), Some(x.as_f64()? as f32).filter(finite)?))).collect()
}

/// The tensors of a file, after a look at its first bytes.
fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    let convert = "convert it into one with direction.{layer}: steerkit vector convert FILE OUT.safetensors";
    for (sign, found, hint) in [
        (&b"GGUF"[..], "a GGUF file", convert),
        (b"PK\x03\x04", "a zip archive, as PyTorch writes", convert),
        (b"version https://git-lfs", "a git-LFS pointer", "fetch the file itself: git lfs pull"),
    ] {
        if bytes.starts_with(sign) {
            return Err(malformed(path, "byte offset 0", found, "a safetensors file", hint));
        }
    }
    if bytes.len() as u64 > MAX_FILE {
        let found = format!("more than {MAX_FILE} bytes");
        return Err(malformed(path, "file", found, "a vector of some kilobytes", "is this a model file?"));
    }
    let Some(length) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)) else {
        return Err(broken(path, &format!("{} bytes", bytes.len())));
    };
    if length > bytes.len() as u64 - 8 {
        let found = format!("a header of {length} bytes");
        let expected = format!("at most the {} bytes that follow", bytes.len() - 8);
        let hint = "the file is cut short or no safetensors file";
        return Err(malformed(path, "byte offset 0", found, expected, hint));
    }
    SafeTensors::deserialize(bytes).map_err(|error| broken(path, &error.to_string()))
}

/// The layer in the name `direction.{layer}`.
pub(crate) fn layer_of(path: &Path, name: &str) -> Result<usize> {
    let number = name.strip_prefix("direction.").filter(|number| number.len() <= 4);
    let layer = number.and_then(|number| number.parse::<u16>().ok().filter(|n| n.to_string() == number));
    layer.map(usize::from).ok_or_else(|| {
        let hint = "the name holds the block, counted from 0, after which the vector is added";
        let found = format!("the tensor {:?}", name.chars().take(80).collect::<String>());
        malformed(path, "tensors", found, "direction.{layer}", hint)
    })
}

/// The numbers of one tensor.
fn numbers(path: &Path, file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>> {
    let tensor = file.tensor(name).map_err(|error| broken(path, &error.to_string()))?;
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    if dtype != Dtype::F32 || shape.len() != 1 || shape[0] == 0 {
        let (found, hint) = (format!("{dtype:?} {shape:?}"), "save the vector as 32-bit floats in one row");
        return Err(malformed(path, name, found, "F32 [d_model]", hint));
    }
    let (numbers, _) = tensor.data().as_chunks::<4>();
    let direction: Vec<f32> = numbers.iter().map(|&x| f32::from_le_bytes(x)).collect();
    check_numbers(path, name, &direction)?;
    Ok(direction)
}

/// Finite and not all zero.
pub(crate) fn check_numbers(path: &Path, place: &str, direction: &[f32]) -> Result<()> {
    let hint = "the run that made it went wrong: train again";
    let refuse = |found: String| malformed(path, place, found, "finite numbers, not all zero", hint);
    match direction.iter().filter(|x| !x.is_finite()).count() {
        0 if direction.iter().all(|&x| x == 0.0) => Err(refuse("zeros only".into())),
        0 => Ok(()),
        found => Err(refuse(format!("{found} of {} values that are not finite", direction.len()))),
    }
}

/// Our metadata; where it names a layer, it must be `layer`.
pub(crate) fn provenance(path: &Path, text: &str, layer: Option<usize>) -> Result<Provenance> {
    let place = format!("metadata key {KEY:?}");
    let refuse = |found: String, expected: &str| {
        malformed(
            path,
            place.clone(),
            found,
            expected,
            "the file was changed by hand or damaged: make it again",
        )
    };
    let expected = "a JSON object as steerkit writes it";
    let value: Value = serde_json::from_str(text).map_err(|error| refuse(error.to_string(), expected))?;
    if !value.is_object() {
        return Err(refuse("another JSON value".into(), expected));
    }
    if let (Some(layer), Some(other)) = (layer, value.get("layer"))
        && other.as_u64() != Some(layer as u64)
    {
        return Err(refuse(format!("layer {other}"), &format!("layer {layer}, as the tensor's name has it")));
    }
    let provenance: Provenance =
        serde_json::from_value(value).map_err(|error| refuse(error.to_string(), expected))?;
    match provenance.residual_norm {
        Some(norm) if !(norm.is_finite() && norm > 0.0) => {
            Err(refuse(format!("residual_norm {norm}"), "a positive number"))
        }
        _ => Ok(provenance),
    }
}

fn broken(path: &Path, found: &str) -> SteerError {
    let hint = "the file is damaged or of another kind: fetch or make it again";
    malformed(path, "header", found, "a safetensors file", hint)
}
