//! Small line and point charts as SVG: text in, text out.
//!
//! Colours are CSS custom properties, so that one drawing serves the light and the dark page; a standalone file
//! carries its own style sheet. Series differ in colour (Okabe and Ito's palette, which colour-blind readers can
//! tell apart), in dash and in the shape of their marks.

use std::fmt::Write;
use std::path::Path;

use super::escape::escape;
use super::scale::{Scale, TickFormat};
use crate::Result;
use crate::files::write_atomic;

/// Width of the drawing in its own units; it scales to the width it is given.
const WIDTH: f64 = 480.0;
/// Height of the plot itself, without title, legend and labels.
const PLOT_HEIGHT: f64 = 190.0;
/// Distance of everything from the edges.
const PAD: f64 = 14.0;
/// Height of the line that names the vertical axis, above the plot.
const CAPTION_ROW: f64 = 38.0;
/// A line with more points than this is drawn without marks.
const MAX_MARKS: usize = 40;
/// Values beyond this are left out like NaN: no axis could show them beside others.
const MAX_VALUE: f64 = 1e30;

/// Series that differ in colour, dash and mark.
pub(super) const COLOURS: usize = 7;

/// Colours of the light page.
pub(super) const LIGHT: &str = "--paper:#fff;--ink:#1b1f24;--muted:#59636e;--grid:#e3e7eb;--axis:#8b949e;\
    --series-0:#0072b2;--series-1:#d55e00;--series-2:#007f5f;--series-3:#a2478b;\
    --series-4:#7a6a00;--series-5:#56606b;--series-6:#5747b5";
/// Colours of the dark page.
pub(super) const DARK: &str = "--paper:#15191e;--ink:#e6e9ec;--muted:#9da7b1;--grid:#2c333a;--axis:#6e7781;\
    --series-0:#56b4e9;--series-1:#f0883e;--series-2:#3fc79a;--series-3:#e08fc4;\
    --series-4:#d9c84a;--series-5:#b6bfc9;--series-6:#b3a6ff";
/// Rules for the classes that a chart uses; the page that holds charts includes them once.
pub(super) const RULES: &str = "\
.chart{display:block;width:100%;height:auto;font-family:system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif;font-size:13px}
.chart text{fill:var(--ink)}
.chart .name{font-size:15px;font-weight:600}
.chart .soft{fill:var(--muted)}
.chart .grid{stroke:var(--grid);stroke-width:1}
.chart .axis{stroke:var(--axis);stroke-width:1}
.chart .reference{stroke:var(--muted);stroke-width:1.25;stroke-dasharray:2 4;stroke-linecap:round}
.chart .s0{--c:var(--series-0)}
.chart .s1{--c:var(--series-1)}
.chart .s2{--c:var(--series-2)}
.chart .s3{--c:var(--series-3)}
.chart .s4{--c:var(--series-4)}
.chart .s5{--c:var(--series-5)}
.chart .s6{--c:var(--series-6)}
.chart .line{fill:none;stroke:var(--c);stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
.chart .s1 .line{stroke-dasharray:7 4}
.chart .s2 .line{stroke-dasharray:2 4.5}
.chart .s3 .line{stroke-dasharray:9 4 2 4}
.chart .s4 .line{stroke-dasharray:14 5}
.chart .s5 .line{stroke-dasharray:4 3}
.chart .s6 .line{stroke-dasharray:12 4 2 4 2 4}
.chart .faint .line{stroke-width:1.25;stroke-dasharray:none;opacity:.4}
.chart .band{fill:var(--c);opacity:.16}
.chart .bar{fill:none;stroke:var(--c);stroke-width:1.5}
.chart .mark{fill:var(--c);stroke:var(--paper);stroke-width:1.5}
";

/// A point, with the interval of its y where there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Place along the horizontal axis.
    pub x: f64,
    /// Value; a point with a NaN or infinite coordinate is left out.
    pub y: f64,
    /// Lower and upper end of the interval of `y`.
    pub interval: Option<(f64, f64)>,
}

/// How intervals are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spread {
    /// A bar with caps at each point.
    #[default]
    Bars,
    /// A shaded band along the line.
    Band,
}

/// One line of points, drawn in the order given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// Name for the legend.
    pub label: String,
    /// The points.
    pub points: Vec<Point>,
    /// How intervals are drawn.
    pub spread: Spread,
    /// Drawn thin and pale, as raw data behind a smoothed line.
    pub faint: bool,
}

