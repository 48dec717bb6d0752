//! Answers at every strength of a plan with a judge's scores of them, for the evaluations that ask one.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use serde::Serialize;
use serde_json::{Value, json};
use steerkit_model::{Completion, Request};

use super::findings::{Cell, Findings, Style, Table};
use super::shading::{Asked, side_by_side};
use super::stats::{mean, mean_difference};
use super::subject::{Progress, Subject, Watch};
use crate::ask::{AskError, Asker, Estimate as Cost, Ledger};
use crate::data::PreferencePair;
use crate::judge::{Judge, Judgment, Material, ReferenceCheck, Rubric, Scores};
use crate::report::{Answer, Comparison};
use crate::text_stats::Estimate;
use crate::{Result, SteerError};

/// Answers written at the same time.
const BATCH: usize = 32;
/// Answers shown in the report.
const SHOWN: usize = 6;
/// Bytes of an answer per token that it may have, for the estimate before answers are there.
const BYTES: usize = 4;

/// The judge of an evaluation.
#[derive(Clone, Copy)]
pub struct Judging<'a> {
    /// Who is asked.
    pub asker: &'a Asker<'a>,
    /// Say what judging would take at most, and ask nothing.
    pub dry_run: bool,
}

/// Questions with the model's answers to them at every strength.
pub(crate) struct Answered {
    /// The questions.
    pub(crate) questions: Vec<String>,
    /// The tokens of their prompts.
    prompts: Vec<Vec<u32>>,
    /// `[strength][question]`.
    pub(crate) answers: Vec<Vec<Completion>>,
}

impl Answered {
    /// Answers every question at every strength, greedily.
    pub(crate) fn write(
        subject: &Subject<'_>,
        questions: Vec<String>,
        max_tokens: usize,
        watch: &mut Watch<'_>,
    ) -> Result<Self> {
        let (mut requests, mut prompts) = (Vec::new(), Vec::new());
        for (i, question) in questions.iter().enumerate() {
            let prompt = subject.prompting.prompt(question)?;
            let shape = subject.shape(question, prompt.len())?;
            if i == 0 {
                subject.check_effect(&prompt, &shape)?;
            }
            for steering in &subject.steerings {
                let edits = steering.plan.edits(subject.model.config(), &shape)?;
                requests.push(Request { prompt: prompt.clone(), edits, max_tokens, ..Request::default() });
            }
            prompts.push(prompt);
        }
        let (total, mut done) = (requests.len(), 0);
        let completions = subject.model.generate(requests, BATCH, &mut |event| {
            done += usize::from(event.news.as_ref().is_ok_and(|new| new.finish.is_some()));
            watch(Progress { what: "writing answers", done, total });
            let stop = subject.cancel.load(Ordering::Relaxed);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let n = subject.steerings.len();
        let of = |s: usize| completions.iter().skip(s).step_by(n).cloned().collect();
        Ok(Self { answers: (0..n).map(of).collect(), questions, prompts })
    }

    /// A number of every answer: `[strength][question]`.
    pub(crate) fn each(&self, f: impl Fn(&str) -> f64) -> Vec<Vec<f64>> {
        let of = |row: &Vec<Completion>| row.iter().map(|answer| f(&answer.text)).collect();
        self.answers.iter().map(of).collect()
    }

    /// The first answers side by side; hidden ones by their length.
    pub(crate) fn shown(&self, subject: &Subject<'_>, hidden: bool) -> Result<Vec<Comparison>> {
        let multipliers = subject.multipliers();
        let count = self.questions.len().min(SHOWN);
        let answers = |i: usize| multipliers.iter().zip(&self.answers).map(move |(&m, row)| (m, &row[i]));
        if hidden {
            let answer = |(multiplier, completion): (f64, &Completion)| Answer {
                multiplier,
                text: text_of(&completion.text, true),
                shades: Vec::new(),
            };
            let comparison = |i: usize| Comparison {
                question: self.questions[i].clone(),
                answers: answers(i).map(answer).collect(),
            };
            return Ok((0..count).map(comparison).collect());
        }
        let asked = |i: usize| Asked {
            question: &self.questions[i],
            prompt: &self.prompts[i],
            answers: answers(i).collect(),
        };
        side_by_side(subject.model, &(0..count).map(asked).collect::<Vec<_>>(), subject.cancel)
    }

    /// One line of JSON per answer.
    pub(crate) fn lines(
        &self,
        subject: &Subject<'_>,
        condition: &str,
        judged: Option<&Judged>,
        hidden: bool,
    ) -> String {
        let mut lines = String::new();
        for (s, steering) in subject.steerings.iter().enumerate() {
            for (i, question) in self.questions.iter().enumerate() {
                let judgment = judged.map(|judged| &judged.judgments[s][i]);
                let line = AnswerLine {
                    question,
                    answer: &text_of(&self.answers[s][i].text, hidden),
                    multiplier: steering.multiplier,
                    condition,
                    score: judgment.and_then(|j| j.score),
                    reply: judgment.filter(|_| !hidden).and_then(|j| j.reply.as_deref()),
                };
                lines.push_str(&serde_json::to_string(&line).expect("text and numbers"));
                lines.push('\n');
            }
        }
        lines
    }
}

/// An answer, or how long it is.
fn text_of(text: &str, hidden: bool) -> String {
    match hidden {
        true => format!("[hidden: {} words]", crate::text_stats::words(text).len()),
        false => text.trim().to_owned(),
    }
}

/// An answer with its score, as `answers.jsonl` holds it.
#[derive(Serialize)]
struct AnswerLine<'a> {
    question: &'a str,
    answer: &'a str,
    multiplier: f64,
    #[serde(skip_serializing_if = "str::is_empty")]
    condition: &'a str,
    score: Option<u8>,
    reply: Option<&'a str>,
}

/// What a judge said of answers and of references.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Judged {
    /// The rubric's name.
    pub(crate) rubric: String,
    /// Who judged.
    pub(crate) judge: String,
    /// `[strength][question]`.
    #[serde(skip)]
    pub(crate) judgments: Vec<Vec<Judgment>>,
    /// One per strength.
    pub(crate) scores: Vec<Scores>,
    /// How the judge grades answers whose side is known.
    pub(crate) reference: Option<ReferenceCheck>,
    /// What it took so far, other rubrics of the run with it.
    pub(crate) ledger: Ledger,
}

