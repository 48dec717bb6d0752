//! The operators, literals and global functions of templates, each paying before it makes or compares values.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::budget::{Budget, ENTRY, refused};

type Result<T> = std::result::Result<T, Error>;

/// Registers them all.
pub(super) fn register(env: &mut Environment<'_>, budget: &Budget, today: bool) {
    let b = budget.clone();
    env.add_function("~", move |x: Value, y: Value| {
        let mut text = b.text_of(&x)?;
        b.pay(text.len() as u64)?;
        b.write(&mut text, &y)?;
        Ok::<_, Error>(Value::from(text))
    });
    let b = budget.clone();
    env.add_function("+", move |x: Value, y: Value| add(&b, &x, &y));
    let b = budget.clone();
    env.add_function("*", move |x: Value, y: Value| multiply(&b, &x, &y));
    for op in ["==", "!=", "<", "<=", ">", ">=", "in"] {
        let b = budget.clone();
        env.add_function(op, move |x: Value, y: Value| compare(&b, op, &x, &y));
    }
    let b = budget.clone();
    env.add_function("compare all", move |parts: Rest<Value>| {
        // Operands and operators take turns.
        for i in (0..parts.len().saturating_sub(2)).step_by(2) {
            let op = parts[i + 1].as_str().unwrap_or_default();
            if !compare(&b, op, &parts[i], &parts[i + 2])? {
                return Ok(false);
            }
        }
        Ok::<_, Error>(true)
    });
    let b = budget.clone();
    env.add_function("[:]", move |value: Value, start: Value, stop: Value, step: Value| {
        slice(&b, &value, &start, &stop, &step)
    });
    let b = budget.clone();
    env.add_function("items of", move |value: Value| items_of(&b, value));
    let b = budget.clone();
    env.add_function("stored", move |value: Value| b.check_stored(&value).map(|()| value));
    register_literals(env, budget);
    register_globals(env, budget, today);
}

fn register_literals(env: &mut Environment<'_>, budget: &Budget) {
    let b = budget.clone();
    env.add_function("[]", move |items: Rest<Value>| {
        stored(&b, &items)?;
        Ok::<_, Error>(Value::from(items.0))
    });
    let b = budget.clone();
    env.add_function("()", move |items: Rest<Value>| {
        stored(&b, &items)?;
        Ok::<_, Error>(Value::from(Tuple::from(items.0)))
    });
    let b = budget.clone();
    env.add_function("{}", move |items: Rest<Value>| {
        stored(&b, &items)?;
        let pairs = items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        Ok::<_, Error>(Value::from_pairs(pairs))
    });
}

fn register_globals(env: &mut Environment<'_>, budget: &Budget, today: bool) {
    let b = budget.clone();
    env.add_function("dict", move |from: Option<Value>, more: Kwargs| {
        named_values(&b, from.as_ref(), &more).map(Value::from_pairs)
    });
    let b = budget.clone();
    let namespace = Value::from_function(minijinja::functions::namespace);
    env.add_function("namespace", move |state: &mut State, from: Option<Value>, values: Kwargs| {
        let pairs = named_values(&b, from.as_ref(), &values)?;
        namespace.call(state, &[Value::from_pairs(pairs)])
    });
    let b = budget.clone();
    let range = Value::from_function(minijinja::functions::range);
    env.add_function("range", move |state: &mut State, args: Rest<Value>| {
        let numbers = range.call(state, &args)?;
        items_of(&b, numbers)
    });
    env.add_function("raise_exception", |message: Value| -> Result<Value> {
        let message = message.as_str().unwrap_or("no reason given");
        Err(Error::new(ErrorKind::InvalidOperation, message.chars().take(500).collect::<String>()))
    });
    if today {
        env.add_function("strftime_now", |format: &str| fixed_date(format));
    }
}

fn stored(budget: &Budget, items: &[Value]) -> Result<()> {
    budget.pay(ENTRY * (items.len() as u64 + 2))?;
    items.iter().try_for_each(|item| budget.check_stored(item))
}

/// The pairs of a map and of named arguments.
fn named_values(budget: &Budget, from: Option<&Value>, more: &Kwargs) -> Result<Vec<(Value, Value)>> {
    let mut pairs = Vec::new();
    if let Some(from) = from.filter(|v| !v.is_undefined()) {
        if from.kind() != ValueKind::Map {
            return Err(refused("anything but a map here"));
        }
        budget.pay(2 * ENTRY * from.len().unwrap_or(0) as u64)?;
        for key in from.try_iter()? {
            let value = from.get_item(&key)?;
            pairs.push((key, value));
        }
    }
    for key in more.args() {
        pairs.push((Value::from(key), more.get(key)?));
    }
    for (_, value) in &pairs {
        budget.pay(2 * ENTRY)?;
        budget.check_stored(value)?;
    }
    Ok(pairs)
}

