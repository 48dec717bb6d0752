//! Multiple choices: MMLU, TruthfulQA, or any set. Prompts and scores are those of lm-evaluation-harness 0.4.9.1 where an
//! evaluation says so.

mod read;
mod render;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::findings::{Cell, Findings, Style, Table};
use super::scoring::{ContinuationScores, score, sum};
use super::spec::data_of;
use super::stats::{differences, draw, mean, mean_difference, sign_test};
use super::subject::{Subject, Watch};
use crate::report::{Axis, Chart, Point, Reference, Series, TickFormat};
use crate::text_stats::Estimate;
use crate::{Result, SteerError};
pub use read::Item;

/// A set of multiple choices, and how it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceSpec {
    /// The questions: a CSV, JSONL or Parquet file; a folder in MMLU's layout.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// How the file holds its questions.
    #[serde(default)]
    pub layout: Layout,
    /// Which columns hold what, for the layout `columns`.
    #[serde(default)]
    pub columns: ChoiceColumns,
    /// Questions with answers to show before each question. A folder in MMLU's layout brings its own.
    #[serde(default)]
    pub dev: Option<PathBuf>,
    /// How many of them: the first of the same group.
    #[serde(default)]
    pub shots: usize,
    /// Questions of each group at most, drawn with the seed. None: all.
    #[serde(default)]
    pub per_group: Option<usize>,
    /// Stands once before everything. `{group}` is the group's name with spaces for underscores.
    #[serde(default)]
    pub description: String,
    /// A question: `{question}`, `{choices}` (lines `A. first choice`), `{group}`.
    #[serde(default = "default_prompt")]
    pub prompt: String,
    /// Stands between a question and an answer.
    #[serde(default = "default_delimiter")]
    pub answer_delimiter: String,
    /// Stands behind each shown answer.
    #[serde(default = "default_separator")]
    pub shot_separator: String,
    /// How a choice is scored.
    #[serde(default)]
    pub scoring: Scoring,
    /// Whether the prompt is the user's turn of the model's chat template, instead of plain text.
    #[serde(default)]
    pub chat: bool,
    /// Whether plain text begins with the model's BOS token. lm-evaluation-harness gives none, except to Gemma, which gets
    /// one here too.
    #[serde(default)]
    pub bos: bool,
}

fn default_prompt() -> String {
    "{question}\n{choices}\nAnswer:".into()
}

fn default_delimiter() -> String {
    " ".into()
}

fn default_separator() -> String {
    "\n\n".into()
}

/// How a file holds its questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// By [`ChoiceColumns`].
    #[default]
    Columns,
    /// Hendrycks' folders of CSV files without headers, or JSONL with `subject`, `question`, `choices`, `answer`.
    Mmlu,
    /// TruthfulQA's CSV. The best answer and the incorrect ones make MC1, all of them MC2.
    TruthfulQa,
}

/// Which columns hold a question, its choices, its answer and its group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChoiceColumns {
    /// The question.
    pub question: String,
    /// One column with a JSON list, or one column per choice.
    pub choices: Vec<String>,
    /// The right choice: its place from 0, its letter, or its text.
    pub answer: String,
    /// What accuracies are averaged by.
    pub group: Option<String>,
}

impl Default for ChoiceColumns {
    fn default() -> Self {
        Self {
            question: "question".into(),
            choices: vec!["choices".into()],
            answer: "answer".into(),
            group: None,
        }
    }
}

/// How a choice is scored; the one with the highest score is the model's answer, the first of equals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// Log-probability of its letter.
    #[default]
    Letter,
    /// Log-probability of its text.
    CompletionSum,
    /// That over its tokens.
    CompletionPerToken,
    /// That over its bytes in UTF-8.
    CompletionPerByte,
    /// That over its characters, which is lm-evaluation-harness's `acc_norm`.
    CompletionPerCharacter,
}

