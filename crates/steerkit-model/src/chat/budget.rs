//! A bound on the memory and the work of one rendering.
//!
//! Every operation that makes or walks through a value pays for the bytes it makes or looks at, before it does so. What
//! a rendering may pay in all is [`BASE`] plus [`PER_INPUT`] times its input, so that is also the most it can hold.
//! Values that lists and maps hold are plain data nested at most [`MAX_DEPTH`] deep, so that showing, comparing and
//! dropping them need little stack.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Bytes that any rendering may pay for.
const BASE: u64 = 16 << 20;
/// Bytes that may be paid for each byte of the messages.
const PER_INPUT: u64 = 32;
/// What one entry of a list costs: the value and its share of the list.
pub(super) const ENTRY: u64 = 32;
/// What visiting a value costs.
const VISIT: u64 = 8;
/// How deep lists and maps may be nested.
const MAX_DEPTH: usize = 16;

/// What is left to pay with; clones share it.
#[derive(Clone)]
pub(super) struct Budget(Arc<AtomicU64>);

impl Budget {
    pub(super) fn new(input_bytes: usize) -> Self {
        Self(Arc::new(AtomicU64::new(BASE + PER_INPUT * input_bytes as u64)))
    }

    /// Pays for `bytes`.
    pub(super) fn pay(&self, bytes: u64) -> Result<(), Error> {
        // One rendering runs on one thread, so load and store need not be one step.
        let left = self.0.load(Ordering::Relaxed);
        match left.checked_sub(bytes) {
            Some(rest) => {
                self.0.store(rest, Ordering::Relaxed);
                Ok(())
            }
            None => Err(too_much()),
        }
    }

    /// Pays for looking at a value from outside: the bytes of a text, the entries of a list or map.
    pub(super) fn pay_shallow(&self, value: &Value) -> Result<(), Error> {
        self.pay(match value.as_str() {
            Some(text) => text.len() as u64 + 1,
            None => value.len().unwrap_or(0) as u64 + 1,
        })
    }

    /// Pays for looking at all of a value.
    pub(super) fn pay_deep(&self, value: &Value) -> Result<(), Error> {
        self.walk(value, 0, &mut |text| self.pay(text.len() as u64))
    }

    /// Pays for a value just made: its text, or its entries and their texts.
    pub(super) fn pay_result(&self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::String => self.pay_shallow(value),
            ValueKind::Seq => {
                self.pay(ENTRY * value.len().unwrap_or(0) as u64)?;
                value.try_iter()?.try_for_each(|item| match item.as_str() {
                    Some(text) => self.pay(text.len() as u64),
                    None => Ok(()),
                })
            }
            _ => self.pay(ENTRY),
        }
    }

    /// Lets plain data of bounded depth pass into a list, a map or a namespace. A namespace inside another value could
    /// hold that value and so be endless.
    pub(super) fn check_stored(&self, value: &Value) -> Result<(), Error> {
        self.walk(value, 0, &mut |_| Ok(()))
    }

    /// Visits every text in a value, paying for every value on the way.
    fn walk(
        &self,
        value: &Value,
        depth: usize,
        on_text: &mut dyn FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.pay(VISIT)?;
        match value.kind() {
            ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number => return Ok(()),
            ValueKind::String => return value.as_str().map_or(Ok(()), on_text),
            _ => {}
        }
        if depth >= MAX_DEPTH {
            return Err(refused(format!("lists and maps nested more than {MAX_DEPTH} deep")));
        }
        if !is_data(value) {
            return Err(refused("a namespace, macro or loop inside a list, a map or a namespace"));
        }
        for item in value.try_iter()? {
            if value.kind() == ValueKind::Map {
                self.walk(&value.get_item(&item)?, depth + 1, on_text)?;
            }
            self.walk(&item, depth + 1, on_text)?;
        }
        Ok(())
    }

    /// A value as text.
    pub(super) fn text_of(&self, value: &Value) -> Result<String, Error> {
        let mut text = String::new();
        self.write(&mut text, value)?;
        Ok(text)
    }

    /// Writes a value as text.
    pub(super) fn write(&self, out: &mut dyn Write, value: &Value) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            self.pay(text.len() as u64)?;
            return Ok(out.write_str(text)?);
        }
        // Displaying a list walks through it; its writes stop as soon as one cannot be paid.
        write!(Paying { out, budget: self }, "{value}").map_err(|_| too_much())
    }
}

/// Whether this is a list, tuple or map as literals, filters and messages make them.
fn is_data(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    object.is::<Vec<Value>>()
        || object.is::<Tuple>()
        // The engine's own map type has no public name.
        || (value.kind() == ValueKind::Map && object.type_name().starts_with("indexmap::map::IndexMap<"))
}

/// The error for a rendering that has paid all it may.
pub(super) fn too_much() -> Error {
    Error::new(ErrorKind::OutOfFuel, "the template needs too much memory")
}

/// The error for what these renderings do not do.
pub(super) fn refused(what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("not supported: {what}"))
}

/// A writer that pays for what it writes.
pub(super) struct Paying<'a> {
    pub(super) out: &'a mut dyn Write,
    pub(super) budget: &'a Budget,
}

impl Write for Paying<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.budget.pay(text.len() as u64 + 1).map_err(|_| fmt::Error)?;
        self.out.write_str(text)
    }
}
