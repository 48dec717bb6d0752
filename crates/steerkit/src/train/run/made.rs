//! Saving what a run made: vectors as safetensors, an adapter in PEFT's layout.

use super::Run;
use crate::{
    Result, SteerError,
    files::{at, write_atomic},
    recipe::Method,
    train::{EvalPoint, trainee::Trainee},
    vector::{DataUse, Provenance, SteeringVector, save_all},
};
use fs_err as fs;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{collections::HashMap, path::Path};
use steerkit_model::lora::TrainableLora;

impl Run<'_> {
    /// Writes what is trained to `path`: a file of the vectors that are not zero, or the adapter's folder.
    pub(super) fn save(&self, path: &Path, eval: &[EvalPoint]) -> Result<Vec<SteeringVector>> {
        let made = self.provenance(eval);
        let (layers, d) = match &self.train.trainee {
            Trainee::Adapter(lora) => {
                save_adapter(path, lora, &self.vector, &made)?;
                return Ok(Vec::new());
            }
            Trainee::Vectors { layers, d } => (layers, *d),
        };
        let parts = layers.iter().zip(&self.residual_norms).zip(self.vector.chunks_exact(d));
        let vectors = parts.map(|((&layer, &residual_norm), direction)| SteeringVector {
            direction: direction.to_vec(),
            layer,
            provenance: Provenance { residual_norm: Some(residual_norm as f32), ..made.clone() },
        });
        let loud = |v: &SteeringVector| layers.len() == 1 || v.direction.iter().any(|&x| x != 0.0);
        let vectors: Vec<SteeringVector> = vectors.filter(loud).collect();
        if vectors.is_empty() {
            return Err(SteerError::ZeroVector { name: made.name });
        }
        save_all(path, &vectors)?;
        Ok(vectors)
    }

    /// Where it came from.
    fn provenance(&self, eval: &[EvalPoint]) -> Provenance {
        let recipe = self.recipe;
        let object = |value: Value| match value {
            Value::Object(fields) => fields,
            _ => serde_json::Map::new(),
        };
        let name = recipe.out.file_name().and_then(|n| n.to_str()).unwrap_or("vector");
        let identity = self.model.identity();
        let rows: Vec<usize> = self.used.iter().map(|&i| self.data.train.rows[i]).collect();
        let metrics = json!({ "eval": eval });
        Provenance {
            name: name.into(),
            method: recipe.method.name().into(),
            objective: match recipe.method.is_extraction() && recipe.method != Method::Grad0 {
                true => serde_json::Map::new(),
                false => object(serde_json::to_value(&recipe.objective).expect("numbers under text keys")),
            },
            token_scope: recipe.scope,
            base_model: Some(identity.clone()),
            system_prompt: Some(recipe.prompt.system.clone()).filter(|s| !s.is_empty()),
            chat_template_sha256: identity.template_sha256.clone(),
            data: Some(DataUse::new(self.data.train.sha256.clone(), &rows)),
            seed: Some(recipe.seed),
            steps: Some(self.step as u64),
            metrics: object(metrics),
            steerkit_version: env!("CARGO_PKG_VERSION").into(),
            ..Provenance::default()
        }
    }
}

/// Writes `adapter_model.safetensors`, `adapter_config.json` and, for those who want to know where it came from,
/// `steerkit.json`. The same numbers give the same bytes.
fn save_adapter(folder: &Path, lora: &TrainableLora, params: &[f32], made: &Provenance) -> Result<()> {
    fs::create_dir_all(folder)?;
    let tensors = lora.peft_tensors(params).into_iter().map(|tensor| {
        let bytes: Vec<u8> = tensor.data.iter().flat_map(|x| x.to_le_bytes()).collect();
        (format!("base_model.model.{}", tensor.name), tensor.shape.to_vec(), bytes)
    });
    let tensors: Vec<_> = tensors.collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name, view.expect("the bytes are those of the shape"))
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("adapter_model.safetensors");
    let bytes = safetensors::serialize(views, Some(metadata));
    let bytes = bytes.map_err(|e| at(&path, std::io::Error::other(e)))?;
    write_atomic(&path, &bytes)?;
    let settings = lora.settings();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": made.base_model.as_ref().map(|m| &m.name),
        "inference_mode": true,
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": settings.targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "use_dora": false,
        "use_rslora": false,
    });
    write_atomic(&folder.join("adapter_config.json"), format!("{config:#}\n").as_bytes())?;
    let made = serde_json::to_value(made).expect("plain fields");
    Ok(write_atomic(&folder.join("steerkit.json"), format!("{made:#}\n").as_bytes())?)
}
