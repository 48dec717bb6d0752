//! The page around the figures.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::chart::{Chart, DARK, LIGHT, RULES};
use super::escape::escape;
use super::figures::{self, capitalized};
use super::lead::{lead, surface_format};
use super::number::{compact, duration};
use super::scale::TickFormat;
use super::{Comparison, Dose, Report, ReportProvenance, RunFacts, Shade};
use crate::text_stats::Estimate;

const STYLE: &str = include_str!("style.css");
/// Makes tables sortable; the page is whole without it.
const SCRIPT: &str = include_str!("sort.js");

/// Nothing may be loaded: no network; the page's own styles, and its one script by its hash.
fn policy() -> String {
    let sum = STANDARD.encode(Sha256::digest(SCRIPT));
    format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{sum}'; img-src data:; base-uri 'none'; \
         form-action 'none'"
    )
}

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let title = format!("{} on {}", capitalized(&report.run.behavior), report.run.model);
    let mut out = head(&title, "Steering vector", &lead(report));
    notes(&mut out, &report.notes);
    facts(&mut out, &report.run);
    out.push_str("</header>\n");
    effect(&mut out, report);
    answers(&mut out, &report.answers, &report.run.behavior);
    damage(&mut out, report);
    training(&mut out, report);
    provenance(&mut out, &report.provenance);
    end(&mut out);
    out
}

/// The end of a page.
pub(super) fn end(out: &mut String) {
    put(out, format_args!("</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"));
}

