//! Rotary embeddings as the two kinds of files describe them (`modeling_rope_utils.py` of transformers;
//! `llama-context.cpp` and `convert_hf_to_gguf.py` of llama.cpp).

use super::{
    fields::{self, limit},
    finite,
    gguf_keys::Keys,
};
use crate::{
    ModelError, Result,
    config::{LongContext, Rope, RopePairing, RopeScaling},
    hf::Json,
};
use serde_json::Value;

/// GGUF tensor of divisors per rotary frequency.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
/// GGUF tensors of LongRoPE's divisors.
pub(super) const FACTORS_SHORT: &str = "rope_factors_short.weight";
pub(super) const FACTORS_LONG: &str = "rope_factors_long.weight";
/// Base of the rotary frequencies where a file names none.
pub(super) const DEFAULT_THETA: f64 = 10_000.0;
/// YaRN's bounds where a file names none.
const BETA_FAST: f64 = 32.0;
const BETA_SLOW: f64 = 1.0;

/// The longest text: LongRoPE is computed with its short divisors unless asked otherwise, so it ends with the original
/// context.
pub(super) fn context(rope: &Rope, context: usize, original: Option<f64>) -> usize {
    match (&rope.scaling, original) {
        (RopeScaling::LongRope { .. }, Some(original)) => context.min(original as usize),
        _ => context,
    }
}

/// YaRN's factor of cosines and sines.
fn yarn_magnitude(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

pub(super) fn from_gguf(keys: &Keys<'_>, pairing: RopePairing, rotary_dim: usize) -> Result<Rope> {
    let meta = &keys.gguf.meta;
    let theta = fields::optional_positive(meta, &keys.key("rope.freq_base"))?.unwrap_or(DEFAULT_THETA);
    Ok(Rope { theta, pairing, scaling: gguf_scaling(keys, theta, rotary_dim)? })
}

fn gguf_scaling(keys: &Keys<'_>, theta: f64, rotary_dim: usize) -> Result<RopeScaling> {
    let (gguf, meta) = (keys.gguf, &keys.gguf.meta);
    let number = |name: &str| keys.number(&format!("rope.scaling.{name}"));
    let required = |name: &str| {
        number(name)?
            .ok_or_else(|| meta.missing(&keys.key(&format!("rope.scaling.{name}")), "a number above 0"))
    };
    let kind_key = keys.key("rope.scaling.type");
    let kind = meta.text(&kind_key)?.unwrap_or("none");
    let attn_factor = match number("attn_factor")? {
        None => number("yarn_attn_factor")?,
        factor => factor,
    };
    if gguf.tensor(FACTORS_SHORT).is_some() {
        required("original_context_length")?;
        let context = fields::optional_size(meta, &keys.key("context_length"), limit::CONTEXT)?;
        let long = match (gguf.tensor(FACTORS_LONG), context) {
            (Some(_), Some(context)) => {
                Some(LongContext { divisors: divisors(keys, FACTORS_LONG, rotary_dim)?, context })
            }
            _ => None,
        };
        let divisors = divisors(keys, FACTORS_SHORT, rotary_dim)?;
        return Ok(RopeScaling::LongRope { divisors, magnitude: attn_factor.unwrap_or(1.0), long });
    }
    // Older files name a factor without a type.
    let old_factor = keys.number("rope.scale_linear")?.filter(|&x| x != 1.0);
    match (kind, old_factor) {
        ("none", None) if gguf.tensor(ROPE_FREQS).is_none() => Ok(RopeScaling::None),
        ("none", None) => Ok(RopeScaling::Divisors(divisors(keys, ROPE_FREQS, rotary_dim)?)),
        ("none", Some(factor)) => Ok(RopeScaling::Linear(factor)),
        ("linear", _) => Ok(RopeScaling::Linear(required("factor")?)),
        ("yarn", _) if theta > 1.0 => {
            let factor = required("factor")?;
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: number("yarn_beta_fast")?.unwrap_or(BETA_FAST),
                beta_slow: number("yarn_beta_slow")?.unwrap_or(BETA_SLOW),
                original_context: required("original_context_length")? as usize,
                truncate: true,
                magnitude: yarn_magnitude(factor) * attn_factor.unwrap_or(1.0),
            })
        }
        (other, _) => {
            let known =
                ["none", "linear", "yarn", "llama3 (as rope_freqs.weight)", "longrope (as rope_factors)"];
            Err(ModelError::unsupported(gguf.path(), "rope scaling type", other, &known))
        }
    }
}

