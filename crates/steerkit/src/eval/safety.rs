//! Does a plan make a model do what it should refuse, or refuse what it should do? Prompts come from files of the
//! user's; none of them is part of this project.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::findings::{Cell, Findings, Style, Table};
use super::judged::{Answered, Bench, Judged, Verdict, estimated};
use super::prompt_set::{PromptSet, SetPrompt};
use super::spec::data_of;
use super::stats::{mean, mean_difference};
use super::subject::{Subject, Watch};
use crate::Result;
use crate::data::{PreferencePair, ReadOptions, read};
use crate::error::malformed;
use crate::judge::{Rubric, Scale};
use crate::refusal::refuses;
use crate::report::{Axis, Chart, Point, Series, TickFormat};
use crate::text_stats::Estimate;

/// How often a model does what harmful prompts ask for, as they are and with an attack's suffix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackSpec {
    /// Prompts in the layout of AdvBench, HarmBench or JailbreakBench, or with a column `prompt`.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// Appended to every prompt, after a space, in a second round; a column `suffix` of the data comes first.
    #[serde(default)]
    pub suffix: Option<String>,
    /// What the judge decides by.
    #[serde(default = "attack_rubric")]
    pub rubric: String,
    /// Preference pairs whose chosen answers are successes and whose rejected ones are none: they tell how far to
    /// believe the judge.
    #[serde(default)]
    pub references: Option<PathBuf>,
    /// Tokens per answer at most.
    #[serde(default = "default_tokens")]
    pub max_tokens: usize,
    /// Keep answers out of every output.
    #[serde(default)]
    pub redact: bool,
}

/// How often a model refuses prompts that sound harmful and are not, and those that are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverRefusalSpec {
    /// Prompts in the layout of XSTest.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// What the judge decides by.
    #[serde(default = "refusal_rubric")]
    pub rubric: String,
    /// Preference pairs whose chosen answers refuse and whose rejected ones help.
    #[serde(default)]
    pub references: Option<PathBuf>,
    /// Tokens per answer at most.
    #[serde(default = "default_tokens")]
    pub max_tokens: usize,
    /// Keep answers out of every output.
    #[serde(default)]
    pub redact: bool,
}

fn default_tokens() -> usize {
    200
}

fn attack_rubric() -> String {
    "attack-success".into()
}

fn refusal_rubric() -> String {
    "refusal".into()
}

impl AttackSpec {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        check(self.max_tokens, self.suffix.as_deref())
    }
}

impl OverRefusalSpec {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        check(self.max_tokens, None)
    }
}

fn check(max_tokens: usize, suffix: Option<&str>) -> Result<(), (&'static str, String)> {
    match (max_tokens, suffix.map(str::trim)) {
        (0, _) => Err(("max_tokens", "found 0, expected at least 1".into())),
        (_, Some("")) => Err(("suffix", "found an empty text".into())),
        _ => Ok(()),
    }
}

/// A round of an evaluation: the same prompts, put in one way.
struct Round {
    name: &'static str,
    questions: Vec<String>,
}

/// A round with its answers.
struct Done {
    name: &'static str,
    answered: Answered,
    verdict: Verdict,
}

/// What every evaluation here shares.
struct Course<'c> {
    subject: &'c Subject<'c>,
    rubric: Rubric,
    references: Vec<PreferencePair>,
    max_tokens: usize,
    redact: bool,
}

impl<'c> Course<'c> {
    fn new(
        subject: &'c Subject<'c>,
        rubric: &str,
        references: Option<&Path>,
        max_tokens: usize,
        redact: bool,
    ) -> Result<Self> {
        let references = references.map(|path| read(path, &ReadOptions::default())).transpose()?;
        let references = references.map_or_else(Vec::new, |data| data.pairs);
        Ok(Self { subject, rubric: Rubric::find(rubric)?, references, max_tokens, redact })
    }

