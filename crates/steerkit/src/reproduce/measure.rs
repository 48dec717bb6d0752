//! What the vectors of a line do, measured question by question.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use steerkit_model::{Model, Prompting};

use super::Made;
use super::experiment::{Line, Measure, Panel};
use super::setup::{Session, Setup};
use crate::data::ColumnMap;
use crate::eval::judged::{Answered, Bench as JudgeBench, Judged, Verdict};
use crate::eval::scoring::{Prompted, score, sum};
use crate::eval::stats::mean;
use crate::eval::{EvalSpec, PromptSet, Steering, Subject, Task, Watch, pairs};
use crate::files::{sha256, sha256_of_file, write_atomic};
use crate::judge::Rubric;
use crate::objective::PairLogps;
use crate::recipe::Recipe;
use crate::refusal::refuses;
use crate::report::Comparison;
use crate::text_stats::Estimate;
use crate::{Result, SteerError, SteeringPlan, SteeringVector};

/// What the numbers are where pairs are compared.
pub(super) const MARGIN: &str = "margin of the reference answers over the plain model's, nats";
/// Questions that stand in for MMLU.
const KNOWLEDGE: &str = include_str!("../../../../experiments/knowledge.jsonl");
/// Answers shown where a panel shows some.
const SHOWN: usize = 4;
/// The same in a quick run, and the tokens of any answer there.
const QUICK_SHOWN: usize = 2;
const QUICK_TOKENS: usize = 16;

/// What was measured of a line, as its file holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Measured {
    /// What the numbers are.
    pub(super) what: String,
    /// The multipliers, in the panel's order.
    pub(super) multipliers: Vec<f64>,
    /// A number of each question, where it has one: `[multiplier][question]`. Empty where only shares are known.
    pub(super) values: Vec<Vec<Option<f64>>>,
    /// Their means, with intervals over questions.
    pub(super) means: Vec<Estimate>,
    /// Questions.
    pub(super) questions: usize,
    /// What the reader should know.
    pub(super) notes: Vec<String>,
    /// Answers side by side.
    pub(super) answers: Vec<Comparison>,
    /// Data files with their SHA-256 sums.
    pub(super) files: BTreeMap<String, String>,
    /// The block of the vector here, where there is one.
    pub(super) layer: Option<usize>,
    /// Norms of the vectors over that of the residual stream, where it is known.
    pub(super) doses: Vec<f64>,
}

/// A line to be measured.
pub(super) struct Bench<'a> {
    pub(super) setup: &'a Setup,
    pub(super) session: &'a Session<'a>,
    pub(super) panel: &'a Panel,
    pub(super) line: &'a Line,
    pub(super) model: &'a Model,
    /// What is added to the model.
    pub(super) made: &'a Made,
    /// The recipe of the first vector, for its prompts.
    pub(super) recipe: &'a Recipe,
    /// The experiment's folder.
    pub(super) out: &'a Path,
}