/// What judging came to: nothing without a judge, and a failure beside the answers when it broke off.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) judged: Option<Judged>,
    pub(crate) failure: Option<AskError>,
}

/// What is judged: the rubric, the answers, and preference pairs whose sides are known.
pub(crate) struct Bench<'b> {
    pub(crate) rubric: &'b Rubric,
    pub(crate) references: &'b [PreferencePair],
    /// Show the judge the item's own chosen and rejected answer, as the paper does.
    pub(crate) examples: bool,
}

impl Bench<'_> {
    /// What judging answers of at most `max_tokens` to `questions` takes at most.
    pub(crate) fn estimate(
        &self,
        judging: &Judging<'_>,
        subject: &Subject<'_>,
        questions: &[String],
        max_tokens: usize,
    ) -> Cost {
        // Texts as long as they can be, all different.
        let answers: Vec<String> = (0..questions.len() * subject.steerings.len())
            .map(|i| format!("{i:0width$}", width = BYTES * max_tokens))
            .collect();
        let rows: Vec<&[String]> = answers.chunks(questions.len().max(1)).collect();
        let texts: Vec<Vec<&str>> = rows.iter().map(|row| row.iter().map(String::as_str).collect()).collect();
        let materials = self.materials(questions, &texts);
        Judge::new(judging.asker, self.rubric.clone()).estimate(&materials)
    }

    /// The answers, strength after strength, then the chosen and the rejected references.
    fn materials<'m>(&'m self, questions: &'m [String], answers: &[Vec<&'m str>]) -> Vec<Material<'m>> {
        let example = |i: usize| -> Option<[&'m str; 2]> {
            let pair = self.references.get(i).filter(|_| self.examples)?;
            Some([pair.chosen.as_str(), pair.rejected.as_str()])
        };
        let mut materials = Vec::new();
        for row in answers {
            materials.extend(row.iter().enumerate().map(|(i, &answer)| Material {
                question: &questions[i],
                answer,
                examples: example(i),
            }));
        }
        let sides: [fn(&PreferencePair) -> &String; 2] = [|pair| &pair.chosen, |pair| &pair.rejected];
        for side in sides {
            // A reference is judged without examples: its own would give it away.
            materials.extend(self.references.iter().map(|pair| Material {
                question: &pair.prompt,
                answer: side(pair),
                examples: None,
            }));
        }
        materials
    }

    /// Judges answers and references. A judge that cannot be asked any more is a failure beside the answers; stopping
    /// is an error.
    pub(crate) fn judge(
        &self,
        subject: &Subject<'_>,
        answered: &Answered,
        watch: &mut Watch<'_>,
    ) -> Result<Verdict> {
        let Some(judging) = subject.judging else { return Ok(Verdict::default()) };
        let judge = Judge::new(judging.asker, self.rubric.clone());
        let texts: Vec<Vec<&str>> =
            answered.answers.iter().map(|row| row.iter().map(|a| a.text.as_str()).collect()).collect();
        let materials = self.materials(&answered.questions, &texts);
        let total = materials.len();
        let judged = judge.judge(&materials, subject.cancel, &mut |done| {
            watch(Progress { what: "judging answers", done, total });
        });
        let judged = match judged {
            Ok(judged) => judged,
            Err(SteerError::Ask(error)) => return Ok(Verdict { judged: None, failure: Some(*error) }),
            Err(error) => return Err(error),
        };
        let (answers, references) = judged.split_at(total - 2 * self.references.len());
        let scale = self.rubric.scale();
        let judgments: Vec<Vec<Judgment>> =
            answers.chunks(answered.questions.len()).map(<[Judgment]>::to_vec).collect();
        let (chosen, rejected) = references.split_at(self.references.len());
        let reference = (!self.references.is_empty()).then(|| ReferenceCheck::of(chosen, rejected, scale));
        let failure = Scores::of(answers, scale).check("answers");
        let failure = failure.and_then(|()| Scores::of(references, scale).check("reference answers")).err();
        let judged = Judged {
            rubric: self.rubric.name.clone(),
            judge: judging.asker.responder.identity(),
            scores: judgments.iter().map(|row| Scores::of(row, scale)).collect(),
            judgments,
            reference,
            ledger: judging.asker.meter.ledger(),
        };
        Ok(Verdict { judged: Some(judged), failure })
    }
}

