//! Saving what an evaluation found.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::findings::{Cell, Findings, Table};
use super::spec::EvalSpec;
use crate::Result;
use crate::files::write_atomic;
use crate::report::{Page, PageTable, ReportProvenance, Section};
use crate::text_stats::Estimate;

/// What was evaluated, for the record.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// The command line.
    pub command: String,
    /// Names and values for the head of the page: model, plan, questions, seconds.
    pub facts: Vec<(String, String)>,
    /// Names and SHA-256 sums of the model and the vectors.
    pub hashes: Vec<(String, String)>,
    /// The plan at multiplier 1, a value per vector.
    pub plan: Vec<Value>,
    /// The system prompt.
    pub system: Option<String>,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// Everything about an evaluation as one JSON value.
pub fn results(spec: &EvalSpec, findings: &Findings, setting: &Setting) -> Value {
    let hashes = hashes(findings, setting);
    json!({
        "evaluation": spec.name,
        "kind": spec.task.kind(),
        "lead": findings.lead,
        "notes": findings.notes,
        "results": findings.results,
        "tables": findings.tables,
        "spec": to_value(spec),
        "plan": setting.plan,
        "system": setting.system,
        "command": setting.command,
        "sha256": hashes.into_iter().map(|(name, sum)| (name, Value::from(sum))).collect::<serde_json::Map<_, _>>(),
        "version": env!("CARGO_PKG_VERSION"),
        "seconds": setting.seconds,
    })
}

fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("text, numbers and lists of them")
}

fn hashes(findings: &Findings, setting: &Setting) -> Vec<(String, String)> {
    let data = findings.data.iter().map(|(path, sum)| (path.display().to_string(), sum.clone()));
    setting.hashes.iter().cloned().chain(data).collect()
}

/// Writes `results.json`, `evaluation.toml`, `table.csv`, `table.md`, a CSV for each further table, each figure as
/// SVG and PNG, and `report.html` into `folder`.
///
/// # Errors
/// Those of the file system.
pub fn write(folder: &Path, spec: &EvalSpec, findings: &Findings, setting: &Setting) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    let put = |name: &str, text: &str| write_atomic(&folder.join(name), text.as_bytes());
    let json = serde_json::to_string_pretty(&results(spec, findings, setting)).expect("JSON has a text");
    put("results.json", &(json + "\n"))?;
    put("evaluation.toml", &spec.to_toml())?;
    for (i, table) in findings.tables.iter().enumerate() {
        let name = if i == 0 { "table.csv".into() } else { format!("{}.csv", table.id) };
        put(&name, &table.csv())?;
    }
    put("table.md", &findings.tables.iter().map(Table::markdown).collect::<Vec<_>>().join("\n"))?;
    for (chart, _) in findings.charts.iter().filter(|(chart, _)| !chart.is_empty()) {
        chart.save(folder)?;
    }
    findings.files.iter().try_for_each(|(name, text)| put(name, text))?;
    put("report.html", &page(spec, findings, setting).html())?;
    Ok(())
}

fn page(spec: &EvalSpec, findings: &Findings, setting: &Setting) -> Page {
    Page {
        kicker: "Evaluation".into(),
        title: spec.name.clone(),
        lead: findings.lead.clone(),
        notes: findings.notes.clone(),
        facts: setting.facts.clone(),
        sections: vec![Section {
            title: "Results".into(),
            about: spec.about.clone(),
            charts: findings.charts.clone(),
            tables: findings.tables.iter().map(page_table).collect(),
            ..Section::default()
        }],
        behavior: "the behaviour".into(),
        answers: findings.answers.clone(),
        provenance: ReportProvenance {
            command: setting.command.clone(),
            recipe: spec.to_toml(),
            hashes: hashes(findings, setting),
            versions: vec![("steerkit".into(), env!("CARGO_PKG_VERSION").into())],
        },
    }
}

pub(crate) fn page_table(table: &Table) -> PageTable {
    let shown = |row: &Vec<Cell>| {
        let cell = |(cell, column): (&Cell, &super::findings::Column)| match cell {
            Cell::Text(text) => (text.clone(), None),
            Cell::Empty => ("\u{2013}".into(), None),
            Cell::Number(Estimate { value, interval }) => {
                let write = |x| column.style.write(x);
                (write(*value), interval.map(|(low, high)| format!("{} to {}", write(low), write(high))))
            }
        };
        row.iter().zip(&table.columns).map(cell).collect()
    };
    PageTable {
        caption: table.title.clone(),
        columns: table.columns.iter().map(|column| column.name.clone()).collect(),
        rows: table.rows.iter().map(shown).collect(),
    }
}