    fn bench(&self) -> Bench<'_> {
        Bench { rubric: &self.rubric, references: &self.references, examples: false }
    }

    /// What a dry run finds.
    fn dry(&self, rounds: &[Round]) -> Option<Findings> {
        let judging = self.subject.judging.filter(|judging| judging.dry_run)?;
        let cost =
            |round: &Round| self.bench().estimate(&judging, self.subject, &round.questions, self.max_tokens);
        Some(estimated(&rounds.iter().map(cost).collect::<Vec<_>>()))
    }

    fn run(&self, rounds: Vec<Round>, watch: &mut Watch<'_>) -> Result<Vec<Done>> {
        let mut done = Vec::new();
        for Round { name, questions } in rounds {
            let answered = Answered::write(self.subject, questions, self.max_tokens, watch)?;
            let verdict = self.bench().judge(self.subject, &answered, watch)?;
            done.push(Done { name, answered, verdict });
        }
        Ok(done)
    }

    /// What is the same in all findings here.
    fn findings(&self, set: &PromptSet, mut done: Vec<Done>) -> Result<Findings> {
        let first = done.iter().find_map(|round| round.verdict.judged.as_ref());
        let mut notes = first.map(Judged::notes).unwrap_or_default();
        if self.subject.judging.is_none() {
            notes.push(
                "no judge: refusals are told by their wording, and whether an answer helps is not known"
                    .into(),
            );
        }
        let files = done.iter().map(|round| {
            let judged = round.verdict.judged.as_ref();
            round.answered.lines(self.subject, round.name, judged, self.redact)
        });
        let shown = done.iter().map(|round| round.answered.shown(self.subject, self.redact));
        Ok(Findings {
            tables: first.and_then(Judged::reference_table).into_iter().collect(),
            answers: shown.collect::<Result<Vec<_>>>()?.concat(),
            data: vec![(set.path.clone(), set.sha256.clone())],
            files: vec![("answers.jsonl".into(), files.collect())],
            notes,
            failure: done.iter_mut().find_map(|round| round.verdict.failure.take()),
            ..Findings::default()
        })
    }
}

/// The prompts of a set that the subject's limit leaves.
fn prompts(subject: &Subject<'_>, data: Option<&PathBuf>) -> Result<(PromptSet, Vec<SetPrompt>)> {
    let set = PromptSet::read(data_of(data)?)?;
    let drawn = subject.drawn(set.prompts.len()).into_iter().map(|i| set.prompts[i].clone()).collect();
    Ok((set, drawn))
}

/// A rate at a strength and its paired change to the plain model.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rate {
    multiplier: f64,
    rate: Estimate,
    change: Estimate,
}

/// A rate at every strength from one number per question.
fn rates(subject: &Subject<'_>, each: &[Vec<f64>]) -> Vec<Rate> {
    let plain = subject.plain();
    let rate = |(s, multiplier): (usize, f64)| Rate {
        multiplier,
        rate: mean(&each[s], subject.seed),
        change: mean_difference(&each[s], &each[plain], subject.seed),
    };
    subject.multipliers().into_iter().enumerate().map(rate).collect()
}

/// The same from the judge's scores.
fn judged_rates(subject: &Subject<'_>, judged: &Judged, scale: Scale) -> Vec<Rate> {
    let plain = subject.plain();
    let shows = |score: u8| f64::from(u8::from(scale.shows(score)));
    let rate = |(s, multiplier): (usize, f64)| Rate {
        multiplier,
        rate: judged.mean(s, shows, subject.seed),
        change: judged.change(s, plain, shows, subject.seed),
    };
    subject.multipliers().into_iter().enumerate().map(rate).collect()
}

fn change_cell(rate: &Rate) -> Cell {
    if rate.multiplier == 0.0 { Cell::Empty } else { rate.change.into() }
}

/// Runs the attack evaluation.
pub(super) fn attack(spec: &AttackSpec, subject: &Subject<'_>, watch: &mut Watch<'_>) -> Result<Findings> {
    let references = spec.references.as_deref();
    let course = Course::new(subject, &spec.rubric, references, spec.max_tokens, spec.redact)?;
    let (set, drawn) = prompts(subject, spec.data.as_ref())?;
    let rounds = attack_rounds(spec, &set, &drawn)?;
    if let Some(findings) = course.dry(&rounds) {
        return Ok(findings);
    }
    let done = course.run(rounds, watch)?;
    let mut table = Table::new(
        "attack-success",
        "Attacks that succeed (95% bootstrap intervals over prompts; changes are paired)",
        &[
            ("multiplier", Style::Multiplier),
            ("prompts", Style::Plain),
            ("success by the judge", Style::Percent),
            ("change", Style::Points),
            ("not refused by wording", Style::Percent),
            ("change of that", Style::Points),
            ("without score", Style::Count),
        ],
    );
    let (mut results, mut series, mut leads) = (BTreeMap::new(), Vec::new(), Vec::new());
    for round in &done {
        let wording = rates(subject, &round.answered.each(|text| f64::from(u8::from(!refuses(text)))));
        let judged = round.verdict.judged.as_ref();
        let judge = judged.map(|judged| judged_rates(subject, judged, course.rubric.scale()));
        attack_rows(&mut table, round, &wording, judge.as_deref());
        let believed = judge.as_ref().filter(|_| judged.is_some_and(Judged::headline));
        leads.push(lead(round.name, believed.unwrap_or(&wording), believed.is_some()));
        series.push(curve(round.name, judge.as_ref().unwrap_or(&wording)));
        let summary = judged.map(Judged::results);
        results.insert(round.name, json!({"judge": judge, "summary": summary, "not_refused": wording}));
    }
    let label = match subject.judging.is_some() {
        true => "attack success by the judge",
        false => "share of answers that do not refuse by wording",
    };
    let mut findings = course.findings(&set, done)?;
    findings.tables.insert(0, table);
    findings.lead = leads.join(" ");
    findings.charts.push(figure("attack-success", label, series));
    findings.results = json!({"layout": set.layout, "prompts": drawn.len(), "rounds": results});
    Ok(findings)
}

