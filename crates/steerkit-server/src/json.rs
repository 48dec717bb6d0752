//! Bodies of requests: JSON without surprises, and its fields with their limits.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{ApiError, ApiResult};

/// Reads a body that is a JSON object. Nesting beyond 128 levels, numbers beyond 64 bits and duplicate keys are errors.
pub(crate) fn object(bytes: &[u8]) -> ApiResult<Map<String, Value>> {
    match value(bytes)? {
        Value::Object(fields) => Ok(fields),
        other => Err(refuse(format!("found {}, expected an object", kind(&other)))),
    }
}

/// The same for one that is a list.
pub(crate) fn list(bytes: &[u8]) -> ApiResult<Vec<Value>> {
    match value(bytes)? {
        Value::Array(values) => Ok(values),
        other => Err(refuse(format!("found {}, expected a list", kind(&other)))),
    }
}

fn refuse(message: String) -> ApiError {
    ApiError::bad("body", message).coded("invalid_json")
}

fn value(bytes: &[u8]) -> ApiResult<Value> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| refuse(format!("the body is not UTF-8 at byte {}", e.valid_up_to())))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|e| refuse(format!("the body is not JSON: {e}")))
}

/// What a value is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Any JSON value; two fields of one name are an error.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(Key(name)) = map.next_key()? {
            if fields.contains_key(&name) {
                return Err(A::Error::custom(format_args!("duplicate field {name:?}")));
            }
            let value = map.next_value_seed(Self)?;
            fields.insert(name, value);
        }
        Ok(Value::Object(fields))
    }
}

/// A field's name.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// Fields of an object that stands at `path` of the body.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) path: &'a str,
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>) -> Self {
        Self { path: "", map }
    }

    /// As errors name a field.
    pub(crate) fn param(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A field; null is as good as none.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn refuse(&self, name: &str, found: &Value, expected: &str) -> ApiError {
        let found = match found {
            Value::Number(number) => number.to_string(),
            other => kind(other).to_owned(),
        };
        let param = self.param(name);
        let message = format!("{param} is {found}, expected {expected}");
        ApiError::bad(param, message)
    }

    /// Every field has one of these names.
    pub(crate) fn only(&self, known: &[&str]) -> ApiResult<()> {
        match self.map.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let name: String = name.chars().take(80).collect();
                let param = self.param(&name);
                let message = format!("unknown field {param:?} (known: {})", known.join(", "));
                Err(ApiError::bad(param, message).coded("unknown_field"))
            }
        }
    }

    pub(crate) fn flag(&self, name: &str) -> ApiResult<Option<bool>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.refuse(name, value, "true or false"))
    }

    pub(crate) fn text(&self, name: &str) -> ApiResult<Option<&'a str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.refuse(name, value, "a text"))
    }

    pub(crate) fn number(&self, name: &str, range: RangeInclusive<f64>) -> ApiResult<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let number = value.as_f64().filter(|x| range.contains(x));
        number.map(Some).ok_or_else(|| self.refuse(name, value, &expected))
    }

    /// A whole number; `2.0` is one.
    pub(crate) fn whole(&self, name: &str, range: RangeInclusive<i64>) -> ApiResult<Option<i64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let whole = value.as_i64().or_else(|| {
            let number = value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15)?;
            Some(number as i64)
        });
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        whole.filter(|n| range.contains(n)).map(Some).ok_or_else(|| self.refuse(name, value, &expected))
    }

    /// A whole number that counts something.
    pub(crate) fn count(&self, name: &str, range: RangeInclusive<usize>) -> ApiResult<Option<usize>> {
        let range = i64::try_from(*range.start()).unwrap_or(i64::MAX)
            ..=i64::try_from(*range.end()).unwrap_or(i64::MAX);
        Ok(self.whole(name, range)?.map(|n| n as usize))
    }
}

/// Token ids.
pub(crate) fn token_ids(param: &str, values: &[Value]) -> ApiResult<Vec<u32>> {
    let id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            let found = match value {
                Value::Number(number) => number.to_string(),
                other => kind(other).to_owned(),
            };
            ApiError::bad(param, format!("{param} holds {found}, expected token ids"))
        })
    };
    values.iter().map(id).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_no_plain_object_is_refused() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        for (body, said) in [
            (&b""[..], "EOF"),
            (b"{\"a\":1", "EOF"),
            (b"[1]", "a list"),
            (b"{\"a\":1}{", "trailing"),
            (b"{\"a\":{\"b\":1,\"b\":2}}", "duplicate field \"b\""),
            (b"{\"a\":NaN}", "expected value"),
            (b"{\"a\":1e999}", "out of range"),
            (b"{\"a\":\"\xff\"}", "not UTF-8 at byte 6"),
            (deep.as_bytes(), "recursion limit"),
        ] {
            let error = object(body).unwrap_err();
            assert!(error.message.contains(said), "{}", error.message);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some("body")));
        }
        assert_eq!(
            Value::Object(object(br#"{"a":[1,-2,3.5,null,true,"x"]}"#).unwrap()),
            json!({"a": [1, -2, 3.5, null, true, "x"]})
        );
    }

    #[test]
    fn fields_have_limits() {
        let map = object(br#"{"n": 1000000000, "t": -1, "p": "x", "z": null, "w": 2.0}"#).unwrap();
        let fields = Fields { path: "a", map: &map };
        let e = fields.whole("n", 1..=16).unwrap_err();
        assert_eq!(e.message, "a.n is 1000000000, expected a whole number from 1 to 16");
        assert_eq!(e.param.as_deref(), Some("a.n"));
        assert!(fields.number("t", 0.0..=2.0).is_err() && fields.number("p", 0.0..=1.0).is_err());
        assert_eq!(fields.number("z", 0.0..=1.0), Ok(None));
        assert_eq!(fields.whole("w", 0..=2), Ok(Some(2)));
        assert!(fields.only(&["n", "t", "p", "z"]).unwrap_err().message.contains("unknown field \"a.w\""));
    }
}
