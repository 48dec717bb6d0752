//! Tables as text, Markdown and CSV.

use super::spec::Split;
use crate::text_stats::Estimate;

/// A table as people read it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The pairs that were measured.
    pub split: Split,
    /// Names of the columns.
    pub head: Vec<String>,
    /// How many columns, from the left, are texts.
    pub(super) texts: usize,
    /// The cells, row by row.
    pub(super) rows: Vec<Vec<Cell>>,
    /// What stands below it.
    pub notes: Vec<String>,
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String),
    Number(Estimate),
    None,
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::None => "-".into(),
            Self::Number(e) => match e.interval {
                Some((low, high)) => format!("{:.2} [{low:.2}, {high:.2}]", e.value),
                None => format!("{:.2}", e.value),
            },
        }
    }
}

impl Rows {
    /// The cells as text.
    pub fn cells(&self) -> Vec<Vec<String>> {
        self.rows.iter().map(|row| row.iter().map(Cell::text).collect()).collect()
    }

    /// Comma-separated values: every number with the ends of its interval.
    pub fn csv(&self) -> String {
        let quoted = |text: &str| match text.contains([',', '"', '\n']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.to_owned(),
        };
        let head = self.head.iter().enumerate().flat_map(|(i, name)| match i <= self.texts {
            true => vec![quoted(name)],
            false => ["", " low", " high"].map(|end| quoted(&format!("{name}{end}"))).to_vec(),
        });
        let mut lines = vec![head.collect::<Vec<_>>().join(",")];
        for row in &self.rows {
            let cells = row.iter().flat_map(|cell| match cell {
                Cell::Text(text) => vec![quoted(text)],
                Cell::None => vec![String::new(); 3],
                Cell::Number(e) => {
                    let (low, high) = e.interval.unzip();
                    let end = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
                    vec![e.value.to_string(), end(low), end(high)]
                }
            });
            lines.push(cells.collect::<Vec<_>>().join(","));
        }
        lines.join("\n") + "\n"
    }

    /// A Markdown table.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut out = line(&self.head);
        let rule = (0..self.head.len()).map(|i| if i < self.texts { "---" } else { "---:" }.to_owned());
        out.push_str(&line(&rule.collect::<Vec<_>>()));
        self.cells().iter().for_each(|row| out.push_str(&line(row)));
        self.notes.iter().for_each(|note| out.push_str(&format!("\n{note}\n")));
        out
    }

    /// Columns of equal width.
    pub fn text(&self) -> String {
        let rows: Vec<Vec<String>> = std::iter::once(self.head.clone()).chain(self.cells()).collect();
        let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut out = String::new();
        for row in &rows {
            let cells = row.iter().enumerate().map(|(i, cell)| match i < self.texts {
                true => format!("{cell:<w$}", w = widths[i]),
                false => format!("{cell:>w$}", w = widths[i]),
            });
            out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            out.push('\n');
        }
        self.notes.iter().for_each(|note| out.push_str(&format!("{note}\n")));
        out
    }
}
