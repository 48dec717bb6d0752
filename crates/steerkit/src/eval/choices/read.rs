//! Questions with choices from files.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{ChoiceColumns, ChoiceSpec, Layout};
use crate::Result;
use crate::data::{Record, Records, records};
use crate::error::malformed;

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its group, a subject say; empty without one.
    pub group: String,
    /// Its row in its file, from 0.
    pub row: usize,
    /// The question.
    pub question: String,
    /// The choices.
    pub choices: Vec<String>,
    /// The right one, or the best of them.
    pub answer: usize,
    /// For each choice whether it is right.
    pub right: Vec<bool>,
    /// The choices among which the model's answer is the likeliest.
    pub ranked: Vec<usize>,
}

/// Questions, those shown with their answers, and the files they came from.
pub(super) struct ChoiceSet {
    pub(super) items: Vec<Item>,
    pub(super) dev: Vec<Item>,
    pub(super) files: Vec<(PathBuf, String)>,
}

/// Columns of a CSV file of MMLU, which has no header.
const MMLU_HEADER: [&str; 6] = ["question", "A", "B", "C", "D", "answer"];

/// Reads the set that an evaluation names.
pub(super) fn read(spec: &ChoiceSpec, path: &Path) -> Result<ChoiceSet> {
    let mut set = ChoiceSet { items: Vec::new(), dev: Vec::new(), files: Vec::new() };
    let mut shown = spec.dev.clone();
    match spec.layout {
        Layout::Mmlu => {
            let found = mmlu_files(path)?;
            for file in &found.test {
                set.items.extend(mmlu(file, &mut set.files)?);
            }
            if spec.shots > 0 && shown.is_none() {
                for file in &found.dev {
                    set.dev.extend(mmlu(file, &mut set.files)?);
                }
            }
        }
        Layout::TruthfulQa => set.items = truthful(path, &mut set.files)?,
        Layout::Columns => set.items = by_columns(path, &spec.columns, &mut set.files)?,
    }
    if spec.shots == 0 {
        shown = None;
    }
    if let Some(path) = shown {
        set.dev = match spec.layout {
            Layout::Mmlu => {
                let found = mmlu_files(&path)?;
                let read =
                    found.test.iter().map(|file| mmlu(file, &mut set.files)).collect::<Result<Vec<_>>>()?;
                read.concat()
            }
            Layout::TruthfulQa => truthful(&path, &mut set.files)?,
            Layout::Columns => by_columns(&path, &spec.columns, &mut set.files)?,
        };
    }
    Ok(set)
}

struct MmluFiles {
    test: Vec<PathBuf>,
    dev: Vec<PathBuf>,
}

/// The files of a set: a file itself; `test/` and `dev/` of Hendrycks' folder (or of `data/` in it); the JSONL or Parquet files of a
/// folder with `test` and `dev` in their names.
fn mmlu_files(path: &Path) -> Result<MmluFiles> {
    if !path.is_dir() {
        return Ok(MmluFiles { test: vec![path.to_owned()], dev: Vec::new() });
    }
    for root in [path.to_owned(), path.join("data")] {
        let test = listed(&root.join("test"), |name| name.ends_with("_test.csv"))?;
        if !test.is_empty() {
            return Ok(MmluFiles {
                test,
                dev: listed(&root.join("dev"), |name| name.ends_with("_dev.csv"))?,
            });
        }
    }
    let rows = |name: &str| name.ends_with(".jsonl") || name.ends_with(".parquet");
    let named = |part: &'static str| listed(path, move |name| rows(name) && name.contains(part));
    let test = named("test")?;
    if test.is_empty() {
        let hint = "Hendrycks' folder has test/*_test.csv and dev/*_dev.csv; a folder of JSONL or Parquet has *test* and \
                    *dev*";
        return Err(malformed(path, "folder", "no file of questions", "MMLU's layout", hint));
    }
    Ok(MmluFiles { test, dev: named("dev")? })
}

