//! `report.html` of a sweep.

use super::rows::Rows;
use super::table::Results;
use crate::report::HeatMap;
use crate::report::escape::escape;
use crate::text_stats::Estimate;

/// Nothing may be loaded or run; the colours follow the reader's setting.
const HEAD: &str = "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
    <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
    <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>Sweep</title>\n<style>\n\
    :root{color-scheme:light dark}\nbody{font:16px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;\
    padding:0 1rem}\n.scroll{overflow-x:auto}\ntable{border-collapse:collapse;font-variant-numeric:tabular-nums}\n\
    th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}\n\
    td:first-child,th:first-child{text-align:left}\n</style>\n</head>\n<body>\n<h1>Sweep</h1>\n";

/// The page: the table, the heat map, what was chosen, how methods compare, what failed.
pub(super) fn page(results: &Results, map: &HeatMap) -> String {
    let (split, table) = results.reported();
    let rows = results.table();
    let counts = [(table.done, "done"), (table.failed, "failed"), (table.missing, "not run")];
    let counts: Vec<String> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let lead = format!(
        "Jobs: {}. Relative margins on the {} pairs in nats, at plus and at minus each strength, and half of the \
         difference (two-sided), with 95% bootstrap intervals over questions.",
        counts.join(", "),
        split.name()
    );
    let mut out = format!("{HEAD}<p>{}</p>\n<section>\n<h2>Margins</h2>\n", escape(&lead));
    main_table(&mut out, &rows);
    out.push_str("</section>\n<section>\n<h2>Heat map</h2>\n<figure class=\"scroll\">\n");
    out.push_str(&map.svg());
    out.push_str("</figure>\n</section>\n");
    chosen(&mut out, results);
    contrasts(&mut out, results);
    if !rows.notes.is_empty() {
        out.push_str("<section>\n<h2>Failed jobs and notes</h2>\n<ul>\n");
        rows.notes.iter().for_each(|note| out.push_str(&format!("<li>{}</li>\n", escape(note))));
        out.push_str("</ul>\n</section>\n");
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn table(out: &mut String, head: &[String], rows: &[Vec<String>]) {
    let cell = |tag: &str, text: &String| format!("<{tag}>{}</{tag}>", escape(text));
    out.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    head.iter().for_each(|name| out.push_str(&cell("th", name)));
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        row.iter().for_each(|text| out.push_str(&cell("td", text)));
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
}

fn main_table(out: &mut String, rows: &Rows) {
    table(out, &rows.head, &rows.cells());
}

fn shown(e: Estimate) -> String {
    match e.interval {
        Some((low, high)) => format!("{:.2} [{low:.2}, {high:.2}]", e.value),
        None => format!("{:.2}", e.value),
    }
}

fn label(keys: &std::collections::BTreeMap<String, String>) -> String {
    keys.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join(", ")
}

fn chosen(out: &mut String, results: &Results) {
    if results.chosen.is_empty() {
        return;
    }
    out.push_str("<section>\n<h2>Chosen on the validation pairs</h2>\n");
    let head = ["for", "chosen", "by the margin at", "two-sided"].map(str::to_owned);
    let row = |c: &super::Chosen| vec![label(&c.keys), label(&c.choice), c.at.clone(), shown(c.two_sided)];
    table(out, &head, &results.chosen.iter().map(row).collect::<Vec<_>>());
    out.push_str("</section>\n");
}

fn contrasts(out: &mut String, results: &Results) {
    let (_, reported) = results.reported();
    if reported.contrasts.is_empty() {
        return;
    }
    out.push_str("<section>\n<h2>Methods on the same questions</h2>\n");
    let head = ["of", "over", "at", "difference", "ratio"].map(str::to_owned);
    let row = |c: &super::Contrast| {
        let ratio = c.ratio.map_or("-".into(), shown);
        vec![label(&c.of), label(&c.over), c.at.clone(), shown(c.difference), ratio]
    };
    table(out, &head, &reported.contrasts.iter().map(row).collect::<Vec<_>>());
    out.push_str("</section>\n");
}
