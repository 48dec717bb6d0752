//! The filters, tests and methods that templates may use, each paying before it works.
//!
//! What the engine's own version does with bounded memory is used as it is; what can make more than a fixed multiple of
//! what it takes (`join`, `replace`, `indent`, `tojson`) is written here. `format` is left out: its widths make any size.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, tests};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::budget::{Budget, ENTRY};
use super::{json, operators};

type Result<T> = std::result::Result<T, Error>;

/// Registers them all.
pub(super) fn register(env: &mut Environment<'_>, budget: &Budget) {
    register_filters(env, budget);
    register_own_filters(env, budget);
    register_tests(env, budget);
    let b = budget.clone();
    env.set_unknown_method_callback(move |state, value, name, args| method(&b, state, value, name, args));
}

/// How much the engine's own filter does with its first argument.
#[derive(Clone, Copy)]
enum Work {
    /// Looks at it once, or makes a text of at most three times its length.
    Text,
    /// Goes through its items.
    Items,
    /// Compares its items with each other.
    Sort,
}

fn register_filters(env: &mut Environment<'_>, budget: &Budget) {
    macro_rules! own {
        ($($name:literal $function:ident $work:ident),* $(,)?) => {
            [$(($name, Value::from_function(filters::$function), Work::$work)),*]
        };
    }
    let list = own![
        "lower" lower Text, "upper" upper Text, "title" title Text, "capitalize" capitalize Text, "trim" trim Text,
        "length" length Text, "count" length Text, "default" default Text, "d" default Text, "round" round Text,
        "abs" abs Text, "int" int Text, "float" float Text, "bool" bool Text, "safe" safe Text,
        "first" first Items, "last" last Items, "reverse" reverse Items, "list" list Items, "items" items Items,
        "select" select Items, "reject" reject Items, "selectattr" selectattr Items, "rejectattr" rejectattr Items,
        "map" map Items, "sort" sort Sort, "unique" unique Sort, "min" min Sort, "max" max Sort, "dictsort" dictsort Sort,
    ];
    for (name, inner, work) in list {
        let b = budget.clone();
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let mut args = args.into_values();
            pay_for_arguments(&b, &mut args, work)?;
            let result = inner.call(state, &args)?;
            eager(&b, result)
        });
    }
}

/// Pays for what a filter is about to do with its arguments; a text that is taken apart becomes a list first.
fn pay_for_arguments(budget: &Budget, args: &mut [Value], work: Work) -> Result<()> {
    let Some((first, rest)) = args.split_first_mut() else { return Ok(()) };
    rest.iter().try_for_each(|arg| budget.pay_shallow(arg))?;
    budget.pay_shallow(first)?;
    let n = first.as_str().map_or(first.len().unwrap_or(0), str::len) as u64;
    match work {
        Work::Text => {
            // Trimming compares each character with each of those to trim.
            let others: u64 = rest.iter().filter_map(|arg| arg.as_str()).map(|text| text.len() as u64).sum();
            budget.pay(3 * n + n.saturating_mul(others) / 8)
        }
        Work::Items => budget.pay(ENTRY * n),
        Work::Sort => {
            budget.pay_deep(first)?;
            budget.pay(ENTRY * n * (u64::from(n.max(1).ilog2()) + 1))
        }
    }
}

/// A lazy sequence as a list, so that nothing is computed twice or unpaid.
fn eager(budget: &Budget, value: Value) -> Result<Value> {
    let value = match value.kind() {
        ValueKind::Iterable => operators::items_of(budget, value)?,
        _ => value,
    };
    budget.pay_result(&value)?;
    Ok(value)
}

fn register_own_filters(env: &mut Environment<'_>, budget: &Budget) {
    let b = budget.clone();
    env.add_filter("string", move |value: Value| b.text_of(&value).map(Value::from));
    let b = budget.clone();
    env.add_filter("join", move |value: Value, joiner: Option<Value>, kwargs: Kwargs| {
        let attribute = kwargs.get::<Option<Value>>("attribute")?;
        kwargs.assert_all_used()?;
        join(&b, &value, joiner.as_ref(), attribute.as_ref())
    });
    let b = budget.clone();
    env.add_filter("replace", move |text: Value, from: Value, to: Value, count: Option<usize>| {
        replace(&b, &b.text_of(&text)?, &b.text_of(&from)?, &b.text_of(&to)?, count)
    });
    let b = budget.clone();
    env.add_filter("split", move |state: &mut State, args: Rest<Value>| {
        let (value, rest) = args.split_first().ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
        method(&b, state, value, "split", rest)
    });
    let b = budget.clone();
    env.add_filter(
        "indent",
        move |text: Value, width: Option<usize>, first: Option<bool>, blank: Option<bool>, kwargs: Kwargs| {
            let width = width.or(kwargs.get("width")?).unwrap_or(4);
            let first = first.or(kwargs.get("first")?).unwrap_or(false);
            let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            indent(&b, &b.text_of(&text)?, width, first, blank)
        },
    );
    let b = budget.clone();
    env.add_filter("tojson", move |value: Value, indent: Option<Value>, kwargs: Kwargs| {
        let indent = indent.or(kwargs.get("indent")?).filter(|v| !v.is_none());
        let layout = json::Layout {
            indent: indent.map(|v| v.as_usize().unwrap_or(0)),
            ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
            sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        };
        kwargs.assert_all_used()?;
        json::text(&b, &value, &layout).map(Value::from)
    });
}

