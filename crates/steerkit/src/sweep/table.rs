//! From the jobs' numbers to tables: means over questions with intervals, what was chosen, and how methods compare.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::job::{JobFiles, Measured, NO_UNIT, Strength};
use super::rows::{Cell, Rows};
use super::spec::{By, Choose, Job, Spec, Split};
use crate::text_stats::{Bootstrap, Estimate};

/// The results of a sweep. They depend on the jobs' numbers only: neither on time nor on the order of the jobs' runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Results {
    /// The pairs that are reported on.
    pub report_on: Split,
    /// The keys in which jobs differ, the seed left out.
    pub columns: Vec<String>,
    /// On the validation pairs, where they were measured.
    pub valid: Option<SplitTable>,
    /// What was chosen there, where there was a choice.
    pub chosen: Vec<Chosen>,
    /// On the test pairs, where they were measured.
    pub test: Option<SplitTable>,
}

/// What was measured on one split.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SplitTable {
    /// Jobs that gave numbers.
    pub done: usize,
    /// Jobs that failed.
    pub failed: usize,
    /// Jobs that were not run.
    pub missing: usize,
    /// One row per job.
    pub jobs: Vec<JobRow>,
    /// One row for jobs that differ in the seed only.
    pub groups: Vec<Group>,
    /// Methods on the same questions.
    pub contrasts: Vec<Contrast>,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobRow {
    /// The job.
    pub id: String,
    /// Its values of the columns, and its seed.
    pub keys: BTreeMap<String, String>,
    /// `done`, `failed` or `missing`.
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<String>,
    /// The block of its vector.
    pub layer: Option<usize>,
    /// Norm of its vector.
    pub norm: Option<f64>,
    /// The norm over the median norm of the residual stream.
    pub relative_dose: Option<f64>,
    /// What could not be measured.
    pub notes: Vec<String>,
    /// The margins.
    pub points: Vec<Point>,
}

/// Jobs that differ in the seed only: the margins of a question are averaged over them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Values of the columns.
    pub keys: BTreeMap<String, String>,
    /// The jobs.
    pub jobs: Vec<String>,
    /// The margins.
    pub points: Vec<Point>,
    /// The two-sided margins at each strength, by question.
    #[serde(skip)]
    by_question: BTreeMap<String, ByQuestion>,
}

/// Mean relative margins at one strength in nats, with bootstrap intervals over questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The strength: `multiplier 1`, `equal norm`, `equal KL`.
    pub at: String,
    /// The multiplier, the mean of those of the jobs.
    pub multiplier: f64,
    /// Questions.
    pub questions: usize,
    /// At plus the multiplier.
    pub toward: Estimate,
    /// At minus the multiplier.
    pub away: Estimate,
    /// Half of the difference of the two.
    pub two_sided: Estimate,
    /// Share of pairs whose margin is above 0 at plus the multiplier.
    pub accuracy_toward: f64,
    /// Share of pairs whose margin is below 0 at minus the multiplier.
    pub accuracy_away: f64,
}

/// Two methods on the same questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contrast {
    /// The first, by its values of the columns.
    pub of: BTreeMap<String, String>,
    /// The second.
    pub over: BTreeMap<String, String>,
    /// The strength.
    pub at: String,
    /// Difference of the two-sided margins, with a paired interval.
    pub difference: Estimate,
    /// Their ratio, with a paired interval; none where the second is not above 0.
    pub ratio: Option<Estimate>,
}

/// What was chosen on the validation pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// What it was chosen for: the other columns.
    pub keys: BTreeMap<String, String>,
    /// The chosen values.
    pub choice: BTreeMap<String, String>,
    /// The strength at which margins were compared.
    pub at: String,
    /// The two-sided margin on the validation pairs.
    pub two_sided: Estimate,
    /// The jobs.
    pub jobs: Vec<String>,
}

/// Margins of one strength by question: `[toward, away]`.
#[derive(Clone, Debug, Default, PartialEq)]
struct ByQuestion {
    multipliers: Vec<f64>,
    right: [usize; 2],
    pairs: usize,
    sums: BTreeMap<String, ([f64; 2], usize)>,
}