fn divisors(keys: &Keys<'_>, name: &str, rotary_dim: usize) -> Result<Vec<f32>> {
    let error = |found: String, expected: String| {
        ModelError::malformed(keys.gguf.path(), format!("tensor \"{name}\""), found, expected)
    };
    let expected = format!("shape [{}]", rotary_dim / 2);
    let Some(tensor) = keys.gguf.tensor(name) else {
        return Err(error("no such tensor".to_owned(), expected));
    };
    if tensor.shape != [rotary_dim / 2] {
        return Err(error(format!("shape {:?}", tensor.shape), expected));
    }
    let divisors = finite(tensor)?;
    match divisors.iter().find(|&&x| x <= 0.0) {
        None => Ok(divisors),
        Some(x) => Err(error(x.to_string(), "divisors above 0".to_owned())),
    }
}

/// `rope_parameters` (transformers 5) or `rope_scaling` (4). A file that holds both is read in the newer way.
fn parameters(config: &Json) -> Result<Option<Json>> {
    match config.object("rope_parameters")? {
        None => config.object("rope_scaling"),
        newer => Ok(newer),
    }
}

/// Numbers of a head that turn, from `partial_rotary_factor`; `None`: all.
pub(super) fn hf_rotary_dim(config: &Json, head_dim: usize) -> Result<Option<usize>> {
    const FIELD: &str = "partial_rotary_factor";
    let own = parameters(config)?.map(|p| fields::optional_positive(&p, FIELD)).transpose()?.flatten();
    let share = match own {
        None => fields::optional_positive(config, FIELD)?,
        own => own,
    };
    let Some(share) = share.filter(|&x| x != 1.0) else { return Ok(None) };
    let dim = (head_dim as f64 * share) as usize;
    if share > 1.0 || dim == 0 || !dim.is_multiple_of(2) {
        let expected = format!("a share of the head's {head_dim} numbers that is even");
        return Err(config.wrong(FIELD, share.to_string(), expected));
    }
    Ok(Some(dim))
}

/// Context of the pre-training, which stands in either place.
pub(super) fn hf_original_context(config: &Json) -> Result<Option<usize>> {
    const FIELD: &str = "original_max_position_embeddings";
    let own = parameters(config)?.map(|p| fields::optional_size(&p, FIELD, limit::CONTEXT)).transpose()?;
    match own.flatten() {
        None => fields::optional_size(config, FIELD, limit::CONTEXT),
        own => Ok(own),
    }
}

/// The rotary embedding of a folder that has one for all blocks.
pub(super) fn from_hf(config: &Json, default_theta: f64, context: usize, rotary_dim: usize) -> Result<Rope> {
    let parameters = parameters(config)?;
    let theta = match parameters.as_ref().map(|p| fields::optional_positive(p, "rope_theta")).transpose()? {
        Some(Some(theta)) => theta,
        _ => fields::optional_positive(config, "rope_theta")?.unwrap_or(default_theta),
    };
    let original = hf_original_context(config)?;
    let contexts = Contexts { context, original };
    let scaling =
        parameters.map_or(Ok(RopeScaling::None), |p| hf_scaling(&p, theta, contexts, rotary_dim))?;
    Ok(Rope { theta, pairing: RopePairing::Halves, scaling })
}

/// The longest text in tokens, and that of the pre-training.
#[derive(Clone, Copy)]
pub(super) struct Contexts {
    pub(super) context: usize,
    pub(super) original: Option<usize>,
}

/// Every name that one of the types below reads; another one may change the numbers.
const FIELDS: [&str; 16] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
];

