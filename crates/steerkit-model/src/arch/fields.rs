//! The configuration values of either file kind behind one face, and their limits.

use crate::{ModelError, Result, gguf::Meta, hf::Json};

/// Named values: GGUF metadata or a JSON object.
pub(super) trait Fields {
    /// A whole number that is not negative.
    fn integer(&self, name: &str) -> Result<Option<u64>>;
    /// A real number.
    fn float(&self, name: &str) -> Result<Option<f64>>;
    /// The error for a value that cannot be used.
    fn wrong(&self, name: &str, found: String, expected: String) -> ModelError;
}

impl Fields for Meta {
    fn integer(&self, name: &str) -> Result<Option<u64>> {
        Meta::integer(self, name)
    }

    fn float(&self, name: &str) -> Result<Option<f64>> {
        Meta::float(self, name)
    }

    fn wrong(&self, name: &str, found: String, expected: String) -> ModelError {
        Meta::wrong(self, name, found, expected)
    }
}

impl Fields for Json {
    fn integer(&self, name: &str) -> Result<Option<u64>> {
        Json::integer(self, name)
    }

    fn float(&self, name: &str) -> Result<Option<f64>> {
        Json::float(self, name)
    }

    fn wrong(&self, name: &str, found: String, expected: String) -> ModelError {
        Json::wrong(self, name, found, expected)
    }
}

/// Largest values accepted, well above any real model's and small enough that no product overflows.
pub(super) mod limit {
    /// Blocks.
    pub(crate) const LAYERS: u64 = 1 << 10;
    /// Width of the residual stream.
    pub(crate) const WIDTH: u64 = 1 << 17;
    /// Heads.
    pub(crate) const HEADS: u64 = 1 << 10;
    /// Numbers per head.
    pub(crate) const HEAD_DIM: u64 = 1 << 12;
    /// Width of the MLP.
    pub(crate) const FFN: u64 = 1 << 20;
    /// Rows of the embedding.
    pub(crate) const VOCAB: u64 = 1 << 22;
    /// Tokens of context.
    pub(crate) const CONTEXT: u64 = 1 << 27;
}

/// A size from 1 to `max`, or `None` when it is not given.
pub(super) fn optional_size(fields: &dyn Fields, name: &str, max: u64) -> Result<Option<usize>> {
    match fields.integer(name)? {
        None => Ok(None),
        Some(n) if (1..=max).contains(&n) => Ok(Some(n as usize)),
        Some(n) => Err(fields.wrong(name, n.to_string(), format!("1 to {max}"))),
    }
}

/// A size from 1 to `max` that must be given.
pub(super) fn size(fields: &dyn Fields, name: &str, max: u64) -> Result<usize> {
    optional_size(fields, name, max)?
        .ok_or_else(|| missing(fields, name, &format!("a number from 1 to {max}")))
}

/// A finite positive number, or `None` when it is not given.
pub(super) fn optional_positive(fields: &dyn Fields, name: &str) -> Result<Option<f64>> {
    match fields.float(name)? {
        Some(x) if !(x.is_finite() && x > 0.0) => {
            Err(fields.wrong(name, x.to_string(), "a finite number above 0".to_owned()))
        }
        x => Ok(x),
    }
}

/// A finite positive number that must be given.
pub(super) fn positive(fields: &dyn Fields, name: &str) -> Result<f64> {
    optional_positive(fields, name)?.ok_or_else(|| missing(fields, name, "a finite number above 0"))
}

/// The epsilon of a norm: positive as f32, below 1.
pub(super) fn norm_eps(fields: &dyn Fields, name: &str) -> Result<f32> {
    let eps = positive(fields, name)?;
    if (eps as f32) > 0.0 && eps < 1.0 {
        return Ok(eps as f32);
    }
    Err(fields.wrong(name, eps.to_string(), "a number between 0 and 1".to_owned()))
}

/// Numbers of a head that turn: an even number up to `head_dim`; `None` when that is all of them.
pub(super) fn rotary_dim(fields: &dyn Fields, name: &str, head_dim: usize) -> Result<Option<usize>> {
    match optional_size(fields, name, head_dim as u64)? {
        Some(n) if !n.is_multiple_of(2) => {
            Err(fields.wrong(name, n.to_string(), "an even number".to_owned()))
        }
        n => Ok(n.filter(|&n| n != head_dim)),
    }
}

fn missing(fields: &dyn Fields, name: &str, expected: &str) -> ModelError {
    fields.wrong(name, "nothing".to_owned(), expected.to_owned())
}

/// Names of the fields that shape attention, for [`heads`].
pub(super) struct HeadFields<'a> {
    /// Query heads.
    pub(super) n_heads: &'a str,
    /// Key/value heads; as many as query heads when not given.
    pub(super) n_kv_heads: &'a str,
    /// Numbers per head; `d_model / n_heads` when not given.
    pub(super) head_dim: &'a str,
}

/// Query heads, key/value heads and numbers per head of a model of width `d_model`.
pub(super) fn heads(
    fields: &dyn Fields,
    names: &HeadFields<'_>,
    d_model: usize,
) -> Result<(usize, usize, usize)> {
    let n_heads = size(fields, names.n_heads, limit::HEADS)?;
    let n_kv_heads = optional_size(fields, names.n_kv_heads, limit::HEADS)?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        let expected = format!("a divisor of the {n_heads} query heads");
        return Err(fields.wrong(names.n_kv_heads, n_kv_heads.to_string(), expected));
    }
    let head_dim = match optional_size(fields, names.head_dim, limit::HEAD_DIM)? {
        Some(h) => h,
        None if d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            let expected = format!("a divisor of the width {d_model}");
            return Err(fields.wrong(names.n_heads, n_heads.to_string(), expected));
        }
    };
    if !head_dim.is_multiple_of(2) {
        let expected = "an even number, for the rotary embedding".to_owned();
        return Err(fields.wrong(names.head_dim, head_dim.to_string(), expected));
    }
    Ok((n_heads, n_kv_heads, head_dim))
}