impl ChoiceSpec {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if !self.prompt.contains("{question}") {
            return Err(("prompt", "found no {question} in it".into()));
        }
        if self.scoring == Scoring::Letter && !self.prompt.contains("{choices}") {
            return Err(("prompt", "found no {choices} in it, which letters need".into()));
        }
        if self.columns.choices.is_empty() {
            return Err(("choices", "expected one column or more".into()));
        }
        match self.per_group {
            Some(0) => Err(("per_group", "found 0, expected at least 1".into())),
            _ => Ok(()),
        }
    }
}

/// The answers to one question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answered {
    /// Its group.
    pub group: String,
    /// Its row in the data, from 0, within the group's file.
    pub row: usize,
    /// The right choice.
    pub answer: usize,
    /// The model's choice at each multiplier.
    pub predicted: Vec<usize>,
    /// The scores of the choices at each multiplier: `[multiplier][choice]`.
    pub scores: Vec<Vec<f64>>,
    /// The share of probability on right choices at each multiplier.
    pub mass: Vec<f64>,
}

/// What one multiplier does to the answers. Intervals are 95% bootstrap intervals over questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoicePoint {
    /// Every vector of the plan was multiplied by it.
    pub multiplier: f64,
    /// Share of right answers over all questions (MC1 for TruthfulQA).
    pub accuracy: Estimate,
    /// That less the plain model's, question by question.
    pub accuracy_change: Estimate,
    /// Two-sided p of McNemar's exact test of the change.
    pub accuracy_p: f64,
    /// The mean of the groups' accuracies.
    pub group_accuracy: f64,
    /// Mean share of probability on right choices (MC2 for TruthfulQA).
    pub mass: Estimate,
    /// That less the plain model's, question by question.
    pub mass_change: Estimate,
    /// Two-sided p of the sign test of the changes.
    pub mass_p: f64,
}

/// Runs the evaluation.
pub(super) fn run(spec: &ChoiceSpec, subject: &Subject<'_>, watch: &mut Watch<'_>) -> Result<Findings> {
    if !spec.chat && subject.steerings.iter().any(|steering| steering.plan.needs_user()) {
        return Err(SteerError::Unfit {
            what: "the token scope last-user needs chat prompts, and this evaluation asks in plain text"
                .into(),
            hint: "set chat = true in the evaluation's [task], or choose another --scope".into(),
        });
    }
    let mut set = read::read(spec, data_of(spec.data.as_ref())?)?;
    let all = set.items.len();
    drawn(spec, subject, &mut set.items);
    let mut notes = Vec::new();
    if set.items.len() < all {
        notes.push(format!("{} of {all} questions, drawn with seed {}", set.items.len(), subject.seed));
    }
    let texts = render::texts(spec, subject, &set, &mut notes)?;
    let scores = score(subject, &texts, false, "reading choices", watch)?;
    let answered = answered(spec, &set.items, &scores);
    let points = points(subject, &answered);
    let truthful = spec.layout == Layout::TruthfulQa;
    let mut tables = vec![table(&points, truthful)];
    tables.extend(group_table(subject, &answered));
    Ok(Findings {
        lead: lead(&points, answered.len(), truthful),
        tables,
        charts: vec![chart(&points, truthful)],
        notes,
        data: set.files,
        results: json!({ "questions": answered.len(), "points": points, "items": answered }),
        ..Findings::default()
    })
}

/// Leaves what the limits ask for.
fn drawn(spec: &ChoiceSpec, subject: &Subject<'_>, items: &mut Vec<Item>) {
    if let Some(count) = spec.per_group {
        let all = std::mem::take(items);
        for group in all.chunk_by(|a, b| a.group == b.group) {
            items.extend(draw(group.len(), count, subject.seed).into_iter().map(|i| group[i].clone()));
        }
    }
    let places = subject.drawn(items.len());
    *items = places.into_iter().map(|i| items[i].clone()).collect();
}

