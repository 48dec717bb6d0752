//! Margins and accuracies on preference pairs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::findings::{Cell, Findings, Style, Table};
use super::pairs;
use super::scoring::{Prompted, score, sum};
use super::spec::data_of;
use super::stats::{differences, mean, mean_difference, sign_test};
use super::subject::{Subject, Watch};
use crate::Result;
use crate::data::ColumnMap;
use crate::objective::PairLogps;
use crate::report::{Axis, Chart, Point, Reference, Series, TickFormat};
use crate::text_stats::Estimate;
use crate::train::{EvalPoint, Measured};

/// What to measure pairs of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreferenceSpec {
    /// Pairs: CSV, JSONL or Parquet as for training, or Anthropic's or CAA's letters.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// Which columns hold prompt, chosen and rejected.
    #[serde(default)]
    pub columns: ColumnMap,
}

/// What one multiplier does to the pairs. Intervals are 95% bootstrap intervals over pairs; every difference to the
/// plain model is taken pair by pair.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PreferencePoint {
    /// Means over the pairs.
    #[serde(rename = "point")]
    pub means: EvalPoint,
    /// The relative margin in nats.
    pub margin: Estimate,
    /// The relative margin per token.
    pub margin_per_token: Estimate,
    /// Two-sided p of the sign test that margins above 0 are as many as below.
    pub sign_test: f64,
    /// Share of pairs whose chosen response is likelier, summed.
    pub ranks_chosen: Estimate,
    /// That share less the plain model's.
    pub ranks_chosen_change: Estimate,
    /// Share of pairs whose chosen response is likelier per token.
    pub ranks_chosen_per_token: Estimate,
    /// Mean gain of the chosen response in nats, times the sign of the multiplier.
    pub chosen_toward: Estimate,
    /// Mean gain of the rejected response in nats, times the sign of the multiplier.
    pub rejected_toward: Estimate,
}

/// Half the difference between the margins at a multiplier and its negative: what the vector does whichever way it is
/// turned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HalfSpread {
    /// The multiplier above 0.
    pub multiplier: f64,
    /// `(margin(+m) - margin(-m)) / 2` in nats.
    pub margin: Estimate,
    /// Two-sided p of the sign test over pairs.
    pub sign_test: f64,
}

/// The measurement of pairs at every strength.
#[derive(Clone, Debug, Serialize)]
pub struct Preference {
    /// One point per multiplier, ascending.
    pub points: Vec<PreferencePoint>,
    /// One for each multiplier with its negative.
    pub half_spreads: Vec<HalfSpread>,
    /// The relative margin of each pair: `[multiplier][pair]`.
    pub margins: Vec<Vec<f64>>,
}

/// Scores pairs that were made into tokens.
///
/// # Errors
/// Those of [`score`].
pub fn measure_pairs(subject: &Subject<'_>, texts: &[Prompted], watch: &mut Watch<'_>) -> Result<Preference> {
    let scores = score(subject, texts, false, "reading pairs", watch)?;
    let plain = subject.plain();
    let logps =
        |s: usize, i: usize| PairLogps { chosen: sum(&scores[s][i][0]), rejected: sum(&scores[s][i][1]) };
    let measured: Vec<Vec<Measured>> = (0..scores.len())
        .map(|s| {
            let one = |i: usize| Measured {
                policy: logps(s, i),
                reference: logps(plain, i),
                chosen_tokens: texts[i].continuations[0].len(),
                rejected_tokens: texts[i].continuations[1].len(),
            };
            (0..texts.len()).map(one).collect()
        })
        .collect();
    let multipliers = subject.multipliers();
    let points: Vec<PreferencePoint> = multipliers
        .iter()
        .zip(&measured)
        .map(|(&multiplier, own)| point(multiplier, own, &measured[plain], subject.seed))
        .collect();
    let margins: Vec<Vec<f64>> = measured.iter().map(|own| own.iter().map(margin).collect()).collect();
    let half_spreads =
        multipliers.iter().enumerate().filter(|(_, m)| **m > 0.0).filter_map(|(above, &multiplier)| {
            let below = multipliers.iter().position(|&m| m == -multiplier)?;
            let half: Vec<f64> =
                differences(&margins[above], &margins[below]).iter().map(|x| x / 2.0).collect();
            Some(HalfSpread { multiplier, margin: mean(&half, subject.seed), sign_test: sign_test(&half) })
        });
    Ok(Preference { half_spreads: half_spreads.collect(), points, margins })
}

fn margin(pair: &Measured) -> f64 {
    pair.policy.relative_to(pair.reference).margin()
}

fn point(multiplier: f64, own: &[Measured], plain: &[Measured], seed: u64) -> PreferencePoint {
    let each = |f: &dyn Fn(&Measured) -> f64| own.iter().map(f).collect::<Vec<f64>>();
    let gain = |m: &Measured| m.policy.relative_to(m.reference);
    let per_token = |logps: &PairLogps, m: &Measured| {
        logps.chosen / m.chosen_tokens as f64 - logps.rejected / m.rejected_tokens as f64
    };
    let right = |x: f64| f64::from(u8::from(x > 0.0));
    let ranks = |pairs: &[Measured]| pairs.iter().map(|m| right(m.policy.margin())).collect::<Vec<_>>();
    let toward = if multiplier < 0.0 { -1.0 } else { 1.0 };
    let margins = each(&margin);
    PreferencePoint {
        means: EvalPoint::new(multiplier, own),
        margin: mean(&margins, seed),
        margin_per_token: mean(&each(&|m| per_token(&gain(m), m)), seed),
        sign_test: sign_test(&margins),
        ranks_chosen: mean(&ranks(own), seed),
        ranks_chosen_change: mean_difference(&ranks(own), &ranks(plain), seed),
        ranks_chosen_per_token: mean(&each(&|m| right(per_token(&m.policy, m))), seed),
        chosen_toward: mean(&each(&|m| toward * gain(m).chosen), seed),
        rejected_toward: mean(&each(&|m| toward * gain(m).rejected), seed),
    }
}

