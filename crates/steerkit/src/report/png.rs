//! Charts as PNG, for slides and for places that show no SVG.

use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use super::chart::{COLOURS, Chart, LIGHT, RULES};

/// Pixels for a unit of the drawing: 1440 pixels across.
const SCALE: f32 = 3.0;

/// The only fonts that are used, so that a chart looks the same on every machine; see `fonts/README.md`.
static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(include_bytes!("../../fonts/DejaVuSans.ttf").to_vec());
    fonts.load_font_data(include_bytes!("../../fonts/DejaVuSans-Bold.ttf").to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    fonts.set_serif_family("DejaVu Sans");
    Arc::new(fonts)
});

impl Chart {
    /// The chart in the colours of the light page as the bytes of a PNG file, 1440 pixels wide. Characters outside
    /// Latin, Greek, Cyrillic and common mathematical signs have no glyph and are left out.
    pub fn png(&self) -> Vec<u8> {
        let options = Options { fontdb: FONTS.clone(), ..Options::default() };
        let tree = Tree::from_str(&self.styled_svg(&style()), &options).expect("a chart is SVG");
        let size = tree.size().to_int_size().scale_by(SCALE).expect("a chart has a size");
        let mut pixels = Pixmap::new(size.width(), size.height()).expect("a chart is small");
        resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
        pixels.encode_png().expect("pixels have a PNG form")
    }
}

/// The rules of the light page without custom properties, which the renderer does not know.
fn style() -> String {
    let mut style = String::from(".chart .paper{fill:var(--paper)}\n");
    for rule in RULES.lines().filter(|rule| !rule.contains("{--c:")) {
        match rule.contains("var(--c)") {
            true => (0..COLOURS).for_each(|series| {
                let rule = rule.replacen(".chart ", &format!(".chart .s{series} "), 1);
                style += &rule.replace("var(--c)", &format!("var(--series-{series})"));
                style.push('\n');
            }),
            false => style.extend([rule, "\n"]),
        }
    }
    LIGHT
        .split(';')
        .filter_map(|property| property.split_once(':'))
        .fold(style, |style, (name, colour)| style.replace(&format!("var({name})"), colour))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Point, Series};

    fn pixels(chart: &Chart) -> Pixmap {
        Pixmap::decode_png(&chart.png()).expect("a PNG")
    }

    fn count(pixels: &Pixmap, rows: std::ops::Range<usize>, is: impl Fn([u8; 3]) -> bool) -> usize {
        let width = pixels.width() as usize;
        pixels.pixels()[rows.start * width..rows.end * width]
            .iter()
            .filter(|p| is([p.red(), p.green(), p.blue()]))
            .count()
    }

    fn line(label: &str, y: f64) -> Series {
        let points =
            [-1.0, 0.0, 1.0].map(|x| Point { x, y: y * x, interval: Some((y * x - 0.5, y * x + 0.5)) });
        Series { label: label.into(), points: points.to_vec(), ..Series::default() }
    }

    #[test]
    fn every_custom_property_is_resolved() {
        let style = style();
        assert!(!style.contains("var(") && !style.contains("--"), "{style}");
        assert!(style.contains(".chart .s5 .mark{fill:#56606b"), "{style}");
    }

    #[test]
    fn lines_and_words_are_drawn_on_paper() {
        let chart = Chart {
            id: "c".into(),
            title: "Margin".into(),
            series: vec![line("BiPO", 2.0), line("CAA", 1.0)],
            ..Chart::default()
        };
        let with = pixels(&chart);
        assert_eq!(with.width(), 1440);
        let all = 0..with.height() as usize;
        assert_eq!(with.pixels()[0].demultiply().red(), 255, "the corner is paper");
        for colour in [[0x00, 0x72, 0xb2], [0xd5, 0x5e, 0x00]] {
            assert!(count(&with, all.clone(), |p| p == colour) > 1000, "{colour:?}");
        }
        // Dark pixels of the title's row are its letters.
        let dark = |pixels: &Pixmap| count(pixels, 40..100, |p| p.iter().all(|&c| c < 90));
        let without = pixels(&Chart { title: " ".into(), ..chart });
        assert!(dark(&with) > dark(&without) + 500, "{} {}", dark(&with), dark(&without));
    }
}