fn answered(spec: &ChoiceSpec, items: &[Item], scores: &[Vec<ContinuationScores>]) -> Vec<Answered> {
    let of = |(i, item): (usize, &Item)| {
        let sums = |own: &[ContinuationScores]| own[i].iter().map(sum).collect::<Vec<f64>>();
        let scaled = |own: &Vec<ContinuationScores>| {
            let over = |(choice, sum): (usize, f64)| {
                let text = &item.choices[choice];
                sum / match spec.scoring {
                    Scoring::Letter | Scoring::CompletionSum => 1.0,
                    Scoring::CompletionPerToken => own[i][choice].logps.len() as f64,
                    Scoring::CompletionPerByte => text.len().max(1) as f64,
                    Scoring::CompletionPerCharacter => text.chars().count().max(1) as f64,
                }
            };
            sums(own).into_iter().enumerate().map(over).collect::<Vec<f64>>()
        };
        let all: Vec<Vec<f64>> = scores.iter().map(scaled).collect();
        let best = |own: &Vec<f64>| {
            let first = item.ranked.iter().copied().fold(None, |best: Option<usize>, choice| match best {
                Some(best) if own[best] >= own[choice] => Some(best),
                _ => Some(choice),
            });
            first.expect("a question has choices")
        };
        Answered {
            group: item.group.clone(),
            row: item.row,
            answer: item.answer,
            predicted: all.iter().map(best).collect(),
            mass: scores.iter().map(|own| mass(&sums(own), &item.right)).collect(),
            scores: all,
        }
    };
    items.iter().enumerate().map(of).collect()
}

/// The share of the choices' probability that right ones have.
fn mass(logps: &[f64], right: &[bool]) -> f64 {
    let top = logps.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let part = |wanted: bool| -> f64 {
        logps.iter().zip(right).filter(|(_, right)| wanted || **right).map(|(x, _)| (x - top).exp()).sum()
    };
    part(false) / part(true)
}

fn points(subject: &Subject<'_>, answered: &[Answered]) -> Vec<ChoicePoint> {
    let (plain, seed) = (subject.plain(), subject.seed);
    let right = |s: usize| -> Vec<f64> {
        answered.iter().map(|a| f64::from(u8::from(a.predicted[s] == a.answer))).collect()
    };
    let mass = |s: usize| -> Vec<f64> { answered.iter().map(|a| a.mass[s]).collect() };
    let of = |(s, multiplier): (usize, f64)| {
        let by_group = by_group(answered, &right(s));
        ChoicePoint {
            multiplier,
            accuracy: mean(&right(s), seed),
            accuracy_change: mean_difference(&right(s), &right(plain), seed),
            accuracy_p: sign_test(&differences(&right(s), &right(plain))),
            group_accuracy: by_group.iter().map(|(_, _, mean)| mean).sum::<f64>() / by_group.len() as f64,
            mass: mean(&mass(s), seed),
            mass_change: mean_difference(&mass(s), &mass(plain), seed),
            mass_p: sign_test(&differences(&mass(s), &mass(plain))),
        }
    };
    subject.multipliers().into_iter().enumerate().map(of).collect()
}

/// Each group's name, size and mean, in the order of their first questions.
fn by_group<'a>(answered: &'a [Answered], values: &[f64]) -> Vec<(&'a str, usize, f64)> {
    let mut groups: Vec<(&str, usize, f64)> = Vec::new();
    for (item, value) in answered.iter().zip(values) {
        match groups.iter_mut().find(|(name, _, _)| *name == item.group) {
            Some((_, n, sum)) => (*n, *sum) = (*n + 1, *sum + value),
            None => groups.push((&item.group, 1, *value)),
        }
    }
    groups.into_iter().map(|(name, n, sum)| (name, n, sum / n as f64)).collect()
}

fn lead(points: &[ChoicePoint], n: usize, truthful: bool) -> String {
    let of = |p: &ChoicePoint| {
        let mass = if truthful { format!(" (MC2 {:.3})", p.mass.value) } else { String::new() };
        format!(
            "{}{mass} at {}",
            Style::Percent.write(p.accuracy.value),
            Style::Multiplier.write(p.multiplier)
        )
    };
    let name = if truthful { "MC1 accuracy" } else { "Accuracy" };
    format!("{name} over {n} questions: {}.", points.iter().map(of).collect::<Vec<_>>().join(", "))
}

