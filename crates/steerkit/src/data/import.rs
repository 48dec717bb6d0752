//! Other layouts of preference data.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ColumnMap, Format, PreferencePair, ReadOptions, Reader};
use crate::Result;
use crate::error::malformed;

/// How a file holds its pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One pair per row or line.
    #[default]
    Pairs,
    /// Anthropic's model-written evaluations: JSONL with `question`, `answer_matching_behavior` and
    /// `answer_not_matching_behavior`; the answers are letters.
    Anthropic,
    /// CAA's sets: one JSON array of the same objects.
    Caa,
    /// TruthfulQA's CSV: every correct answer with every incorrect one.
    TruthfulQa,
    /// HH-RLHF's JSONL: two transcripts that differ in their last answer.
    Hh,
}

/// The keys of Anthropic's and CAA's objects.
const LETTERS: [&str; 3] = ["question", "answer_matching_behavior", "answer_not_matching_behavior"];
/// What an answer begins with in HH's transcripts.
const ASSISTANT: &str = "\n\nAssistant:";
/// What a question begins with there.
const HUMAN: &str = "\n\nHuman:";

/// The pairs of a file in some layout, one by one.
pub struct Import {
    layout: Layout,
    path: std::path::PathBuf,
    rows: Rows,
    /// Pairs of the last row that are still to be given, last first.
    pending: Vec<PreferencePair>,
    row: usize,
}

enum Rows {
    Read(Box<Reader>),
    Whole { pairs: std::vec::IntoIter<PreferencePair>, sha256: String },
}

impl Import {
    /// Opens the file. `options` matter for [`Layout::Pairs`]; the other layouts bring their columns.
    ///
    /// # Errors
    /// Those of [`Reader::open`]; for [`Layout::Caa`] also what breaks the array.
    pub fn open(path: &Path, layout: Layout, options: &ReadOptions) -> Result<Self> {
        let columns = |format, [prompt, chosen, rejected]: [&str; 3]| ReadOptions {
            format: Some(format),
            columns: ColumnMap {
                prompt: Some(prompt.into()),
                chosen: Some(chosen.into()),
                rejected: Some(rejected.into()),
            },
            ..options.clone()
        };
        let options = match layout {
            Layout::Pairs => options.clone(),
            Layout::Anthropic => columns(Format::Jsonl, LETTERS),
            Layout::TruthfulQa => columns(Format::Csv, ["Question", "Correct Answers", "Incorrect Answers"]),
            Layout::Hh => columns(Format::Jsonl, ["chosen", "chosen", "rejected"]),
            Layout::Caa => ReadOptions::default(),
        };
        let rows = match layout {
            Layout::Caa => array(path)?,
            _ => Rows::Read(Box::new(Reader::open(path, &options)?)),
        };
        Ok(Self { layout, path: path.into(), rows, pending: Vec::new(), row: 0 })
    }

    /// The SHA-256 of the file, once every row is read.
    ///
    /// # Errors
    /// Those of [`Reader::finish`].
    pub fn finish(self) -> Result<String> {
        match self.rows {
            Rows::Read(reader) => reader.finish(),
            Rows::Whole { sha256, .. } => Ok(sha256),
        }
    }

    /// The pairs of one row, last first.
    fn spread(&self, row: PreferencePair) -> Result<Vec<PreferencePair>> {
        match self.layout {
            Layout::Pairs | Layout::Anthropic | Layout::Caa => Ok(vec![row]),
            Layout::TruthfulQa => Ok(cross(&row)),
            Layout::Hh => transcript(&row).map(|pair| vec![pair]).ok_or_else(|| {
                let found = "transcripts that share no question, or end in no answer";
                let expected = "two transcripts that differ in what follows their last \"Assistant:\"";
                malformed(
                    &self.path,
                    format!("row {}", self.row),
                    found,
                    expected,
                    "is this HH-RLHF's layout?",
                )
            }),
        }
    }
}