/// The files of a folder whose names are wanted, by name; none where there is no folder.
fn listed(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The rows of a file, which is put on the list.
fn rows(path: &Path, header: Option<&[&str]>, files: &mut Vec<(PathBuf, String)>) -> Result<Records> {
    let records = records(path, header)?;
    files.push((path.to_owned(), records.sha256.clone()));
    Ok(records)
}

fn mmlu(path: &Path, files: &mut Vec<(PathBuf, String)>) -> Result<Vec<Item>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let columns = |choices: &[&str], group: Option<&str>| ChoiceColumns {
        choices: choices.iter().map(|&choice| choice.to_owned()).collect(),
        group: group.map(str::to_owned),
        ..ChoiceColumns::default()
    };
    match name.strip_suffix("_test.csv").or(name.strip_suffix("_dev.csv")).or(name.strip_suffix("_val.csv")) {
        Some(subject) => {
            let records = rows(path, Some(&MMLU_HEADER), files)?;
            let mut items = items(&records, &columns(&["A", "B", "C", "D"], None))?;
            items.iter_mut().for_each(|item| item.group = subject.to_owned());
            Ok(items)
        }
        None => items(&rows(path, None, files)?, &columns(&["choices"], Some("subject"))),
    }
}

fn by_columns(path: &Path, columns: &ChoiceColumns, files: &mut Vec<(PathBuf, String)>) -> Result<Vec<Item>> {
    items(&rows(path, None, files)?, columns)
}

fn items(records: &Records, columns: &ChoiceColumns) -> Result<Vec<Item>> {
    let item = |(at, row): (usize, &Record)| {
        let choices = match &columns.choices[..] {
            [only] => list(records, row, only)?,
            several => {
                let choice = |name: &String| Ok(records.text(row, "choice", &[name])?.to_owned());
                several.iter().map(choice).collect::<Result<Vec<_>>>()?
            }
        };
        if choices.len() < 2 {
            return Err(records.refused(row, "choices", format!("{}", choices.len()), "two choices or more"));
        }
        if choices.len() > 26 {
            return Err(records.refused(row, "choices", format!("{}", choices.len()), "at most 26 choices"));
        }
        let answer = answer(records, row, &columns.answer, &choices)?;
        let group = match &columns.group {
            Some(name) => records.text(row, "group", &[name])?.to_owned(),
            None => String::new(),
        };
        Ok(Item {
            group,
            row: at,
            question: records.text(row, "question", &[&columns.question])?.to_owned(),
            right: (0..choices.len()).map(|choice| choice == answer).collect(),
            ranked: (0..choices.len()).collect(),
            answer,
            choices,
        })
    };
    records.rows.iter().enumerate().map(item).collect()
}

