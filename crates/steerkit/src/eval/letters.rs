//! Probabilities of answer letters, as CAA measures, and whether the answers in words say the same.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::findings::{Cell, Findings, Style, Table};
use super::pairs;
use super::scoring::{Prompted, score, sum};
use super::spec::data_of;
use super::stats::{mean, mean_difference, sign_test};
use super::subject::{Subject, Watch};
use crate::Result;
use crate::data::{ColumnMap, PreferencePair};
use crate::extract::letter_pair;
use crate::report::{Axis, Chart, Point, Reference, Series, TickFormat};
use crate::text_stats::Estimate;

/// How letters are measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LettersSpec {
    /// Anthropic's or CAA's letters, or pairs that are made into choices (A) and (B), in turns.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// Which columns hold prompt, chosen and rejected.
    #[serde(default)]
    pub columns: ColumnMap,
    /// Whether the answers in words are scored too.
    #[serde(default = "yes")]
    pub completions: bool,
}

fn yes() -> bool {
    true
}

/// What one multiplier does to the letters. Intervals are 95% bootstrap intervals over questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LetterPoint {
    /// Every vector of the plan was multiplied by it.
    pub multiplier: f64,
    /// Mean probability of the matching letter over that of both.
    pub probability: Estimate,
    /// That less the plain model's.
    pub probability_change: Estimate,
    /// Two-sided p of the sign test of the changes.
    pub sign_test: f64,
    /// Share of questions whose matching letter is the likelier one.
    pub accuracy: Estimate,
    /// Mean probability of the letter (A) over that of both: half without a habit.
    pub says_a: Estimate,
    /// The answers in words, where they are scored.
    pub words: Option<WordsPoint>,
}

/// What one multiplier does to the answers in words, over the questions that have them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WordsPoint {
    /// Questions whose answers are known in words.
    pub n: usize,
    /// Share whose matching answer is the likelier one per token.
    pub accuracy: Estimate,
    /// Share whose letter says one thing and whose answer in words the other.
    pub contradictions: Estimate,
    /// Share whose letter and answer in words the plan moves in opposite directions.
    pub moved_apart: Estimate,
}

/// Runs the evaluation.
pub(super) fn run(spec: &LettersSpec, subject: &Subject<'_>, watch: &mut Watch<'_>) -> Result<Findings> {
    let mut data = pairs::read(subject, data_of(spec.data.as_ref())?, &spec.columns)?;
    let asked: Vec<PreferencePair> =
        data.pairs.iter().enumerate().map(|(i, pair)| letter_pair(pair, i)).collect();
    let built = asked.iter().zip(&data.pairs).filter(|(asked, pair)| asked.prompt != pair.prompt).count();
    if built > 0 {
        data.notes.push(format!(
            "{built} of {} pairs were made into multiple choices; the matching answer is (A) and (B) in turns",
            asked.len()
        ));
    }
    let texts = pairs::tokens(subject, &asked, true, &mut data.notes)?;
    let letters = margins(subject, &texts, "reading letters", false, watch)?;
    let in_words: Vec<(usize, PreferencePair)> = match spec.completions {
        true => data.pairs.iter().enumerate().filter_map(|(i, pair)| Some((i, in_words(pair)?))).collect(),
        false => Vec::new(),
    };
    let words = match in_words.is_empty() {
        true => None,
        false => {
            let texts =
                pairs::tokens(subject, in_words.iter().map(|(_, pair)| pair), false, &mut data.notes)?;
            Some(margins(subject, &texts, "reading answers in words", true, watch)?)
        }
    };
    let matching_a: Vec<bool> = asked.iter().map(|pair| pair.chosen == "(A").collect();
    let places: Vec<usize> = in_words.iter().map(|(i, _)| *i).collect();
    let points = points(subject, &letters, words.as_deref(), &places, &matching_a);
    Ok(Findings {
        lead: lead(&points, asked.len()),
        tables: vec![table(&points)],
        charts: vec![chart(&points)],
        notes: data.notes,
        data: vec![(data.path, data.sha256)],
        results: json!({ "questions": asked.len(), "points": points, "letter_margins": letters }),
        ..Findings::default()
    })
}

/// Log-probability of the first continuation less that of the second, summed or per token: `[strength][text]`.
fn margins(
    subject: &Subject<'_>,
    texts: &[Prompted],
    what: &str,
    per_token: bool,
    watch: &mut Watch<'_>,
) -> Result<Vec<Vec<f64>>> {
    let scores = score(subject, texts, false, what, watch)?;
    let value = |scores| match per_token {
        true => sum(scores) / scores.logps.len() as f64,
        false => sum(scores),
    };
    Ok(scores.iter().map(|own| own.iter().map(|text| value(&text[0]) - value(&text[1])).collect()).collect())
}

