//! A table of numbers as coloured cells: cosines, or a sweep's results.

use std::fmt::Write;

use super::escape::escape;

/// A heat map, signed around 0: blue below, red above.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// What it shows.
    pub title: String,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The numbers, row by row; none where there is nothing to show.
    pub cells: Vec<Vec<Option<f64>>>,
}

/// Width of a cell in pixels, at least, and with a long name above it at most.
const WIDTH: [usize; 2] = [84, 160];
/// Height of a cell.
const HEIGHT: usize = 28;
/// Pixels per character of a label, generously.
const CHARACTER: usize = 8;

impl HeatMap {
    /// The map as an SVG file of its own.
    pub fn svg(&self) -> String {
        let label = self.rows.iter().map(|r| r.chars().count()).max().unwrap_or(0) * CHARACTER + 16;
        let longest = self.columns.iter().map(|c| c.chars().count()).max().unwrap_or(0);
        let cell_width = (longest * CHARACTER).clamp(WIDTH[0], WIDTH[1]);
        let (width, height) = (label + self.columns.len() * cell_width + 8, 64 + self.rows.len() * HEIGHT);
        let most = self.cells.iter().flatten().flatten().map(|x| x.abs()).fold(0.0, f64::max);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
             {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
             fill=\"#ffffff\"/>\n<text x=\"8\" y=\"20\" font-size=\"14\">{}</text>\n",
            escape(&self.title)
        );
        let mut text = |x: usize, y: usize, anchor: &str, what: &str| {
            let what = escape(what);
            writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{what}</text>")
                .expect("writing to a string");
        };
        let left = |column: usize| label + column * cell_width;
        for (c, name) in self.columns.iter().enumerate() {
            let short: String = name.chars().take(cell_width / CHARACTER + 1).collect();
            text(left(c) + cell_width / 2, 46, "middle", &short);
        }
        for (r, name) in self.rows.iter().enumerate() {
            text(label - 8, 56 + r * HEIGHT + 18, "end", name);
        }
        for (r, row) in self.cells.iter().enumerate() {
            for (c, cell) in row.iter().enumerate() {
                let Some(value) = cell else { continue };
                let (x, y) = (left(c), 56 + r * HEIGHT);
                let share = if most > 0.0 { value / most } else { 0.0 };
                let ink = if share.abs() > 0.6 { "#ffffff" } else { "#1a1a1a" };
                writeln!(
                    out,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>\n<text x=\"{}\" y=\"{}\" \
                     text-anchor=\"middle\" fill=\"{ink}\">{value:.2}</text>",
                    cell_width - 2,
                    HEIGHT - 2,
                    colour(share),
                    x + cell_width / 2,
                    y + 18
                )
                .expect("writing to a string");
            }
        }
        out.push_str("</svg>\n");
        out
    }
}

/// White at 0, towards blue at -1 and red at 1.
fn colour(share: f64) -> String {
    let end = if share < 0.0 { [33, 102, 172] } else { [178, 24, 43] };
    let mix = |to: i32| (255.0 + (f64::from(to) - 255.0) * share.abs().min(1.0)).round() as i32;
    format!("#{:02x}{:02x}{:02x}", mix(end[0]), mix(end[1]), mix(end[2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_names() {
        assert_eq!(
            (colour(0.0), colour(1.0), colour(-1.0)),
            ("#ffffff".into(), "#b2182b".into(), "#2166ac".into())
        );
        let map = HeatMap {
            title: "cosines <of> vectors".into(),
            rows: vec!["a & b".into()],
            columns: vec!["c".into(), "d".into()],
            cells: vec![vec![Some(-0.5), None]],
        };
        let svg = map.svg();
        assert!(svg.contains("&lt;of&gt;") && svg.contains("a &amp; b") && svg.contains("-0.50"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2);
    }
}
