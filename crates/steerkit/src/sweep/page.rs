//! `report.html` of a sweep.

use super::rows::Rows;
use super::table::Results;
use crate::report::{HeatMap, Page, PageTable, Section};
use crate::text_stats::Estimate;

/// The page: the table, the heat map, what was chosen, how methods compare, what failed.
pub(super) fn page(results: &Results, map: HeatMap) -> Page {
    let (split, table) = results.reported();
    let rows = results.table();
    let counts = [(table.done, "done"), (table.failed, "failed"), (table.missing, "not run")];
    let counts: Vec<String> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let margins = Section {
        title: "Margins".into(),
        about: "At plus and at minus each strength, and half of the difference (two-sided); below a number its 95% \
                bootstrap interval over questions."
            .into(),
        tables: vec![main_table(&rows)],
        ..Section::default()
    };
    let heat = Section { title: "Heat map".into(), map: Some(map), ..Section::default() };
    Page {
        kicker: "Sweep".into(),
        title: "Relative margins".into(),
        lead: format!("Jobs: {}. Margins on the {} pairs, in nats.", counts.join(", "), split.name()),
        notes: rows.notes.clone(),
        sections: [margins, heat].into_iter().chain(chosen(results)).chain(contrasts(results)).collect(),
        ..Page::default()
    }
}

fn main_table(rows: &Rows) -> PageTable {
    // An interval stands behind its number.
    let cell = |text: String| match text.strip_suffix(']').and_then(|text| text.split_once(" [")) {
        Some((number, interval)) => (number.to_owned(), Some(interval.replace(", ", " to "))),
        None => (text, None),
    };
    PageTable {
        caption: "Jobs that differ in their seeds only share a row".into(),
        columns: rows.head.clone(),
        rows: rows.cells().into_iter().map(|row| row.into_iter().map(cell).collect()).collect(),
    }
}

fn shown(e: Estimate) -> (String, Option<String>) {
    (format!("{:.2}", e.value), e.interval.map(|(low, high)| format!("{low:.2} to {high:.2}")))
}

fn label(keys: &std::collections::BTreeMap<String, String>) -> (String, Option<String>) {
    (keys.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join(", "), None)
}

fn section(title: &str, head: &[&str], rows: Vec<Vec<(String, Option<String>)>>) -> Option<Section> {
    let columns = head.iter().map(|&name| name.to_owned()).collect();
    let table = PageTable { caption: title.to_owned(), columns, rows };
    (!table.rows.is_empty()).then(|| Section {
        title: title.into(),
        tables: vec![table],
        ..Section::default()
    })
}

fn chosen(results: &Results) -> Option<Section> {
    let row =
        |c: &super::Chosen| vec![label(&c.keys), label(&c.choice), (c.at.clone(), None), shown(c.two_sided)];
    let head = ["for", "chosen", "by the margin at", "two-sided"];
    section("Chosen on the validation pairs", &head, results.chosen.iter().map(row).collect())
}

fn contrasts(results: &Results) -> Option<Section> {
    let (_, reported) = results.reported();
    let row = |c: &super::Contrast| {
        let ratio = c.ratio.map_or(("\u{2013}".into(), None), shown);
        vec![label(&c.of), label(&c.over), (c.at.clone(), None), shown(c.difference), ratio]
    };
    let head = ["of", "over", "at", "difference", "ratio"];
    section("Methods on the same questions", &head, reported.contrasts.iter().map(row).collect())
}