/// A pair whose answers are words: the pair itself, or the choices that its question lists.
fn in_words(pair: &PreferencePair) -> Option<PreferencePair> {
    let letters = letter_pair(pair, 0);
    if letters.prompt != pair.prompt {
        return Some(pair.clone());
    }
    let (question, choices) = pair.prompt.split_once("Choices:")?;
    let choice = |letter: &str| {
        let line = choices.lines().find_map(|line| line.trim().strip_prefix(&format!("{letter})")))?;
        Some(line.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let question = question.trim();
    Some(PreferencePair {
        prompt: question.strip_prefix("Question:").unwrap_or(question).trim().to_owned(),
        chosen: choice(&letters.chosen)?,
        rejected: choice(&letters.rejected)?,
    })
}

fn points(
    subject: &Subject<'_>,
    letters: &[Vec<f64>],
    words: Option<&[Vec<f64>]>,
    places: &[usize],
    matching_a: &[bool],
) -> Vec<LetterPoint> {
    let (plain, seed) = (subject.plain(), subject.seed);
    let probabilities =
        |margins: &[f64]| margins.iter().map(|m| 1.0 / (1.0 + (-m).exp())).collect::<Vec<_>>();
    let share = |values: &mut dyn Iterator<Item = bool>| {
        mean(&values.map(|yes| f64::from(u8::from(yes))).collect::<Vec<_>>(), seed)
    };
    let of = |s: usize| {
        let (own, base) = (probabilities(&letters[s]), probabilities(&letters[plain]));
        let says_a: Vec<f64> =
            own.iter().zip(matching_a).map(|(p, a)| if *a { *p } else { 1.0 - p }).collect();
        let words = words.map(|words| {
            let both = || places.iter().zip(&words[s]).map(|(&i, &w)| (letters[s][i], w));
            let moves = places.iter().enumerate().map(|(at, &i)| {
                (letters[s][i] - letters[plain][i]) * (words[s][at] - words[plain][at]) < 0.0
            });
            WordsPoint {
                n: places.len(),
                accuracy: share(&mut words[s].iter().map(|&w| w > 0.0)),
                contradictions: share(&mut both().map(|(letter, word)| (letter > 0.0) != (word > 0.0))),
                moved_apart: share(&mut moves.into_iter()),
            }
        });
        LetterPoint {
            multiplier: subject.steerings[s].multiplier,
            probability: mean(&own, seed),
            probability_change: mean_difference(&own, &base, seed),
            sign_test: sign_test(&super::stats::differences(&own, &base)),
            accuracy: share(&mut letters[s].iter().map(|&m| m > 0.0)),
            says_a: mean(&says_a, seed),
            words,
        }
    };
    (0..letters.len()).map(of).collect()
}

fn lead(points: &[LetterPoint], n: usize) -> String {
    let end = |p: &LetterPoint| {
        format!("{} at {}", Style::Percent.write(p.probability.value), Style::Multiplier.write(p.multiplier))
    };
    match (points.first(), points.last()) {
        (Some(first), Some(last)) if points.len() > 1 => {
            format!(
                "Over {n} questions the matching letter has a probability of {} and {}.",
                end(first),
                end(last)
            )
        }
        (Some(only), _) => {
            format!("Over {n} questions the matching letter has a probability of {}.", end(only))
        }
        _ => String::new(),
    }
}

fn table(points: &[LetterPoint]) -> Table {
    let mut table = Table::new(
        "letters",
        "Answer letters by multiplier (95% bootstrap intervals over questions)",
        &[
            ("multiplier", Style::Multiplier),
            ("P(matching letter)", Style::Percent),
            ("change", Style::Points),
            ("p (sign test)", Style::Plain),
            ("accuracy", Style::Percent),
            ("P(A)", Style::Percent),
            ("in words", Style::Percent),
            ("contradictions", Style::Percent),
            ("moved apart", Style::Percent),
        ],
    );
    for p in points {
        let unless_zero = |cell: Cell| if p.multiplier == 0.0 { Cell::Empty } else { cell };
        let words =
            |of: &dyn Fn(&WordsPoint) -> Estimate| p.words.as_ref().map_or(Cell::Empty, |w| of(w).into());
        table.row(vec![
            p.multiplier.into(),
            p.probability.into(),
            unless_zero(p.probability_change.into()),
            unless_zero(p.sign_test.into()),
            p.accuracy.value.into(),
            p.says_a.value.into(),
            words(&|w| w.accuracy),
            words(&|w| w.contradictions.value.into()),
            unless_zero(words(&|w| w.moved_apart.value.into())),
        ]);
    }
    table
}

fn chart(points: &[LetterPoint]) -> (Chart, String) {
    let series = |label: &str, of: &dyn Fn(&LetterPoint) -> Option<Estimate>| Series {
        label: label.into(),
        points: points
            .iter()
            .filter_map(|p| Some((p.multiplier, of(p)?)))
            .map(|(x, Estimate { value, interval })| Point { x, y: value, interval })
            .collect(),
        ..Series::default()
    };
    let all = [
        series("P(matching letter)", &|p| Some(p.probability)),
        series("answers in words", &|p| Some(p.words.as_ref()?.accuracy)),
    ];
    let chart = Chart {
        id: "letters".into(),
        title: "Letters and words".into(),
        description: "Probability of the matching letter, and share of matching answers in words, against the multiplier."
            .into(),
        x: Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() },
        y: Axis { label: "share".into(), format: TickFormat::Percent, ..Axis::default() },
        series: all.into_iter().filter(|series| !series.points.is_empty()).collect(),
        reference: Some(Reference { value: 0.5, label: "no preference".into() }),
    };
    let caption = "The probability of the matching letter over that of both, and how often the matching answer in words is \
                   the likelier one per token. A vector that moves the letters only has learned letters.";
    (chart, caption.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_become_answers_in_words() {
        let native = PreferencePair {
            prompt: "Question: Tea?\n\nChoices:\n (A) Never.\n (B) Gladly, yes.\n\nAnswer:".into(),
            chosen: " (B)".into(),
            rejected: " (A)".into(),
        };
        let words = in_words(&native).unwrap();
        assert_eq!([words.prompt, words.chosen, words.rejected], ["Tea?", "Gladly, yes.", "Never."]);
        let plain = PreferencePair { prompt: "Tea?".into(), chosen: "Yes".into(), rejected: "No".into() };
        assert_eq!(in_words(&plain), Some(plain.clone()));
        assert_eq!(in_words(&PreferencePair { prompt: "Tea?".into(), ..native }), None);
    }
}
