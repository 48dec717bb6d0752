//! What is wrong with a TOML text, and where.

use std::ops::Range;

use toml::de::DeTable;

/// Line and column (in characters) of byte `at`, from 1.
pub(crate) fn line_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
    let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |p| p + 1);
    (line, String::from_utf8_lossy(&before[start..]).chars().count() + 1)
}

/// A message of serde in our words, its place and a hint. `keys` gives the place of an unknown key, which serde loses
/// inside tagged tables.
pub(crate) fn explain(
    message: &str,
    span: Option<Range<usize>>,
    keys: Option<&DeTable<'_>>,
) -> (String, Option<Range<usize>>, Option<String>) {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let found = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.collect();
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let span = match keys {
        Some(keys) if message.starts_with("unknown field") => locate(keys, found).or(span),
        _ => span,
    };
    let hint = unknown.then(|| nearest(found, &known)).flatten().map(|n| format!("did you mean `{n}`?"));
    let message = message.replace("unknown field", "unknown key").replace("missing field", "missing key");
    (message.trim().to_owned(), span, hint)
}

/// Where `key` stands in the table or one inside it.
pub(crate) fn locate(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    if let Some((found, _)) = table.get_key_value(key) {
        return Some(found.span());
    }
    table.values().find_map(|value| value.get_ref().as_table().and_then(|inner| locate(inner, key)))
}

/// The candidate most like `word`, if any is alike.
pub(crate) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let scored = candidates.iter().map(|c| (strsim::jaro_winkler(word, c), *c));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.75).map(|(_, c)| c)
}
