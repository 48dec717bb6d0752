//! The cells of an experiment: ours, with intervals, beside the paper's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::experiment::{Kind, Line, Panel};
use super::measure::Measured;
use crate::eval::stats::{mean, sign_test};
use crate::report::Comparison;
use crate::text_stats::Estimate;

/// What a panel came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PanelResults {
    /// Its name.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// What the numbers are.
    pub what: String,
    /// Names and values of the axes, from the outermost; the last is that of the multipliers.
    pub axes: Vec<AxisValues>,
    /// A cell for every combination.
    pub cells: Vec<CellResult>,
    /// What each line spans from its lowest to its highest multiplier, and how that compares with the best-named line.
    pub spans: Vec<Span>,
    /// Questions behind each cell.
    pub questions: usize,
    /// What the reader should know.
    pub notes: Vec<String>,
    /// Answers side by side, by the line.
    #[serde(skip)]
    pub answers: Vec<(String, Vec<Comparison>)>,
}

/// An axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AxisValues {
    /// As the paper calls it.
    pub name: String,
    /// Its values, in order.
    pub values: Vec<Value>,
}

/// A cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CellResult {
    /// Where: axis and value.
    pub at: Map<String, Value>,
    /// What was measured.
    pub value: f64,
    /// 95% bootstrap interval over questions.
    pub interval: Option<(f64, f64)>,
    /// Less the plain model's, with its paired interval.
    pub change: Option<Estimate>,
    /// Two-sided p of the sign test of the changes.
    pub p: Option<f64>,
    /// The paper's number, where it has one.
    pub paper: Option<f64>,
    /// The block of the vector here.
    pub layer: Option<usize>,
}

/// What a line spans.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Span {
    /// Which line.
    pub at: Map<String, Value>,
    /// Lowest and highest multiplier.
    pub from: f64,
    /// Highest multiplier.
    pub to: f64,
    /// The value at the highest less that at the lowest.
    pub span: Estimate,
    /// Two-sided p of the sign test over questions.
    pub p: Option<f64>,
    /// The same in the paper.
    pub paper: Option<f64>,
    /// The line that it is compared with: the first that differs in the last axis only.
    pub against: Option<Value>,
    /// This span less that one's, question by question.
    pub difference: Option<Estimate>,
    /// Two-sided p of the sign test of the differences.
    pub difference_p: Option<f64>,
}

/// A number in a table that was not measured on questions, as a cell of it holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Quantity {
    pub(super) value: f64,
    pub(super) interval: Option<(f64, f64)>,
}

