//! What an evaluation found, ready to be shown, saved and compared.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::ask::AskError;
use crate::report::{Chart, Comparison};
use crate::text_stats::Estimate;

/// What an evaluation found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// One sentence with the result.
    pub lead: String,
    /// The results for people; the first is the main one.
    pub tables: Vec<Table>,
    /// Figures, each with its caption.
    pub charts: Vec<(Chart, String)>,
    /// What the reader should know.
    pub notes: Vec<String>,
    /// Answers side by side.
    pub answers: Vec<Comparison>,
    /// Data files with their SHA-256 sums.
    pub data: Vec<(PathBuf, String)>,
    /// The results for programs.
    pub results: Value,
    /// Further files for the folder of the results: names and texts.
    pub files: Vec<(String, String)>,
    /// Why the results are no measurement; they are shown and saved all the same.
    pub failure: Option<AskError>,
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    /// Short name: letters and hyphens.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// Its columns; the first names the rows.
    pub columns: Vec<Column>,
    /// A cell per column each.
    pub rows: Vec<Vec<Cell>>,
}

/// A column.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Column {
    /// What it holds.
    pub name: String,
    /// How its numbers are written.
    pub style: Style,
}

/// How numbers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// Three decimals, fewer for large numbers.
    #[default]
    Plain,
    /// With a sign.
    Signed,
    /// A multiplier: with a sign, no digit too many.
    Multiplier,
    /// A share in per cent.
    Percent,
    /// A difference of shares in percentage points, with a sign.
    Points,
    /// A whole number.
    Count,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// A text.
    Text(String),
    /// A number, with its interval where there is one.
    Number(Estimate),
    /// Nothing was measured.
    Empty,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::from(Estimate::from(value))
    }
}

impl From<Estimate> for Cell {
    fn from(estimate: Estimate) -> Self {
        if estimate.value.is_finite() { Self::Number(estimate) } else { Self::Empty }
    }
}

impl Style {
    /// A number in this style.
    pub fn write(self, x: f64) -> String {
        match self {
            Self::Count => format!("{x:.0}"),
            Self::Percent => format!("{:.1}%", 100.0 * x),
            Self::Points => format!("{:+.1}", 100.0 * x),
            Self::Plain => format!("{x:.*}", decimals(x)),
            Self::Signed | Self::Multiplier if x == 0.0 => "0".into(),
            Self::Multiplier => format!("{x:+}"),
            Self::Signed => format!("{x:+.*}", decimals(x)),
        }
    }
}

fn decimals(x: f64) -> usize {
    match x.abs() {
        a if a >= 1000.0 => 0,
        a if a >= 10.0 => 1,
        a if a >= 1.0 || a == 0.0 => 2,
        a if a >= 0.01 => 3,
        _ => 5,
    }
}

impl Table {
    /// An empty table.
    pub fn new(id: &str, title: &str, columns: &[(&str, Style)]) -> Self {
        let column = |&(name, style): &(&str, Style)| Column { name: name.to_owned(), style };
        Self {
            id: id.to_owned(),
            title: title.to_owned(),
            columns: columns.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// When it has not one cell per column.
    pub fn row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The rows as texts; an interval stands behind its number.
    pub fn texts(&self) -> impl Iterator<Item = Vec<String>> {
        self.rows.iter().map(|row| {
            let text = |(cell, column): (&Cell, &Column)| match cell {
                Cell::Text(text) => text.clone(),
                Cell::Empty => String::new(),
                Cell::Number(Estimate { value, interval }) => {
                    let write = |x| column.style.write(x);
                    let interval = interval.map(|(low, high)| format!(" [{}, {}]", write(low), write(high)));
                    format!("{}{}", write(*value), interval.unwrap_or_default())
                }
            };
            row.iter().zip(&self.columns).map(text).collect()
        })
    }

    /// As CSV, numbers in full; a column with intervals is followed by its lower and upper ends.
    pub fn csv(&self) -> String {
        let spread: Vec<bool> = (0..self.columns.len())
            .map(|c| self.rows.iter().any(|row| interval(&row[c]).is_some()))
            .collect();
        let quote = |text: &str| match text.contains(['"', ',', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.to_owned(),
        };
        let mut lines = vec![Vec::new()];
        for (column, spread) in self.columns.iter().zip(&spread) {
            lines[0].push(quote(&column.name));
            if *spread {
                lines[0].extend([
                    quote(&format!("{} low", column.name)),
                    quote(&format!("{} high", column.name)),
                ]);
            }
        }
        for row in &self.rows {
            let mut cells = Vec::new();
            for (cell, spread) in row.iter().zip(&spread) {
                cells.push(match cell {
                    Cell::Text(text) => quote(text),
                    Cell::Number(estimate) => estimate.value.to_string(),
                    Cell::Empty => String::new(),
                });
                if *spread {
                    let ends = interval(cell);
                    let end =
                        |pick: fn((f64, f64)) -> f64| ends.map(|e| pick(e).to_string()).unwrap_or_default();
                    cells.extend([end(|e| e.0), end(|e| e.1)]);
                }
            }
            lines.push(cells);
        }
        lines.into_iter().map(|cells| cells.join(",") + "\n").collect()
    }

    /// As Markdown under its title.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let escaped = |text: String| text.replace('|', "\\|").replace('\n', " ");
        let mut out = format!("**{}**\n\n", self.title);
        out += &line(self.columns.iter().map(|c| escaped(c.name.clone())).collect());
        out +=
            &line((0..self.columns.len()).map(|c| if c == 0 { "---" } else { "---:" }.to_owned()).collect());
        for row in self.texts() {
            out += &line(row.into_iter().map(escaped).collect());
        }
        out
    }
}

fn interval(cell: &Cell) -> Option<(f64, f64)> {
    match cell {
        Cell::Number(estimate) => estimate.interval,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_as_text_csv_and_markdown() {
        let mut table = Table::new("t", "A title", &[("what", Style::Plain), ("share", Style::Percent)]);
        table.row(vec!["a, b".into(), Estimate { value: 0.5, interval: Some((0.25, 1.0)) }.into()]);
        table.row(vec!["c|d".into(), f64::NAN.into()]);
        let texts: Vec<_> = table.texts().collect();
        assert_eq!(texts[0], ["a, b", "50.0% [25.0%, 100.0%]"]);
        assert_eq!(table.csv(), "what,share,share low,share high\n\"a, b\",0.5,0.25,1\nc|d,,,\n");
        assert_eq!(
            table.markdown(),
            "**A title**\n\n| what | share |\n| --- | ---: |\n| a, b | 50.0% [25.0%, 100.0%] |\n| c\\|d |  |\n"
        );
        assert_eq!([Style::Signed, Style::Multiplier].map(|style| style.write(1.0)), ["+1.00", "+1"]);
    }
}