impl ByQuestion {
    fn add(&mut self, questions: &[String], strength: &Strength) {
        self.multipliers.push(strength.multiplier);
        for ((question, &toward), &away) in questions.iter().zip(&strength.toward).zip(&strength.away) {
            let (sums, n) = self.sums.entry(question.clone()).or_default();
            *sums = [sums[0] + toward, sums[1] + away];
            *n += 1;
            self.right[0] += usize::from(toward > 0.0);
            self.right[1] += usize::from(away < 0.0);
            self.pairs += 1;
        }
    }

    fn means(&self, of: impl Fn([f64; 2]) -> f64) -> Vec<f64> {
        self.sums.values().map(|&(sums, n)| of(sums) / n as f64).collect()
    }

    fn two_sided(&self) -> Vec<f64> {
        self.means(|[toward, away]| (toward - away) / 2.0)
    }

    fn point(&self, at: &str, bootstrap: Bootstrap) -> Option<Point> {
        Some(Point {
            at: at.to_owned(),
            multiplier: self.multipliers.iter().sum::<f64>() / self.multipliers.len() as f64,
            questions: self.sums.len(),
            toward: bootstrap.mean(&self.means(|m| m[0]))?,
            away: bootstrap.mean(&self.means(|m| m[1]))?,
            two_sided: bootstrap.mean(&self.two_sided())?,
            accuracy_toward: self.right[0] as f64 / self.pairs as f64,
            accuracy_away: self.right[1] as f64 / self.pairs as f64,
        })
    }
}

/// What the files below `out` say of the jobs.
pub(super) fn results(spec: &Spec, jobs: &[Job], out: &Path) -> Results {
    let columns = columns(jobs);
    let bootstrap = Bootstrap { resamples: spec.measure.resamples, ..Bootstrap::default() };
    let keys: Vec<_> = jobs.iter().map(|job| keys(job, &columns)).collect();
    let table = |split: Split, among: Option<&BTreeSet<String>>| {
        let mut table = SplitTable::default();
        let mut groups: Vec<Group> = Vec::new();
        for (job, keys) in jobs.iter().zip(&keys) {
            if among.is_some_and(|among| !among.contains(&job.id)) {
                continue;
            }
            let files = JobFiles::new(out, job);
            let mut keys = keys.clone();
            let measured = files.measured(split);
            if let Some(measured) = &measured {
                group(&mut groups, &keys, measured);
            }
            keys.insert("seed".into(), job.recipe.seed.to_string());
            table.push(job, keys, measured, &files, bootstrap);
        }
        for group in &mut groups {
            let points = group.by_question.iter();
            group.points = points.filter_map(|(at, margins)| margins.point(at, bootstrap)).collect();
            group.points.sort_by_key(|point| order(&point.at));
        }
        table.contrasts = contrasts(&groups, &spec.measure.against, bootstrap);
        table.groups = groups;
        table
    };
    let chooses = spec.choose.is_some();
    let valid = (chooses || spec.report_on == Split::Valid).then(|| table(Split::Valid, None));
    let chosen = match (&spec.choose, &valid) {
        (Some(choose), Some(valid)) => chosen(&valid.groups, choose),
        _ => Vec::new(),
    };
    let among: BTreeSet<String> = chosen.iter().flat_map(|c| c.jobs.iter().cloned()).collect();
    let test = (spec.report_on == Split::Test).then(|| table(Split::Test, chooses.then_some(&among)));
    Results { report_on: spec.report_on, columns, valid, chosen, test }
}

impl SplitTable {
    fn push(
        &mut self,
        job: &Job,
        keys: BTreeMap<String, String>,
        measured: Option<Measured>,
        files: &JobFiles,
        bootstrap: Bootstrap,
    ) {
        let failed = if measured.is_none() { files.failed() } else { None };
        let (status, count) = match (&measured, &failed) {
            (Some(_), _) => ("done", &mut self.done),
            (None, Some(_)) => ("failed", &mut self.failed),
            (None, None) => ("missing", &mut self.missing),
        };
        *count += 1;
        let vector = measured.as_ref().and_then(|m| m.vector.clone());
        let points = measured.iter().flat_map(|m| m.points.iter().map(move |s| (&m.questions, s)));
        let points = points.filter_map(|(questions, strength)| {
            let mut margins = ByQuestion::default();
            margins.add(questions, strength);
            margins.point(&strength.at, bootstrap)
        });
        self.jobs.push(JobRow {
            id: job.id.clone(),
            keys,
            status,
            error: failed.map(|f| f.error),
            layer: vector.as_ref().map(|v| v.layer),
            norm: vector.as_ref().map(|v| v.norm),
            relative_dose: vector.as_ref().map(|v| v.norm / v.residual_norm).filter(|x| x.is_finite()),
            points: points.collect(),
            notes: measured.map_or(Vec::new(), |m| m.notes),
        });
    }
}

