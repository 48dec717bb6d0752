//! People as judges: a shuffled sheet without any sign of where an answer comes from, a key that stays with whoever
//! hands the sheet out, and the agreement of those who filled it in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::agreement::{Metric, Weights, cohen_kappa, krippendorff_alpha};
use super::{Rubric, Scale};
use crate::Result;
use crate::data::records;
use crate::error::malformed;
use crate::files::{sha256, write_atomic};
use crate::text_stats::mean;

/// Faults of a sheet that an error names.
const NAMED: usize = 8;

/// An answer that people are to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SheetRow {
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
    /// Where it comes from, such as a multiplier. Only the key says it.
    pub condition: String,
    /// What a judge model said.
    pub judge: Option<u8>,
}

/// What a sheet hides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The rubric.
    pub rubric: Rubric,
    /// Seed of the shuffle.
    pub seed: u64,
    /// The rows, in the order that they were given.
    pub rows: Vec<KeyRow>,
}

/// A row of a sheet, as the key knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRow {
    /// Its id on the sheet.
    pub id: String,
    /// Where the answer comes from.
    pub condition: String,
    /// What a judge model said.
    pub judge: Option<u8>,
}

/// Writes the sheet (CSV: id, question, answer, score) and its key (JSON).
///
/// Cells that a spreadsheet would take for a formula get an apostrophe in front.
///
/// # Errors
/// The file system.
pub fn export(rows: &[SheetRow], rubric: &Rubric, seed: u64, sheet: &Path, key: &Path) -> Result<Key> {
    let mut ids = HashSet::new();
    let mut id = |i: usize| {
        let drawn = |n: u32| sha256(format!("{seed} {i} {n} {}", rows[i].answer).as_bytes())[..8].to_owned();
        let free = (0..).map(drawn).find(|id| !ids.contains(id)).expect("there are more ids than rows");
        ids.insert(free.clone());
        free
    };
    let key_rows: Vec<KeyRow> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| KeyRow { id: id(i), condition: row.condition.clone(), judge: row.judge })
        .collect();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut text = String::from("id,question,answer,score\n");
    for i in order {
        let (question, answer) = (inert(&rows[i].question), inert(&rows[i].answer));
        text.push_str(&format!("{},{},{},\n", key_rows[i].id, csv_cell(&question), csv_cell(&answer)));
    }
    let secret = Key { rubric: rubric.clone(), seed, rows: key_rows };
    let json = serde_json::to_string_pretty(&secret).expect("a key is text and numbers");
    write_atomic(key, json.as_bytes())?;
    write_atomic(sheet, text.as_bytes())?;
    Ok(secret)
}

/// The text, so that no spreadsheet runs it.
fn inert(text: &str) -> String {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{text}"),
        false => text.to_owned(),
    }
}

/// A cell as CSV writes it.
fn csv_cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// Instructions for whoever fills a sheet in.
pub fn instructions(rubric: &Rubric) -> String {
    let mut text = format!("{}\n\nWrite your score into the column \"score\":\n\n", rubric.task);
    match rubric.scale() {
        Scale::Grades => {
            let grades = rubric.grades.iter().enumerate().rev();
            grades.for_each(|(i, meaning)| text.push_str(&format!("- {}: {meaning}\n", i + 1)));
        }
        Scale::YesNo => text.push_str(&format!("- yes: {}\n- no: {}\n", rubric.yes, rubric.no)),
    }
    if !rubric.rules.is_empty() {
        text.push_str("\nHard cases:\n\n");
        rubric.rules.iter().for_each(|rule| text.push_str(&format!("- {rule}\n")));
    }
    text.push_str("\nLeave the score empty where you cannot decide. Keep the column \"id\" as it is; the order does not matter.\n");
    text
}

/// Reads a key.
///
/// # Errors
/// A file that is none.
pub fn read_key(path: &Path) -> Result<Key> {
    serde_json::from_slice(&fs_err::read(path)?).map_err(|error| {
        let hint = "give the key that was written beside the sheet";
        malformed(path, format!("line {}", error.line()), error.to_string(), "the key of a sheet", hint)
    })
}

/// The scores of one person, in the order of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sheet {
    /// Who: the name of the file.
    pub annotator: String,
    /// The scores; `None` where the cell is empty or the row is missing.
    pub scores: Vec<Option<u8>>,
}

