//! What preference data gives away besides the behaviour: repeats, leaks between splits, length and first words.
//!
//! A vector learns whatever tells chosen from rejected. Each property here has a bar; data over it can still train,
//! but its scores say less about the behaviour.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::classify::{FirstWordClassifier, LengthClassifier};
use super::grams::{GramIndex, jaccard, opening};
use super::note::observe;
use super::{NoteKind, PreferencePair, Splits};

/// Sides with at least this share of common words are nearly the same.
const NEAR: f64 = 0.8;
/// Largest share of responses that begin as another does.
const MAX_SHARED_OPENINGS: f64 = 0.03;
/// Chosen over rejected words.
const LENGTH_RATIO: (f64, f64) = (0.9, 1.1);
/// Accuracy that a classifier of length or first word must stay under.
const MAX_ACCURACY: f64 = 0.6;

/// How to judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Length is what the behaviour is about: the length properties are shown and excused.
    pub length_is_behaviour: bool,
}

/// How a property came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Within the bar on every split that it holds for.
    Pass,
    /// Over the bar.
    Fail,
    /// Over the bar, which does not hold for this behaviour.
    Excused,
    /// No bar, or no split to hold it against.
    Shown,
}

/// What the values of a property are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// A number of rows, prompts or pairs of prompts.
    Count,
    /// A part of 1.
    Share,
    /// A quotient.
    Ratio,
}

/// One property over the splits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Property {
    /// What is measured.
    pub name: &'static str,
    /// What the values are.
    pub unit: Unit,
    /// One per split, in the order of [`CheckReport::splits`]; `None` where the property has no meaning.
    pub values: Vec<Option<f64>>,
    /// The bar in words, empty without one.
    pub bar: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// A few places or texts behind the values.
    pub examples: Vec<String>,
}

/// The report of `steerkit data check`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckReport {
    /// `train`, and `valid` and `test` where they are there.
    pub splits: Vec<&'static str>,
    /// SHA-256 of each split's file.
    pub sha256: Vec<String>,
    /// The properties, in reading order.
    pub properties: Vec<Property>,
    /// Whether no property failed.
    pub passes: bool,
}

impl CheckReport {
    /// The property of this name.
    pub fn property(&self, name: &str) -> Option<&Property> {
        self.properties.iter().find(|property| property.name == name)
    }
}

/// Measures the properties of `splits` and holds them against the bars.
///
/// Words are runs of `[a-z0-9']` of the lower-cased text, except for lengths, which count runs between white space.
pub fn check(splits: &Splits, options: CheckOptions) -> CheckReport {
    let named = splits.named();
    let sets: Vec<&[PreferencePair]> = named.iter().map(|(_, data)| data.pairs.as_slice()).collect();
    let mut properties = vec![Property {
        name: "rows",
        unit: Unit::Count,
        values: sets.iter().map(|pairs| Some(pairs.len() as f64)).collect(),
        bar: "",
        verdict: Verdict::Shown,
        examples: Vec::new(),
    }];
    properties
        .extend(faults(&named.iter().map(|(name, _)| *name).zip(sets.iter().copied()).collect::<Vec<_>>()));
    properties.extend(shared_prompts(&sets));
    properties.push(shared_openings(&sets));
    properties.extend(lengths(&sets, options));
    properties.extend(classifiers(&named.iter().map(|(name, _)| *name).collect::<Vec<_>>(), &sets, options));
    CheckReport {
        splits: named.iter().map(|(name, _)| *name).collect(),
        sha256: named.iter().map(|(_, data)| data.sha256.clone()).collect(),
        passes: properties.iter().all(|property| property.verdict != Verdict::Fail),
        properties,
    }
}

/// A property whose values must be 0.
fn none_allowed(name: &'static str, values: Vec<Option<f64>>, mut examples: Vec<String>) -> Property {
    examples.truncate(5);
    let bad = values.iter().flatten().any(|&value| value > 0.0);
    let verdict = if bad { Verdict::Fail } else { Verdict::Pass };
    Property { name, unit: Unit::Count, values, bar: "0", verdict, examples }
}

