//! `tojson` as Hugging Face templates have it: Python's `json.dumps`.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::budget::{Budget, Paying, refused, too_much};

/// How the text is laid out.
pub(super) struct Layout {
    /// Spaces per level, each entry on its own line; all on one line without.
    pub(super) indent: Option<usize>,
    /// Whether characters beyond ASCII are escaped.
    pub(super) ascii: bool,
    /// Whether maps are sorted by key.
    pub(super) sort_keys: bool,
}

/// `value` as JSON.
pub(super) fn text(budget: &Budget, value: &Value, layout: &Layout) -> Result<String, Error> {
    // Refuses what is no plain data and nested too deep.
    budget.check_stored(value)?;
    let mut text = String::new();
    let mut out = Paying { out: &mut text, budget };
    match write(&mut out, value, layout, 0) {
        Ok(()) => Ok(text),
        // What could not be paid comes back as a failed write.
        Err(e) if e.kind() == ErrorKind::WriteFailure => Err(too_much()),
        Err(e) => Err(e),
    }
}

fn write(out: &mut dyn Write, value: &Value, layout: &Layout, level: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => Ok(out.write_str("null")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "true" } else { "false" })?),
        ValueKind::Number => Ok(write!(out, "{value}")?),
        ValueKind::String => string(out, value.as_str().unwrap_or_default(), layout.ascii),
        ValueKind::Seq => list(out, value.try_iter()?, layout, level, ['[', ']'], |out, item| {
            write(out, &item, layout, level + 1)
        }),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if layout.sort_keys {
                keys.sort();
            }
            list(out, keys.into_iter(), layout, level, ['{', '}'], |out, key| {
                match key.as_str() {
                    Some(text) => string(out, text, layout.ascii)?,
                    None => write!(out, "\"{key}\"")?,
                }
                out.write_str(": ")?;
                write(out, &value.get_item(&key)?, layout, level + 1)
            })
        }
        kind => Err(refused(format!("tojson of a {kind}"))),
    }
}

fn list(
    out: &mut dyn Write,
    items: impl Iterator<Item = Value>,
    layout: &Layout,
    level: usize,
    [open, close]: [char; 2],
    mut each: impl FnMut(&mut dyn Write, Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut dyn Write, level: usize| match layout.indent {
        Some(width) => write!(out, "\n{:1$}", "", (width * level).min(1 << 12)),
        None => Ok(()),
    };
    out.write_char(open)?;
    let mut any = false;
    for item in items {
        if any {
            out.write_str(if layout.indent.is_some() { "," } else { ", " })?;
        }
        line(out, level + 1)?;
        each(out, item)?;
        any = true;
    }
    if any {
        line(out, level)?;
    }
    Ok(out.write_char(close)?)
}

fn string(out: &mut dyn Write, text: &str, ascii: bool) -> Result<(), Error> {
    let quoted = serde_json::to_string(text).map_err(|e| {
        Error::new(ErrorKind::BadSerialization, "a text that JSON cannot hold").with_source(e)
    })?;
    if !ascii {
        return Ok(out.write_str(&quoted)?);
    }
    for c in quoted.chars() {
        if c.is_ascii() {
            out.write_char(c)?;
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
        }
    }
    Ok(())
}
