//! JSON lines: one object per line, duplicate keys refused.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::Result;
use crate::data::encoding::Lines;

/// The value of a key, as far as a preference pair needs to know.
pub(super) enum Value {
    /// A string.
    Text(String),
    /// A list whose first element is an object with `role`: the conversational form of preference data.
    Messages,
    /// Anything else, by name.
    Other(&'static str),
}

/// The keys and values of one object, in file order.
struct Object(Vec<(String, Value)>);

/// Reads the next object into `members`, skipping blank lines; gives its line, or `None` at the end of the file.
pub(super) fn next(
    lines: &mut Lines,
    text: &mut String,
    members: &mut Vec<(String, Value)>,
) -> Result<Option<u64>> {
    loop {
        if !lines.next(text)? {
            return Ok(None);
        }
        if !text.trim().is_empty() {
            break;
        }
    }
    let line = lines.number;
    match serde_json::from_str::<Object>(text) {
        Ok(object) => {
            *members = object.0;
            Ok(Some(line))
        }
        Err(error) => Err(refuse(lines, line, text, &error)),
    }
}

pub(super) fn refuse(lines: &Lines, line: u64, text: &str, error: &serde_json::Error) -> crate::SteerError {
    let message = error.to_string();
    let found = message.split(" at line ").next().unwrap_or(&message).to_owned();
    let start = text.trim_start();
    let hint = if start.starts_with('[') {
        "the file is a JSON array: write one object per line, without brackets and commas between them \
         (jq -c '.[]' FILE does it)"
    } else if text.trim_end().ends_with("},") {
        "lines of a JSONL file do not end with a comma"
    } else if found.contains("surrogate") || found.contains("hex escape") {
        "a \\ud800 to \\udfff escape needs its other half: write the character itself"
    } else if found.contains("trailing comma") {
        "remove the comma before the closing bracket"
    } else if found.contains("duplicate key") {
        "keep one of them"
    } else if matches!(start, "{") {
        "write each object on a line of its own (jq -c . FILE does it)"
    } else {
        "write one object per line: {\"prompt\": \"...\", \"chosen\": \"...\", \"rejected\": \"...\"}"
    };
    lines.error(format!("line {line}, column {}", error.column()), found, "one JSON object per line", hint)
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members: Vec<(String, Value)> = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if members.iter().any(|(earlier, _)| *earlier == key) {
                        return Err(A::Error::custom(format!("a duplicate key {key:?}")));
                    }
                    if members.len() == 256 {
                        return Err(A::Error::custom("more than 256 keys"));
                    }
                    members.push((key, map.next_value()?));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }

            fn visit_unit<E: Error>(self) -> Result<Value, E> {
                Ok(Value::Other("null"))
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Value, E> {
                Ok(Value::Other("a boolean"))
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Value, E> {
                Ok(Value::Other("a number"))
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Value, E> {
                Ok(Value::Other("a number"))
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
                Ok(Value::Other("a number"))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut role = false;
                while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                    role |= key == "role";
                }
                Ok(if role { Value::Messages } else { Value::Other("an object") })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut messages = false;
                while let Some(element) = seq.next_element::<Value>()? {
                    messages |= matches!(element, Value::Messages);
                }
                Ok(if messages { Value::Messages } else { Value::Other("a list") })
            }
        }
        deserializer.deserialize_any(Any)
    }
}
