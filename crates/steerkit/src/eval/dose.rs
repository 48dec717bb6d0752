//! Behaviour against damage over a grid of multipliers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::damage::{self, DamagePoint, DamageSpec, measure_damage};
use super::findings::{Cell, Findings, Style, Table};
use super::pairs;
use super::preference::{PreferencePoint, measure_pairs};
use super::spec::data_of;
use super::subject::{Subject, Watch};
use crate::Result;
use crate::data::ColumnMap;
use crate::report::{Axis, Chart, Point, Reference, Series, TickFormat};

/// A grid of multipliers, and what damage is too much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoseSpec {
    /// Pairs whose margin is the behaviour.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// Which columns hold prompt, chosen and rejected.
    #[serde(default)]
    pub columns: ColumnMap,
    /// What damage a recommended multiplier may do.
    #[serde(default)]
    pub limits: DamageLimits,
    /// How damage is measured.
    #[serde(default)]
    pub damage: DamageSpec,
}

/// What damage a recommended multiplier may do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DamageLimits {
    /// Mean KL(steered || plain) per token on the steered texts in nats.
    pub kl: f64,
    /// Median perplexity over the plain model's.
    pub perplexity_ratio: f64,
    /// Distinct-3 over the plain model's, at least.
    pub distinct_ratio: f64,
    /// Share of refusals above the plain model's.
    pub refusals: f64,
}

impl Default for DamageLimits {
    fn default() -> Self {
        Self { kl: 0.5, perplexity_ratio: 2.0, distinct_ratio: 0.85, refusals: 0.1 }
    }
}

impl DamageLimits {
    /// The limits that a point breaks.
    pub fn broken(&self, point: &DamagePoint, plain: &DamagePoint) -> Vec<&'static str> {
        // What could not be measured breaks its limit.
        let kept = [
            ("KL", point.kl_own.value <= self.kl),
            ("perplexity", point.perplexity_ratio <= self.perplexity_ratio),
            ("distinct-3", point.distinct_3_ratio >= self.distinct_ratio),
            ("refusals", point.refusals.value - plain.refusals.value <= self.refusals),
        ];
        kept.into_iter().filter(|(_, kept)| !kept).map(|(name, _)| name).collect()
    }
}

impl DoseSpec {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let DamageLimits { kl, perplexity_ratio, distinct_ratio, refusals } = self.limits;
        let limits = [
            ("kl", kl),
            ("perplexity_ratio", perplexity_ratio),
            ("distinct_ratio", distinct_ratio),
            ("refusals", refusals),
        ];
        match limits.into_iter().find(|(_, limit)| limit.is_nan() || *limit < 0.0) {
            Some((key, found)) => Err((key, format!("found {found}, expected a number from 0"))),
            None => self.damage.check(),
        }
    }
}

/// The multipliers around 0 up to which every measured one stays within the limits: `(lowest, highest)`.
pub fn recommended(multipliers: &[f64], within: &[bool]) -> (f64, f64) {
    let mut both: Vec<(f64, bool)> = multipliers.iter().copied().zip(within.iter().copied()).collect();
    both.sort_by(|a, b| a.0.abs().total_cmp(&b.0.abs()));
    let furthest = |sign: f64| {
        let side = both.iter().filter(|(m, _)| m * sign > 0.0);
        side.take_while(|(_, within)| *within).last().map_or(0.0, |(m, _)| *m)
    };
    (furthest(-1.0), furthest(1.0))
}

/// Runs the evaluation.
pub(super) fn run(spec: &DoseSpec, subject: &Subject<'_>, watch: &mut Watch<'_>) -> Result<Findings> {
    let mut data = pairs::read(subject, data_of(spec.data.as_ref())?, &spec.columns)?;
    let texts = pairs::tokens(subject, &data.pairs, false, &mut data.notes)?;
    let behaviour = measure_pairs(subject, &texts, watch)?.points;
    let cost = measure_damage(&spec.damage, subject, watch)?;
    let plain = &cost.points[subject.plain()];
    let broken: Vec<Vec<&str>> = cost.points.iter().map(|point| spec.limits.broken(point, plain)).collect();
    let within: Vec<bool> = broken.iter().map(Vec::is_empty).collect();
    let range = recommended(&subject.multipliers(), &within);
    let mut notes = data.notes;
    let ends = [subject.multipliers().first().copied(), subject.multipliers().last().copied()];
    if [range.0, range.1].iter().any(|end| *end != 0.0 && ends.contains(&Some(*end))) {
        notes.push("the range ends where the grid ends: stronger multipliers may be fine too".into());
    }
    Ok(Findings {
        lead: lead(range, &spec.limits, &behaviour),
        tables: vec![table(&behaviour, &cost.points, &broken), damage::table(&cost)],
        charts: charts(&behaviour, &cost.points, &spec.limits),
        notes,
        answers: cost.answers.clone(),
        data: std::iter::once((data.path, data.sha256)).chain(cost.data.clone()).collect(),
        results: json!({
            "pairs": texts.len(),
            "recommended": { "low": range.0, "high": range.1 },
            "limits": spec.limits,
            "broken": broken,
            "behaviour": behaviour,
            "damage": cost.points,
        }),
        ..Findings::default()
    })
}

