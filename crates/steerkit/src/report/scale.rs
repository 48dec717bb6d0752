//! From data to pixels: ranges, nice ticks and their labels.

use super::number::{compact, fixed};

/// How the numbers along an axis are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TickFormat {
    /// Plain numbers.
    #[default]
    Plain,
    /// With a sign, as multipliers are written: `−1`, `0`, `+1`.
    Signed,
    /// Shares as per cent: 0.5 is `50%`.
    Percent,
}

impl TickFormat {
    /// One value with about three significant digits, as tables write it.
    pub(super) fn value(self, value: f64) -> String {
        match self {
            Self::Plain => compact(value, 3),
            Self::Signed => super::number::signed(value),
            Self::Percent if !value.is_finite() => compact(value, 3),
            Self::Percent => format!("{}%", compact(100.0 * value, 3)),
        }
    }

    /// One value with a given number of decimals, as a column of a table writes it.
    pub(super) fn value_with(self, value: f64, decimals: usize) -> String {
        match self {
            Self::Plain => fixed(value, decimals, false),
            Self::Signed if value > 0.0 => format!("+{}", fixed(value, decimals, false)),
            Self::Signed => fixed(value, decimals, false),
            Self::Percent if !value.is_finite() => fixed(value, 0, false),
            Self::Percent => format!("{}%", fixed(100.0 * value, decimals.saturating_sub(2), false)),
        }
    }

    /// A tick label, with as many decimals as ticks `step` apart need.
    fn tick(self, value: f64, step: f64) -> String {
        let (value, step) = if self == Self::Percent { (100.0 * value, 100.0 * step) } else { (value, step) };
        let label = match decimals_of(step) {
            Some(decimals) if value.abs() < 1e6 => fixed(value, decimals, false),
            _ if value.abs() < step * 1e-6 => "0".into(),
            _ => super::number::scientific(value),
        };
        match self {
            Self::Plain => label,
            Self::Signed if value > step * 1e-6 => format!("+{label}"),
            Self::Signed => label,
            Self::Percent => format!("{label}%"),
        }
    }
}

/// How many decimals a step needs; none when more than six.
fn decimals_of(step: f64) -> Option<usize> {
    (0..=6)
        .find(|&d| {
            let scaled = step * 10f64.powi(d);
            (scaled - scaled.round()).abs() < 1e-6 * scaled && scaled >= 0.5
        })
        .map(|d| d as usize)
}

/// A mark on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

/// An axis: its range in data units, the pixels that it covers, its ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    range: (f64, f64),
    pixels: (f64, f64),
    log: bool,
    pub(super) ticks: Vec<Tick>,
}

impl Scale {
    /// A linear axis over `values`, which are finite. With `whole_ticks` the range is widened to ticks at both ends,
    /// otherwise by a little room. A `fixed` range is kept as it is.
    pub(super) fn linear(
        values: impl Iterator<Item = f64>,
        fixed: Option<(f64, f64)>,
        whole_ticks: bool,
        format: TickFormat,
    ) -> Self {
        let (low, high) = match fixed {
            Some((low, high)) if low < high => (low, high),
            _ => spread_out(extent(values).unwrap_or((0.0, 1.0))),
        };
        let step = nice_step((high - low) / 5.5);
        let widened =
            |value: f64, up: bool| if up { (value / step).ceil() } else { (value / step).floor() } * step;
        let range = match fixed {
            Some(_) => (low, high),
            None if whole_ticks => (widened(low, false), widened(high, true)),
            None => (low - 0.04 * (high - low), high + 0.04 * (high - low)),
        };
        let slack = 1e-9 * (range.1 - range.0);
        let first = ((range.0 - slack) / step).ceil();
        let ticks = (0..20)
            .map(|i| (first + f64::from(i)) * step)
            .take_while(|&value| value <= range.1 + slack)
            .map(|value| Tick { value, label: format.tick(value, step) })
            .collect();
        Self { range, pixels: (0.0, 1.0), log: false, ticks }
    }

    /// A logarithmic axis over `values`, which are finite and above 0, with ticks at 1, 2 and 5 of each decade, or
    /// at decades only when those are many.
    pub(super) fn log(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = extent(values).unwrap_or((1.0, 10.0));
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let marks = |factors: &[f64], stride: usize| -> Vec<f64> {
            let all: Vec<f64> = (first..=last.max(first + 1))
                .step_by(stride)
                .flat_map(|exponent| factors.iter().map(move |f| f * 10f64.powi(exponent)))
                .collect();
            // One mark at or below the data, one at or above it.
            let from = all.iter().rposition(|&v| v <= low * (1.0 + 1e-9)).unwrap_or(0);
            let to = all.iter().position(|&v| v >= high * (1.0 - 1e-9)).unwrap_or(all.len() - 1);
            all[from..=to.max(from)].to_vec()
        };
        let fine = marks(&[1.0, 2.0, 5.0], 1);
        let chosen = if fine.len() <= 7 { fine } else { marks(&[1.0], (last - first) as usize / 6 + 1) };
        let bounds = (chosen[0].min(low), chosen[chosen.len() - 1].max(high));
        let range = if bounds.0 < bounds.1 { bounds } else { (bounds.0 / 2.0, bounds.1 * 2.0) };
        let ticks = chosen.into_iter().map(|value| Tick { value, label: compact(value, 1) }).collect();
        Self { range, pixels: (0.0, 1.0), log: true, ticks }
    }