fn table(points: &[ChoicePoint], truthful: bool) -> Table {
    let [accuracy, mass] = if truthful { ["MC1", "MC2"] } else { ["accuracy", "P(right)"] };
    let mut table = Table::new(
        "choices",
        "Multiple choice by multiplier (95% bootstrap intervals over questions; changes are paired)",
        &[
            ("multiplier", Style::Multiplier),
            (accuracy, Style::Percent),
            ("change", Style::Points),
            ("p (McNemar)", Style::Plain),
            ("group mean", Style::Percent),
            (mass, Style::Percent),
            ("change of it", Style::Points),
            ("p (sign test)", Style::Plain),
        ],
    );
    for p in points {
        let unless_zero = |cell: Cell| if p.multiplier == 0.0 { Cell::Empty } else { cell };
        table.row(vec![
            p.multiplier.into(),
            p.accuracy.into(),
            unless_zero(p.accuracy_change.into()),
            unless_zero(p.accuracy_p.into()),
            p.group_accuracy.into(),
            p.mass.into(),
            unless_zero(p.mass_change.into()),
            unless_zero(p.mass_p.into()),
        ]);
    }
    table
}

/// Accuracies of the groups, where there are several.
fn group_table(subject: &Subject<'_>, answered: &[Answered]) -> Option<Table> {
    let multipliers = subject.multipliers();
    let heads: Vec<String> =
        multipliers.iter().map(|&m| format!("at {}", Style::Multiplier.write(m))).collect();
    let mut columns = vec![("group", Style::Plain), ("questions", Style::Count)];
    columns.extend(heads.iter().map(|head| (head.as_str(), Style::Percent)));
    let mut table = Table::new("groups", "Accuracy by group", &columns);
    let of: Vec<_> = (0..multipliers.len())
        .map(|s| {
            let right: Vec<f64> =
                answered.iter().map(|a| f64::from(u8::from(a.predicted[s] == a.answer))).collect();
            by_group(answered, &right)
        })
        .collect();
    for (at, &(name, n, _)) in of[0].iter().enumerate() {
        let mut row = vec![Cell::from(name), (n as f64).into()];
        row.extend(of.iter().map(|groups| Cell::from(groups[at].2)));
        table.row(row);
    }
    (table.rows.len() > 1).then_some(table)
}

fn chart(points: &[ChoicePoint], truthful: bool) -> (Chart, String) {
    let series = |label: &str, of: &dyn Fn(&ChoicePoint) -> Estimate| Series {
        label: label.into(),
        points: points
            .iter()
            .map(|p| Point { x: p.multiplier, y: of(p).value, interval: of(p).interval })
            .collect(),
        ..Series::default()
    };
    let [accuracy, mass] = if truthful { ["MC1", "MC2"] } else { ["accuracy", "P(right)"] };
    let plain = points.iter().find(|p| p.multiplier == 0.0).map_or(0.0, |p| p.accuracy.value);
    let chart = Chart {
        id: "accuracy".into(),
        title: "Right answers".into(),
        description: "Accuracy and probability of right choices against the multiplier.".into(),
        x: Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() },
        y: Axis { label: "share".into(), format: TickFormat::Percent, ..Axis::default() },
        series: vec![series(accuracy, &|p| p.accuracy), series(mass, &|p| p.mass)],
        reference: Some(Reference { value: plain, label: format!("plain model's {accuracy}") }),
    };
    (chart, "The model's choice is the one with the highest score; bars are 95% bootstrap intervals.".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mass_by_hand() {
        let logps = [0.5f64.ln(), 0.25f64.ln(), 0.25f64.ln()];
        assert!((mass(&logps, &[true, false, true]) - 0.75).abs() < 1e-12);
        // Far below what exp can hold, as long answers are.
        assert!((mass(&[-2000.0, -2000.0], &[true, false]) - 0.5).abs() < 1e-12);
    }
}