impl Bench<'_> {
    /// Measures the line, or reads what was measured before.
    pub(super) fn run(&self, watch: &mut Watch<'_>) -> Result<Measured> {
        let file = self.file()?;
        if let Some(done) = read_json(&file) {
            return Ok(done);
        }
        let mut measured = self.measure(watch)?;
        measured.layer = self.vectors().first().map(|(_, vector)| vector.layer);
        let dose = |(weight, vector): &(f64, Arc<SteeringVector>)| {
            vector.relative_norm().map(|norm| f64::from(norm) * weight.abs())
        };
        measured.doses = self.vectors().iter().filter_map(dose).collect();
        write_json(&file, &measured)?;
        Ok(measured)
    }

    /// The vectors with their weights.
    fn vectors(&self) -> &[(f64, Arc<SteeringVector>)] {
        match self.made {
            Made::Vectors(vectors) => vectors,
            Made::Adapter(..) => &[],
        }
    }

    /// Where the measurement is kept: under a hash of everything that decides the numbers.
    pub(super) fn file(&self) -> Result<PathBuf> {
        let Self { setup, panel, line, .. } = self;
        let of_vector = |(weight, vector): &(f64, Arc<SteeringVector>)| {
            let bytes: Vec<u8> = vector.direction.iter().flat_map(|x| x.to_le_bytes()).collect();
            json!([weight, vector.layer, sha256(&bytes)])
        };
        let vectors: Vec<Value> = match self.made {
            Made::Vectors(vectors) => vectors.iter().map(of_vector).collect(),
            Made::Adapter(path, _) => vec![json!(content(path)?)],
        };
        let mut files = vec![setup.split_file(&line.behaviour, "test")?];
        files.extend(["mmlu", "truthfulqa"].iter().filter_map(|name| setup.data.get(*name).cloned()));
        files.extend(self.attack_file().cloned());
        if line.shots > 0 || line.method() == "icl" {
            files.push(setup.split_file(&line.behaviour, "train")?);
        }
        let of = json!({
            "vectors": vectors,
            "method": line.method(),
            "model": self.model.identity().file_sha256,
            "precision": format!("{:?}", self.session.options.precision),
            "measure": panel.measure(line),
            "multipliers": panel.multipliers,
            "sign": panel.sign,
            "answers": panel.answers,
            "template": line.template,
            "system-prompt": line.system_prompt,
            "shots": line.shots,
            "files": files.iter().map(|path| content(path)).collect::<Result<Vec<_>>>()?,
            "limit": setup.questions(panel),
            "quick": setup.quick,
            "seed": setup.seed,
            "tokens": self.tokens(),
            "judge": self.session.judging.map(|judging| judging.asker.responder.identity()),
            "version": env!("CARGO_PKG_VERSION"),
        });
        let id = &sha256(of.to_string().as_bytes())[..12];
        Ok(self.out.join("jobs").join(format!("{}-{id}.json", line.behaviour)))
    }

    fn tokens(&self) -> usize {
        if self.setup.quick { self.setup.answer_tokens.min(QUICK_TOKENS) } else { self.setup.answer_tokens }
    }

    fn measure(&self, watch: &mut Watch<'_>) -> Result<Measured> {
        if matches!(self.line.method(), "icl" | "icl+bipo" | "system-prompt") {
            return self.prompted(watch);
        }
        match self.panel.measure(self.line) {
            Measure::Answers if self.session.judging.is_some() => self.judged(watch),
            Measure::Answers | Measure::Margin => self.margins(watch),
            Measure::Mc1 | Measure::Mc2 => match self.setup.data.get("truthfulqa") {
                Some(path) => self.choices("truthfulqa", path, watch),
                None => self.true_or_false(watch),
            },
            Measure::Mmlu => match self.setup.data.get("mmlu") {
                Some(path) => self.choices("mmlu", path, watch),
                None => {
                    let path = self.out.join("knowledge.jsonl");
                    write_atomic(&path, KNOWLEDGE.as_bytes())?;
                    self.choices("mmlu", &path, watch)
                }
            },
            Measure::Compliance => self.compliance(watch),
            Measure::Contradictions => self.contradictions(watch),
        }
    }

    /// The model under the vectors at each of `multipliers`.
    pub(super) fn subject(&self, multipliers: &[f64]) -> Result<Subject<'_>> {
        let mut steerings = Vec::new();
        for &multiplier in multipliers {
            let mut plan = SteeringPlan::new();
            for (weight, vector) in self.vectors() {
                plan = plan.add(Arc::clone(vector), (multiplier * weight * self.panel.sign) as f32)?;
            }
            steerings.push(Steering { multiplier, plan });
        }
        steerings.sort_by(|a, b| a.multiplier.total_cmp(&b.multiplier));
        let prompting = crate::train::prompting(self.model, self.recipe)?;
        Ok(Subject {
            model: self.model,
            prompting: Prompting { max_length: None, ..prompting },
            steerings,
            seed: self.setup.seed,
            limit: self.setup.questions(self.panel),
            cancel: self.session.cancel,
            judging: self.session.judging,
        })
    }

    fn all(&self) -> Result<Subject<'_>> {
        self.subject(&self.panel.multipliers)
    }

    /// The test pairs of the line's behaviour.
    pub(super) fn test(&self, subject: &Subject<'_>) -> Result<pairs::Pairs> {
        pairs::read(subject, &self.setup.split_file(&self.line.behaviour, "test")?, &ColumnMap::default())
    }

    /// A number of every pair from its log-probabilities, and those of the plain model.
    fn of_pairs(
        &self,
        what: &str,
        number: impl Fn(PairLogps, PairLogps) -> f64,
        watch: &mut Watch<'_>,
    ) -> Result<Measured> {
        let subject = self.all()?;
        let mut data = self.test(&subject)?;
        let texts = pairs::tokens(&subject, &data.pairs, false, &mut data.notes)?;
        let scores = logps(&subject, &texts, watch)?;
        let plain = &scores[subject.plain()];
        let values =
            scores.iter().map(|own| own.iter().zip(plain).map(|(&a, &b)| Some(number(a, b))).collect());
        let mut measured = self.measured(what, values.collect(), data.notes);
        measured.files.insert(data.path.display().to_string(), data.sha256);
        measured.answers = self.shown(&subject, data.pairs.iter().map(|pair| pair.prompt.clone()), watch)?;
        Ok(measured)
    }

    fn margins(&self, watch: &mut Watch<'_>) -> Result<Measured> {
        self.of_pairs(MARGIN, |own, plain| own.relative_to(plain).margin(), watch)
    }

    /// TruthfulQA's two measures on pairs of a true and a false answer.
    fn true_or_false(&self, watch: &mut Watch<'_>) -> Result<Measured> {
        match self.panel.measure(self.line) {
            Measure::Mc1 => self.of_pairs(
                "MC1 of two answers, one true: share of pairs whose true answer is likelier",
                |own, _| f64::from(u8::from(own.margin() > 0.0)),
                watch,
            ),
            _ => self.of_pairs(
                "MC2 of two answers, one true: mean probability of the true one",
                |own, _| 1.0 / (1.0 + (-own.margin()).exp()),
                watch,
            ),
        }
    }

    /// A few answers side by side, where the panel shows some.
    fn shown(
        &self,
        subject: &Subject<'_>,
        questions: impl Iterator<Item = String>,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Comparison>> {
        if !self.panel.answers {
            return Ok(Vec::new());
        }
        let count = if self.setup.quick { QUICK_SHOWN } else { SHOWN };
        let answered = Answered::write(subject, questions.take(count).collect(), self.tokens(), watch)?;
        answered.shown(subject, false)
    }

    /// Log-probabilities of the test pairs under the model as it is.
    pub(super) fn logps(&self, watch: &mut Watch<'_>) -> Result<Vec<PairLogps>> {
        let subject = self.subject(&[0.0])?;
        let mut data = self.test(&subject)?;
        let texts = pairs::tokens(&subject, &data.pairs, false, &mut data.notes)?;
        Ok(logps(&subject, &texts, watch)?.remove(0))
    }

    /// A judge's scores of open answers.
    fn judged(&self, watch: &mut Watch<'_>) -> Result<Measured> {
        let subject = self.all()?;
        let data = self.test(&subject)?;
        let rubric = Rubric::find(&self.line.behaviour)?;
        let questions: Vec<String> = data.pairs.iter().map(|pair| pair.prompt.clone()).collect();
        let answered = Answered::write(&subject, questions, self.tokens(), watch)?;
        let bench = JudgeBench { rubric: &rubric, references: &data.pairs, examples: true };
        let (judged, said) = verdict(bench.judge(&subject, &answered, watch)?)?;
        let what = format!("mean score by {} (rubric {}), 1 to 4", judged.judge, rubric.name);
        let scores = judged.judgments.iter().map(|row| row.iter().map(|j| j.score.map(f64::from)).collect());
        let mut notes = data.notes;
        notes.extend(said);
        let mut measured = self.measured(&what, scores.collect(), notes);
        measured.files.insert(data.path.display().to_string(), data.sha256);
        measured.answers = if self.panel.answers { answered.shown(&subject, false)? } else { Vec::new() };
        Ok(measured)
    }

    /// The file of prompts for the line's attack that somebody brought.
    fn attack_file(&self) -> Option<&PathBuf> {
        let own = self.line.attack.as_ref().map(|attack| format!("attacks-{}", attack.to_lowercase()));
        own.and_then(|name| self.setup.data.get(&name)).or_else(|| self.setup.data.get("attacks"))
    }

    /// The prompts that are to be refused, as the line puts them, and the file they come from.
    fn attacks(&self, subject: &Subject<'_>) -> Result<(Vec<String>, String, String)> {
        let put = |prompt: &str| match &self.line.template {
            Some(template) => template.replace("{prompt}", prompt),
            None => prompt.to_owned(),
        };
        let Some(path) = self.attack_file() else {
            let data = self.test(subject)?;
            let prompts = data.pairs.iter().map(|pair| put(&pair.prompt)).collect();
            return Ok((prompts, data.path.display().to_string(), data.sha256));
        };
        let set = PromptSet::read(path)?;
        let drawn = subject.drawn(set.prompts.len()).into_iter().map(|i| &set.prompts[i]);
        // A file for this attack has its prompts as the attack puts them, a column has its suffixes.
        let ready = self.setup.data.get("attacks") != Some(path);
        let prompt = |p: &crate::eval::SetPrompt| match (&self.line.attack, &p.suffix) {
            (Some(_), _) if ready => p.prompt.clone(),
            (Some(attack), Some(suffix)) if attack == "GCG" => format!("{} {suffix}", p.prompt),
            _ => put(&p.prompt),
        };
        Ok((drawn.map(prompt).collect(), path.display().to_string(), set.sha256.clone()))
    }

    /// Share of prompts that are answered in place of refused, in per cent. No answer is kept.
    fn compliance(&self, watch: &mut Watch<'_>) -> Result<Measured> {
        let subject = self.all()?;
        let (questions, path, sum) = self.attacks(&subject)?;
        let answered = Answered::write(&subject, questions, self.tokens(), watch)?;
        let share = |yes: bool| 100.0 * f64::from(u8::from(yes));
        let harmless = self.attack_file().is_none();
        let (what, values, mut notes) = match self.session.judging {
            None => {
                let values = answered.each(|text| share(!refuses(text)));
                let values = values.into_iter().map(|row| row.into_iter().map(Some).collect()).collect();
                ("answers that do not refuse by their wording, per cent".to_owned(), values, Vec::new())
            }
            Some(_) => {
                // Of harmless prompts, what is not refused has been answered.
                let rubric = Rubric::find(if harmless { "refusal" } else { "attack-success" })?;
                let bench = JudgeBench { rubric: &rubric, references: &[], examples: false };
                let (judged, said) = verdict(bench.judge(&subject, &answered, watch)?)?;
                let scale = rubric.scale();
                let value = |score: u8| share(scale.shows(score) != harmless);
                let values =
                    judged.judgments.iter().map(|row| row.iter().map(|j| j.score.map(value)).collect());
                let what = format!("answered, by {} (rubric {}), per cent", judged.judge, rubric.name);
                (what, values.collect(), said)
            }
        };
        if harmless {
            notes.push(
                "the prompts are the harmless ones of the refusal pairs; --data attacks=FILE measures others"
                    .into(),
            );
        }
        let mut measured = self.measured(&what, values, notes);
        measured.files.insert(path, sum);
        Ok(measured)
    }

    /// Right answers of a built-in evaluation with choices.
    fn choices(&self, name: &str, path: &Path, watch: &mut Watch<'_>) -> Result<Measured> {
        let mut spec = EvalSpec::find(name)?;
        if let Some(data) = spec.task.data_mut() {
            *data = Some(path.to_owned());
        }
        let mut subject = self.all()?;
        if let (Task::MultipleChoice(task), None, false) =
            (&mut spec.task, self.setup.limit, self.setup.quick)
            && name == "mmlu"
        {
            // As the paper: 30 questions of each subject.
            task.per_group = Some(30);
            subject.limit = None;
        }
        let findings = crate::eval::run(&spec, &subject, watch)?;
        let items = findings.results["items"].as_array().cloned().unwrap_or_default();
        let mass = self.panel.measure(self.line) == Measure::Mc2;
        let number = |item: &Value, s: usize| match mass {
            true => item["mass"][s].as_f64(),
            false => Some(f64::from(u8::from(item["predicted"][s] == item["answer"]))),
        };
        let values = (0..subject.steerings.len()).map(|s| items.iter().map(|item| number(item, s)).collect());
        let what = match self.panel.measure(self.line) {
            Measure::Mc1 => "TruthfulQA MC1",
            Measure::Mc2 => "TruthfulQA MC2",
            _ if self.setup.data.contains_key("mmlu") => "MMLU accuracy",
            _ => "accuracy on 48 questions of our own, in MMLU's form",
        };
        let mut measured = self.measured(what, values.collect(), findings.notes);
        measured.files.extend(findings.data.into_iter().map(|(path, sum)| (path.display().to_string(), sum)));
        Ok(measured)
    }

    /// Letters against words.
    fn contradictions(&self, watch: &mut Watch<'_>) -> Result<Measured> {
        let mut spec = EvalSpec::find("letters")?;
        let path = self.setup.split_file(&self.line.behaviour, "test")?;
        if let Some(data) = spec.task.data_mut() {
            *data = Some(path);
        }
        let subject = self.all()?;
        let findings = crate::eval::run(&spec, &subject, watch)?;
        let points = findings.results["points"].as_array().cloned().unwrap_or_default();
        let share = |point: &Value| {
            serde_json::from_value(point["words"]["contradictions"].clone()).unwrap_or(f64::NAN.into())
        };
        let data = self.test(&subject)?;
        Ok(Measured {
            what: "share of questions whose letter and whose answer in words disagree".into(),
            multipliers: subject.multipliers(),
            means: points.iter().map(share).collect(),
            questions: findings.results["questions"].as_u64().unwrap_or(0) as usize,
            notes: findings.notes,
            answers: self.shown(&subject, data.pairs.iter().map(|pair| pair.prompt.clone()), watch)?,
            files: findings.data.into_iter().map(|(path, sum)| (path.display().to_string(), sum)).collect(),
            ..Measured::default()
        })
    }

    pub(super) fn measured(&self, what: &str, values: Vec<Vec<Option<f64>>>, notes: Vec<String>) -> Measured {
        Measured::of(what, &self.panel.multipliers, values, notes, self.setup.seed)
    }
}