/// One axis.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Axis {
    /// What is measured.
    pub label: String,
    /// Its unit, shown after the label.
    pub unit: String,
    /// How its numbers are written.
    pub format: TickFormat,
    /// The range to show; found from the data when not given.
    pub range: Option<(f64, f64)>,
    /// Logarithmic; only values above 0 are drawn. For the vertical axis only, and without a fixed range.
    pub log: bool,
}

impl Axis {
    /// Label and unit as one text.
    pub(super) fn caption(&self) -> String {
        if self.unit.is_empty() { self.label.clone() } else { format!("{} ({})", self.label, self.unit) }
    }
}

/// A horizontal line to compare with.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Its height.
    pub value: f64,
    /// What it stands for.
    pub label: String,
}

/// A chart. Render it with [`Chart::svg`], [`Chart::standalone_svg`] or [`Chart::png`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chart {
    /// Short name in letters, digits and hyphens: the prefix of element ids in a page, and a file stem.
    pub id: String,
    /// Shown above the chart.
    pub title: String,
    /// What the chart shows, for readers who cannot see it; the first and last point of each series are added.
    pub description: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Lines; the seventh has the colour of the first.
    pub series: Vec<Series>,
    /// A horizontal line to compare with.
    pub reference: Option<Reference>,
}

impl Chart {
    /// The chart as an `<svg>` element for a page that defines the colours and rules.
    pub fn svg(&self) -> String {
        Drawing::new(self).render(None)
    }

    /// The chart as a complete SVG file, which follows the reader's light or dark setting.
    pub fn standalone_svg(&self) -> String {
        let style = format!(
            ":root{{{LIGHT}}}\n@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}\n\
             .chart .paper{{fill:var(--paper)}}\n{RULES}"
        );
        self.styled_svg(&style)
    }

    /// The chart as a complete SVG file with a style sheet.
    pub(super) fn styled_svg(&self, style: &str) -> String {
        Drawing::new(self).render(Some(style))
    }

    /// Writes `ID.svg` and `ID.png` into `folder`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_atomic(&folder.join(format!("{}.svg", self.id)), self.standalone_svg().as_bytes())?;
        write_atomic(&folder.join(format!("{}.png", self.id)), &self.png())?;
        Ok(())
    }

    /// True when no point can be drawn.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|series| self.drawn(series).next().is_none())
    }

    /// The points of a series that can be drawn.
    pub(super) fn drawn<'a>(&'a self, series: &'a Series) -> impl Iterator<Item = &'a Point> {
        series.points.iter().filter(|p| shows(p.x) && self.shows_y(p.y))
    }

    fn shows_y(&self, y: f64) -> bool {
        shows(y) && (!self.y.log || y > 1.0 / MAX_VALUE)
    }

    /// The interval of a point, when both its ends can be drawn.
    pub(super) fn interval(&self, point: &Point) -> Option<(f64, f64)> {
        point.interval.filter(|&(low, high)| self.shows_y(low) && self.shows_y(high))
    }

    /// The description with the ends of every series.
    fn spoken(&self) -> String {
        let mut text = self.description.clone();
        let (x, y) = (|v| self.x.format.value(v), |v| self.y.format.value(v));
        for series in &self.series {
            let (Some(first), Some(last)) = (self.drawn(series).next(), self.drawn(series).last()) else {
                continue;
            };
            let _ = write!(
                text,
                " {}: {} at {}, {} at {}.",
                series.label,
                y(first.y),
                x(first.x),
                y(last.y),
                x(last.x)
            );
        }
        text.trim().to_string()
    }
}

fn shows(value: f64) -> bool {
    value.is_finite() && value.abs() <= MAX_VALUE
}

/// A chart on its way to SVG: the scales, and where things lie.
struct Drawing<'a> {
    chart: &'a Chart,
    title: Vec<String>,
    /// Legend entries: series, left edge, row.
    legend: Vec<(usize, f64, usize)>,
    x: Scale,
    y: Scale,
    /// Left, top, right and bottom of the plot.
    plot: (f64, f64, f64, f64),
    out: String,
}

