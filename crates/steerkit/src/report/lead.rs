//! The sentences at the head of a report: what was trained, and what it does, in words.

use super::escape::escape;
use super::number::{compact, duration};
use super::scale::TickFormat;
use super::{Dose, Report};
use crate::surface::SurfaceMetric;
use crate::text_stats::Estimate;

/// The lead as sentences of HTML; only what was measured is said.
pub(super) fn lead(report: &Report) -> String {
    let run = &report.run;
    let trained = format!(
        "A steering vector for <strong>{}</strong> was trained with {} on {} preference pairs in {}. It is added to \
         the residual stream of {} after block {} of {} (counted from 0); a multiplier sets how strongly and in which direction.",
        escape(&run.behavior),
        escape(&run.method),
        compact(run.train_pairs as f64, 3),
        duration(run.seconds),
        escape(&run.model),
        run.layer,
        run.n_layers,
    );
    [Some(trained), margins(report), surface(report), damage(report)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" ")
}

fn margins(report: &Report) -> Option<String> {
    let (up, down) = (value(report, 1.0, |d| d.margin)?, value(report, -1.0, |d| d.margin)?);
    Some(format!(
        "On {} held-out pairs it changes the log-probability margin of the chosen over the rejected answer by \
         {} nats at +1 and by {} nats at \u{2212}1.",
        compact(report.run.held_out_pairs as f64, 3),
        TickFormat::Signed.value(up),
        TickFormat::Signed.value(down),
    ))
}

fn surface(report: &Report) -> Option<String> {
    let at = |multiplier| value(report, multiplier, |d| d.surface);
    let (down, plain, up) = (at(-1.0)?, at(0.0)?, at(1.0)?);
    let format = surface_format(report.surface);
    let unit =
        if report.surface == SurfaceMetric::PremiseChecking { "of answers" } else { report.surface.unit() };
    Some(format!(
        "In generated answers the {} is {} at \u{2212}1, {} without the vector and {} at +1 ({unit}).",
        report.surface.name(),
        format.value(down),
        format.value(plain),
        format.value(up),
    ))
}

fn damage(report: &Report) -> Option<String> {
    let at = |multiplier| value(report, multiplier, |d| d.perplexity);
    let (down, plain, up) = (at(-1.0)?, at(0.0)?, at(1.0)?);
    Some(format!(
        "Their perplexity under the plain model is {}, {} and {}.",
        compact(down, 3),
        compact(plain, 3),
        compact(up, 3)
    ))
}

/// How values of a surface metric are written.
pub(super) fn surface_format(metric: SurfaceMetric) -> TickFormat {
    if metric == SurfaceMetric::PremiseChecking { TickFormat::Percent } else { TickFormat::Plain }
}

fn value(report: &Report, multiplier: f64, get: impl Fn(&Dose) -> Option<Estimate>) -> Option<f64> {
    get(report.dose(multiplier)?).map(|estimate| estimate.value).filter(|value| value.is_finite())
}