impl Measured {
    /// From a number of each question at each multiplier.
    pub(super) fn of(
        what: &str,
        multipliers: &[f64],
        values: Vec<Vec<Option<f64>>>,
        notes: Vec<String>,
        seed: u64,
    ) -> Self {
        let means = values.iter().map(|row| mean(&row.iter().flatten().copied().collect::<Vec<_>>(), seed));
        Self {
            what: what.into(),
            multipliers: multipliers.to_vec(),
            means: means.collect(),
            questions: values.first().map_or(0, Vec::len),
            values,
            notes,
            ..Self::default()
        }
    }

    /// The numbers of `self` less those of `other` at a multiplier each, of the questions that have both.
    pub(super) fn differences(&self, at: usize, other: &Self, other_at: usize) -> Vec<f64> {
        let (Some(own), Some(other)) = (self.values.get(at), other.values.get(other_at)) else {
            return Vec::new();
        };
        own.iter().zip(other).filter_map(|(a, b)| Some((*a)? - (*b)?)).collect()
    }
}

/// Log-probabilities of both continuations of every text under every strength.
pub(super) fn logps(
    subject: &Subject<'_>,
    texts: &[Prompted],
    watch: &mut Watch<'_>,
) -> Result<Vec<Vec<PairLogps>>> {
    let scores = score(subject, texts, false, "reading pairs", watch)?;
    let of = |own: &Vec<crate::eval::scoring::ContinuationScores>| {
        own.iter().map(|both| PairLogps { chosen: sum(&both[0]), rejected: sum(&both[1]) }).collect()
    };
    Ok(scores.iter().map(of).collect())
}