impl<'a> Drawing<'a> {
    fn new(chart: &'a Chart) -> Self {
        let points = || chart.series.iter().flat_map(|series| chart.drawn(series));
        let ys = points()
            .flat_map(|p| {
                let (low, high) = chart.interval(p).unwrap_or((p.y, p.y));
                [p.y, low, high]
            })
            .chain(chart.reference.iter().map(|r| r.value).filter(|&v| chart.shows_y(v)));
        let y = match chart.y.log {
            true => Scale::log(ys),
            false => Scale::linear(ys, chart.y.range, true, chart.y.format),
        };
        let x = Scale::linear(points().map(|p| p.x), chart.x.range, false, chart.x.format);
        let title = wrap(&chart.title, 54);
        let legend = legend_places(chart);
        let legend_rows = legend.last().map_or(0, |entry| entry.2 + 1);
        let left = PAD + 8.5 * y.label_chars() as f64 + 8.0;
        let top = PAD + 19.0 * title.len() as f64 + 20.0 * legend_rows as f64 + CAPTION_ROW;
        let plot = (left, top, WIDTH - PAD - 8.0, top + PLOT_HEIGHT);
        let (x, y) = (x.over(plot.0, plot.2), y.over(plot.3, plot.1));
        Self { chart, title, legend, x, y, plot, out: String::new() }
    }

