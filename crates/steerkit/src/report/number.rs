//! Numbers as people read them.

/// A number in about `digits` significant digits: a true minus sign, thousands apart, no needless zeros;
/// very large and very small ones as `1.2e9`. `n/a` when it is not finite.
pub(super) fn compact(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "n/a".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let rounded: f64 = format!("{value:.*e}", digits.max(1) - 1).parse().expect("a formatted number parses");
    let magnitude = rounded.abs().log10().floor() as i32;
    if !(-4..9).contains(&magnitude) {
        return scientific(rounded);
    }
    let decimals = (digits as i32 - 1 - magnitude).max(0) as usize;
    // Whole numbers keep their last digits: 12,345 steps are not 12,300.
    let shown = if decimals == 0 { value.round() } else { rounded };
    fixed(shown, decimals, true)
}

/// A number with a given number of decimals, thousands apart, trailing zeros dropped when `trim`.
pub(super) fn fixed(value: f64, decimals: usize, trim: bool) -> String {
    if !value.is_finite() {
        return "n/a".into();
    }
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let fraction = if trim { fraction.trim_end_matches('0') } else { fraction };
    let zero = whole.bytes().chain(fraction.bytes()).all(|b| b == b'0');
    let mut out = String::from(if value < 0.0 && !zero { "\u{2212}" } else { "" });
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// A multiplier with its sign: `+1`, `−0.5`, `0`.
pub(super) fn signed(value: f64) -> String {
    let text = compact(value, 3);
    if value > 0.0 { format!("+{text}") } else { text }
}

/// A duration in seconds as `0.8 s`, `42 s`, `3 min 5 s`, `2 h 10 min`.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "n/a".into();
    }
    let whole = seconds.round();
    let (hours, minutes) = ((whole / 3600.0).floor(), (whole % 3600.0 / 60.0).floor());
    if seconds < 9.95 {
        format!("{} s", fixed(seconds, 1, true))
    } else if whole < 60.0 {
        format!("{} s", fixed(whole, 0, true))
    } else if whole < 3600.0 {
        format!("{} min {} s", fixed(minutes, 0, true), fixed(whole % 60.0, 0, true))
    } else {
        format!("{} h {} min", fixed(hours, 0, true), fixed(minutes, 0, true))
    }
}

/// A number as `1.2e9`, with at most four significant digits and true minus signs.
pub(super) fn scientific(value: f64) -> String {
    let rounded: f64 = format!("{value:.3e}").parse().expect("a formatted number parses");
    format!("{rounded:e}").replace('-', "\u{2212}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_numbers() {
        let cases = [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.5, "\u{2212}1.5"),
            (0.123_456, "0.123"),
            (0.999_96, "1"),
            (12.345, "12.3"),
            (12_345.0, "12,345"),
            (1_234_567.8, "1,234,568"),
            (1.5e12, "1.5e12"),
            (-2.5e-7, "\u{2212}2.5e\u{2212}7"),
            (f64::NAN, "n/a"),
        ];
        for (value, text) in cases {
            assert_eq!(compact(value, 3), text);
        }
    }

    #[test]
    fn fixed_numbers_never_say_minus_zero() {
        assert_eq!(fixed(-0.001, 2, false), "0.00");
        assert_eq!(fixed(0.5, 2, false), "0.50");
        assert_eq!(fixed(100.0, 2, true), "100");
        assert_eq!(signed(0.5), "+0.5");
        assert_eq!(signed(-2.0), "\u{2212}2");
    }

    #[test]
    fn durations() {
        assert_eq!(duration(0.84), "0.8 s");
        assert_eq!(duration(9.97), "10 s");
        assert_eq!(duration(59.6), "1 min 0 s");
        assert_eq!(duration(185.0), "3 min 5 s");
        assert_eq!(duration(7800.0), "2 h 10 min");
        assert_eq!(duration(f64::INFINITY), "n/a");
    }
}