/// What the judge said with what the reader should know of it, or why it could not be asked.
fn verdict(verdict: Verdict) -> Result<(Judged, Vec<String>)> {
    match (verdict.judged, verdict.failure) {
        (Some(judged), failure) => {
            let mut notes = judged.notes();
            notes.extend(failure.map(|failure| failure.to_string()));
            Ok((judged, notes))
        }
        (None, Some(failure)) => Err(SteerError::from(failure)),
        (None, None) => {
            Err(SteerError::Unfit { what: "no judge".into(), hint: "name one with --judge".into() })
        }
    }
}

/// The hash of a file, or of the names and hashes of a folder's.
fn content(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return Ok(sha256_of_file(path)?);
    }
    let mut entries: Vec<PathBuf> =
        fs_err::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    entries.sort();
    let sums = entries.iter().map(|path| content(path)).collect::<Result<Vec<_>>>()?;
    Ok(sha256(sums.join("\n").as_bytes()))
}

/// A finished result; what is absent or cannot be read counts as none.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&fs_err::read(file).ok()?).ok()
}

/// Writes a result below the experiment's folder.
pub(super) fn write_json(file: &Path, value: &impl Serialize) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let text = serde_json::to_string(value).expect("text, numbers and lists of them");
    Ok(write_atomic(file, format!("{text}\n").as_bytes())?)
}
