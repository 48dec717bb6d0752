//! Adapter folders of PEFT (`peft/tuners/lora/config.py` and `layer.py`).

use super::{Adapter, Factors};
use crate::config::RopePairing;
use crate::hf::{Json, MAX_JSON, read_safetensors};
use crate::source::{Source, TensorInfo, hex, read_text};
use crate::{ModelError, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// What stands before a module's name.
const PREFIX: &str = "base_model.model.";
/// Switches that make another adapter of it than plain LoRA.
const OTHER: [&str; 5] = ["use_dora", "fan_in_fan_out", "use_qalora", "alora_invocation_tokens", "lora_bias"];

/// How strong the adapter is at each module.
struct Scale {
    alpha: f64,
    rank_stabilised: bool,
    /// Alphas of modules whose name ends so.
    alphas: Vec<(String, f64)>,
}

impl Scale {
    fn read(config: &Json) -> Result<Self> {
        let kind = config.text("peft_type")?.unwrap_or("?");
        if kind != "LORA" {
            return Err(ModelError::unsupported(config.path(), "peft_type", kind, &["LORA"]));
        }
        for field in OTHER {
            if config.get(field).is_some_and(|v| *v != Value::Bool(false)) {
                return Err(ModelError::unsupported(config.path(), field, "a value", &["false", "null"]));
            }
        }
        for (field, only) in [("bias", "none"), ("modules_to_save", "null")] {
            match config.get(field) {
                None => (),
                Some(Value::String(text)) if text == only => (),
                Some(Value::Array(list)) if list.is_empty() => (),
                Some(other) => {
                    return Err(ModelError::unsupported(config.path(), field, other.to_string(), &[only]));
                }
            }
        }
        let patterns = config.object("alpha_pattern")?;
        let mut alphas = Vec::new();
        for (name, patterns) in patterns.iter().flat_map(|p| p.names().map(move |name| (name, p))) {
            let alpha = patterns.float(name)?.unwrap_or(f64::NAN);
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c)) {
                let known = ["plain ends of module names"];
                return Err(ModelError::unsupported(config.path(), "alpha_pattern", name, &known));
            }
            alphas.push((name.to_owned(), alpha));
        }
        let alpha = config.float("lora_alpha")?.filter(|a| a.is_finite());
        Ok(Self {
            alpha: alpha.ok_or_else(|| config.missing("lora_alpha", "a finite number"))?,
            rank_stabilised: config.flag("use_rslora")?.unwrap_or(false),
            alphas,
        })
    }

    fn of(&self, module: &str, r: usize) -> f32 {
        let ends = |name: &str| module == name || module.ends_with(&format!(".{name}"));
        let own = self.alphas.iter().find(|(name, _)| ends(name)).map(|(_, alpha)| *alpha);
        let r = r as f64;
        (own.unwrap_or(self.alpha) / if self.rank_stabilised { r.sqrt() } else { r }) as f32
    }
}

pub(super) fn read(folder: &Path) -> Result<Adapter> {
    let config_path = folder.join("adapter_config.json");
    let text = read_text(&config_path, MAX_JSON)?;
    let scale = Scale::read(&Json::parse(&config_path, &text)?)?;
    let source = Source::open(&folder.join("adapter_model.safetensors"))?;
    let tensors: BTreeMap<String, TensorInfo> =
        read_safetensors(&source)?.into_iter().map(|t| (t.name.clone(), t)).collect();
    let error = |name: &str, found: String, expected: &str| {
        ModelError::malformed(source.path(), format!("tensor \"{name}\""), found, expected)
    };
    let mut factors = Vec::new();
    for (name, a) in &tensors {
        if name.ends_with(".lora_B.weight") && tensors.contains_key(&name.replace(".lora_B.", ".lora_A.")) {
            continue;
        }
        let module = name.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(".lora_A.weight"));
        let module = module.ok_or_else(|| {
            error(name, "a part that is not adapted here".into(), "lora_A and lora_B of a projection")
        })?;
        let b_name = format!("{PREFIX}{module}.lora_B.weight");
        let b = tensors
            .get(&b_name)
            .ok_or_else(|| error(&b_name, "no such tensor".into(), "the other factor"))?;
        let ([r, cols], [rows, other_r]) = (a.shape.as_slice(), b.shape.as_slice()) else {
            return Err(error(name, format!("shapes {:?} and {:?}", a.shape, b.shape), "two matrices"));
        };
        if r != other_r || [r, cols, rows].contains(&&0) {
            return Err(error(
                name,
                format!("shapes {:?} and {:?}", a.shape, b.shape),
                "[r, in] and [out, r]",
            ));
        }
        let factor = scale.of(module, *r);
        let up = b.to_f32().iter().map(|x| x * factor).collect();
        factors.push(Factors {
            target: module.to_owned(),
            down: a.to_f32(),
            up,
            r: *r,
            cols: *cols,
            rows: *rows,
        });
    }
    let mut hash = Sha256::new();
    hash.update(&text);
    hash.update(source.bytes());
    Ok(Adapter {
        path: folder.to_owned(),
        gguf_names: false,
        pairing: RopePairing::Halves,
        factors,
        sha256: hex(&hash.finalize()),
    })
}
