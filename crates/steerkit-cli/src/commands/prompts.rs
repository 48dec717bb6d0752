//! Prompts from a file or from stdin.

use std::io::{IsTerminal, Read};
use std::path::Path;

use serde_json::Value;

use crate::failure::{Failure, Outcome};

/// Keys of an object that may hold the prompt.
const KEYS: [&str; 2] = ["prompt", "question"];

/// The prompts of a JSONL file: each line a text, or an object with the key `prompt` (or `question`).
pub(crate) fn read(path: &Path) -> Outcome<Vec<String>> {
    let text = String::from_utf8(fs_err::read(path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::input(format_args!("{}: byte {at}: found bytes that are not UTF-8", path.display()))
            .hint("save the file as UTF-8")
    })?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let prompts = lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| prompt(line).map_err(|found| refused(path, i + 1, &found)))
        .collect::<Outcome<Vec<_>>>()?;
    match prompts.is_empty() {
        true => Err(Failure::input(format_args!("{}: found no lines, expected prompts", path.display()))),
        false => Ok(prompts),
    }
}

fn prompt(line: &str) -> Result<String, String> {
    match serde_json::from_str(line).map_err(|error| error.to_string())? {
        Value::String(text) => Ok(text),
        Value::Object(members) => {
            let text = KEYS.iter().find_map(|key| members.get(*key)?.as_str());
            let keys = || members.keys().take(8).cloned().collect::<Vec<_>>().join(", ");
            text.map(str::to_owned).ok_or_else(|| format!("an object with the keys {}", keys()))
        }
        _ => Err("another kind of value".into()),
    }
}

fn refused(path: &Path, line: usize, found: &str) -> Failure {
    let place = path.display();
    Failure::input(format_args!(
        "{place}: line {line}: found {found}, expected a text or an object with the text \"prompt\""
    ))
    .hint("one JSON value per line: {\"prompt\": \"How do I store olive oil?\"}")
}

/// The prompt that another program writes to stdin.
pub(crate) fn from_stdin() -> Outcome<String> {
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        return Err(Failure::usage("no prompt").hint("give one with --prompt TEXT, or many with --prompts FILE"));
    }
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| Failure::input("stdin: found bytes that are not UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    match text.is_empty() {
        true => Err(Failure::usage("the prompt on stdin is empty").hint("give one with --prompt TEXT")),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::prompt;

    #[test]
    fn texts_and_objects() {
        assert_eq!(prompt(r#""a\nb""#).unwrap(), "a\nb");
        assert_eq!(prompt(r#"{"prompt": "a", "chosen": "b"}"#).unwrap(), "a");
        assert_eq!(prompt(r#"{"question": "a"}"#).unwrap(), "a");
        assert_eq!(prompt(r#"{"text": "a", "b": 1}"#).unwrap_err(), "an object with the keys text, b");
        assert!(prompt("[1]").is_err() && prompt("{").is_err() && prompt(r#"{"prompt": 1}"#).is_err());
    }
}