fn lead(range: (f64, f64), limits: &DamageLimits, behaviour: &[PreferencePoint]) -> String {
    let margin = |at: f64| {
        let found = behaviour.iter().find(|point| point.means.multiplier == at);
        Style::Signed.write(found.map_or(f64::NAN, |point| point.margin.value))
    };
    let (low, high) = range;
    let limits = format!(
        "KL {} nats per token, perplexity x{}, distinct-3 x{}, refusals +{}",
        limits.kl,
        limits.perplexity_ratio,
        limits.distinct_ratio,
        Style::Percent.write(limits.refusals)
    );
    if low == 0.0 && high == 0.0 {
        return format!("No measured multiplier but 0 stays within the limits ({limits}).");
    }
    format!(
        "Recommended: {} to {}, where the margin is {} and {} nats, within the limits ({limits}).",
        Style::Multiplier.write(low),
        Style::Multiplier.write(high),
        margin(low),
        margin(high)
    )
}

fn table(behaviour: &[PreferencePoint], cost: &[DamagePoint], broken: &[Vec<&str>]) -> Table {
    let mut table = Table::new(
        "dose-response",
        "Behaviour and damage by multiplier (95% bootstrap intervals)",
        &[
            ("multiplier", Style::Multiplier),
            ("margin", Style::Signed),
            ("moved right", Style::Percent),
            ("KL, own texts", Style::Plain),
            ("perplexity x", Style::Plain),
            ("distinct-3 x", Style::Plain),
            ("refusals", Style::Percent),
            ("over the limit", Style::Plain),
        ],
    );
    for ((behaviour, cost), broken) in behaviour.iter().zip(cost).zip(broken) {
        let zero = cost.multiplier == 0.0;
        table.row(vec![
            cost.multiplier.into(),
            behaviour.margin.into(),
            if zero { Cell::Empty } else { behaviour.means.accuracy.into() },
            cost.kl_own.into(),
            cost.perplexity_ratio.into(),
            cost.distinct_3_ratio.into(),
            cost.refusals.value.into(),
            broken.join(", ").as_str().into(),
        ]);
    }
    table
}

fn charts(
    behaviour: &[PreferencePoint],
    cost: &[DamagePoint],
    limits: &DamageLimits,
) -> Vec<(Chart, String)> {
    // One line from 0 outwards for each side.
    let side = |label: &str, sign: f64| {
        let mut points: Vec<(f64, Point)> = behaviour
            .iter()
            .zip(cost)
            .filter(|(point, _)| point.means.multiplier * sign >= 0.0)
            .map(|(point, cost)| {
                let p =
                    Point { x: cost.kl_own.value, y: point.margin.value, interval: point.margin.interval };
                (cost.multiplier.abs(), p)
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series {
            label: label.into(),
            points: points.into_iter().map(|(_, p)| p).collect(),
            ..Series::default()
        }
    };
    let pareto = Chart {
        id: "pareto".into(),
        title: "Behaviour against damage".into(),
        description: "Margin against divergence per token, one line for each direction.".into(),
        x: Axis { label: "KL per token".into(), unit: "nats".into(), ..Axis::default() },
        y: Axis { label: "relative margin".into(), unit: "nats".into(), ..Axis::default() },
        series: vec![side("multipliers above 0", 1.0), side("multipliers below 0", -1.0)],
        reference: None,
    };
    let line = |label: &str, of: &dyn Fn(&DamagePoint) -> f64| Series {
        label: label.into(),
        points: cost.iter().map(|p| Point { x: p.multiplier, y: of(p), interval: None }).collect(),
        ..Series::default()
    };
    let limit = Chart {
        id: "limits".into(),
        title: "Damage over its limit".into(),
        description: "Each kind of damage over what is allowed, against the multiplier.".into(),
        x: Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() },
        y: Axis { label: "damage / limit".into(), ..Axis::default() },
        series: vec![
            line("KL", &|p| p.kl_own.value / limits.kl),
            line("perplexity", &|p| p.perplexity_ratio / limits.perplexity_ratio),
            line("distinct-3", &|p| limits.distinct_ratio / p.distinct_3_ratio),
        ],
        reference: Some(Reference { value: 1.0, label: "limit".into() }),
    };
    let captions = [
        "Up and down is the behaviour, to the right is the cost: each mark is a multiplier, from 0 at the left outwards.",
        "Above 1 the limit is broken; the recommended range ends before the first multiplier that breaks one.",
    ];
    [pareto, limit].into_iter().zip(captions.map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_before_the_first_that_breaks_a_limit() {
        let grid = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0];
        assert_eq!(recommended(&grid, &[true, false, true, true, true, true, false]), (-0.5, 1.0));
        assert_eq!(recommended(&grid, &[true; 7]), (-2.0, 2.0));
        assert_eq!(recommended(&grid, &[false, false, false, true, false, true, true]), (0.0, 0.0));
        assert_eq!(recommended(&[0.0, 1.0], &[true, true]), (0.0, 1.0));
    }
}