/// The keys in which jobs differ, `method` always among them.
fn columns(jobs: &[Job]) -> Vec<String> {
    let all: BTreeSet<&String> = jobs.iter().flat_map(|job| job.keys.keys()).collect();
    let differs = |key: &str| jobs.iter().map(|job| value(job, key)).collect::<BTreeSet<_>>().len() > 1;
    let others = all.into_iter().filter(|k| *k != "method" && *k != "seed" && differs(k)).cloned();
    others.chain(["method".to_owned()]).collect()
}

fn keys(job: &Job, columns: &[String]) -> BTreeMap<String, String> {
    columns.iter().map(|key| (key.clone(), value(job, key))).collect()
}

/// What a job has for a key: as the grid says, else as the recipe does.
fn value(job: &Job, key: &str) -> String {
    if key == "layer" && job.adapts() {
        return "-".into();
    }
    if let Some(value) = job.keys.get(key) {
        return value.clone();
    }
    let found = if job.steers { job.recipe.decisive().remove(key) } else { None };
    found.map_or("-".into(), |value| value.trim_matches('"').to_owned())
}

/// Strengths in the order of a table.
fn order(at: &str) -> (u8, String) {
    let place = match at {
        "equal norm" => 1,
        "equal KL" => 2,
        _ => 0,
    };
    (place, at.to_owned())
}

fn group(groups: &mut Vec<Group>, keys: &BTreeMap<String, String>, measured: &Measured) {
    let found = groups.iter().position(|group| group.keys == *keys);
    let at = found.unwrap_or_else(|| {
        let (jobs, points, by_question) = (Vec::new(), Vec::new(), BTreeMap::new());
        groups.push(Group { keys: keys.clone(), jobs, points, by_question });
        groups.len() - 1
    });
    groups[at].jobs.push(measured.id.clone());
    for strength in &measured.points {
        let margins = groups[at].by_question.entry(strength.at.clone()).or_default();
        margins.add(&measured.questions, strength);
    }
}

/// Columns that say where vectors act: others at the same place are compared, where there are such.
const PLACE: [&str; 4] = ["model", "layer", "layers", "scope"];

/// Every group of the method `against` over every other group with the same questions. In a column in which the other
/// method has several values, and in those of [`PLACE`], only equal ones are compared, where there are such.
fn contrasts(groups: &[Group], against: &str, bootstrap: Bootstrap) -> Vec<Contrast> {
    let (firsts, others): (Vec<&Group>, Vec<&Group>) =
        groups.iter().partition(|g| g.keys.get("method").is_some_and(|m| m == against));
    let mut all = Vec::new();
    for over in others {
        // What a method does not depend on, or was not varied in, is no difference.
        let of_method = |g: &&Group| g.keys.get("method") == over.keys.get("method") && comparable(g, over);
        let varies = |key: &str| groups.iter().filter(of_method).any(|g| g.keys[key] != over.keys[key]);
        let same = |key: &str, value: &String| {
            let other = &over.keys[key];
            key == "method" || other == value || other == "-" || !(PLACE.contains(&key) || varies(key))
        };
        let alike = |of: &Group| of.keys.iter().all(|(key, value)| same(key, value));
        let some_alike = firsts.iter().any(|of| alike(of) && comparable(of, over));
        for of in &firsts {
            if comparable(of, over) && (alike(of) || !some_alike) {
                all.extend(contrast(of, over, bootstrap));
            }
        }
    }
    all
}

fn comparable(a: &Group, b: &Group) -> bool {
    let questions =
        |g: &Group| g.by_question.values().next().map(|m| m.sums.keys().cloned().collect::<Vec<_>>());
    questions(a) == questions(b)
}