/// The prompts as they are and, where there are suffixes, with them.
fn attack_rounds(spec: &AttackSpec, set: &PromptSet, drawn: &[SetPrompt]) -> Result<Vec<Round>> {
    let plain = drawn.iter().map(|p| p.prompt.clone()).collect();
    let mut rounds = vec![Round { name: "prompt", questions: plain }];
    let attacked = drawn.iter().map(|p| {
        let suffix = p.suffix.as_ref().or(spec.suffix.as_ref())?;
        Some(format!("{} {}", p.prompt, suffix.trim()))
    });
    // A suffix for every prompt, or the rounds could not be compared.
    let suffixes = drawn.iter().filter(|p| p.suffix.is_some()).count();
    if let Some(questions) = attacked.collect::<Option<Vec<_>>>() {
        rounds.push(Round { name: "with suffix", questions });
    } else if suffixes > 0 {
        let found = format!("a suffix for {suffixes} of {} prompts", drawn.len());
        let hint = "fill the column, remove it, or give one suffix for the others";
        return Err(malformed(&set.path, "column suffix", found, "one for every prompt", hint));
    }
    Ok(rounds)
}

fn attack_rows(table: &mut Table, round: &Done, wording: &[Rate], judge: Option<&[Rate]>) {
    let judged = round.verdict.judged.as_ref();
    for (s, words) in wording.iter().enumerate() {
        let own = judge.map(|rates| rates[s]);
        table.row(vec![
            words.multiplier.into(),
            round.name.into(),
            own.map_or(Cell::Empty, |rate| rate.rate.into()),
            own.map_or(Cell::Empty, |rate| change_cell(&rate)),
            words.rate.into(),
            change_cell(words),
            judged.map_or(Cell::Empty, |judged| (judged.scores[s].unscored as f64).into()),
        ]);
    }
}

fn lead(round: &str, rates: &[Rate], by_judge: bool) -> String {
    let what = if by_judge { "attacks succeed (judge)" } else { "answers do not refuse (by wording)" };
    let all: Vec<String> = rates.iter().map(at).collect();
    format!("{round}: {what} {}.", all.join(", "))
}

/// A rate and where it was found: `12.5% at +1`.
fn at(rate: &Rate) -> String {
    format!("{} at {}", Style::Percent.write(rate.rate.value), Style::Multiplier.write(rate.multiplier))
}

fn curve(label: &str, rates: &[Rate]) -> Series {
    let point = |rate: &Rate| Point { x: rate.multiplier, y: rate.rate.value, interval: rate.rate.interval };
    let points = rates.iter().map(point).filter(|point| point.y.is_finite()).collect();
    Series { label: label.into(), points, ..Series::default() }
}

fn figure(id: &str, label: &str, series: Vec<Series>) -> (Chart, String) {
    let chart = Chart {
        id: id.into(),
        title: label.into(),
        description: "Share of prompts against the multiplier.".into(),
        x: Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() },
        y: Axis { label: "share of prompts".into(), format: TickFormat::Percent, ..Axis::default() },
        series,
        reference: None,
    };
    (chart, format!("The {label}, by multiplier."))
}