fn add(budget: &Budget, x: &Value, y: &Value) -> Result<Value> {
    if let (Some(a), Some(b)) = (x.as_str(), y.as_str()) {
        budget.pay((a.len() + b.len()) as u64)?;
        return Ok(Value::from([a, b].concat()));
    }
    if x.kind() == ValueKind::Seq && y.kind() == ValueKind::Seq {
        let n = x.len().unwrap_or(0) + y.len().unwrap_or(0);
        budget.pay(ENTRY * n as u64)?;
        let items: Vec<Value> = x.try_iter()?.chain(y.try_iter()?).collect();
        return Ok(if x.is_tuple() && y.is_tuple() {
            Value::from(Tuple::from(items))
        } else {
            Value::from(items)
        });
    }
    arithmetic("+", x, y, i128::checked_add, |a, b| a + b)
}

fn multiply(budget: &Budget, x: &Value, y: &Value) -> Result<Value> {
    let (what, times) = if x.is_number() { (y, x) } else { (x, y) };
    // A negative number of times is none.
    let count = || times.as_i64().map(|n| n.max(0) as u64);
    match (what.kind(), count()) {
        (ValueKind::String, Some(n)) => {
            let text = what.as_str().unwrap_or_default();
            budget.pay((text.len() as u64).saturating_mul(n))?;
            Ok(Value::from(text.repeat(n as usize)))
        }
        (ValueKind::Seq, Some(n)) => {
            let items: Vec<Value> = what.try_iter()?.collect();
            budget.pay((items.len() as u64 * ENTRY).saturating_mul(n))?;
            let n = if items.is_empty() { 0 } else { n as usize };
            Ok((0..n).flat_map(|_| items.iter().cloned()).collect())
        }
        _ => arithmetic("*", x, y, i128::checked_mul, |a, b| a * b),
    }
}

fn arithmetic(
    op: &str,
    x: &Value,
    y: &Value,
    whole: fn(i128, i128) -> Option<i128>,
    real: fn(f64, f64) -> f64,
) -> Result<Value> {
    let impossible = || {
        Error::new(ErrorKind::InvalidOperation, format!("cannot use {op} on {} and {}", x.kind(), y.kind()))
    };
    let is_number = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
    if !is_number(x) || !is_number(y) {
        return Err(impossible());
    }
    if let (Ok(a), Ok(b)) = (i128::try_from(x.clone()), i128::try_from(y.clone()))
        && !is_float(x)
        && !is_float(y)
    {
        let n = whole(a, b).ok_or_else(impossible)?;
        return Ok(i64::try_from(n).map_or_else(|_| Value::from(n), Value::from));
    }
    Ok(Value::from(real(f64::try_from(x.clone())?, f64::try_from(y.clone())?)))
}

fn is_float(v: &Value) -> bool {
    v.kind() == ValueKind::Number && !v.is_integer()
}

/// `==`, `<`, `in` and the like.
pub(super) fn compare(budget: &Budget, op: &str, x: &Value, y: &Value) -> Result<bool> {
    if matches!(op, "in" | "not in") {
        return Ok(contains(budget, y, x)? == (op == "in"));
    }
    match (x.as_str(), y.as_str()) {
        (Some(a), Some(b)) => budget.pay(a.len().min(b.len()) as u64)?,
        _ => [x, y].into_iter().filter(|v| !is_opaque(v)).try_for_each(|v| budget.pay_deep(v))?,
    }
    Ok(match op {
        "==" => x == y,
        "!=" => x != y,
        "<" => x < y,
        "<=" => x <= y,
        ">" => x > y,
        _ => x >= y,
    })
}

/// Macros, functions and loops compare by identity.
fn is_opaque(v: &Value) -> bool {
    matches!(v.kind(), ValueKind::Plain)
}

fn contains(budget: &Budget, container: &Value, item: &Value) -> Result<bool> {
    match container.kind() {
        ValueKind::String => {
            budget.pay_shallow(container)?;
            let needle = item.as_str().ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, format!("a {} cannot be in a text", item.kind()))
            })?;
            Ok(container.as_str().unwrap_or_default().contains(needle))
        }
        ValueKind::Seq => {
            for other in container.try_iter()? {
                budget.pay(1)?;
                if compare(budget, "==", &other, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        ValueKind::Map => {
            budget.pay_deep(item)?;
            Ok(container.as_object().is_some_and(|map| map.get_value(item).is_some()))
        }
        ValueKind::Undefined => Ok(false),
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("a {kind} contains nothing"))),
    }
}

