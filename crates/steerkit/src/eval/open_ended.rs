//! Open questions, answered at every strength, scored by a judge and counted without one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::findings::{Cell, Findings, Style, Table};
use super::judged::{Answered, Bench, Judged, estimated};
use super::pairs;
use super::preference::measure_pairs;
use super::spec::data_of;
use super::stats::mean;
use super::subject::{Subject, Watch};
use crate::Result;
use crate::data::ColumnMap;
use crate::judge::{Rubric, Scale};
use crate::refusal::refuses;
use crate::report::{Axis, Chart, Point, Series, TickFormat};
use crate::surface::SurfaceMetric;
use crate::text_stats::{Estimate, distinct_n, words};

/// Open questions and how their answers are scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenEndedSpec {
    /// Preference pairs: their prompts are asked, their answers are the references of the judge.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// Which columns hold prompt, chosen and rejected.
    #[serde(default)]
    pub columns: ColumnMap,
    /// What the judge grades: the name of a rubric, or a TOML file. None: by the name of the data's folder.
    #[serde(default)]
    pub rubric: Option<String>,
    /// Tokens per answer at most.
    #[serde(default = "default_tokens")]
    pub max_tokens: usize,
    /// Show the judge each question's own chosen and rejected answer as examples, as the paper does.
    #[serde(default)]
    pub examples: bool,
    /// Keep answers out of every output.
    #[serde(default)]
    pub redact: bool,
}

fn default_tokens() -> usize {
    200
}

impl OpenEndedSpec {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.max_tokens == 0 {
            return Err(("max_tokens", "found 0, expected at least 1".into()));
        }
        Ok(())
    }

    /// The rubric; none when nobody judges and the data names none.
    fn rubric(&self, needed: bool) -> Result<Option<Rubric>> {
        if let Some(name) = &self.rubric {
            return Rubric::find(name).map(Some);
        }
        let names = Rubric::names();
        let folder = self.data.iter().flat_map(|path| path.components().rev());
        let folder = folder.filter_map(|part| part.as_os_str().to_str());
        let named = folder
            .map(|part| part.split('.').next().unwrap_or(part))
            .find(|part| names.iter().any(|n| n == part));
        match named {
            Some(name) => Rubric::find(name).map(Some),
            None if needed => Rubric::find("").map(Some),
            None => Ok(None),
        }
    }
}

/// Runs the evaluation.
pub(super) fn run(spec: &OpenEndedSpec, subject: &Subject<'_>, watch: &mut Watch<'_>) -> Result<Findings> {
    let rubric = spec.rubric(subject.judging.is_some())?;
    let mut data = pairs::read(subject, data_of(spec.data.as_ref())?, &spec.columns)?;
    let questions: Vec<String> = data.pairs.iter().map(|pair| pair.prompt.clone()).collect();
    let bench =
        rubric.as_ref().map(|rubric| Bench { rubric, references: &data.pairs, examples: spec.examples });
    if let (Some(judging), Some(bench)) = (subject.judging.filter(|judging| judging.dry_run), &bench) {
        return Ok(estimated(&[bench.estimate(&judging, subject, &questions, spec.max_tokens)]));
    }
    let answered = Answered::write(subject, questions, spec.max_tokens, watch)?;
    let verdict = match &bench {
        Some(bench) => bench.judge(subject, &answered, watch)?,
        None => super::judged::Verdict::default(),
    };
    let texts = pairs::tokens(subject, &data.pairs, false, &mut data.notes)?;
    let margins = measure_pairs(subject, &texts, watch)?;
    let behavior = rubric.as_ref().map_or("", |rubric| rubric.name.as_str());
    let points =
        points(subject, &answered, behavior, &margins.points.iter().map(|p| p.margin).collect::<Vec<_>>());
    let judged = verdict.judged.as_ref();
    let mut notes = data.notes;
    notes.extend(judged.map(Judged::notes).unwrap_or_default());
    let mut tables = Vec::new();
    if let Some((judged, rubric)) = judged.zip(rubric.as_ref()) {
        tables.push(score_table(subject, judged, rubric));
        tables.extend(judged.reference_table());
    }
    tables.push(surface_table(&points, behavior));
    Ok(Findings {
        lead: lead(subject, judged, &points, behavior),
        tables,
        charts: judged
            .zip(rubric.as_ref())
            .map(|(judged, rubric)| chart(subject, judged, rubric))
            .into_iter()
            .collect(),
        notes,
        answers: answered.shown(subject, spec.redact)?,
        data: vec![(data.path, data.sha256)],
        files: vec![("answers.jsonl".into(), answered.lines(subject, "", judged, spec.redact))],
        failure: verdict.failure,
        results: json!({
            "questions": answered.questions.len(),
            "rubric": rubric.as_ref().map(|rubric| &rubric.name),
            "judge": judged.map(Judged::results),
            "points": points,
        }),
    })
}

/// What can be said of the answers at a strength without a judge.
#[derive(Clone, Debug, Serialize)]
struct SurfacePoint {
    multiplier: f64,
    /// Mean log-probability margin of the references over the plain model's, in nats.
    margin: Estimate,
    /// Share of answers that refuse.
    refusals: Estimate,
    /// The surface metric of the behaviour.
    surface: Estimate,
    words: Estimate,
    distinct_3: f64,
}