impl PanelResults {
    fn empty(panel: &Panel, what: &str) -> Self {
        let values = panel.values().into_iter().zip(&panel.axes).map(|(values, axis)| AxisValues {
            name: axis.name().into(),
            values: values.into_iter().map(Value::from).collect(),
        });
        let mut axes: Vec<AxisValues> = values.collect();
        let last = match panel.kind {
            Kind::Steered => panel.multipliers.iter().map(|&m| json!(m)).collect(),
            _ => panel.quantities.iter().map(|q| json!(q)).collect(),
        };
        axes.push(AxisValues { name: panel.across.clone(), values: last });
        Self {
            id: panel.id.clone(),
            title: panel.title.clone(),
            what: what.into(),
            axes,
            cells: Vec::new(),
            spans: Vec::new(),
            questions: 0,
            notes: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// The results of steered lines.
    pub(super) fn steered(panel: &Panel, measured: &[Measured], seed: u64) -> Self {
        let mut what: Vec<&str> = measured.iter().map(|m| m.what.as_str()).collect();
        what.dedup();
        let mut results = Self::empty(panel, &what.join("; "));
        results.questions = measured.iter().map(|m| m.questions).min().unwrap_or(0);
        for (line, own) in panel.lines.iter().zip(measured) {
            let plain = own.multipliers.iter().position(|&m| m == 0.0).unwrap_or(0);
            for (s, &Estimate { value, interval }) in own.means.iter().enumerate() {
                let changes = own.differences(s, own, plain);
                let changed = s != plain && !changes.is_empty();
                results.cells.push(CellResult {
                    at: place(
                        panel,
                        line,
                        Some(results.axes.last().map_or(Value::Null, |axis| axis.values[s].clone())),
                    ),
                    value,
                    interval,
                    change: changed.then(|| mean(&changes, seed)),
                    p: changed.then(|| sign_test(&changes)),
                    paper: paper(line, s),
                    layer: own.layer,
                });
            }
            for note in &own.notes {
                if !results.notes.contains(note) {
                    results.notes.push(note.clone());
                }
            }
            if !own.answers.is_empty() {
                results.answers.push((label(panel, line), own.answers.clone()));
            }
        }
        results.spans = (0..measured.len()).map(|i| span(panel, measured, i, seed)).collect();
        results
    }

    /// The results of lines that are no measurements of questions: a quantity for every cell.
    pub(super) fn quantities(panel: &Panel, what: &str, rows: &[Vec<Quantity>]) -> Self {
        let mut results = Self::empty(panel, what);
        for (line, row) in panel.lines.iter().zip(rows) {
            for (at, quantity) in row.iter().enumerate() {
                results.cells.push(CellResult {
                    at: place(panel, line, Some(json!(panel.quantities[at]))),
                    value: quantity.value,
                    interval: quantity.interval,
                    change: None,
                    p: None,
                    paper: paper(line, at),
                    layer: None,
                });
            }
        }
        results
    }

    /// The combinations of the axes that have no cell with a number.
    pub fn missing(&self) -> Vec<Map<String, Value>> {
        let mut places = vec![Map::new()];
        for axis in &self.axes {
            let longer = |place: &Map<String, Value>| {
                axis.values.iter().map(|value| with(place, &axis.name, value)).collect::<Vec<_>>()
            };
            places = places.iter().flat_map(longer).collect();
        }
        places.retain(|place| !self.cells.iter().any(|cell| cell.at == *place && cell.value.is_finite()));
        places
    }

    /// Whether the paper has numbers for all of it.
    pub(super) fn has_paper(&self) -> bool {
        self.cells.iter().any(|cell| cell.paper.is_some())
    }

    /// The lines: their places without the last axis, with their cells in order.
    pub(super) fn lines(&self) -> Vec<(Map<String, Value>, Vec<&CellResult>)> {
        let last = self.axes.last().map_or("", |axis| axis.name.as_str());
        let mut lines: Vec<(Map<String, Value>, Vec<&CellResult>)> = Vec::new();
        for cell in &self.cells {
            let mut at = cell.at.clone();
            at.remove(last);
            match lines.iter_mut().find(|(place, _)| *place == at) {
                Some((_, cells)) => cells.push(cell),
                None => lines.push((at, vec![cell])),
            }
        }
        lines
    }
}

fn with(place: &Map<String, Value>, name: &str, value: &Value) -> Map<String, Value> {
    let mut place = place.clone();
    place.insert(name.into(), value.clone());
    place
}

fn place(panel: &Panel, line: &Line, last: Option<Value>) -> Map<String, Value> {
    let of = |&axis: &super::experiment::Axis| (axis.name().to_owned(), json!(line.at(axis, panel)));
    panel.axes.iter().map(of).chain(last.map(|last| (panel.across.clone(), last))).collect()
}

fn label(panel: &Panel, line: &Line) -> String {
    panel.axes.iter().map(|&axis| line.at(axis, panel)).collect::<Vec<_>>().join(", ")
}

fn paper(line: &Line, at: usize) -> Option<f64> {
    line.paper.get(at).copied().filter(|x| x.is_finite())
}

fn span(panel: &Panel, measured: &[Measured], i: usize, seed: u64) -> Span {
    let (line, own) = (&panel.lines[i], &measured[i]);
    let ends = (0, own.means.len() - 1);
    let of = |m: &Measured| m.differences(ends.1, m, ends.0);
    let values = of(own);
    let span = match values.is_empty() {
        true => Estimate::from(own.means[ends.1].value - own.means[ends.0].value),
        false => mean(&values, seed),
    };
    // The first line with the same place but for the last axis.
    let outer = |line: &Line| {
        let axes = &panel.axes[..panel.axes.len().saturating_sub(1)];
        axes.iter().map(|&axis| line.at(axis, panel)).collect::<Vec<_>>()
    };
    let first = panel.lines.iter().position(|other| outer(other) == outer(line)).filter(|&first| first != i);
    let other = first.map(|first| of(&measured[first])).unwrap_or_default();
    let both = other.len() == values.len() && !values.is_empty();
    let differences: Vec<f64> = match both {
        true => values.iter().zip(&other).map(|(a, b)| a - b).collect(),
        false => Vec::new(),
    };
    Span {
        at: place(panel, line, None),
        from: own.multipliers[ends.0],
        to: own.multipliers[ends.1],
        span,
        p: (!values.is_empty()).then(|| sign_test(&values)),
        paper: paper(line, ends.1).zip(paper(line, ends.0)).map(|(high, low)| high - low),
        against: first
            .filter(|_| both)
            .and_then(|first| panel.axes.last().map(|&axis| json!(panel.lines[first].at(axis, panel)))),
        difference: both.then(|| mean(&differences, seed)),
        difference_p: both.then(|| sign_test(&differences)),
    }
}

/// Everything that an experiment gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reproduction {
    /// Its panels.
    pub panels: Vec<PanelResults>,
    /// Data files with their SHA-256 sums.
    pub files: BTreeMap<String, String>,
    /// Names and SHA-256 sums of the models.
    pub models: BTreeMap<String, String>,
    /// What the reader should know about all of it.
    pub notes: Vec<String>,
    /// Wall-clock seconds of this call; finished jobs take none.
    pub seconds: f64,
}

impl Reproduction {
    /// Combinations of all panels that have no cell with a number.
    pub fn missing(&self) -> usize {
        self.panels.iter().map(|panel| panel.missing().len()).sum()
    }
}