impl Iterator for Import {
    type Item = Result<PreferencePair>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(pair) = self.pending.pop() {
                return Some(Ok(pair));
            }
            self.row += 1;
            let row = match &mut self.rows {
                Rows::Read(reader) => reader.next()?,
                Rows::Whole { pairs, .. } => Ok(pairs.next()?),
            };
            match row.and_then(|row| self.spread(row)) {
                Ok(pairs) => self.pending = pairs,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The objects of a JSON array.
fn array(path: &Path) -> Result<Rows> {
    #[derive(Deserialize)]
    struct Item {
        question: String,
        answer_matching_behavior: String,
        answer_not_matching_behavior: String,
    }
    let bytes = fs_err::read(path)?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let items: Vec<Item> = serde_json::from_slice(text).map_err(|e| {
        let expected = format!("a JSON array of objects with the keys {}", LETTERS.join(", "));
        let place = format!("line {}, column {}", e.line(), e.column());
        malformed(path, place, e.to_string(), expected, "is this one of CAA's multiple-choice sets?")
    })?;
    let pair = |i: Item| PreferencePair {
        prompt: i.question,
        chosen: i.answer_matching_behavior,
        rejected: i.answer_not_matching_behavior,
    };
    let pairs: Vec<_> = items.into_iter().map(pair).collect();
    Ok(Rows::Whole { pairs: pairs.into_iter(), sha256: crate::files::sha256(&bytes) })
}

/// Every correct answer with every incorrect one, last first; answers stand between semicolons.
fn cross(row: &PreferencePair) -> Vec<PreferencePair> {
    let answers = |cell: &str| -> Vec<String> {
        cell.split(';').map(str::trim).filter(|a| !a.is_empty()).map(str::to_owned).collect()
    };
    let (right, wrong) = (answers(&row.chosen), answers(&row.rejected));
    let pair = |chosen: &String, rejected: &String| PreferencePair {
        prompt: row.prompt.trim().into(),
        chosen: chosen.clone(),
        rejected: rejected.clone(),
    };
    right.iter().rev().flat_map(|c| wrong.iter().rev().map(move |r| pair(c, r))).collect()
}

/// The question and the two last answers of HH's transcripts. Of one question only its text is kept; a longer
/// conversation stays as it is written.
fn transcript(row: &PreferencePair) -> Option<PreferencePair> {
    let (prompt, chosen) = row.chosen.rsplit_once(ASSISTANT)?;
    let (other, rejected) = row.rejected.rsplit_once(ASSISTANT)?;
    if prompt != other {
        return None;
    }
    let first = prompt.strip_prefix(HUMAN).unwrap_or(prompt);
    let prompt = if first.contains(ASSISTANT) { prompt } else { first };
    let trimmed = |text: &str| text.trim().to_owned();
    Some(PreferencePair { prompt: trimmed(prompt), chosen: trimmed(chosen), rejected: trimmed(rejected) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(name: &str, text: &str, layout: Layout) -> Result<Vec<PreferencePair>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Import::open(&path, layout, &ReadOptions::default())?.collect()
    }

    fn pair(prompt: &str, chosen: &str, rejected: &str) -> PreferencePair {
        PreferencePair { prompt: prompt.into(), chosen: chosen.into(), rejected: rejected.into() }
    }

    #[test]
    fn truthful_qa_is_every_correct_with_every_incorrect_answer() {
        let csv = "Type,Question,Best Answer,Correct Answers,Incorrect Answers\n\
                   x,Why?,a,a; b ,\"c; d;\"\nx,Who?,e,e,f\n";
        let got = pairs("t.csv", csv, Layout::TruthfulQa).unwrap();
        let want = [
            ("Why?", "a", "c"),
            ("Why?", "a", "d"),
            ("Why?", "b", "c"),
            ("Why?", "b", "d"),
            ("Who?", "e", "f"),
        ];
        assert_eq!(got, want.map(|(p, c, r)| pair(p, c, r)));
    }

    #[test]
    fn letters_come_from_lines_or_an_array() {
        let item = |a: &str, b: &str| {
            format!(
                r#"{{"question": "Q", "answer_matching_behavior": "{a}", "answer_not_matching_behavior": "{b}"}}"#
            )
        };
        let want = [pair("Q", " (A)", " (B)"), pair("Q", " (B)", " (A)")];
        let (one, two) = (item(" (A)", " (B)"), item(" (B)", " (A)"));
        assert_eq!(pairs("a.jsonl", &format!("{one}\n{two}\n"), Layout::Anthropic).unwrap(), want);
        assert_eq!(pairs("a.json", &format!("[{one},\n{two}]"), Layout::Caa).unwrap(), want);
        let error = pairs("a.json", "[{\"question\": 1}]", Layout::Caa).unwrap_err().to_string();
        assert!(error.contains("line 1, column 15") && error.contains("answer_matching_behavior"), "{error}");
    }

    #[test]
    fn transcripts_are_cut_at_their_last_answer() {
        let line = |chosen: &str, rejected: &str| {
            format!("{}\n", serde_json::json!({"chosen": chosen, "rejected": rejected}))
        };
        let one = line("\n\nHuman: Hi?\n\nAssistant: Yes.", "\n\nHuman: Hi?\n\nAssistant: No.");
        assert_eq!(pairs("h.jsonl", &one, Layout::Hh).unwrap(), [pair("Hi?", "Yes.", "No.")]);
        let talk = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:";
        let got = pairs("h.jsonl", &line(&format!("{talk} x"), &format!("{talk} y")), Layout::Hh).unwrap();
        assert_eq!(got, [pair("Human: A\n\nAssistant: B\n\nHuman: C", "x", "y")]);
        let error = pairs("h.jsonl", &line("\n\nHuman: A\n\nAssistant: x", "no"), Layout::Hh).unwrap_err();
        assert!(error.to_string().contains("row 1"), "{error}");
    }
}
