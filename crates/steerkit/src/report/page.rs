//! A page of sections: the frame of any report that is not about one training run.

use std::fmt::Write;

use super::chart::Chart;
use super::escape::escape;
use super::html;
use super::{Comparison, HeatMap, ReportProvenance};

/// A page of facts, sections with figures and tables, answers, and provenance. As [`super::Report`], it loads
/// nothing and follows the reader's light or dark setting.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// What kind of page it is, above the title.
    pub kicker: String,
    /// The title.
    pub title: String,
    /// The result in a sentence.
    pub lead: String,
    /// Warnings and remarks.
    pub notes: Vec<String>,
    /// Names and values at the head.
    pub facts: Vec<(String, String)>,
    /// The body.
    pub sections: Vec<Section>,
    /// What answers are called by their multiplier: `towards {behavior}`.
    pub behavior: String,
    /// Answers side by side.
    pub answers: Vec<Comparison>,
    /// How it can be repeated and checked.
    pub provenance: ReportProvenance,
}

/// Figures and tables under a heading.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// A sentence about it.
    pub about: String,
    /// Figures with their captions.
    pub charts: Vec<(Chart, String)>,
    /// Tables.
    pub tables: Vec<PageTable>,
    /// A heat map, below the rest.
    pub map: Option<HeatMap>,
}

/// A table of texts; the first column names the rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PageTable {
    /// What it shows.
    pub caption: String,
    /// Heads of the columns.
    pub columns: Vec<String>,
    /// Cells, each with what stands small below it.
    pub rows: Vec<Vec<(String, Option<String>)>>,
}

impl Page {
    /// The page.
    pub fn html(&self) -> String {
        let mut out = html::head(&self.title, &escape(&self.kicker), &escape(&self.lead));
        html::notes(&mut out, &self.notes);
        html::fact_list(&mut out, &self.facts);
        out.push_str("</header>\n");
        for section in &self.sections {
            section.html(&mut out);
        }
        html::answers(&mut out, &self.answers, &self.behavior);
        html::provenance(&mut out, &self.provenance);
        html::end(&mut out);
        out
    }
}

impl Section {
    fn html(&self, out: &mut String) {
        let about = escape(&self.about);
        let _ = write!(out, "<section>\n<h2>{}</h2>\n<p class=\"about\">{about}</p>\n", escape(&self.title));
        if !self.charts.is_empty() {
            let (charts, captions): (Vec<Chart>, Vec<String>) = self.charts.iter().cloned().unzip();
            html::gallery(out, &charts, &captions);
        }
        for table in &self.tables {
            table.html(out);
        }
        if let Some(map) = &self.map {
            let _ = write!(out, "<figure class=\"scroll\">\n{}</figure>\n", map.svg());
        }
        out.push_str("</section>\n");
    }
}

impl PageTable {
    fn html(&self, out: &mut String) {
        let _ = write!(
            out,
            "<div class=\"panel scroll\"><table>\n<caption>{}</caption>\n<thead><tr>",
            escape(&self.caption)
        );
        let class: Vec<&str> = (0..self.columns.len()).map(|at| self.class(at)).collect();
        for (column, class) in self.columns.iter().zip(&class) {
            let _ = write!(out, "<th scope=\"col\"{class}>{}</th>", escape(column));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (at, (text, small)) in row.iter().enumerate() {
                let (open, close) = if at == 0 { ("<th scope=\"row\"", "</th>") } else { ("<td", "</td>") };
                let class = class.get(at).copied().unwrap_or_default();
                let small =
                    small.as_ref().map(|s| format!("<small>{}</small>", escape(s))).unwrap_or_default();
                let _ = write!(out, "{open}{class}>{}{small}{close}", escape(text));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n</table></div>\n");
    }
    /// Columns of words begin at the left, those of numbers end at the right.
    fn class(&self, column: usize) -> &'static str {
        let is_word = |(text, _): &(String, Option<String>)| text.starts_with(char::is_alphabetic);
        match self.rows.iter().filter_map(|row| row.get(column)).any(is_word) {
            true => " class=\"words\"",
            false => "",
        }
    }
}
