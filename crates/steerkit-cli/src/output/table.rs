//! Tables for people.

use comfy_table::{Cell, CellAlignment, presets};

/// Rows under a header; the first column is text, the others are numbers.
pub(crate) struct Table {
    table: comfy_table::Table,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(header: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_header(header.iter().enumerate().map(|(i, text)| cell(i, text)));
        Self { table }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: &[String]) {
        self.table.add_row(cells.iter().enumerate().map(|(i, text)| cell(i, text)));
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.table.trim_fmt())
    }
}

fn cell(column: usize, text: &str) -> Cell {
    let alignment = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
    Cell::new(text).set_alignment(alignment)
}

/// A number with three significant digits or so.
pub(crate) fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 0.01 => format!("{x:.3}"),
        _ => format!("{x:.1e}"),
    }
}

/// A multiplier with its sign.
pub(crate) fn signed(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:+}") }
}

/// Texts next to each other under their heads, wrapped to the width of the terminal; more than four, or a narrow
/// terminal, puts them below each other.
pub(crate) fn side_by_side(heads: &[String], texts: &[&str]) -> String {
    let width = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).unwrap_or(100u16);
    if texts.len() > 4 || usize::from(width) < 25 * texts.len() {
        let block = |(head, text): (&String, &&str)| format!("{head}:\n{}", text.trim());
        return heads.iter().zip(texts).map(block).collect::<Vec<_>>().join("\n\n");
    }
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING).set_width(width);
    table.set_content_arrangement(comfy_table::ContentArrangement::DynamicFullWidth);
    table.set_header(heads.iter().map(Cell::new));
    table.add_row(texts.iter().map(|text| Cell::new(text.trim())));
    table.set_constraints(texts.iter().map(|_| {
        comfy_table::ColumnConstraint::UpperBoundary(comfy_table::Width::Percentage(100 / texts.len() as u16))
    }));
    table.trim_fmt()
}