    /// The same axis laid over the pixels from `start` (lowest value) to `end`.
    pub(super) fn over(mut self, start: f64, end: f64) -> Self {
        self.pixels = (start, end);
        self
    }

    /// The pixel of a value; values outside a fixed range are drawn on its edge.
    pub(super) fn pixel(&self, value: f64) -> f64 {
        let place = |v: f64| if self.log { v.max(1e-30).ln() } else { v };
        let (low, high) = (place(self.range.0), place(self.range.1));
        let share = ((place(value) - low) / (high - low)).clamp(0.0, 1.0);
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// True when `value` lies strictly inside the range.
    pub(super) fn holds(&self, value: f64) -> bool {
        self.range.0 < value && value < self.range.1
    }

    /// Characters of the longest tick label.
    pub(super) fn label_chars(&self) -> usize {
        self.ticks.iter().map(|tick| tick.label.chars().count()).max().unwrap_or(0)
    }
}

/// Smallest and largest of some finite values.
pub(super) fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| match range {
        None => Some((v, v)),
        Some((low, high)) => Some((low.min(v), high.max(v))),
    })
}

/// A range of some width: equal (or nearly equal) ends move apart.
fn spread_out((low, high): (f64, f64)) -> (f64, f64) {
    let size = low.abs().max(high.abs());
    if high - low > 1e-9 * size.max(1e-30) {
        (low, high)
    } else if size < 1e-30 {
        (-1.0, 1.0)
    } else {
        (low - 0.1 * size, high + 0.1 * size)
    }
}

/// The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `raw`, which is above 0.
fn nice_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|f| f * power >= raw * (1.0 - 1e-9)).unwrap_or(10.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale) -> Vec<&str> {
        scale.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_nice() {
        let scale = Scale::linear([-1.3, 7.9].into_iter(), None, true, TickFormat::Plain);
        assert_eq!(labels(&scale), ["\u{2212}2", "0", "2", "4", "6", "8"]);
        let scale = Scale::linear([-2.0, 2.0].into_iter(), None, false, TickFormat::Signed);
        assert_eq!(labels(&scale), ["\u{2212}2", "\u{2212}1", "0", "+1", "+2"]);
        let scale = Scale::linear([0.4].into_iter(), Some((0.0, 1.0)), true, TickFormat::Percent);
        assert_eq!(labels(&scale), ["0%", "20%", "40%", "60%", "80%", "100%"]);
        let scale = Scale::linear([0.0, 48_000.0].into_iter(), None, true, TickFormat::Plain);
        assert_eq!(labels(&scale), ["0", "10,000", "20,000", "30,000", "40,000", "50,000"]);
    }

    #[test]
    fn degenerate_ranges_have_some_ticks() {
        for values in
            [vec![], vec![0.0], vec![5.0, 5.0], vec![1e16, 1e16 + 2.0], vec![-1e30, 1e30], vec![1e-320, 0.0]]
        {
            for whole in [true, false] {
                let scale =
                    Scale::linear(values.iter().copied(), None, whole, TickFormat::Plain).over(0.0, 100.0);
                assert!((2..=12).contains(&scale.ticks.len()), "{values:?} {:?}", scale.ticks);
                assert!(values.iter().all(|&v| (0.0..=100.0).contains(&scale.pixel(v))), "{values:?}");
            }
        }
    }

    #[test]
    fn log_ticks() {
        assert_eq!(labels(&Scale::log([12.0, 480.0].into_iter())), ["10", "20", "50", "100", "200", "500"]);
        assert_eq!(
            labels(&Scale::log([3.0, 40_000.0].into_iter())),
            ["1", "10", "100", "1,000", "10,000", "100,000"]
        );
        assert_eq!(labels(&Scale::log([1.0].into_iter())), ["1"]);
        let far = Scale::log([1e-9, 1e20].into_iter()).over(0.0, 10.0);
        assert!(far.ticks.len() <= 8, "{:?}", far.ticks);
        assert!((far.pixel(1e20) - 10.0).abs() < 1.0);
    }
}