/// A list of texts: a JSON list, or a text that spells one.
fn list(records: &Records, row: &Record, name: &str) -> Result<Vec<String>> {
    let value = records.value(row, "choices", &[name])?;
    let spelled: Option<Value> = value.as_str().and_then(|text| serde_json::from_str(text).ok());
    let texts = spelled.as_ref().unwrap_or(value).as_array().and_then(|list| {
        list.iter().map(|choice| choice.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    texts.ok_or_else(|| records.refused(row, "choices", value.to_string(), "a JSON list of texts"))
}

/// The place of the right choice: a number from 0, a letter from A, or the choice's text.
fn answer(records: &Records, row: &Record, name: &str, choices: &[String]) -> Result<usize> {
    let value = records.value(row, "answer", &[name])?;
    let place = match value {
        Value::String(text) => {
            let text = text.trim();
            let letter = match text.as_bytes() {
                [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
                _ => None,
            };
            letter
                .or_else(|| text.parse().ok())
                .or_else(|| choices.iter().position(|choice| choice.trim() == text))
        }
        other => other.as_u64().and_then(|n| usize::try_from(n).ok()),
    };
    place.filter(|&place| place < choices.len()).ok_or_else(|| {
        let expected = format!("a letter, a number from 0 to {}, or one of the choices", choices.len() - 1);
        records.refused(row, "answer", value.to_string(), &expected)
    })
}

/// TruthfulQA: the best answer, the other correct ones, the incorrect ones, each once.
fn truthful(path: &Path, files: &mut Vec<(PathBuf, String)>) -> Result<Vec<Item>> {
    let records = rows(path, None, files)?;
    let item = |(at, row): (usize, &Record)| {
        let text = |role: &'static str, name: &str| records.text(row, role, &[name]);
        let split = |text: &str| -> Vec<String> {
            text.split(';').map(str::trim).filter(|answer| !answer.is_empty()).map(str::to_owned).collect()
        };
        let mut choices = vec![text("best answer", "Best Answer")?.trim().to_owned()];
        let mut right = vec![true];
        let sides = [(true, "Correct Answers"), (false, "Incorrect Answers")];
        for (is_right, column) in sides {
            for choice in split(text("answers", column)?) {
                if !choices.contains(&choice) {
                    choices.push(choice);
                    right.push(is_right);
                }
            }
        }
        if choices[0].is_empty() || right.iter().all(|&right| right) {
            return Err(records.refused(row, "answers", "no best or no incorrect answer", "both"));
        }
        Ok(Item {
            group: String::new(),
            row: at,
            question: text("question", "Question")?.to_owned(),
            ranked: (0..choices.len()).filter(|&choice| choice == 0 || !right[choice]).collect(),
            answer: 0,
            right,
            choices,
        })
    };
    records.rows.iter().enumerate().map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn truthful_answers_once_each_and_mc1_without_the_other_right_ones() {
        let text = "Question,Best Answer,Correct Answers,Incorrect Answers\nWhy?,Because,Because; So; ,Never;Because not;\n";
        let (_folder, path) = written("t.csv", text);
        let item = &truthful(&path, &mut Vec::new()).unwrap()[0];
        assert_eq!(item.choices, ["Because", "So", "Never", "Because not"]);
        assert_eq!((&item.right[..], &item.ranked[..]), (&[true, true, false, false][..], &[0, 2, 3][..]));
    }

    #[test]
    fn mmlu_in_folders_and_as_jsonl() {
        let (folder, path) = written("test/high_school_tea_test.csv", "Tea?,\"a, b\",c,d,e,C\n");
        let items = mmlu(&path, &mut Vec::new()).unwrap();
        assert_eq!((items[0].group.as_str(), items[0].answer), ("high_school_tea", 2));
        assert_eq!(items[0].choices, ["a, b", "c", "d", "e"]);
        assert_eq!(mmlu_files(folder.path()).unwrap().test, [path]);
        let line = r#"{"subject": "tea", "question": "Tea?", "choices": ["x", "y"], "answer": 1}"#;
        let (_folder, path) = written("mmlu_test.jsonl", line);
        assert_eq!(mmlu(&path, &mut Vec::new()).unwrap()[0].answer, 1);
    }

    #[test]
    fn a_parquet_file_has_the_questions_of_its_jsonl_file() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/choices");
        let mut files = Vec::new();
        let items = mmlu(&data.join("questions.parquet"), &mut files).unwrap();
        assert_eq!(items, mmlu(&data.join("questions.jsonl"), &mut files).unwrap());
        assert_eq!(items.len(), 8);
        let bytes = std::fs::read(&files[0].0).unwrap();
        assert_eq!(files[0].1, crate::files::sha256(&bytes), "the hash is the file's");
        let folder = tempfile::tempdir().unwrap();
        let [test, dev] =
            ["test", "dev"].map(|part| folder.path().join(format!("{part}-00000-of-00001.parquet")));
        [&test, &dev].iter().for_each(|path| std::fs::write(path, &bytes).unwrap());
        let found = mmlu_files(folder.path()).unwrap();
        assert_eq!((found.test, found.dev), (vec![test], vec![dev]));
    }

    #[test]
    fn answers_as_letters_numbers_and_texts() {
        let columns = ChoiceColumns { choices: vec!["a".into(), "b".into()], ..ChoiceColumns::default() };
        let read = |cell: &str| {
            let (_folder, path) = written("c.csv", &format!("question,a,b,answer\nTea?,yes,no,{cell}\n"));
            by_columns(&path, &columns, &mut Vec::new()).map(|items| items[0].answer)
        };
        assert_eq!(["B", "1", "no", "A"].map(|cell| read(cell).unwrap()), [1, 1, 1, 0]);
        let error = read("C").unwrap_err().to_string();
        assert!(error.contains("line 2, answer: found") && error.contains("0 to 1"), "{error}");
    }
}