fn points(
    subject: &Subject<'_>,
    answered: &Answered,
    behavior: &str,
    margins: &[Estimate],
) -> Vec<SurfacePoint> {
    let metric = SurfaceMetric::for_behavior(behavior);
    let refusals = answered.each(|text| f64::from(u8::from(refuses(text))));
    let surface = answered.each(|text| metric.score(text));
    let lengths = answered.each(|text| words(text).len() as f64);
    let point = |(s, multiplier): (usize, f64)| SurfacePoint {
        multiplier,
        margin: margins[s],
        refusals: mean(&refusals[s], subject.seed),
        surface: mean(&surface[s], subject.seed),
        words: mean(&lengths[s], subject.seed),
        distinct_3: distinct_n(&answered.answers[s].iter().map(|a| a.text.as_str()).collect::<Vec<_>>(), 3)
            .unwrap_or(f64::NAN),
    };
    subject.multipliers().into_iter().enumerate().map(point).collect()
}

fn score_table(subject: &Subject<'_>, judged: &Judged, rubric: &Rubric) -> Table {
    let (low, high) = rubric.scale().range();
    let title = format!(
        "{} by the judge, {low} to {high} (95% bootstrap intervals over questions){}",
        rubric.name,
        if judged.headline() { "" } else { ": not a headline" }
    );
    let mut table = Table::new(
        "scores",
        &title,
        &[
            ("multiplier", Style::Multiplier),
            ("score", Style::Plain),
            ("change", Style::Signed),
            ("shows it", Style::Percent),
            ("without score", Style::Count),
        ],
    );
    let plain = subject.plain();
    for (s, multiplier) in subject.multipliers().into_iter().enumerate() {
        let change = judged.change(s, plain, f64::from, subject.seed);
        let shows = |score: u8| f64::from(u8::from(rubric.scale().shows(score)));
        table.row(vec![
            multiplier.into(),
            judged.mean(s, f64::from, subject.seed).into(),
            if s == plain { Cell::Empty } else { change.into() },
            judged.mean(s, shows, subject.seed).into(),
            (judged.scores[s].unscored as f64).into(),
        ]);
    }
    table
}

fn surface_table(points: &[SurfacePoint], behavior: &str) -> Table {
    let metric = SurfaceMetric::for_behavior(behavior);
    let mut table = Table::new(
        "without-judge",
        "The same answers without a judge",
        &[
            ("multiplier", Style::Multiplier),
            ("reference margin", Style::Signed),
            ("refusals", Style::Percent),
            (metric.name(), Style::Plain),
            ("words", Style::Plain),
            ("distinct-3", Style::Plain),
        ],
    );
    for p in points {
        table.row(vec![
            p.multiplier.into(),
            p.margin.into(),
            p.refusals.into(),
            p.surface.into(),
            p.words.into(),
            p.distinct_3.into(),
        ]);
    }
    table
}

/// The result in a sentence: the judge's where it is to be believed, else the margin of the references.
fn lead(subject: &Subject<'_>, judged: Option<&Judged>, points: &[SurfacePoint], behavior: &str) -> String {
    let (first, last) = (0, points.len() - 1);
    let [from, to] = [first, last].map(|s| Style::Multiplier.write(points[s].multiplier));
    match judged.filter(|judged| judged.headline()) {
        Some(judged) => {
            let [low, high] = [first, last].map(|s| judged.mean(s, f64::from, subject.seed).value);
            format!("{behavior}: the judge's mean score goes from {low:.2} at {from} to {high:.2} at {to}.")
        }
        None => {
            let metric = SurfaceMetric::for_behavior(behavior);
            let [low, high] = [first, last].map(|s| points[s].surface.value);
            let why = if judged.is_some() { "The judge's scores are no result; without them: " } else { "" };
            let unit = metric.unit();
            format!("{why}{} goes from {low:.2} at {from} to {high:.2} at {to} ({unit}).", metric.name())
        }
    }
}

fn chart(subject: &Subject<'_>, judged: &Judged, rubric: &Rubric) -> (Chart, String) {
    let point = |(s, x): (usize, f64)| {
        let Estimate { value, interval } = judged.mean(s, f64::from, subject.seed);
        Point { x, y: value, interval }
    };
    let points: Vec<Point> = subject
        .multipliers()
        .into_iter()
        .enumerate()
        .map(point)
        .filter(|point| point.y.is_finite())
        .collect();
    let unit = match rubric.scale() {
        Scale::Grades => "grade, 1 to 4",
        Scale::YesNo => "share of yes",
    };
    let chart = Chart {
        id: "score".into(),
        title: format!("{} by the judge", rubric.name),
        description: "Mean score against the multiplier.".into(),
        x: Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() },
        y: Axis { label: "score".into(), unit: unit.into(), ..Axis::default() },
        series: vec![Series { label: "score".into(), points, ..Series::default() }],
        reference: None,
    };
    let trust = match judged.headline() {
        true => "The judge agrees with the reference answers.",
        false => "The judge does not agree with the reference answers well enough: this curve is no result.",
    };
    (chart, trust.to_owned())
}