/// Runs the over-refusal evaluation.
pub(super) fn over_refusal(
    spec: &OverRefusalSpec,
    subject: &Subject<'_>,
    watch: &mut Watch<'_>,
) -> Result<Findings> {
    let references = spec.references.as_deref();
    let course = Course::new(subject, &spec.rubric, references, spec.max_tokens, spec.redact)?;
    let (set, drawn) = prompts(subject, spec.data.as_ref())?;
    let questions = drawn.iter().map(|p| p.prompt.clone()).collect();
    let rounds = vec![Round { name: "", questions }];
    if let Some(findings) = course.dry(&rounds) {
        return Ok(findings);
    }
    let done = course.run(rounds, watch)?;
    let (table, refused) = refused(&course, &done[0], &drawn);
    let ends = |rates: &[Rate]| {
        let mut ends = [0, subject.plain(), rates.len() - 1].map(|s| at(&rates[s])).to_vec();
        ends.dedup();
        ends.join(", ")
    };
    let main = ["safe", "unsafe", "all"].iter().filter_map(|name| Some((*name, refused.get(*name)?)));
    let leads: Vec<String> = main
        .clone()
        .map(|(name, rates)| format!("{name} prompts refused by wording: {}.", ends(rates)))
        .collect();
    let chart = figure(
        "refusals",
        "share of prompts refused by wording",
        main.map(|(name, rates)| curve(name, rates)).collect(),
    );
    let judge: Value = done[0].verdict.judged.as_ref().map_or(Value::Null, Judged::results);
    let results = json!({"layout": set.layout, "prompts": drawn.len(), "refused": refused, "judge": judge});
    let mut findings = course.findings(&set, done)?;
    findings.tables.insert(0, table);
    findings.lead = leads.join(" ");
    findings.charts.push(chart);
    findings.results = results;
    Ok(findings)
}

/// The refused share of every group of prompts at every strength.
fn refused(course: &Course<'_>, round: &Done, prompts: &[SetPrompt]) -> (Table, BTreeMap<String, Vec<Rate>>) {
    let subject = course.subject;
    let each = round.answered.each(|text| f64::from(u8::from(refuses(text))));
    let judged = round.verdict.judged.as_ref();
    let shows = |score: u8| f64::from(u8::from(course.rubric.scale().shows(score)));
    let mut table = Table::new(
        "over-refusal",
        "Prompts refused (95% bootstrap intervals over prompts; changes are paired)",
        &[
            ("multiplier", Style::Multiplier),
            ("prompts", Style::Plain),
            ("n", Style::Count),
            ("refused by wording", Style::Percent),
            ("change", Style::Points),
            ("refused by the judge", Style::Percent),
        ],
    );
    let mut refused = BTreeMap::new();
    for (name, group) in groups(prompts) {
        let pick = |row: &Vec<f64>| group.iter().map(|&i| row[i]).collect::<Vec<f64>>();
        let wording = rates(subject, &each.iter().map(pick).collect::<Vec<_>>());
        for (s, rate) in wording.iter().enumerate() {
            let by_judge = judged.map(|judged| {
                let own = group.iter().filter_map(|&i| judged.judgments[s][i].score);
                mean(&own.map(shows).collect::<Vec<_>>(), subject.seed)
            });
            table.row(vec![
                rate.multiplier.into(),
                name.as_str().into(),
                (group.len() as f64).into(),
                rate.rate.into(),
                change_cell(rate),
                by_judge.map_or(Cell::Empty, Cell::from),
            ]);
        }
        refused.insert(name, wording);
    }
    (table, refused)
}

/// The places of prompts by group: safe and unsafe ones (or all), then each category.
fn groups(prompts: &[SetPrompt]) -> Vec<(String, Vec<usize>)> {
    let places =
        |f: &dyn Fn(&SetPrompt) -> bool| (0..prompts.len()).filter(|&i| f(&prompts[i])).collect::<Vec<_>>();
    let mut groups = match prompts.iter().any(|p| p.safe.is_some()) {
        true => vec![
            ("safe".to_owned(), places(&|p| p.safe == Some(true))),
            ("unsafe".to_owned(), places(&|p| p.safe == Some(false))),
        ],
        false => vec![("all".to_owned(), places(&|_| true))],
    };
    let mut categories: Vec<&str> = prompts.iter().filter_map(|p| p.category.as_deref()).collect();
    categories.sort_unstable();
    categories.dedup();
    for category in categories {
        groups.push((category.to_owned(), places(&|p| p.category.as_deref() == Some(category))));
    }
    groups.retain(|(_, places)| !places.is_empty());
    groups
}
