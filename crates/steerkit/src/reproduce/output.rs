//! Saving what an experiment gave: numbers, tables, figures, a page.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::experiment::Experiment;
use super::results::{CellResult, PanelResults, Reproduction, Span};
use super::setup::{Need, Setup};
use crate::Result;
use crate::eval::output::page_table;
use crate::eval::{Cell, Style, Table};
use crate::files::write_atomic;
use crate::report::{Axis, Chart, Page, Point, ReportProvenance, Section, Series, Spread, TickFormat};
use crate::text_stats::Estimate;

/// An experiment as it was run: with it the same numbers come again.
#[derive(Serialize)]
struct Resolved<'a> {
    setup: &'a Setup,
    experiment: &'a Experiment,
}

/// Everything about an experiment as one JSON value.
pub fn results(
    experiment: &Experiment,
    setup: &Setup,
    needs: &[Need],
    done: &Reproduction,
    command: &str,
) -> Value {
    json!({
        "experiment": experiment.id,
        "title": experiment.title,
        "about": experiment.about,
        "paper": experiment.paper,
        "quick": setup.quick,
        "lead": lead(done),
        "notes": done.notes,
        "panels": done.panels,
        "missing": done.missing(),
        "needs": needs,
        "setup": setup,
        "command": command,
        "sha256": {"models": done.models, "data": done.files},
        "version": env!("CARGO_PKG_VERSION"),
        "seconds": done.seconds,
    })
}

/// Writes `results.json`, `experiment.toml` (the experiment as it was run), tables (`table.txt`, `.md`, `.csv`, `.tex`), each figure
/// as SVG and PNG, and `report.html` into `folder`.
///
/// # Errors
/// Those of the file system.
pub fn write(
    folder: &Path,
    experiment: &Experiment,
    setup: &Setup,
    needs: &[Need],
    done: &Reproduction,
    command: &str,
) -> Result<()> {
    let put = |name: &str, text: &str| write_atomic(&folder.join(name), text.as_bytes());
    let json = results(experiment, setup, needs, done, command);
    put("results.json", &(serde_json::to_string_pretty(&json).expect("JSON has a text") + "\n"))?;
    let resolved =
        toml::to_string(&Resolved { setup, experiment }).expect("text, numbers and tables of them");
    put("experiment.toml", &resolved)?;
    let tables: Vec<Table> = done.panels.iter().flat_map(tables).collect();
    put("table.txt", &text(&tables))?;
    put("table.md", &tables.iter().map(Table::markdown).collect::<Vec<_>>().join("\n"))?;
    put("table.csv", &csv(&done.panels))?;
    put("table.tex", &tables.iter().map(latex).collect::<Vec<_>>().join("\n"))?;
    for (chart, _) in done.panels.iter().flat_map(charts) {
        chart.save(folder)?;
    }
    put("report.html", &page(experiment, setup, needs, done, command, &resolved).html())?;
    Ok(())
}

/// The tables of a panel: its cells, and what its lines span.
pub fn tables(panel: &PanelResults) -> Vec<Table> {
    let mut all = vec![cell_table(panel)];
    if panel.spans.len() > 1 {
        all.push(span_table(panel));
    }
    all
}