/// Reads a sheet that was filled in. Rows may be in any order; rows and scores may be missing.
///
/// # Errors
/// Ids that the key does not have or that come twice and scores off the scale, each with its row and line; a sheet
/// without any score.
pub fn read_sheet(path: &Path, key: &Key) -> Result<Sheet> {
    let table = records(path, None)?;
    let places: HashMap<&str, usize> =
        key.rows.iter().enumerate().map(|(i, row)| (row.id.as_str(), i)).collect();
    let mut scores = vec![None; key.rows.len()];
    let mut seen = HashSet::new();
    let mut faults = Vec::new();
    let scale = key.rubric.scale();
    for (n, row) in table.rows.iter().enumerate() {
        let name = table.text(row, "id", &["id"])?.trim();
        let cell = table.text(row, "score", &["score"])?.trim();
        let mut fault = |what: String| faults.push(format!("row {} (line {}): {what}", n + 1, row.line));
        let short = |text: &str| -> String { text.chars().take(20).collect() };
        match (places.get(name), seen.insert(name), score_of(cell, scale)) {
            (None, ..) => fault(format!("the unknown id {:?}", short(name))),
            (_, false, _) => fault(format!("the id {name:?} again")),
            (_, _, None) => fault(format!("the score {:?}", short(cell))),
            (Some(&place), true, Some(score)) => scores[place] = score,
        }
    }
    let allowed = if scale == Scale::Grades { "1 to 4" } else { "yes or no" };
    let expected = format!("every id once, scores {allowed} or nothing");
    if !faults.is_empty() {
        let more =
            if faults.len() > NAMED { format!(" and {} more", faults.len() - NAMED) } else { String::new() };
        let found = faults.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ") + &more;
        return Err(malformed(path, "sheet", found, expected, "mend these rows, or ask the annotator"));
    }
    if scores.iter().all(Option::is_none) {
        return Err(malformed(path, "sheet", "no score at all", expected, "fill in the column \"score\""));
    }
    let annotator = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Sheet { annotator, scores })
}

/// The score of a cell, `Some(None)` for an empty one.
fn score_of(cell: &str, scale: Scale) -> Option<Option<u8>> {
    let cell = cell.to_lowercase();
    // Spreadsheets like to write whole numbers as 3.0.
    let cell = cell.strip_suffix(".0").unwrap_or(&cell);
    match (cell, scale) {
        ("", _) => Some(None),
        ("yes" | "y" | "1", Scale::YesNo) => Some(Some(1)),
        ("no" | "n" | "0", Scale::YesNo) => Some(Some(0)),
        ("1" | "2" | "3" | "4", Scale::Grades) => Some(cell.parse().ok()),
        _ => None,
    }
}

/// The agreement of two raters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairAgreement {
    /// One of them.
    pub first: String,
    /// The other.
    pub second: String,
    /// Answers that both scored.
    pub n: usize,
    /// Share of the same score.
    pub same: Option<f64>,
    /// Cohen's kappa.
    pub kappa: Option<f64>,
    /// Quadratically weighted.
    pub weighted_kappa: Option<f64>,
}

/// Agreement of people with each other and with the judge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Scores that each person gave.
    pub scored: BTreeMap<String, usize>,
    /// Every two people.
    pub people: Vec<PairAgreement>,
    /// Every person with the judge model, where there are judgments.
    pub judge: Vec<PairAgreement>,
    /// Krippendorff's alpha of the people: nominal, ordinal, interval.
    pub alpha: [Option<f64>; 3],
    /// The same with the judge as one more rater.
    pub alpha_with_judge: [Option<f64>; 3],
    /// Mean score over all people for each condition.
    pub conditions: BTreeMap<String, Option<f64>>,
}

/// Compares sheets with each other and with the judge's scores of the key.
pub fn agreement(key: &Key, sheets: &[Sheet]) -> Agreement {
    let judge = Sheet { annotator: "judge".into(), scores: key.rows.iter().map(|row| row.judge).collect() };
    let judged = judge.scores.iter().any(Option::is_some);
    let pairs = sheets.iter().enumerate().flat_map(|(i, a)| sheets[i + 1..].iter().map(move |b| pair(a, b)));
    let with_judge: Vec<&Sheet> = sheets.iter().chain(judged.then_some(&judge)).collect();
    let mut by_condition: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (i, row) in key.rows.iter().enumerate() {
        let scores = sheets.iter().filter_map(|sheet| sheet.scores[i]).map(f64::from);
        by_condition.entry(row.condition.clone()).or_default().extend(scores);
    }
    let scored = |sheet: &Sheet| (sheet.annotator.clone(), sheet.scores.iter().flatten().count());
    Agreement {
        scored: sheets.iter().map(scored).collect(),
        people: pairs.collect(),
        judge: if judged { sheets.iter().map(|sheet| pair(sheet, &judge)).collect() } else { Vec::new() },
        alpha: alphas(&sheets.iter().collect::<Vec<_>>()),
        alpha_with_judge: alphas(&with_judge),
        conditions: by_condition.into_iter().map(|(name, scores)| (name, mean(&scores))).collect(),
    }
}

fn pair(a: &Sheet, b: &Sheet) -> PairAgreement {
    let both: Vec<(u8, u8)> = a.scores.iter().zip(&b.scores).filter_map(|(a, b)| a.zip(*b)).collect();
    let same: Vec<f64> = both.iter().map(|(a, b)| f64::from(u8::from(a == b))).collect();
    PairAgreement {
        first: a.annotator.clone(),
        second: b.annotator.clone(),
        n: both.len(),
        same: mean(&same),
        kappa: cohen_kappa(&both, Weights::None),
        weighted_kappa: cohen_kappa(&both, Weights::Quadratic),
    }
}