impl Judged {
    /// Whether the scores are a headline.
    pub(crate) fn headline(&self) -> bool {
        self.reference.as_ref().is_some_and(|reference| reference.headline)
    }

    /// How far to believe the judge, in sentences.
    pub(crate) fn notes(&self) -> Vec<String> {
        let trust = match &self.reference {
            Some(reference) => reference.verdict(),
            None => "no reference answers: nothing says how far to believe the judge, and its scores are no result".into(),
        };
        let unscored: usize = self.scores.iter().map(|scores| scores.unscored).sum();
        let n: usize = self.scores.iter().map(|scores| scores.n).sum();
        let Ledger { calls, stored, tokens, cost, .. } = self.ledger;
        vec![
            format!("judge {} by the rubric {:?}: {trust}", self.judge, self.rubric),
            format!("{unscored} of {n} answers have no score and are left out of the means"),
            format!(
                "judging took {calls} calls ({stored} from the store), {} + {} tokens, {cost:.4} in the currency of the prices",
                tokens.input, tokens.output
            ),
        ]
    }

    /// Mean of `f` of the scores at a strength.
    pub(crate) fn mean(&self, s: usize, f: impl Fn(u8) -> f64, seed: u64) -> Estimate {
        let scores: Vec<f64> = self.judgments[s].iter().filter_map(|j| j.score).map(f).collect();
        mean(&scores, seed)
    }

    /// Mean difference of `f` to another strength over the questions that have a score at both.
    pub(crate) fn change(&self, s: usize, plain: usize, f: impl Fn(u8) -> f64, seed: u64) -> Estimate {
        let both = self.judgments[s].iter().zip(&self.judgments[plain]);
        let (own, other): (Vec<f64>, Vec<f64>) =
            both.filter_map(|(a, b)| Some((f(a.score?), f(b.score?)))).unzip();
        mean_difference(&own, &other, seed)
    }

    /// The agreement with the references.
    pub(crate) fn reference_table(&self) -> Option<Table> {
        let reference = self.reference.as_ref()?;
        let mut table = Table::new(
            "judge",
            "The judge on reference answers, whose side is known",
            &[
                ("judge", Style::Plain),
                ("kappa", Style::Plain),
                ("weighted kappa", Style::Plain),
                ("chosen", Style::Plain),
                ("rejected", Style::Plain),
                ("without score", Style::Count),
                ("headline", Style::Plain),
            ],
        );
        let cell = |x: Option<f64>| Cell::from(x.unwrap_or(f64::NAN));
        table.row(vec![
            self.judge.as_str().into(),
            cell(reference.kappa),
            cell(reference.weighted_kappa),
            cell(reference.chosen.mean),
            cell(reference.rejected.mean),
            ((reference.chosen.unscored + reference.rejected.unscored) as f64).into(),
            if reference.headline { "yes".into() } else { "no".into() },
        ]);
        Some(table)
    }

    /// For programs.
    pub(crate) fn results(&self) -> Value {
        let scores: Vec<Vec<Option<u8>>> =
            self.judgments.iter().map(|row| row.iter().map(|j| j.score).collect()).collect();
        json!({"summary": self, "headline": self.headline(), "scores": scores})
    }
}

/// The findings of a dry run.
pub(crate) fn estimated(costs: &[Cost]) -> Findings {
    let calls: usize = costs.iter().map(|cost| cost.calls).sum();
    let input: u64 = costs.iter().map(|cost| cost.tokens.input).sum();
    let output: u64 = costs.iter().map(|cost| cost.tokens.output).sum();
    let cost: f64 = costs.iter().map(|cost| cost.cost).sum();
    Findings {
        lead: format!(
            "Judging would take at most {calls} calls, {input} tokens in and {output} out, {cost:.4} in the currency of the \
             prices."
        ),
        results: json!({"estimate": {"calls": calls, "input": input, "output": output, "cost": cost}}),
        ..Findings::default()
    }
}
