//! The figures of a report.

use super::chart::{Axis, Chart, Point, Reference, Series, Spread};
use super::scale::TickFormat;
use super::{Dose, Report};
use crate::surface::SurfaceMetric;
use crate::text_stats::Estimate;

/// A training curve with more steps than this is shown by its running mean.
const SMOOTH_FROM: usize = 40;
/// A curve keeps at most this many points.
const MAX_POINTS: usize = 240;

/// Every figure, also those without data.
pub(super) fn all(report: &Report) -> Vec<Chart> {
    let mut charts = effect(report);
    charts.extend(damage(report));
    charts.extend(training(report));
    charts
}

/// Margin, accuracy and surface metric against the multiplier.
pub(super) fn effect(report: &Report) -> Vec<Chart> {
    let surface = report.surface;
    let measured = |id: &str, title: &str, y: Axis, get: &dyn Fn(&Dose) -> Option<Estimate>| {
        against_multiplier(report, id, title, y, get)
    };
    let nats = Axis { label: "margin".into(), unit: "nats".into(), ..Axis::default() };
    let share = Axis { label: "accuracy".into(), unit: "% of pairs".into(), ..percent() };
    let counted = match surface {
        SurfaceMetric::PremiseChecking => Axis { unit: "% of answers".into(), ..percent() },
        _ => Axis { unit: surface.unit().into(), ..Axis::default() },
    };
    vec![
        measured("margin", "Held-out margin against multiplier", nats, &|dose| dose.margin),
        Chart {
            reference: Some(Reference { value: 0.5, label: "chance".into() }),
            ..measured("accuracy", "Held-out accuracy against multiplier", share, &|dose| {
                dose.accuracy.filter(|_| dose.multiplier != 0.0)
            })
        },
        measured(
            "surface",
            &format!("{} against multiplier", capitalized(surface.name())),
            Axis { label: surface.name().into(), ..counted },
            &|dose| dose.surface,
        ),
    ]
}

/// Perplexity and distinct-3 against the multiplier.
pub(super) fn damage(report: &Report) -> Vec<Chart> {
    let perplexities: Vec<f64> = report
        .doses
        .iter()
        .filter_map(|dose| dose.perplexity)
        .map(|p| p.value)
        .filter(|v| v.is_finite())
        .collect();
    let low = perplexities.iter().copied().fold(f64::INFINITY, f64::min);
    let high = perplexities.iter().copied().fold(0.0, f64::max);
    // Past some multiplier perplexity explodes; a linear axis would hide everything before.
    let log = low > 0.0 && high > 15.0 * low;
    let unit = if log { "log scale" } else { "" };
    let plain = report.dose(0.0);
    let at_plain = |get: &dyn Fn(&Dose) -> Option<Estimate>| {
        let value = plain.and_then(get)?.value;
        Some(Reference { value, label: "plain model".into() })
    };
    let perplexity =
        Axis { label: "perplexity under the plain model".into(), unit: unit.into(), log, ..Axis::default() };
    let distinct = Axis { label: "distinct-3".into(), range: Some((0.0, 1.0)), ..Axis::default() };
    vec![
        Chart {
            reference: at_plain(&|dose| dose.perplexity),
            ..against_multiplier(report, "perplexity", "Perplexity of the answers", perplexity, &|dose| {
                dose.perplexity
            })
        },
        Chart {
            reference: at_plain(&|dose| dose.distinct_3),
            ..against_multiplier(report, "distinct", "Variety of the answers", distinct, &|dose| {
                dose.distinct_3
            })
        },
    ]
}

/// Training loss and held-out margin against pair-passes.
pub(super) fn training(report: &Report) -> Vec<Chart> {
    let x = || Axis { label: "pair-passes".into(), ..Axis::default() };
    let loss: Vec<Point> = report
        .training
        .iter()
        .map(|p| Point { x: p.pair_passes as f64, y: p.loss, interval: None })
        .collect();
    let mut curves = vec![Series { label: "each step".into(), points: thinned(&loss), ..Series::default() }];
    if loss.len() > SMOOTH_FROM {
        let window = loss.len() / 20;
        curves[0].faint = true;
        curves.push(Series {
            label: format!("mean of {window} steps"),
            points: thinned(&running_mean(&loss, window)),
            ..Series::default()
        });
        // The smoothed curve is the one to read: it has the first colour and a full line.
        curves.swap(0, 1);
    }
    let mut multipliers: Vec<f64> = report.held_out.iter().map(|p| p.multiplier).collect();
    multipliers.sort_by(|a, b| b.total_cmp(a));
    multipliers.dedup();
    let margins = multipliers.iter().map(|&multiplier| {
        let points = report.held_out.iter().filter(|p| p.multiplier == multiplier);
        let points: Vec<Point> = points.map(|p| point(p.pair_passes as f64, p.margin)).collect();
        Series {
            label: format!("multiplier {}", TickFormat::Signed.value(multiplier)),
            points: thinned(&points),
            spread: Spread::Band,
            faint: false,
        }
    });
    vec![
        Chart {
            id: "loss".into(),
            title: "Training loss".into(),
            description: "Mean training loss of each step against pair-passes done.".into(),
            x: x(),
            y: Axis { label: "loss".into(), unit: "nats".into(), ..Axis::default() },
            series: curves,
            reference: None,
        },
        Chart {
            id: "held-out-margin".into(),
            title: "Held-out margin during training".into(),
            description: "Mean margin on held-out pairs against pair-passes done.".into(),
            x: x(),
            y: Axis { label: "margin".into(), unit: "nats".into(), ..Axis::default() },
            series: margins.collect(),
            reference: None,
        },
    ]
}

fn against_multiplier(
    report: &Report,
    id: &str,
    title: &str,
    y: Axis,
    get: &dyn Fn(&Dose) -> Option<Estimate>,
) -> Chart {
    let points = report.doses.iter().filter_map(|dose| Some(point(dose.multiplier, get(dose)?))).collect();
    Chart {
        id: id.into(),
        title: title.into(),
        description: format!("{} against the multiplier of the vector.", capitalized(&y.caption())),
        x: Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() },
        series: vec![Series { label: y.label.clone(), points, ..Series::default() }],
        y,
        reference: None,
    }
}

fn percent() -> Axis {
    Axis { format: TickFormat::Percent, range: Some((0.0, 1.0)), ..Axis::default() }
}

pub(super) fn point(x: f64, estimate: Estimate) -> Point {
    Point { x, y: estimate.value, interval: estimate.interval }
}

/// At most [`MAX_POINTS`] evenly spaced points, the first and the last among them.
fn thinned(points: &[Point]) -> Vec<Point> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    (0..MAX_POINTS).map(|i| points[i * (points.len() - 1) / (MAX_POINTS - 1)]).collect()
}

/// The mean of each point and the `window - 1` before it; fewer at the start. Points without a value are left out.
fn running_mean(points: &[Point], window: usize) -> Vec<Point> {
    let known: Vec<Point> = points.iter().filter(|p| p.y.is_finite()).copied().collect();
    (0..known.len())
        .map(|i| {
            let last = &known[(i + 1).saturating_sub(window.max(1))..=i];
            Point { y: last.iter().map(|p| p.y).sum::<f64>() / last.len() as f64, ..known[i] }
        })
        .collect()
}

/// The text with its first letter in upper case.
pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