fn alphas(sheets: &[&Sheet]) -> [Option<f64>; 3] {
    let n = sheets.first().map_or(0, |sheet| sheet.scores.len());
    let units: Vec<Vec<u8>> =
        (0..n).map(|i| sheets.iter().filter_map(|sheet| sheet.scores[i]).collect()).collect();
    [Metric::Nominal, Metric::Ordinal, Metric::Interval].map(|metric| krippendorff_alpha(&units, metric))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn exported(folder: &Path) -> (PathBuf, Key) {
        let rows: Vec<SheetRow> = (0..6)
            .map(|i| SheetRow {
                question: format!("Question {i}, with a comma?"),
                answer: format!("=1+{i}\n\"quoted\""),
                condition: format!("formality={}", i % 3 - 1),
                judge: Some(1 + i as u8 % 4),
            })
            .collect();
        let (sheet, key) = (folder.join("sheet.csv"), folder.join("key.json"));
        let rubric = Rubric::find("formality").unwrap();
        let written = export(&rows, &rubric, 7, &sheet, &key).unwrap();
        assert_eq!(read_key(&key).unwrap(), written);
        (sheet, written)
    }

    #[test]
    fn a_sheet_is_blind_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let (path, key) = exported(folder.path());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("id,question,answer,score\n"));
        assert!(!text.contains("formality") && text.contains("\"'=1+0\n\"\"quoted\"\"\""), "{text}");
        let table = records(&path, None).unwrap();
        let id = |row: &crate::data::Record| row.cells["id"].as_str().unwrap().to_owned();
        let order: Vec<String> = table.rows.iter().map(id).collect();
        let given: Vec<String> = key.rows.iter().map(|row| row.id.clone()).collect();
        assert_ne!(order, given);
        // Filled in: 4 for everything; the last row is lost, one cell stays empty.
        let rows = table.rows.iter().take(5).enumerate();
        let line = |(i, row): (usize, &crate::data::Record)| {
            format!("{},{}\n", id(row), ["4", "4.0", " 3 ", "", "1"][i])
        };
        let filled = folder.path().join("anna.csv");
        std::fs::write(&filled, format!("id,score\n{}", rows.map(line).collect::<String>())).unwrap();
        let sheet = read_sheet(&filled, &key).unwrap();
        assert_eq!(sheet.annotator, "anna");
        let mut scores: Vec<u8> = sheet.scores.iter().flatten().copied().collect();
        scores.sort_unstable();
        assert_eq!(scores, [1, 3, 4, 4]);
        let first = given.iter().position(|id| *id == order[2]).unwrap();
        assert_eq!(sheet.scores[first], Some(3));
    }

    #[test]
    fn faults_of_a_sheet_are_named_by_row() {
        let folder = tempfile::tempdir().unwrap();
        let (path, key) = exported(folder.path());
        let [a, b] = [&key.rows[0].id, &key.rows[1].id];
        let refused = |text: String| {
            std::fs::write(&path, text).unwrap();
            read_sheet(&path, &key).unwrap_err().to_string()
        };
        let error = refused(format!("id,note,score\n{a},\"two\nlines\",5\n{b},,three\n{a},,2\nzz,,1\n"));
        for part in [
            "row 1 (line 2): the score \"5\"",
            "row 2 (line 4): the score \"three\"",
            "row 3 (line 5): the id",
            "row 4 (line 6): the unknown id \"zz\"",
            "scores 1 to 4 or nothing",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(refused(format!("id,score\n{a},\n")).contains("no score at all"));
        let error = refused("name,score\nx,1\n".into());
        assert!(error.contains("no id column: found \"name\", \"score\", expected \"id\""), "{error}");
    }

    #[test]
    fn agreement_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut key) = exported(folder.path());
        key.rows.iter_mut().zip([1, 1, 4, 4, 1, 4]).for_each(|(row, judge)| row.judge = Some(judge));
        let sheet = |name: &str, scores: [u8; 6]| Sheet {
            annotator: name.into(),
            scores: scores.map(|s| Some(s).filter(|s| *s > 0)).to_vec(),
        };
        let found = agreement(&key, &[sheet("a", [1, 1, 4, 4, 1, 4]), sheet("b", [1, 4, 4, 4, 0, 1])]);
        assert_eq!(found.scored, BTreeMap::from([("a".into(), 6), ("b".into(), 5)]));
        // Five common answers, three alike; a gave 1 twice and 4 three times, b the same: 1 - 0.4 / 0.48.
        let pair = &found.people[0];
        assert_eq!((pair.n, pair.same), (5, Some(0.6)));
        assert!((pair.kappa.unwrap() - (1.0 - 0.4 / 0.48)).abs() < 1e-12, "{pair:?}");
        assert_eq!(found.judge[0].kappa, Some(1.0));
        assert_eq!(found.conditions["formality=-1"], Some((1.0 + 4.0 + 1.0 + 4.0) / 4.0));
        assert!(found.alpha_with_judge[0] > found.alpha[0]);
    }
}