    fn render(mut self, style: Option<&str>) -> String {
        let height = self.plot.3 + 50.0;
        let id = escape(&self.chart.id);
        let (title, spoken) = (escape(&self.chart.title), escape(&self.chart.spoken()));
        self.put(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             aria-labelledby=\"{id}-title {id}-desc\">\n<title id=\"{id}-title\">{title}</title>\n\
             <desc id=\"{id}-desc\">{spoken}</desc>\n"
        ));
        if let Some(style) = style {
            self.put(format_args!("<style>\n{style}</style>\n"));
            self.put(format_args!("<rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>\n"));
        }
        self.head();
        self.axes();
        self.reference();
        for (index, series) in self.chart.series.iter().enumerate() {
            self.series(index, series);
        }
        if self.chart.is_empty() {
            let (left, top, right, bottom) = self.plot;
            self.text((left + right) / 2.0, (top + bottom) / 2.0, "soft", "middle", "no data");
        }
        self.out.push_str("</svg>\n");
        self.out
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.out.write_fmt(text).expect("a String takes any text");
    }

    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = escape(text);
        self.put(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>\n"
        ));
    }

    fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.put(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>\n"
        ));
    }

    /// Title and legend.
    fn head(&mut self) {
        for (row, line) in std::mem::take(&mut self.title).iter().enumerate() {
            self.text(PAD, PAD + 14.0 + 19.0 * row as f64, "name", "start", line);
        }
        let first_row =
            self.plot.1 - CAPTION_ROW - 20.0 * self.legend.last().map_or(0, |entry| entry.2 + 1) as f64;
        for (index, left, row) in std::mem::take(&mut self.legend) {
            let y = first_row + 14.0 + 20.0 * row as f64;
            let series = &self.chart.series[index];
            self.open_series(index, series);
            self.put(format_args!("<path class=\"line\" d=\"M{left:.1} {y:.1}h24\"/>\n"));
            if !series.faint {
                self.mark(index, left + 12.0, y, None);
            }
            self.out.push_str("</g>\n");
            self.text(left + 31.0, y + 4.5, "", "start", &series.label);
        }
    }

    /// Grid, ticks and axis labels.
    fn axes(&mut self) {
        let (left, top, right, bottom) = self.plot;
        for tick in std::mem::take(&mut self.y.ticks) {
            let y = self.y.pixel(tick.value);
            let class = if tick.value == 0.0 { "axis" } else { "grid" };
            self.line(class, (left, y), (right, y));
            self.text(left - 8.0, y + 4.5, "soft", "end", &tick.label);
        }
        for tick in std::mem::take(&mut self.x.ticks) {
            let x = self.x.pixel(tick.value);
            if tick.value == 0.0 && self.x.holds(0.0) {
                self.line("grid", (x, top), (x, bottom));
            }
            self.line("axis", (x, bottom), (x, bottom + 5.0));
            self.text(x, bottom + 20.0, "soft", "middle", &tick.label);
        }
        self.line("axis", (left, bottom), (right, bottom));
        self.text(PAD, top - 17.0, "soft", "start", &self.chart.y.caption());
        self.text((left + right) / 2.0, bottom + 41.0, "soft", "middle", &self.chart.x.caption());
    }

    fn reference(&mut self) {
        let Some(reference) = self.chart.reference.as_ref().filter(|r| self.chart.shows_y(r.value)) else {
            return;
        };
        let (left, _, right, _) = self.plot;
        let y = self.y.pixel(reference.value);
        self.line("reference", (left, y), (right, y));
        self.text(right, y - 6.0, "soft", "end", &reference.label);
    }

    fn open_series(&mut self, index: usize, series: &Series) {
        let faint = if series.faint { " faint" } else { "" };
        self.put(format_args!("<g class=\"s{}{faint}\">\n", index % COLOURS));
    }

    fn series(&mut self, index: usize, series: &Series) {
        let points: Vec<&Point> = self.chart.drawn(series).collect();
        if points.is_empty() {
            return;
        }
        self.open_series(index, series);
        match series.spread {
            Spread::Band => self.band(&points),
            Spread::Bars => self.bars(&points),
        }
        if points.len() > 1 {
            let path = self.path(points.iter().map(|p| (p.x, p.y)));
            self.put(format_args!("<path class=\"line\" d=\"M{path}\"/>\n"));
        }
        if points.len() <= MAX_MARKS && !(series.faint && points.len() > 1) {
            for point in points {
                let tip = self.tip(point);
                self.mark(index, self.x.pixel(point.x), self.y.pixel(point.y), Some(&tip));
            }
        }
        self.out.push_str("</g>\n");
    }

    /// Pixel pairs of some points, apart by spaces, as path data after its first letter.
    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let pixels: Vec<String> =
            points.map(|(x, y)| format!("{:.1} {:.1}", self.x.pixel(x), self.y.pixel(y))).collect();
        pixels.join("L")
    }

    /// A band through the points that have intervals.
    fn band(&mut self, points: &[&Point]) {
        let spans: Vec<(f64, (f64, f64))> =
            points.iter().filter_map(|p| self.chart.interval(p).map(|span| (p.x, span))).collect();
        if spans.len() < 2 {
            return self.bars(points);
        }
        let upper = spans.iter().map(|&(x, (_, high))| (x, high));
        let lower = spans.iter().rev().map(|&(x, (low, _))| (x, low));
        let path = self.path(upper.chain(lower));
        self.put(format_args!("<path class=\"band\" d=\"M{path}Z\"/>\n"));
    }

    fn bars(&mut self, points: &[&Point]) {
        for point in points {
            let Some((low, high)) = self.chart.interval(point) else { continue };
            let (x, low, high) = (self.x.pixel(point.x), self.y.pixel(low), self.y.pixel(high));
            let cap = x - 4.0;
            self.put(format_args!(
                "<path class=\"bar\" d=\"M{cap:.1} {high:.1}h8M{x:.1} {high:.1}V{low:.1}M{cap:.1} {low:.1}h8\"/>\n"
            ));
        }
    }

    /// What a pointer resting on a mark reads.
    fn tip(&self, point: &Point) -> String {
        let (x, y) = (|v| self.chart.x.format.value(v), |v| self.chart.y.format.value(v));
        let interval = match self.chart.interval(point) {
            Some((low, high)) => format!(" [{}, {}]", y(low), y(high)),
            None => String::new(),
        };
        format!("{} at {}{interval}", y(point.y), x(point.x))
    }

    /// The mark of a series: circle, square, triangle, diamond, triangle on its tip, upright cross, diagonal cross.
    fn mark(&mut self, index: usize, x: f64, y: f64, tip: Option<&str>) {
        let shape = match index % COLOURS {
            0 => "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
            1 => "m-4 -4h8v8h-8z",
            2 => "m0 -5.5l5 9h-10z",
            3 => "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
            4 => "m0 5.5l5 -9h-10z",
            5 => "m-1.8 -5h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
            _ => {
                "m-4.9 -2.5l2.4 -2.4l2.5 2.5l2.5 -2.5l2.4 2.4l-2.5 2.5l2.5 2.5l-2.4 2.4l-2.5 -2.5l-2.5 2.5l-2.4 -2.4l2.5 -2.5z"
            }
        };
        let tip = tip.map(|tip| format!("<title>{}</title>", escape(tip))).unwrap_or_default();
        self.put(format_args!("<path class=\"mark\" d=\"M{x:.1} {y:.1}{shape}\">{tip}</path>\n"));
    }
}

/// Where the legend's entries go; none for a single series without a name.
fn legend_places(chart: &Chart) -> Vec<(usize, f64, usize)> {
    if chart.series.len() < 2 {
        return Vec::new();
    }
    let (mut left, mut row) = (PAD, 0);
    let mut places = Vec::new();
    for (index, series) in chart.series.iter().enumerate() {
        let width = 31.0 + 8.2 * series.label.chars().count() as f64 + 16.0;
        if left > PAD && left + width > WIDTH {
            (left, row) = (PAD, row + 1);
        }
        places.push((index, left, row));
        left += width;
    }
    places
}

/// Words in lines of at most `width` characters; a longer word has a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}