fn join(budget: &Budget, items: &Value, joiner: Option<&Value>, attribute: Option<&Value>) -> Result<Value> {
    let joiner = joiner.map_or(Ok(String::new()), |j| budget.text_of(j))?;
    let items = operators::items_of(budget, items.clone())?;
    let mut text = String::new();
    for (i, item) in items.try_iter()?.enumerate() {
        if i > 0 {
            budget.pay(joiner.len() as u64)?;
            text.push_str(&joiner);
        }
        match attribute {
            Some(key) => budget.write(&mut text, &item.get_item(key)?)?,
            None => budget.write(&mut text, &item)?,
        }
    }
    Ok(Value::from(text))
}

fn replace(budget: &Budget, text: &str, from: &str, to: &str, count: Option<usize>) -> Result<Value> {
    budget.pay(text.len() as u64)?;
    let found = text.matches(from).count().min(count.unwrap_or(usize::MAX)) as u64;
    budget.pay(text.len() as u64 + found.saturating_mul(to.len() as u64))?;
    Ok(Value::from(match count {
        Some(n) => text.replacen(from, to, n),
        None => text.replace(from, to),
    }))
}

/// Jinja's `indent`: `width` spaces before each line; before the first and before blank ones only when asked.
fn indent(budget: &Budget, text: &str, width: usize, first: bool, blank: bool) -> Result<Value> {
    let lines = text.matches('\n').count() as u64 + 1;
    budget.pay(text.len() as u64 + lines.saturating_mul(width as u64 + 1))?;
    let space = " ".repeat(width);
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&space);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn register_tests(env: &mut Environment<'_>, budget: &Budget) {
    macro_rules! own {
        ($($name:literal $function:ident),* $(,)?) => {
            [$(($name, Value::from_function(tests::$function))),*]
        };
    }
    let list = own![
        "defined" is_defined, "undefined" is_undefined, "none" is_none, "boolean" is_boolean, "odd" is_odd,
        "even" is_even, "divisibleby" is_divisibleby, "number" is_number, "integer" is_integer, "float" is_float,
        "string" is_string, "sequence" is_sequence, "iterable" is_iterable, "mapping" is_mapping, "lower" is_lower,
        "upper" is_upper, "startingwith" is_startingwith, "endingwith" is_endingwith, "true" is_true, "false" is_false,
        "sameas" is_sameas,
    ];
    for (name, inner) in list {
        let b = budget.clone();
        env.add_test(name, move |state: &mut State, args: Rest<Value>| {
            args.iter().try_for_each(|arg| b.pay_shallow(arg))?;
            inner.call(state, &args).map(|answer| answer.is_true())
        });
    }
    let comparisons = [
        ("==", "=="),
        ("eq", "=="),
        ("equalto", "=="),
        ("!=", "!="),
        ("ne", "!="),
        ("<", "<"),
        ("lt", "<"),
        ("lessthan", "<"),
        ("<=", "<="),
        ("le", "<="),
        (">", ">"),
        ("gt", ">"),
        ("greaterthan", ">"),
        (">=", ">="),
        ("ge", ">="),
        ("in", "in"),
    ];
    for (name, op) in comparisons {
        let b = budget.clone();
        env.add_test(name, move |x: Value, y: Value| operators::compare(&b, op, &x, &y));
    }
}

/// The methods of Python's texts, lists and dicts that templates use.
fn method(budget: &Budget, state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    args.iter().try_for_each(|arg| budget.pay_shallow(arg))?;
    budget.pay_shallow(value)?;
    let text = value.as_str();
    let n = text.map_or(value.len().unwrap_or(0), str::len) as u64;
    match (value.kind(), name) {
        (ValueKind::String, "join") => {
            let (items,): (Value,) = from_args(args)?;
            return join(budget, &items, Some(value), None);
        }
        (ValueKind::String, "replace") => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(args)?;
            let count = count.and_then(|n| usize::try_from(n).ok());
            return replace(budget, text.unwrap_or_default(), from, to, count);
        }
        (ValueKind::String, "split" | "splitlines") => {
            let separator = args.first().and_then(|sep| sep.as_str());
            let pieces = match separator {
                Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "split needs a separator")),
                Some(separator) => text.unwrap_or_default().matches(separator).count() as u64 + 1,
                None => text.unwrap_or_default().split_whitespace().count() as u64 + 1,
            };
            let lines = text.unwrap_or_default().matches('\n').count() as u64;
            budget.pay(2 * ENTRY * (pieces + lines) + n)?;
        }
        (ValueKind::String, "strip" | "lstrip" | "rstrip") => {
            let others = args.first().and_then(|chars| chars.as_str()).map_or(0, str::len) as u64;
            budget.pay(n + n.saturating_mul(others) / 8)?;
        }
        (ValueKind::String, "upper" | "lower" | "title" | "capitalize") => budget.pay(3 * n)?,
        (
            ValueKind::String,
            "islower" | "isupper" | "isspace" | "isdigit" | "isnumeric" | "isalnum" | "isalpha" | "isascii"
            | "count" | "find" | "rfind" | "startswith" | "endswith",
        )
        | (ValueKind::Map, "get") => {}
        (ValueKind::Map, "keys" | "values" | "items") => budget.pay(3 * ENTRY * n)?,
        (kind, _) => {
            return Err(Error::new(ErrorKind::UnknownMethod, format!("a {kind} has no method {name}")));
        }
    }
    let result = unknown_method_callback(state, value, name, args)?;
    eager(budget, result)
}