/// Python's slices.
fn slice(budget: &Budget, value: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value> {
    let number = |v: &Value| match v.as_i64() {
        Some(n) => Ok(Some(n)),
        None if v.is_none() => Ok(None),
        None => Err(Error::new(ErrorKind::InvalidOperation, "slices need whole numbers")),
    };
    let (start, stop, step) = (number(start)?, number(stop)?, number(step)?.unwrap_or(1));
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "a slice cannot take steps of 0"));
    }
    if let Some(text) = value.as_str() {
        budget.pay(5 * text.len() as u64)?;
        let chars: Vec<char> = text.chars().collect();
        return Ok(Value::from(
            indices(chars.len(), start, stop, step).map(|i| chars[i]).collect::<String>(),
        ));
    }
    if value.kind() != ValueKind::Seq {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("a {} cannot be sliced", value.kind())));
    }
    budget.pay(2 * ENTRY * value.len().unwrap_or(0) as u64)?;
    let items: Vec<Value> = value.try_iter()?.collect();
    let part: Vec<Value> = indices(items.len(), start, stop, step).map(|i| items[i].clone()).collect();
    Ok(if value.is_tuple() { Value::from(Tuple::from(part)) } else { Value::from(part) })
}

/// The indices that `[start:stop:step]` takes of `len` items.
fn indices(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |at: i64| (if at < 0 { at.saturating_add(len) } else { at }).clamp(low, high);
    let first = start.map_or(if step > 0 { low } else { high }, clamp);
    let end = stop.map_or(if step > 0 { high } else { low }, clamp);
    let goes_on = move |i: &i64| if step > 0 { *i < end } else { *i > end };
    std::iter::successors(Some(first), move |i| i.checked_add(step)).take_while(goes_on).map(|i| i as usize)
}

/// What a loop or a filter goes through, as a list.
pub(super) fn items_of(budget: &Budget, value: Value) -> Result<Value> {
    let n = match (value.kind(), value.as_str()) {
        (ValueKind::Seq | ValueKind::Undefined, _) => return budget.pay_shallow(&value).map(|()| value),
        (_, Some(text)) => text.len(),
        _ => value.len().unwrap_or(0),
    };
    budget.pay(ENTRY * (n as u64 + 1))?;
    Ok(Value::from(value.try_iter()?.collect::<Vec<Value>>()))
}

/// `strftime_now` on a fixed day, so that a prompt is the same on every day: 26 July 2024, noon.
fn fixed_date(format: &str) -> String {
    let fields = [
        ("%d", "26"),
        ("%m", "07"),
        ("%b", "Jul"),
        ("%B", "July"),
        ("%Y", "2024"),
        ("%y", "24"),
        ("%A", "Friday"),
        ("%a", "Fri"),
        ("%H", "12"),
        ("%I", "12"),
        ("%p", "PM"),
        ("%M", "00"),
        ("%S", "00"),
        ("%j", "208"),
        ("%%", "%"),
    ];
    let format: String = format.chars().take(200).collect();
    let mut text = String::new();
    let mut rest = format.as_str();
    while let Some(c) = rest.chars().next() {
        match fields.iter().find(|(field, _)| rest.starts_with(field)) {
            Some((field, value)) => {
                text.push_str(value);
                rest = &rest[field.len()..];
            }
            None => {
                text.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{fixed_date, indices};

    #[test]
    fn slices_take_what_python_takes() {
        let take = |start, stop, step| indices(5, start, stop, step).collect::<Vec<_>>();
        assert_eq!(take(None, None, 1), [0, 1, 2, 3, 4]);
        assert_eq!(take(Some(1), None, 1), [1, 2, 3, 4]);
        assert_eq!(take(None, Some(-1), 1), [0, 1, 2, 3]);
        assert_eq!(take(Some(-2), None, 1), [3, 4]);
        assert_eq!(take(None, None, -1), [4, 3, 2, 1, 0]);
        assert_eq!(take(Some(3), Some(0), -2), [3, 1]);
        assert_eq!(take(Some(-99), Some(99), 2), [0, 2, 4]);
        assert_eq!(take(Some(99), Some(-99), -1), [4, 3, 2, 1, 0]);
        assert!(take(Some(4), Some(2), 1).is_empty());
        assert_eq!(take(Some(i64::MIN), Some(i64::MAX), i64::MAX), [0]);
    }

    #[test]
    fn the_date_is_fixed() {
        assert_eq!(fixed_date("%d %b %Y, 100%%"), "26 Jul 2024, 100%");
    }
}