/// Faulty rows of each split.
fn faults(sets: &[(&'static str, &[PreferencePair])]) -> Vec<Property> {
    let kinds = [
        ("empty cells", NoteKind::EmptyCell),
        ("duplicate rows", NoteKind::DuplicateRow),
        ("duplicate prompts", NoteKind::DuplicatePrompt),
        ("equal sides", NoteKind::EqualSides),
    ];
    let notes: Vec<_> = sets.iter().map(|(_, pairs)| observe(pairs)).collect();
    let mut properties = Vec::new();
    for (name, kind) in kinds {
        let found: Vec<_> = notes.iter().map(|notes| notes.iter().find(|note| note.kind == kind)).collect();
        let values = found.iter().map(|note| Some(note.map_or(0.0, |note| note.count as f64))).collect();
        let places = found.iter().zip(sets).filter_map(|(note, (split, _))| Some((note.as_ref()?, split)));
        let places =
            places.flat_map(|(note, split)| note.rows.iter().map(move |row| format!("{split} row {row}")));
        properties.push(none_allowed(name, values, places.collect()));
    }
    let near = |pairs: &[PreferencePair]| -> Vec<usize> {
        let near = |&i: &usize| jaccard(&pairs[i].chosen, &pairs[i].rejected) >= NEAR;
        (0..pairs.len()).filter(near).collect()
    };
    let rows: Vec<Vec<usize>> = sets.iter().map(|(_, pairs)| near(pairs)).collect();
    let values = rows.iter().map(|rows| Some(rows.len() as f64)).collect();
    let places = rows.iter().zip(sets).flat_map(|(rows, (split, _))| {
        rows.iter().take(5).map(move |row| format!("{split} row {}", row + 1))
    });
    properties.push(none_allowed("nearly equal sides", values, places.collect()));
    properties
}

/// Prompts that share text within their split and with earlier splits.
fn shared_prompts(sets: &[&[PreferencePair]]) -> Vec<Property> {
    let mut index = GramIndex::default();
    let mut prompts: Vec<&str> = Vec::new();
    let (mut pairs, mut exact, mut leaks) = (Vec::new(), Vec::new(), Vec::new());
    let (mut pair_examples, mut exact_examples, mut leak_examples) = (Vec::new(), Vec::new(), Vec::new());
    let show = |prompt: &str| -> String { prompt.chars().take(80).collect() };
    for set in sets {
        let first = prompts.len();
        let earlier: std::collections::HashSet<&str> = prompts.iter().copied().collect();
        let (mut within, mut same, mut leaked) = (0, 0, 0);
        for pair in *set {
            let prompt = pair.prompt.as_str();
            let sharing = index.add(prompt);
            let before = sharing.partition_point(|&other| other < first);
            within += sharing.len() - before;
            leaked += usize::from(before > 0);
            same += usize::from(earlier.contains(prompt));
            let example = |other: usize| format!("{:?} and {:?}", show(prompts[other]), show(prompt));
            if sharing.len() > before && pair_examples.len() < 5 {
                pair_examples.push(example(sharing[before]));
            }
            if before > 0 && leak_examples.len() < 5 {
                leak_examples.push(example(sharing[0]));
            }
            if earlier.contains(prompt) && exact_examples.len() < 5 {
                exact_examples.push(show(prompt));
            }
            prompts.push(prompt);
        }
        let across = |count: usize| (first > 0).then_some(count as f64);
        pairs.push(Some(within as f64));
        exact.push(across(same));
        leaks.push(across(leaked));
    }
    vec![
        none_allowed("pairs of prompts with a shared 6-gram", pairs, pair_examples),
        none_allowed("prompts of an earlier split", exact, exact_examples),
        none_allowed("prompts with a 6-gram of an earlier split", leaks, leak_examples),
    ]
}

/// Share of responses whose first four words also begin another response of any split.
fn shared_openings(sets: &[&[PreferencePair]]) -> Property {
    let openings = |pairs: &[PreferencePair]| -> Vec<Vec<String>> {
        pairs
            .iter()
            .flat_map(|pair| [&pair.chosen, &pair.rejected])
            .filter_map(|text| opening(text))
            .collect()
    };
    let by_set: Vec<Vec<Vec<String>>> = sets.iter().map(|pairs| openings(pairs)).collect();
    let mut counts: HashMap<&[String], usize> = HashMap::new();
    for opening in by_set.iter().flatten() {
        *counts.entry(opening).or_default() += 1;
    }
    let share = |openings: &Vec<Vec<String>>| {
        let shared = openings.iter().filter(|opening| counts[opening.as_slice()] > 1).count();
        Some(shared as f64 / openings.len().max(1) as f64)
    };
    let mut common: Vec<(usize, String)> = counts
        .iter()
        .filter(|(_, count)| **count > 1)
        .map(|(words, count)| (*count, words.join(" ")))
        .collect();
    common.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let values: Vec<_> = by_set.iter().map(share).collect();
    let over = values.iter().flatten().any(|&value| value > MAX_SHARED_OPENINGS);
    Property {
        name: "responses that begin as another",
        unit: Unit::Share,
        values,
        bar: "<= 3%",
        verdict: if over { Verdict::Fail } else { Verdict::Pass },
        examples: common
            .into_iter()
            .take(5)
            .map(|(count, words)| format!("{words:?} {count} times"))
            .collect(),
    }
}

/// Words of a text for its length: runs between white space.
fn length_in_words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Chosen over rejected words, as the mean of the ratios and the ratio of the means.
fn lengths(sets: &[&[PreferencePair]], options: CheckOptions) -> [Property; 2] {
    let both = |pair: &PreferencePair| {
        (length_in_words(&pair.chosen) as f64, length_in_words(&pair.rejected) as f64)
    };
    let mean_of_ratios = |pairs: &&[PreferencePair]| {
        let ratios: Vec<f64> = pairs.iter().map(both).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b).collect();
        (!ratios.is_empty()).then(|| ratios.iter().sum::<f64>() / ratios.len() as f64)
    };
    let ratio_of_means = |pairs: &&[PreferencePair]| {
        let (a, b) = pairs.iter().map(both).fold((0.0, 0.0), |sum, (a, b)| (sum.0 + a, sum.1 + b));
        (b > 0.0).then(|| a / b)
    };
    let property = |name, values: Vec<Option<f64>>| {
        let within = |&value: &f64| (LENGTH_RATIO.0..=LENGTH_RATIO.1).contains(&value);
        let verdict = verdict(values.iter().flatten().all(within), options.length_is_behaviour);
        Property { name, unit: Unit::Ratio, values, bar: "0.9 to 1.1", verdict, examples: Vec::new() }
    };
    [
        property("words chosen/rejected, mean of ratios", sets.iter().map(mean_of_ratios).collect()),
        property("words chosen/rejected, ratio of means", sets.iter().map(ratio_of_means).collect()),
    ]
}

/// Accuracy of the classifiers, fitted on train; the bar holds for test.
fn classifiers(names: &[&'static str], sets: &[&[PreferencePair]], options: CheckOptions) -> Vec<Property> {
    let train = sets[0];
    let words = LengthClassifier::fit(train, length_in_words);
    let chars = LengthClassifier::fit(train, |text| text.chars().count());
    let first = FirstWordClassifier::fit(train);
    let property = |name, accuracy: &dyn Fn(&[PreferencePair]) -> f64, excusable: bool| {
        let held_out = |(i, pairs): (usize, &&[PreferencePair])| (i > 0).then(|| accuracy(pairs));
        let values: Vec<Option<f64>> = sets.iter().enumerate().map(held_out).collect();
        let test = names.iter().position(|name| *name == "test").and_then(|at| values[at]);
        let verdict = test.map_or(Verdict::Shown, |value| verdict(value < MAX_ACCURACY, excusable));
        Property { name, unit: Unit::Share, values, bar: "test < 60%", verdict, examples: Vec::new() }
    };
    let excusable = options.length_is_behaviour;
    vec![
        property("accuracy of length in words alone", &|pairs| words.accuracy(pairs), excusable),
        property("accuracy of length in characters alone", &|pairs| chars.accuracy(pairs), excusable),
        property("accuracy of the first word alone", &|pairs| first.accuracy(pairs), false),
    ]
}

fn verdict(within: bool, excusable: bool) -> Verdict {
    match (within, excusable) {
        (true, _) => Verdict::Pass,
        (false, true) => Verdict::Excused,
        (false, false) => Verdict::Fail,
    }
}

/// The report as a table for people: one line per property, examples under those that failed.
pub fn render(report: &CheckReport, path: &Path) -> String {
    let cell = |value: &Option<f64>, unit| match (value, unit) {
        (None, _) => "-".to_owned(),
        (Some(value), Unit::Count) => format!("{value}"),
        (Some(value), Unit::Share) => format!("{:.1}%", 100.0 * value),
        (Some(value), Unit::Ratio) => format!("{value:.3}"),
    };
    let mut rows = vec![vec!["property".to_owned()]];
    rows[0].extend(report.splits.iter().map(ToString::to_string));
    rows[0].extend(["bar".to_owned(), String::new()]);
    for property in &report.properties {
        let mut row = vec![property.name.to_owned()];
        row.extend(property.values.iter().map(|value| cell(value, property.unit)));
        let verdict = match property.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Excused => "excused",
            Verdict::Shown => "",
        };
        row.extend([property.bar.to_owned(), verdict.to_owned()]);
        rows.push(row);
    }
    let columns = rows[0].len();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = format!("{}\n", path.display());
    for (i, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let number = (1..columns - 2).contains(&column);
            line += &if number { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        }
        text += line.trim_end();
        text.push('\n');
        let failed = i > 0 && report.properties[i - 1].verdict == Verdict::Fail;
        for example in report.properties[i.max(1) - 1].examples.iter().filter(|_| failed).take(3) {
            text += &format!("    {example}\n");
        }
    }
    text += if report.passes { "passes\n" } else { "does not pass\n" };
    text
}
