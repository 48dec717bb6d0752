//! Text that did not come from this program, made safe and honest to show.

use std::fmt::Write;

/// `text` for an HTML or XML text node or a double-quoted attribute.
///
/// Characters that would act rather than show are replaced by a visible name: control characters other than
/// tab and line feed, and Unicode's bidirectional controls, which can reorder the page around them
/// ("Trojan Source", CVE-2021-42574). Zero-width characters and noncharacters are named as well.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // A line break written as two characters is one line break.
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' | '\t' => out.push(c),
            c if acts(c) => write!(out, "[U+{:04X}]", u32::from(c)).expect("a String takes any text"),
            c => out.push(c),
        }
    }
    out
}

/// True for characters that change how others show, or that do not show at all.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' // bidi
            | '\u{200b}' | '\u{2060}' | '\u{feff}' // zero width
            | '\u{fff9}'..='\u{fffb}' // interlinear annotation
            | '\u{e0000}'..='\u{e007f}') // tags: invisible copies of ASCII
        || u32::from(c) & 0xfffe == 0xfffe
        || matches!(c, '\u{fdd0}'..='\u{fdef}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_text() {
        assert_eq!(
            escape("<script>alert(\"a\" & 'b')</script>"),
            "&lt;script&gt;alert(&quot;a&quot; &amp; &#39;b&#39;)&lt;/script&gt;"
        );
    }

    #[test]
    fn controls_are_shown_by_name() {
        assert_eq!(escape("a\u{202e}b\u{2066}c\0d\u{1b}[31m"), "a[U+202E]b[U+2066]c[U+0000]d[U+001B][31m");
        assert_eq!(escape("one\r\ntwo\tthree\n"), "one\ntwo\tthree\n");
        assert_eq!(escape("\r\u{feff}\u{ffff}"), "[U+000D][U+FEFF][U+FFFF]");
        assert_eq!(escape("日本語 שלום 👩\u{200d}🔬"), "日本語 שלום 👩\u{200d}🔬");
    }
}
