//! What a plan costs: how far it takes the model from itself, and how its texts read.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::json;
use steerkit_model::{Completion, Finish, Request, Sampling};

use super::findings::{Cell, Findings, Style, Table};
use super::perplexity::perplexity;
use super::scoring::{ContinuationScores, Prompted, score, score_under};
use super::shading::{Asked, side_by_side};
use super::stats::{mean, mean_difference};
use super::subject::{Progress, Subject, Watch};
use super::{percentile, stats};
use crate::Result;
use crate::data::records;
use crate::refusal::refuses;
use crate::report::{Axis, Chart, Comparison, Point, Reference, Series, TickFormat};
use crate::text_stats::{Estimate, distinct_n, median, repetition_share, words};

/// Questions about everyday things, in our own words.
const PROMPTS: &str = include_str!("prompts.txt");
/// Answers shown in the report.
const SHOWN: usize = 4;

/// How damage is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamageSpec {
    /// Prompts: CSV, JSONL or Parquet with a column `prompt` or `question`. None: 60 built-in questions.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// Prompts at most.
    #[serde(default = "default_prompts")]
    pub prompts: usize,
    /// Tokens per answer at most.
    #[serde(default = "default_tokens")]
    pub max_tokens: usize,
    /// 0 takes the likeliest token every time.
    #[serde(default)]
    pub temperature: f32,
    /// Answers written at the same time.
    #[serde(default = "default_batch")]
    pub batch: usize,
}

fn default_prompts() -> usize {
    60
}

fn default_tokens() -> usize {
    48
}

fn default_batch() -> usize {
    32
}

impl Default for DamageSpec {
    fn default() -> Self {
        Self {
            data: None,
            prompts: default_prompts(),
            max_tokens: default_tokens(),
            temperature: 0.0,
            batch: default_batch(),
        }
    }
}

impl DamageSpec {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, value) in
            [("prompts", self.prompts), ("max_tokens", self.max_tokens), ("batch", self.batch)]
        {
            if value == 0 {
                return Err((key, "found 0, expected at least 1".into()));
            }
        }
        match (0.0..=10.0).contains(&self.temperature) {
            true => Ok(()),
            false => Err(("temperature", format!("found {}, expected 0 to 10", self.temperature))),
        }
    }
}

/// What one multiplier does to the texts. Means are over prompts, with 95% bootstrap intervals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DamagePoint {
    /// Every vector of the plan was multiplied by it.
    pub multiplier: f64,
    /// Prompts.
    pub n: usize,
    /// Mean KL(steered || plain) per token in nats, both reading what the plain model wrote.
    pub kl_reference: Estimate,
    /// The 95th percentile over tokens of the same.
    pub kl_reference_p95: f64,
    /// Mean KL(steered || plain) per token in nats, both reading what the steered model wrote.
    pub kl_own: Estimate,
    /// The 95th percentile over tokens of the same.
    pub kl_own_p95: f64,
    /// Median perplexity of the answers under the plain model.
    pub perplexity: f64,
    /// That over the plain model's own.
    pub perplexity_ratio: f64,
    /// Different word trigrams over all of them.
    pub distinct_3: f64,
    /// That over the plain model's.
    pub distinct_3_ratio: f64,
    /// Mean share of an answer's word trigrams that occurred in it before.
    pub repetition: Estimate,
    /// Mean words per answer.
    pub words: Estimate,
    /// Mean words per answer less the plain model's.
    pub words_change: Estimate,
    /// Mean tokens per answer.
    pub tokens: f64,
    /// Share of answers cut off at the most tokens.
    pub cut_off: f64,
    /// Share of answers that refuse ([`refuses`]).
    pub refusals: Estimate,
}

/// The damage at every strength.
#[derive(Clone, Debug, Serialize)]
pub struct Damage {
    /// One point per multiplier, ascending.
    pub points: Vec<DamagePoint>,
    /// Where the prompts came from and their SHA-256.
    #[serde(skip)]
    pub data: Option<(PathBuf, String)>,
    /// The first questions with their answers.
    #[serde(skip)]
    pub answers: Vec<Comparison>,
}