/// The beginning of a page up to its lead, which is HTML; the header is left open.
pub(super) fn head(title: &str, kicker: &str, lead: &str) -> String {
    let (title, policy) = (escape(title), policy());
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n\
         :root{{color-scheme:light dark;--page:#f6f8fa;{LIGHT}}}\n\
         @media screen and (prefers-color-scheme:dark){{:root{{--page:#0d1014;{DARK}}}}}\n{RULES}{STYLE}</style>\n\
         </head>\n<body>\n<main>\n<header>\n<p class=\"kicker\">{kicker}</p>\n<h1>{title}</h1>\n\
         <p class=\"lead\">{lead}</p>\n"
    )
}

pub(super) fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes any text");
}

pub(super) fn notes(out: &mut String, notes: &[String]) {
    if notes.is_empty() {
        return;
    }
    out.push_str("<ul class=\"notes\">\n");
    for note in notes {
        put(out, format_args!("<li>{}</li>\n", escape(note)));
    }
    out.push_str("</ul>\n");
}

fn facts(out: &mut String, run: &RunFacts) {
    let count = |n: f64| compact(n, 3);
    let dose = run.relative_dose.map(|dose| compact(dose, 3));
    let facts = [
        ("Behaviour", Some(run.behavior.clone())),
        ("Method", Some(run.method.clone())),
        ("Model", Some(run.model.clone())),
        ("Layer", Some(format!("{} of {}", run.layer, run.n_layers))),
        ("Norm", Some(compact(run.norm, 4))),
        ("Relative dose", dose),
        ("Training pairs", Some(count(run.train_pairs as f64))),
        ("Held-out pairs", Some(count(run.held_out_pairs as f64))),
        ("Pair-passes", Some(count(run.pair_passes as f64))),
        ("Training time", Some(duration(run.seconds))),
        ("Seed", Some(run.seed.to_string())),
    ];
    let facts = facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    fact_list(out, &facts.collect::<Vec<_>>());
}

/// Names and values side by side.
pub(super) fn fact_list(out: &mut String, facts: &[(String, String)]) {
    out.push_str("<dl class=\"facts\">\n");
    for (name, value) in facts {
        let class = if matches!(name.as_str(), "Model" | "Judge") { " class=\"wide\"" } else { "" };
        let (name, value) = (escape(name), escape(value));
        put(out, format_args!("<div{class}><dt>{name}</dt><dd>{value}</dd></div>\n"));
    }
    out.push_str("</dl>\n");
}

fn effect(out: &mut String, report: &Report) {
    let charts = figures::effect(report);
    if report.doses.is_empty() {
        return;
    }
    out.push_str(
        "<section>\n<h2>Effect of the multiplier</h2>\n<p class=\"about\">The vector is added at every position, times \
         the multiplier: above 0 towards the chosen answers, below 0 away from them, 0 is the plain model. Bars are \
         intervals, where they were estimated.</p>\n",
    );
    let captions = [
        "How much likelier than before the chosen answer has become, relative to the rejected one, in summed \
         log-probabilities; 0 at multiplier 0."
            .to_string(),
        "The share of held-out pairs whose margin moved in the direction of the multiplier; at 0 nothing moves.".to_string(),
        report.surface.definition().to_string(),
    ];
    gallery(out, &charts, &captions);
    dose_table(out, report);
    out.push_str("</section>\n");
}

fn damage(out: &mut String, report: &Report) {
    let charts = figures::damage(report);
    if charts.iter().all(Chart::is_empty) {
        return;
    }
    out.push_str(
        "<section>\n<h2>Damage to the text</h2>\n<p class=\"about\">Steering too strongly makes a model ramble or \
         loop. Rising perplexity and falling variety show where.</p>\n",
    );
    let captions = [
        "How surprising the generated answers are to the plain model; a loop can be unsurprising, so read it together \
         with the variety."
            .to_string(),
        "Different word trigrams over all word trigrams of the answers: 1 is no repetition.".to_string(),
    ];
    gallery(out, &charts, &captions);
    out.push_str("</section>\n");
}

fn training(out: &mut String, report: &Report) {
    let charts = figures::training(report);
    if charts.iter().all(Chart::is_empty) {
        return;
    }
    out.push_str(
        "<section>\n<h2>Training</h2>\n<p class=\"about\">A pair-pass is one pair run forward and backward in one \
         direction.</p>\n",
    );
    let captions = [
        "Mean loss of the pairs of a step, before its update.".to_string(),
        "Margin on pairs that the training never saw, with the vector as it was at that moment.".to_string(),
    ];
    gallery(out, &charts, &captions);
    out.push_str("</section>\n");
}

/// Figures that have data, each with its caption and its data as a table.
pub(super) fn gallery(out: &mut String, charts: &[Chart], captions: &[String]) {
    out.push_str("<div class=\"charts\">\n");
    for (chart, caption) in charts.iter().zip(captions).filter(|(chart, _)| !chart.is_empty()) {
        put(out, format_args!("<figure>\n{}<figcaption>{}</figcaption>\n", chart.svg(), escape(caption)));
        chart_table(out, chart);
        out.push_str("</figure>\n");
    }
    out.push_str("</div>\n");
}

/// The points of a chart as a table that opens on demand.
fn chart_table(out: &mut String, chart: &Chart) {
    let mut xs: Vec<f64> = chart.series.iter().flat_map(|s| chart.drawn(s)).map(|p| p.x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    put(
        out,
        format_args!(
            "<details>\n<summary>Data</summary>\n<div class=\"scroll\"><table>\n<caption>{}</caption>\n<thead><tr>\
             <th scope=\"col\">{}</th>",
            escape(&format!("{}: {}", chart.title, chart.y.caption())),
            escape(&chart.x.caption())
        ),
    );
    for series in &chart.series {
        put(out, format_args!("<th scope=\"col\">{}</th>", escape(&series.label)));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    let values: Vec<f64> = chart.series.iter().flat_map(|s| chart.drawn(s)).map(|p| p.y).collect();
    let write = column_format(&values, chart.y.format);
    for x in xs {
        put(out, format_args!("<tr><th scope=\"row\">{}</th>", chart.x.format.value(x)));
        for series in &chart.series {
            let found = chart.drawn(series).find(|p| p.x == x);
            let shown = found.map(|p| Estimate { value: p.y, interval: chart.interval(p) });
            cell(out, shown, &write);
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n</details>\n");
}

/// A table cell: the value, and below it the interval.
fn cell(out: &mut String, estimate: Option<Estimate>, write: &dyn Fn(f64) -> String) {
    let Some(estimate) = estimate else { return out.push_str("<td>\u{2013}</td>") };
    put(out, format_args!("<td>{}", write(estimate.value)));
    if let Some((low, high)) = estimate.interval {
        put(out, format_args!("<small>{} to {}</small>", write(low), write(high)));
    }
    out.push_str("</td>");
}

/// How the numbers of a column are written: with the same decimals throughout, three significant digits for the
/// largest; each for itself when all are above 0 and they differ by orders of magnitude.
fn column_format(values: &[f64], format: TickFormat) -> impl Fn(f64) -> String + use<> {
    let largest = values.iter().copied().map(f64::abs).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let far_apart = smallest > 0.0 && largest > 300.0 * smallest;
    let alike = format == TickFormat::Percent || (1e-2..1e6).contains(&largest) && !far_apart;
    let decimals = if largest > 0.0 { (2 - largest.log10().floor() as i32).clamp(0, 4) as usize } else { 0 };
    move |value| if alike { format.value_with(value, decimals) } else { format.value(value) }
}

/// A column of the dose table: heading, unit, how its numbers are written, where they come from.
type Column = (String, &'static str, TickFormat, fn(&Dose) -> Option<Estimate>);

fn dose_table(out: &mut String, report: &Report) {
    let surface = capitalized(report.surface.name());
    let columns: [Column; 5] = [
        ("Margin".into(), "nats", TickFormat::Plain, |d| d.margin),
        ("Accuracy".into(), "", TickFormat::Percent, |d| d.accuracy),
        (surface, report.surface.unit(), surface_format(report.surface), |d| d.surface),
        ("Perplexity".into(), "", TickFormat::Plain, |d| d.perplexity),
        ("Distinct-3".into(), "", TickFormat::Plain, |d| d.distinct_3),
    ];
    let columns: Vec<&Column> =
        columns.iter().filter(|(_, _, _, get)| report.doses.iter().any(|d| get(d).is_some())).collect();
    out.push_str(
        "<div class=\"panel scroll\"><table>\n<caption>Dose and response</caption>\n<thead><tr>\
         <th scope=\"col\">Multiplier</th>",
    );
    for (heading, unit, _, _) in &columns {
        put(out, format_args!("<th scope=\"col\">{}<small>{unit}</small></th>", escape(heading)));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    let writes: Vec<_> = columns
        .iter()
        .map(|(_, _, format, get)| {
            let values: Vec<f64> =
                report.doses.iter().filter_map(get).map(|estimate| estimate.value).collect();
            column_format(&values, *format)
        })
        .collect();
    for dose in &report.doses {
        let class = if dose.multiplier == 0.0 { " class=\"plain\"" } else { "" };
        put(
            out,
            format_args!("<tr{class}><th scope=\"row\">{}</th>", TickFormat::Signed.value(dose.multiplier)),
        );
        for ((_, _, _, get), write) in columns.iter().zip(&writes) {
            cell(out, get(dose), write);
        }
        out.push_str("</tr>\n");
    }
    out.push_str(
        "</tbody>\n</table></div>\n<p class=\"about\">Small print: intervals. Accuracy at 0 is the share of pairs whose \
         chosen answer the plain model finds likelier.</p>\n",
    );
}

pub(super) fn answers(out: &mut String, comparisons: &[Comparison], behavior: &str) {
    answers_of(out, "Answers side by side", comparisons, behavior);
}

/// A section of answers under a heading.
pub(super) fn answers_of(out: &mut String, heading: &str, comparisons: &[Comparison], behavior: &str) {
    if comparisons.is_empty() {
        return;
    }
    put(
        out,
        format_args!(
            "<section>\n<h2>{}</h2>\n<p class=\"about\">The same question, the same sampling, and only \
             the multiplier differs. The texts are the model's own: they are examples of behaviour, not of fact.</p>\n",
            escape(heading)
        ),
    );
    if comparisons.iter().flat_map(|comparison| &comparison.answers).any(|answer| !answer.shades.is_empty()) {
        out.push_str(SHADING);
    }
    for comparison in comparisons {
        put(
            out,
            format_args!(
                "<article class=\"panel\">\n<h3>{}</h3>\n<div class=\"columns\">\n",
                escape(comparison.question.trim())
            ),
        );
        for answer in &comparison.answers {
            let (class, says) = match answer.multiplier {
                m if m > 0.0 => (" toward", format!("towards {behavior}")),
                m if m < 0.0 => (" away", format!("away from {behavior}")),
                _ => ("", "plain model".to_string()),
            };
            let text = match answer.text.trim() {
                "" => "<p class=\"none\">(empty answer)</p>".to_string(),
                text => format!("<p dir=\"auto\">{}</p>", shaded(text, &answer.shades)),
            };
            put(
                out,
                format_args!(
                    "<div class=\"answer{class}\"><h4><b>{}</b> {}</h4>{text}</div>\n",
                    TickFormat::Signed.value(answer.multiplier),
                    escape(&says)
                ),
            );
        }
        out.push_str("</div>\n</article>\n");
    }
    out.push_str("</section>\n");
}

/// What the shades mean.
const SHADING: &str = "<p class=\"about\">Shades show what steering changed: tokens of an answer that it makes \
    <span class=\"up2\">likelier</span> or <span class=\"down2\">less likely</span> than the plain model finds them, by at \
    least 0.25, 1 or 2.5 nats. A pointer resting on one reads the change.</p>\n";

/// A text with its tokens shaded; what follows them is as it is.
fn shaded(text: &str, shades: &[Shade]) -> String {
    let mut out = String::new();
    let mut rest = text;
    for shade in shades {
        let Some(behind) = rest.strip_prefix(&shade.text) else { return escape(text) };
        rest = behind;
        let level = [0.25, 1.0, 2.5].iter().filter(|&&least| shade.change.abs() >= least).count();
        let side = if shade.change > 0.0 { "up" } else { "down" };
        match level {
            0 => out.push_str(&escape(&shade.text)),
            _ => put(
                &mut out,
                format_args!(
                    "<span class=\"{side}{level}\" title=\"{:+.2} nats\">{}</span>",
                    shade.change,
                    escape(&shade.text)
                ),
            ),
        }
    }
    out + &escape(rest)
}

pub(super) fn provenance(out: &mut String, provenance: &ReportProvenance) {
    if *provenance == ReportProvenance::default() {
        return;
    }
    out.push_str(
        "<section>\n<h2>Provenance</h2>\n<p class=\"about\">What it takes to repeat and to check this run.</p>\n\
         <div class=\"panel\">\n",
    );
    let rows = provenance.versions.iter().chain(&provenance.hashes);
    out.push_str("<table class=\"origin\"><tbody>\n");
    if !provenance.command.is_empty() {
        put(
            out,
            format_args!("<tr><th scope=\"row\">command</th><td>{}</td></tr>\n", escape(&provenance.command)),
        );
    }
    for (name, value) in rows {
        put(
            out,
            format_args!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escape(name), escape(value)),
        );
    }
    out.push_str("</tbody></table>\n");
    if !provenance.recipe.is_empty() {
        put(
            out,
            format_args!(
                "<details>\n<summary>Recipe (TOML)</summary>\n<pre>{}</pre>\n</details>\n",
                escape(&provenance.recipe)
            ),
        );
    }
    out.push_str("</div>\n</section>\n");
}