fn show(value: &Value) -> String {
    match value {
        Value::Number(x) => Style::Multiplier.write(x.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A line per place, ours and below it the paper's.
fn cell_table(panel: &PanelResults) -> Table {
    let (last, outer) = panel.axes.split_last().expect("a panel has axes");
    let heads: Vec<String> = last.values.iter().map(show).collect();
    let mut columns: Vec<(&str, Style)> =
        outer.iter().map(|axis| (axis.name.as_str(), Style::Plain)).collect();
    columns.push(("from", Style::Plain));
    columns.extend(heads.iter().map(|head| (head.as_str(), Style::Plain)));
    let mut table = Table::new(&panel.id, &format!("{}: {}", panel.title, panel.what), &columns);
    for (at, cells) in panel.lines() {
        let mut row = |from: &str, of: &dyn Fn(&CellResult) -> Cell| {
            let mut row: Vec<Cell> = outer.iter().map(|axis| show(&at[&axis.name]).as_str().into()).collect();
            row.push(from.into());
            row.extend(cells.iter().map(|cell| of(cell)));
            table.row(row);
        };
        row("ours", &|cell| Estimate { value: cell.value, interval: cell.interval }.into());
        if cells.iter().any(|cell| cell.paper.is_some()) {
            row("paper", &|cell| cell.paper.map_or(Cell::Empty, Cell::from));
        }
    }
    table
}

fn span_table(panel: &PanelResults) -> Table {
    let mut table = Table::new(
        &format!("{}-span", panel.id),
        "What a line spans, from its lowest to its highest value of the last axis, and how that compares, question by \
         question (95% bootstrap intervals, sign tests)",
        &[
            ("line", Style::Plain),
            ("span", Style::Signed),
            ("p", Style::Plain),
            ("paper", Style::Signed),
            ("against", Style::Plain),
            ("difference", Style::Signed),
            ("p of it", Style::Plain),
        ],
    );
    for span in &panel.spans {
        let number = |x: Option<f64>| x.map_or(Cell::Empty, Cell::from);
        table.row(vec![
            name(&span.at).as_str().into(),
            span.span.into(),
            number(span.p),
            number(span.paper),
            span.against.as_ref().map_or(Cell::Empty, |against| show(against).as_str().into()),
            span.difference.map_or(Cell::Empty, Cell::from),
            number(span.difference_p),
        ]);
    }
    table
}

fn name(at: &Map<String, Value>) -> String {
    at.values().map(show).collect::<Vec<_>>().join(", ")
}

/// Tables as columns of equal width.
fn text(tables: &[Table]) -> String {
    let mut out = String::new();
    for table in tables {
        let head: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(table.texts()).collect();
        let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
        out += &format!("{}\n\n", table.title);
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            out += cells.collect::<Vec<_>>().join("  ").trim_end();
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

/// A row for every cell of every panel, numbers in full.
fn csv(panels: &[PanelResults]) -> String {
    let mut axes: Vec<&str> = Vec::new();
    for axis in panels.iter().flat_map(|panel| &panel.axes) {
        if !axes.contains(&axis.name.as_str()) {
            axes.push(&axis.name);
        }
    }
    let quoted = |text: String| match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    };
    let number = |x: Option<f64>| x.map_or_else(String::new, |x| x.to_string());
    let rest = ["value", "low", "high", "change", "p", "paper", "layer"];
    let mut out = [&["panel"], &axes[..], &rest].concat().join(",") + "\n";
    for panel in panels {
        for cell in &panel.cells {
            let mut row = vec![panel.id.clone()];
            row.extend(axes.iter().map(|axis| match cell.at.get(*axis) {
                Some(Value::String(text)) => quoted(text.clone()),
                Some(value) => value.to_string(),
                None => String::new(),
            }));
            row.extend([
                number(Some(cell.value)),
                number(cell.interval.map(|i| i.0)),
                number(cell.interval.map(|i| i.1)),
                number(cell.change.map(|change| change.value)),
                number(cell.p),
                number(cell.paper),
                cell.layer.map_or_else(String::new, |layer| layer.to_string()),
            ]);
            out += &(row.join(",") + "\n");
        }
    }
    out
}

/// A table for LaTeX with booktabs; intervals stand small behind their numbers.
fn latex(table: &Table) -> String {
    let escaped = |text: &str| {
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
                '~' => out.push_str("\\textasciitilde{}"),
                '^' => out.push_str("\\textasciicircum{}"),
                '\\' => out.push_str("\\textbackslash{}"),
                c => out.push(c),
            }
        }
        out
    };
    let cell = |text: &String| match text.split_once(" [") {
        Some((number, interval)) => format!("{} {{\\scriptsize [{}}}", escaped(number), escaped(interval)),
        None => escaped(text),
    };
    let line = |cells: Vec<String>| format!("{} \\\\\n", cells.join(" & "));
    let mut out = format!("% {}\n\\begin{{tabular}}{{", table.title);
    let is_text = |c: usize| table.rows.iter().any(|row| matches!(row[c], Cell::Text(_)));
    out.extend((0..table.columns.len()).map(|c| if is_text(c) { 'l' } else { 'r' }));
    out += "}\n\\toprule\n";
    out += &line(table.columns.iter().map(|column| escaped(&column.name)).collect());
    out += "\\midrule\n";
    table.texts().for_each(|row| out += &line(row.iter().map(cell).collect()));
    out + "\\bottomrule\n\\end{tabular}\n"
}

/// The lines of a figure, by their names.
type Lines<'a> = Vec<(String, Vec<&'a CellResult>)>;

/// The figures of a panel, each with its caption: for every combination of the outer axes ours, and the paper's beside it.
fn charts(panel: &PanelResults) -> Vec<(Chart, String)> {
    let (last, outer) = panel.axes.split_last().expect("a panel has axes");
    if last.values.iter().any(|value| !value.is_number()) {
        return Vec::new();
    }
    let Some((series_axis, outer)) = outer.split_last() else { return Vec::new() };
    let mut groups: Vec<(Vec<String>, Lines<'_>)> = Vec::new();
    for (at, cells) in panel.lines() {
        let place: Vec<String> = outer.iter().map(|axis| show(&at[&axis.name])).collect();
        let line = (show(&at[&series_axis.name]), cells);
        match groups.iter_mut().find(|(known, _)| *known == place) {
            Some((_, lines)) => lines.push(line),
            None => groups.push((place, vec![line])),
        }
    }
    let mut charts = Vec::new();
    for (number, (place, lines)) in groups.iter().enumerate() {
        let title = [std::slice::from_ref(&panel.title), &place[..]].concat().join(": ");
        let id = if groups.len() > 1 { format!("{}-{}", panel.id, number + 1) } else { panel.id.clone() };
        let draw =
            |id: String, title: String, label: &str, of: &dyn Fn(&CellResult) -> Option<Estimate>| Chart {
                id,
                title,
                description: format!("{label} against the {}.", last.name),
                x: Axis { label: last.name.clone(), format: TickFormat::Signed, ..Axis::default() },
                y: Axis { label: label.to_owned(), ..Axis::default() },
                series: lines.iter().map(|(name, cells)| series(name, cells, &last.name, of)).collect(),
                reference: None,
            };
        let ours = draw(id.clone(), title.clone(), &panel.what, &|cell| {
            Some(Estimate { value: cell.value, interval: cell.interval })
        });
        charts.push((
            ours,
            format!("Measured here on {} questions; bands are 95% bootstrap intervals.", panel.questions),
        ));
        if lines.iter().any(|(_, cells)| cells.iter().any(|cell| cell.paper.is_some())) {
            let paper =
                draw(format!("{id}-paper"), format!("{title}: the paper"), "the paper's measure", &|cell| {
                    cell.paper.map(Estimate::from)
                });
            charts
                .push((paper, "The paper's numbers for the same axes, on its own models and scale.".into()));
        }
    }
    charts.retain(|(chart, _)| !chart.is_empty());
    charts
}

fn series(
    name: &str,
    cells: &[&CellResult],
    axis: &str,
    of: &dyn Fn(&CellResult) -> Option<Estimate>,
) -> Series {
    let point = |cell: &&CellResult| {
        let Estimate { value, interval } = of(cell)?;
        Some(Point { x: cell.at.get(axis)?.as_f64()?, y: value, interval })
    };
    let points = cells.iter().filter_map(point).collect();
    Series { label: name.to_owned(), points, spread: Spread::Band, ..Series::default() }
}

/// The result in a sentence or two.
pub fn lead(done: &Reproduction) -> String {
    let Some(panel) = done.panels.first() else { return String::new() };
    let say = |span: &Span| {
        let ends = [span.from, span.to].map(|m| Style::Multiplier.write(m));
        format!(
            "{}: {} from {} to {}",
            name(&span.at),
            Style::Signed.write(span.span.value),
            ends[0],
            ends[1]
        )
    };
    match panel.spans.is_empty() {
        true => format!("{}: {} cells.", panel.title, panel.cells.len()),
        false => {
            format!("{}. {}.", panel.what, panel.spans.iter().take(3).map(say).collect::<Vec<_>>().join("; "))
        }
    }
}

fn page(
    experiment: &Experiment,
    setup: &Setup,
    needs: &[Need],
    done: &Reproduction,
    command: &str,
    resolved: &str,
) -> Page {
    let section = |panel: &PanelResults| Section {
        title: panel.title.clone(),
        about: [std::slice::from_ref(&panel.what), &panel.notes[..]].concat().join(". "),
        charts: charts(panel),
        tables: tables(panel).iter().map(page_table).collect(),
        map: None,
    };
    let mut notes = done.notes.clone();
    if done.panels.iter().any(PanelResults::has_paper) {
        notes.push(format!("the paper's numbers: {}", experiment.paper));
    }
    let mut facts = vec![
        ("Model".to_owned(), setup.model.clone()),
        ("Seed".to_owned(), setup.seed.to_string()),
        ("Preset".to_owned(), setup.preset.name().to_owned()),
        ("Time".to_owned(), format!("{:.1} s", done.seconds)),
    ];
    facts.extend(
        needs.iter().filter(|need| need.what == "judge").map(|need| ("Judge".to_owned(), need.found.clone())),
    );
    let mut answers = Vec::new();
    for (line, comparisons) in done.panels.iter().flat_map(|panel| &panel.answers) {
        for comparison in comparisons {
            let mut comparison = comparison.clone();
            comparison.question = format!("{line}: {}", comparison.question);
            answers.push(comparison);
        }
    }
    let sum = |(name, sum): (&String, &String)| (name.clone(), sum.clone());
    Page {
        kicker: if setup.quick { "Reproduction, quick" } else { "Reproduction" }.into(),
        title: format!("{}: {}", experiment.id, experiment.title),
        lead: lead(done),
        notes,
        facts,
        sections: done.panels.iter().map(section).collect(),
        behavior: "the behaviour".into(),
        answers,
        provenance: ReportProvenance {
            command: command.to_owned(),
            recipe: resolved.to_owned(),
            hashes: done.models.iter().map(sum).chain(done.files.iter().map(sum)).collect(),
            versions: vec![("steerkit".into(), env!("CARGO_PKG_VERSION").into())],
        },
    }
}