/// Writes answers to the prompts at every strength and reads them with both models.
///
/// # Errors
/// Prompts that cannot be read; those of generation and scoring.
pub fn measure_damage(spec: &DamageSpec, subject: &Subject<'_>, watch: &mut Watch<'_>) -> Result<Damage> {
    let (mut prompts, data) = prompts(spec.data.as_deref())?;
    let drawn = stats::draw(prompts.len(), spec.prompts, subject.seed);
    prompts = drawn.into_iter().map(|i| prompts[i].clone()).collect();
    let asked = prompts
        .iter()
        .map(|text| {
            let prompt = subject.prompting.prompt(text)?;
            Ok(Prompted { shape: subject.shape(text, prompt.len())?, prompt, continuations: Vec::new() })
        })
        .collect::<Result<Vec<_>>>()?;
    let answers = write(spec, subject, &asked, watch)?;
    let plain = subject.plain();
    let with = |s: usize| -> Vec<Prompted> {
        let own = |(text, answer): (&Prompted, &Completion)| Prompted {
            continuations: vec![answer.tokens.clone()],
            ..text.clone()
        };
        asked.iter().zip(&answers[s]).map(own).collect()
    };
    let reference = score(subject, &with(plain), true, "reading reference texts", watch)?;
    let mut points = Vec::new();
    for (s, steering) in subject.steerings.iter().enumerate() {
        let (own, of_plain) = match s == plain {
            true => (reference[plain].clone(), reference[plain].clone()),
            false => {
                let pair = [steering, &subject.steerings[plain]];
                let mut both =
                    score_under(subject, &pair, &with(s), true, "reading answers", watch)?.into_iter();
                let mut next = || both.next().expect("one for each of two");
                (next(), next())
            }
        };
        let texts = Texts { answers: &answers[s], plain: &answers[plain], seed: subject.seed };
        points.push(texts.point(steering.multiplier, &reference[s], &own, &of_plain));
    }
    let [of_perplexity, of_distinct] = [points[plain].perplexity, points[plain].distinct_3];
    for point in &mut points {
        point.perplexity_ratio = point.perplexity / of_perplexity;
        point.distinct_3_ratio = point.distinct_3 / of_distinct;
    }
    Ok(Damage { points, data, answers: comparisons(&prompts, &asked, subject, &answers)? })
}

/// The answers: `[strength][prompt]`.
fn write(
    spec: &DamageSpec,
    subject: &Subject<'_>,
    asked: &[Prompted],
    watch: &mut Watch<'_>,
) -> Result<Vec<Vec<Completion>>> {
    let sampling = Sampling { temperature: spec.temperature, seed: subject.seed, ..Sampling::default() };
    let mut requests = Vec::new();
    for text in asked {
        for steering in &subject.steerings {
            requests.push(Request {
                prompt: text.prompt.clone(),
                edits: steering.plan.edits(subject.model.config(), &text.shape)?,
                sampling,
                max_tokens: spec.max_tokens,
                ..Request::default()
            });
        }
    }
    let (total, mut done) = (requests.len(), 0);
    let completions = subject.model.generate(requests, spec.batch, &mut |event| {
        done += usize::from(event.news.as_ref().is_ok_and(|new| new.finish.is_some()));
        watch(Progress { what: "writing answers", done, total });
        let stop = subject.cancel.load(Ordering::Relaxed);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let n = subject.steerings.len();
    let of = |s: usize| completions.iter().skip(s).step_by(n).cloned().collect();
    Ok((0..n).map(of).collect())
}

/// The answers of one strength beside the plain model's.
struct Texts<'t> {
    answers: &'t [Completion],
    plain: &'t [Completion],
    seed: u64,
}

impl Texts<'_> {
    fn point(
        &self,
        multiplier: f64,
        reference: &[ContinuationScores],
        own: &[ContinuationScores],
        of_plain: &[ContinuationScores],
    ) -> DamagePoint {
        let each = |answers: &[Completion], f: &dyn Fn(&Completion) -> f64| {
            answers.iter().map(f).collect::<Vec<_>>()
        };
        let length = |answer: &Completion| words(&answer.text).len() as f64;
        let texts: Vec<&str> = self.answers.iter().map(|answer| answer.text.as_str()).collect();
        let repeated: Vec<f64> = texts.iter().filter_map(|text| repetition_share(text, 3)).collect();
        let perplexities: Vec<f64> = of_plain.iter().map(|scores| perplexity(&scores[0].logps)).collect();
        let lengths = each(self.answers, &length);
        let n = self.answers.len() as f64;
        DamagePoint {
            multiplier,
            n: self.answers.len(),
            kl_reference: mean(&text_divergences(reference), self.seed),
            kl_reference_p95: percentile(&all_divergences(reference), 0.95),
            kl_own: mean(&text_divergences(own), self.seed),
            kl_own_p95: percentile(&all_divergences(own), 0.95),
            perplexity: median(&perplexities).unwrap_or(f64::NAN),
            perplexity_ratio: f64::NAN,
            distinct_3: distinct_n(&texts, 3).unwrap_or(f64::NAN),
            distinct_3_ratio: f64::NAN,
            repetition: mean(&repeated, self.seed),
            words: mean(&lengths, self.seed),
            words_change: mean_difference(&lengths, &each(self.plain, &length), self.seed),
            tokens: self.answers.iter().map(|a| a.tokens.len()).sum::<usize>() as f64 / n,
            cut_off: self.answers.iter().filter(|a| a.finish == Finish::Length).count() as f64 / n,
            refusals: mean(&each(self.answers, &|a| f64::from(u8::from(refuses(&a.text)))), self.seed),
        }
    }
}

/// The mean divergence of each text's tokens.
fn text_divergences(scores: &[ContinuationScores]) -> Vec<f64> {
    let of = |scores: &ContinuationScores| {
        let all = &scores[0].divergences;
        all.iter().sum::<f64>() / all.len() as f64
    };
    scores.iter().map(of).collect()
}