fn contrast(of: &Group, over: &Group, bootstrap: Bootstrap) -> Vec<Contrast> {
    let mut all: Vec<Contrast> = of
        .by_question
        .iter()
        .filter_map(|(at, margins)| {
            // A prompt has one strength only.
            let other = over.by_question.get(at)?;
            let (a, b) = (margins.two_sided(), other.two_sided());
            let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
            Some(Contrast {
                of: of.keys.clone(),
                over: over.keys.clone(),
                at: at.clone(),
                difference: bootstrap.mean(&differences)?,
                ratio: bootstrap.ratio(&a, &b),
            })
        })
        .collect();
    all.sort_by_key(|contrast| order(&contrast.at));
    all
}

/// The strength that `by` names, or the first that is there.
pub(super) fn compared(points: &[Point], by: By) -> Option<&Point> {
    let name = match by {
        By::Multiplier1 => "multiplier 1",
        By::EqualNorm => "equal norm",
        By::EqualKl => "equal KL",
    };
    points.iter().find(|point| point.at == name).or(points.first())
}

fn chosen(groups: &[Group], choose: &Choose) -> Vec<Chosen> {
    let mut best: Vec<(Chosen, f64)> = Vec::new();
    for group in groups {
        let Some(point) = compared(&group.points, choose.by) else { continue };
        let split = |chosen: bool| -> BTreeMap<String, String> {
            let keys = group.keys.iter().filter(|(k, _)| choose.over.contains(k) == chosen);
            keys.map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        let candidate = Chosen {
            keys: split(false),
            choice: split(true),
            at: point.at.clone(),
            two_sided: point.two_sided,
            jobs: group.jobs.clone(),
        };
        let score = point.two_sided.value;
        match best.iter_mut().find(|(other, _)| other.keys == candidate.keys) {
            Some(other) if score > other.1 => *other = (candidate, score),
            Some(_) => {}
            None => best.push((candidate, score)),
        }
    }
    best.into_iter().map(|(chosen, _)| chosen).collect()
}

impl Results {
    /// The split that is reported on, or the one that was measured so far.
    pub fn reported(&self) -> (Split, &SplitTable) {
        match (&self.test, &self.valid) {
            (Some(test), _) if test.done + test.failed > 0 => (Split::Test, test),
            (_, Some(valid)) => (Split::Valid, valid),
            (Some(test), None) => (Split::Test, test),
            (None, None) => unreachable!("one split is measured"),
        }
    }

    /// Jobs that failed, on any split.
    pub fn failures(&self) -> Vec<&JobRow> {
        let tables = [&self.valid, &self.test].into_iter().flatten();
        tables.flat_map(|table| table.jobs.iter().filter(|job| job.status == "failed")).collect()
    }

    /// Whether every job was run on a split, with success or without.
    pub fn is_complete(&self, split: Split) -> bool {
        let table = if split == Split::Valid { &self.valid } else { &self.test };
        table.as_ref().is_none_or(|table| table.missing == 0)
    }

    pub(super) fn chosen_jobs(&self) -> BTreeSet<String> {
        self.chosen.iter().flat_map(|chosen| chosen.jobs.iter().cloned()).collect()
    }

    /// The groups of the reported split as a table.
    pub fn table(&self) -> Rows {
        let (split, table) = self.reported();
        let mut strengths: Vec<&str> =
            table.groups.iter().flat_map(|g| g.points.iter().map(|p| p.at.as_str())).collect();
        strengths.sort_by_key(|at| order(at));
        strengths.dedup();
        let mut rows = Rows { split, ..Rows::default() };
        rows.head.extend(self.columns.iter().cloned().chain(["jobs".into()]));
        rows.texts = rows.head.len() - 1;
        for at in &strengths {
            rows.head.extend(["+", "-", "two-sided"].map(|side| format!("{at}, {side}")));
        }
        for group in &table.groups {
            let names = self.columns.iter().map(|key| group.keys[key].clone());
            let mut row: Vec<Cell> = names.map(Cell::Text).collect();
            row.push(Cell::Text(group.jobs.len().to_string()));
            for at in &strengths {
                let point = group.points.iter().find(|point| point.at == *at);
                let sides = [point.map(|p| p.toward), point.map(|p| p.away), point.map(|p| p.two_sided)];
                row.extend(sides.map(|side| side.map_or(Cell::None, Cell::Number)));
            }
            rows.rows.push(row);
        }
        for job in table.jobs.iter().filter(|job| job.status == "failed") {
            let names: Vec<&str> = job.keys.values().map(String::as_str).collect();
            let error = job.error.as_deref().unwrap_or_default();
            rows.notes.push(format!("failed: {} ({}): {error}", job.id, names.join(", ")));
        }
        let adapters = table.jobs.iter().filter(|job| job.notes.iter().any(|note| note == NO_UNIT));
        let methods: BTreeSet<&str> = adapters.map(|job| job.keys["method"].as_str()).collect();
        rows.notes.extend(methods.into_iter().map(|method| format!("{method}: {NO_UNIT}")));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strength(toward: &[f64], away: &[f64]) -> Strength {
        Strength { at: "equal norm".into(), multiplier: 2.0, toward: toward.into(), away: away.into() }
    }

    #[test]
    fn both_of_two_optimisers_are_compared_with_a_method_that_has_one_setting() {
        let with = |method: &str, steps: &str, toward: &[f64]| {
            let mut group = group_of(method, "3", toward, &[0.0; 3]);
            group.keys.insert("steps".into(), steps.into());
            group
        };
        let groups = [
            with("bipo", "8", &[4.0; 3]),
            with("bipo", "32", &[2.0; 3]),
            with("mean-diff", "8", &[1.0; 3]),
            with("reps", "8", &[1.0; 3]),
            with("reps", "32", &[1.0; 3]),
        ];
        let all = contrasts(&groups, "bipo", Bootstrap::default());
        let of = |method: &str| -> Vec<[&str; 2]> {
            let of_method = all.iter().filter(|c| c.over["method"] == method);
            of_method.map(|c| [c.of["steps"].as_str(), c.over["steps"].as_str()]).collect()
        };
        assert_eq!(of("mean-diff"), [["8", "8"], ["32", "8"]]);
        assert_eq!(of("reps"), [["8", "8"], ["32", "32"]]);
    }

    fn group_of(method: &str, layer: &str, toward: &[f64], away: &[f64]) -> Group {
        let keys = [("method", method), ("layer", layer)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let questions: Vec<String> = ["a", "b", "b"].map(str::to_owned).into();
        let mut margins = ByQuestion::default();
        margins.add(&questions, &strength(toward, away));
        let bootstrap = Bootstrap { resamples: 50, ..Bootstrap::default() };
        let points = margins.point("equal norm", bootstrap).into_iter().collect();
        let by_question = BTreeMap::from([("equal norm".to_owned(), margins)]);
        Group { keys: keys.into(), jobs: vec![format!("{method}{layer}")], points, by_question }
    }

    /// Questions a: (4, -2) and b: mean of (2, 0) and (0, 2), so (1, 1): means 2.5 and -0.5, two-sided 3 and 0.
    #[test]
    fn questions_are_averaged_before_they_are_resampled() {
        let group = group_of("bipo", "3", &[4.0, 2.0, 0.0], &[-2.0, 0.0, 2.0]);
        let point = &group.points[0];
        assert_eq!((point.questions, point.toward.value, point.away.value), (2, 2.5, -0.5));
        assert_eq!(point.two_sided.value, 1.5);
        assert_eq!((point.accuracy_toward, point.accuracy_away), (2.0 / 3.0, 1.0 / 3.0));
        assert_eq!(point.two_sided.interval, Some((0.0, 3.0)));
    }

    #[test]
    fn the_largest_margin_is_chosen_and_methods_are_compared_where_they_are_alike() {
        let groups = [
            group_of("bipo", "3", &[4.0, 2.0, 0.0], &[-2.0, 0.0, 2.0]),
            group_of("bipo", "5", &[8.0, 4.0, 0.0], &[-4.0, 0.0, 4.0]),
            group_of("caa", "3", &[2.0, 1.0, 0.0], &[-1.0, 0.0, 1.0]),
        ];
        let choose = Choose { over: vec!["layer".into()], by: By::EqualNorm };
        let best = chosen(&groups, &choose);
        assert_eq!(best.len(), 2);
        assert_eq!((best[0].jobs[0].as_str(), best[0].choice["layer"].as_str()), ("bipo5", "5"));
        assert_eq!(best[1].jobs, ["caa3"]);
        let all = contrasts(&groups, "bipo", Bootstrap::default());
        assert_eq!(all.len(), 1, "the other layer is not compared");
        assert_eq!((all[0].difference.value, all[0].ratio.unwrap().value), (0.75, 2.0));
        assert_eq!(all[0].ratio.unwrap().interval, None, "caa has no margin on the second question");
    }
}
