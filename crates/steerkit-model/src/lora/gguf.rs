//! GGUF adapters, as llama.cpp's `convert_lora_to_gguf.py` writes them.

use super::{Adapter, Factors};
use crate::arch::Family;
use crate::gguf::Gguf;
use crate::{ModelError, Result};
use std::path::Path;

pub(super) fn read(path: &Path, family: &Family) -> Result<Adapter> {
    const ARCH: &str = "general.architecture";
    const ALPHA: &str = "adapter.lora.alpha";
    let gguf = Gguf::open(path)?;
    let meta = &gguf.meta;
    for (key, only) in [("general.type", "adapter"), ("adapter.type", "lora"), (ARCH, family.gguf_name())] {
        let found = meta.text(key)?.unwrap_or("nothing");
        if found != only {
            return Err(ModelError::unsupported(path, key, found, &[only]));
        }
    }
    let alpha = meta.float(ALPHA)?.filter(|a| a.is_finite());
    let alpha = alpha.ok_or_else(|| meta.missing(ALPHA, "a finite number"))?;
    let error = |name: &str, found: String, expected: &str| {
        ModelError::malformed(path, format!("tensor \"{name}\""), found, expected)
    };
    let mut factors = Vec::new();
    for a in gguf.tensors() {
        if let Some(of) = a.name.strip_suffix(".lora_b") {
            if gguf.tensor(&format!("{of}.lora_a")).is_none() {
                return Err(error(&a.name, "no lora_a beside it".into(), "both factors"));
            }
            continue;
        }
        let target = a.name.strip_suffix(".weight.lora_a");
        let target = target
            .ok_or_else(|| error(&a.name, "a part that is not adapted here".into(), "lora_a and lora_b"))?;
        let b_name = format!("{target}.weight.lora_b");
        let b = gguf
            .tensor(&b_name)
            .ok_or_else(|| error(&b_name, "no such tensor".into(), "the other factor"))?;
        let ([r, cols], [rows, other_r]) = (a.shape.as_slice(), b.shape.as_slice()) else {
            return Err(error(&a.name, format!("shapes {:?} and {:?}", a.shape, b.shape), "two matrices"));
        };
        if r != other_r {
            return Err(error(
                &a.name,
                format!("shapes {:?} and {:?}", a.shape, b.shape),
                "[r, in] and [out, r]",
            ));
        }
        let factor = (alpha / *r as f64) as f32;
        let up = b.to_f32().iter().map(|x| x * factor).collect();
        factors.push(Factors {
            target: target.to_owned(),
            down: a.to_f32(),
            up,
            r: *r,
            cols: *cols,
            rows: *rows,
        });
    }
    let pairing = family.gguf_pairing;
    Ok(Adapter { path: path.to_owned(), gguf_names: true, pairing, factors, sha256: gguf.source().sha256() })
}