fn all_divergences(scores: &[ContinuationScores]) -> Vec<f64> {
    scores.iter().flat_map(|scores| scores[0].divergences.iter().copied()).collect()
}

/// A file and its SHA-256.
type Source = (PathBuf, String);

/// The prompts of a file, or the built-in ones.
fn prompts(path: Option<&Path>) -> Result<(Vec<String>, Option<Source>)> {
    let Some(path) = path else { return Ok((PROMPTS.lines().map(str::to_owned).collect(), None)) };
    let records = records(path, None)?;
    let text = |row| Ok(records.text(row, "prompt", &["prompt", "question"])?.to_owned());
    let prompts = records.rows.iter().map(text).collect::<Result<Vec<_>>>()?;
    Ok((prompts, Some((path.to_owned(), records.sha256))))
}

/// The first questions with their answers.
fn comparisons(
    prompts: &[String],
    asked: &[Prompted],
    subject: &Subject<'_>,
    answers: &[Vec<Completion>],
) -> Result<Vec<Comparison>> {
    let multipliers = subject.multipliers();
    let shown: Vec<Asked<'_>> = prompts
        .iter()
        .zip(asked)
        .take(SHOWN)
        .enumerate()
        .map(|(i, (question, text))| Asked {
            question,
            prompt: &text.prompt,
            answers: multipliers.iter().zip(answers).map(|(&m, row)| (m, &row[i])).collect(),
        })
        .collect();
    side_by_side(subject.model, &shown, subject.cancel)
}

/// Runs the evaluation.
pub(super) fn run(spec: &DamageSpec, subject: &Subject<'_>, watch: &mut Watch<'_>) -> Result<Findings> {
    let mut findings = Findings {
        lead: format!("What the plan costs, over the model's answers to at most {} prompts.", spec.prompts),
        results: json!({}),
        ..Findings::default()
    };
    add(spec, subject, &mut findings, watch)?;
    Ok(findings)
}

/// Measures the damage and adds it to what another task found.
pub(super) fn add(
    spec: &DamageSpec,
    subject: &Subject<'_>,
    findings: &mut Findings,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let damage = measure_damage(spec, subject, watch)?;
    findings.tables.push(table(&damage));
    findings.charts.extend(charts(&damage));
    findings.results["damage"] = json!(damage.points);
    findings.data.extend(damage.data);
    findings.answers.extend(damage.answers);
    Ok(())
}

pub(super) fn table(damage: &Damage) -> Table {
    let mut table = Table::new(
        "damage",
        "Damage to the text (KL in nats per token; perplexity under the plain model)",
        &[
            ("multiplier", Style::Multiplier),
            ("KL, plain's texts", Style::Plain),
            ("KL, own texts", Style::Plain),
            ("perplexity", Style::Plain),
            ("x plain", Style::Plain),
            ("distinct-3", Style::Plain),
            ("repetition", Style::Percent),
            ("words", Style::Plain),
            ("refusals", Style::Percent),
        ],
    );
    let bare = |estimate: Estimate| Cell::from(estimate.value);
    for p in &damage.points {
        table.row(vec![
            p.multiplier.into(),
            p.kl_reference.into(),
            p.kl_own.into(),
            p.perplexity.into(),
            p.perplexity_ratio.into(),
            p.distinct_3.into(),
            bare(p.repetition),
            bare(p.words),
            bare(p.refusals),
        ]);
    }
    table
}

fn charts(damage: &Damage) -> Vec<(Chart, String)> {
    let series = |label: &str, of: &dyn Fn(&DamagePoint) -> Estimate| Series {
        label: label.into(),
        points: damage
            .points
            .iter()
            .map(|p| Point { x: p.multiplier, y: of(p).value, interval: of(p).interval })
            .collect(),
        ..Series::default()
    };
    let x = || Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() };
    let divergence = Chart {
        id: "divergence".into(),
        title: "Distance from the plain model".into(),
        description: "Mean divergence per token against the multiplier.".into(),
        x: x(),
        y: Axis { label: "KL per token".into(), unit: "nats".into(), ..Axis::default() },
        series: vec![series("plain's texts", &|p| p.kl_reference), series("own texts", &|p| p.kl_own)],
        reference: None,
    };
    let fluency = Chart {
        id: "fluency".into(),
        title: "How the texts read, over the plain model's".into(),
        description: "Ratios of perplexity and variety against the multiplier.".into(),
        x: x(),
        y: Axis { label: "ratio to plain".into(), ..Axis::default() },
        series: vec![
            series("perplexity", &|p| p.perplexity_ratio.into()),
            series("distinct-3", &|p| p.distinct_3_ratio.into()),
        ],
        reference: Some(Reference { value: 1.0, label: "plain model".into() }),
    };
    let captions = [
        "How much the steered model's predictions differ from the plain model's, on texts of the one and of the other.",
        "Rising perplexity means texts that the plain model would not write; falling variety means loops.",
    ];
    [divergence, fluency].into_iter().zip(captions.map(str::to_owned)).collect()
}