/// Runs the evaluation.
pub(super) fn run(spec: &PreferenceSpec, subject: &Subject<'_>, watch: &mut Watch<'_>) -> Result<Findings> {
    let mut data = pairs::read(subject, data_of(spec.data.as_ref())?, &spec.columns)?;
    let texts = pairs::tokens(subject, &data.pairs, false, &mut data.notes)?;
    let measured = measure_pairs(subject, &texts, watch)?;
    let mut notes = data.notes;
    notes.extend(measured.points.iter().filter_map(warning));
    Ok(Findings {
        lead: lead(&measured),
        tables: vec![table(&measured), half_spread_table(&measured)]
            .into_iter()
            .filter(|table| !table.rows.is_empty())
            .collect(),
        charts: charts(&measured),
        notes,
        data: vec![(data.path, data.sha256)],
        results: json!({
            "pairs": texts.len(),
            "points": measured.points,
            "half_spreads": measured.half_spreads,
            "margins": measured.margins,
        }),
        ..Findings::default()
    })
}

/// What the authors of the method were asked about most: the margin grows while what is wanted becomes less likely.
fn warning(point: &PreferencePoint) -> Option<String> {
    let (m, gain) = (
        point.means.multiplier,
        if point.means.multiplier > 0.0 { point.means.chosen } else { point.means.rejected },
    );
    let side = if m > 0.0 { "chosen" } else { "rejected" };
    (m != 0.0 && point.means.margin * m > 0.0 && gain < 0.0).then(|| {
        format!(
            "at {m:+} the margin moves as it should, but the {side} responses become less likely too ({gain:+.2} nats): the \
             vector pushes the other side down harder"
        )
    })
}

fn lead(measured: &Preference) -> String {
    let n = measured.margins.first().map_or(0, Vec::len);
    match measured.half_spreads.last() {
        Some(half) => format!(
            "On {n} pairs, turning the vector from {:+} to {:+} moves the margin by {} nats to either side.",
            -half.multiplier,
            half.multiplier,
            Style::Plain.write(half.margin.value),
        ),
        None => format!("Margins of {n} pairs."),
    }
}

fn table(measured: &Preference) -> Table {
    let mut table = Table::new(
        "preference",
        "Preference pairs by multiplier (95% bootstrap intervals over pairs)",
        &[
            ("multiplier", Style::Multiplier),
            ("margin", Style::Signed),
            ("per token", Style::Signed),
            ("moved right", Style::Percent),
            ("p (sign test)", Style::Plain),
            ("ranks chosen", Style::Percent),
            ("change", Style::Points),
            ("per token ranks", Style::Percent),
            ("chosen", Style::Signed),
            ("rejected", Style::Signed),
        ],
    );
    for p in &measured.points {
        let zero = p.means.multiplier == 0.0;
        let unless_zero = |cell: Cell| if zero { Cell::Empty } else { cell };
        table.row(vec![
            p.means.multiplier.into(),
            p.margin.into(),
            p.margin_per_token.into(),
            unless_zero(p.means.accuracy.into()),
            unless_zero(p.sign_test.into()),
            p.ranks_chosen.into(),
            unless_zero(p.ranks_chosen_change.into()),
            p.ranks_chosen_per_token.into(),
            p.means.chosen.into(),
            p.means.rejected.into(),
        ]);
    }
    table
}

fn half_spread_table(measured: &Preference) -> Table {
    let mut table = Table::new(
        "half-spread",
        "Both directions: half the difference of the margins at +m and -m",
        &[("m", Style::Plain), ("half-spread", Style::Signed), ("p (sign test)", Style::Plain)],
    );
    for half in &measured.half_spreads {
        table.row(vec![half.multiplier.into(), half.margin.into(), half.sign_test.into()]);
    }
    table
}

fn charts(measured: &Preference) -> Vec<(Chart, String)> {
    let series = |label: &str, of: &dyn Fn(&PreferencePoint) -> Estimate| Series {
        label: label.into(),
        points: measured
            .points
            .iter()
            .map(|p| {
                let Estimate { value, interval } = of(p);
                Point { x: p.means.multiplier, y: value, interval }
            })
            .collect(),
        ..Series::default()
    };
    let x = || Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() };
    let margin = Chart {
        id: "margin".into(),
        title: "Margin of the chosen over the rejected response".into(),
        description: "Mean relative margin against the multiplier.".into(),
        x: x(),
        y: Axis { label: "relative margin".into(), unit: "nats".into(), ..Axis::default() },
        series: vec![series("margin", &|p| p.margin)],
        reference: Some(Reference { value: 0.0, label: "plain model".into() }),
    };
    let ranks = Chart {
        id: "ranks-chosen".into(),
        title: "Pairs whose chosen response is likelier".into(),
        description: "Share of pairs against the multiplier.".into(),
        x: x(),
        y: Axis { label: "share of pairs".into(), format: TickFormat::Percent, ..Axis::default() },
        series: vec![
            series("summed", &|p| p.ranks_chosen),
            series("per token", &|p| p.ranks_chosen_per_token),
        ],
        reference: Some(Reference { value: 0.5, label: "half".into() }),
    };
    let captions = [
        "How much likelier than before the chosen response has become, relative to the rejected one, in summed \
         log-probabilities.",
        "Which of the two responses the model finds likelier, in summed log-probabilities and per token.",
    ];
    [margin, ranks].into_iter().zip(captions.map(str::to_owned)).collect()
}