pub(super) fn hf_scaling(
    parameters: &Json,
    theta: f64,
    contexts: Contexts,
    rotary_dim: usize,
) -> Result<RopeScaling> {
    if let Some(unknown) = parameters.names().find(|name| !FIELDS.contains(name) && *name != "finetuned") {
        return Err(ModelError::unsupported(parameters.path(), "rope parameter", unknown, &FIELDS));
    }
    let kind = match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
    };
    match kind {
        // Up to the model's context the base that depends on the length is the plain one.
        "default" | "dynamic" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear(fields::positive(parameters, "factor")?)),
        "llama3" => llama3(parameters, contexts),
        "yarn" if theta > 1.0 => yarn(parameters, contexts),
        "longrope" | "su" => long_rope(parameters, contexts, rotary_dim),
        other => {
            let known = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"];
            Err(ModelError::unsupported(parameters.path(), "rope type", other, &known))
        }
    }
}

fn llama3(parameters: &Json, contexts: Contexts) -> Result<RopeScaling> {
    let (low, high) = ("low_freq_factor", "high_freq_factor");
    let low_freq_factor = fields::positive(parameters, low)?;
    let high_freq_factor = fields::positive(parameters, high)?;
    if high_freq_factor <= low_freq_factor {
        let expected = format!("more than {low}, which is {low_freq_factor}");
        return Err(parameters.wrong(high, high_freq_factor.to_string(), expected));
    }
    Ok(RopeScaling::Llama3 {
        factor: fields::positive(parameters, "factor")?,
        low_freq_factor,
        high_freq_factor,
        original_context: contexts.original.unwrap_or(contexts.context),
    })
}

fn yarn(parameters: &Json, contexts: Contexts) -> Result<RopeScaling> {
    let optional = |name: &str| fields::optional_positive(parameters, name);
    let factor = fields::positive(parameters, "factor")?;
    let scaled = |by: f64| if factor > 1.0 { 0.1 * by * factor.ln() + 1.0 } else { 1.0 };
    let magnitude = match (optional("attention_factor")?, optional("mscale")?, optional("mscale_all_dim")?) {
        (Some(magnitude), _, _) => magnitude,
        (None, Some(some), Some(all)) => scaled(some) / scaled(all),
        _ => yarn_magnitude(factor),
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: optional("beta_fast")?.unwrap_or(BETA_FAST),
        beta_slow: optional("beta_slow")?.unwrap_or(BETA_SLOW),
        original_context: contexts.original.unwrap_or(contexts.context),
        truncate: parameters.flag("truncate")?.unwrap_or(true),
        magnitude,
    })
}

fn long_rope(parameters: &Json, contexts: Contexts, rotary_dim: usize) -> Result<RopeScaling> {
    let half = rotary_dim / 2;
    let divisors = |field: &str| {
        let numbers = parameters.get(field).and_then(Value::as_array);
        let read: Option<Vec<f32>> = numbers
            .and_then(|n| n.iter().map(|x| x.as_f64().map(|x| x as f32).filter(|&x| x > 0.0)).collect());
        read.filter(|numbers| numbers.len() == half).ok_or_else(|| {
            let found = numbers.map_or("nothing".to_owned(), |n| format!("{} values", n.len()));
            parameters.wrong(field, found, format!("{half} numbers above 0"))
        })
    };
    let long = match parameters.get("long_factor") {
        None => None,
        Some(_) => Some(LongContext { divisors: divisors("long_factor")?, context: contexts.context }),
    };
    let divisors = divisors("short_factor")?;
    let original = contexts.original.unwrap_or(contexts.context) as f64;
    let stretch = contexts.context as f64 / original;
    let magnitude = match fields::optional_positive(parameters, "attention_factor")? {
        Some(magnitude) => magnitude,
        None if stretch > 1.0 => (1.0 + stretch.ln() / original.ln()).sqrt(),
        None => 1.0,
    };
    Ok(RopeScaling::LongRope { divisors, magnitude, long })
}
