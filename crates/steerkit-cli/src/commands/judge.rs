//! `steerkit judge`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use steerkit::ask::{Asker, Ledger};
use steerkit::data::{PreferencePair, ReadOptions, Record, Records, read, records};
use steerkit::files::write_atomic;
use steerkit::judge::annotate::{self, Agreement, PairAgreement, SheetRow};
use steerkit::judge::{Judge, Judgment, Material, ReferenceCheck, Rubric, Scale, Scores, Unscored};

use super::asking::{self, Who, with_asker};
use crate::args::{JudgeAgree, JudgeCommand, JudgeRubrics, JudgeRun, JudgeSheet};
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, Progress, Table, number};
use crate::signals;

pub(crate) fn run(command: JudgeCommand, printer: Printer) -> Outcome {
    match command {
        JudgeCommand::Run(args) => judge(&args, printer),
        JudgeCommand::Rubrics(args) => rubrics(&args, printer),
        JudgeCommand::Sheet(args) => sheet(&args, printer),
        JudgeCommand::Agree(args) => agree(&args, printer),
    }
}

/// Answers of a file.
struct Answers {
    table: Records,
    rows: Vec<SheetRow>,
}

/// Reads questions with answers; the condition is made of the columns condition and multiplier.
fn answers(path: &Path) -> Outcome<Answers> {
    let table = records(path, None)?;
    let row = |record: &Record| -> Outcome<SheetRow> {
        let optional = |name: &str| {
            let value = table.value(record, "value", &[name]).ok()?;
            Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                .filter(|text| text != "null")
        };
        let parts = [optional("condition"), optional("multiplier").map(|m| format!("multiplier {m}"))];
        Ok(SheetRow {
            question: table.text(record, "question", &["question", "prompt"])?.to_owned(),
            answer: table.text(record, "answer", &["answer", "text", "response"])?.to_owned(),
            condition: parts
                .into_iter()
                .flatten()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(", "),
            judge: optional("score").and_then(|score| score.parse().ok()),
        })
    };
    let rows = table.rows.iter().map(row).collect::<Outcome<_>>()?;
    Ok(Answers { table, rows })
}

/// What `judge run` prints as JSON.
#[derive(Serialize)]
struct Judged<'a> {
    rubric: &'a str,
    judge: String,
    file_sha256: &'a str,
    conditions: &'a BTreeMap<&'a str, Scores>,
    reference: Option<&'a ReferenceCheck>,
    headline: bool,
    ledger: Ledger,
}

fn judge(args: &JudgeRun, printer: Printer) -> Outcome {
    let Some(who) = Who::judge(&args.judging)? else {
        return Err(Failure::usage("no judge")
            .hint("name one with --judge URL --judge-model NAME, or --judge local:MODEL"));
    };
    let rubric = Rubric::find(&args.rubric)?;
    let answers = answers(&args.file)?;
    let references =
        args.references.as_deref().map(|path| read(path, &ReadOptions::default())).transpose()?;
    let references = references.map_or_else(Vec::new, |data| data.pairs);
    let beside = args.out.as_ref().map(|out| out.with_extension("replies.jsonl"));
    with_asker(&who, &args.judging.ask, beside, printer, |asker| {
        judge_with(args, asker, rubric, &answers, &references, printer)
    })
}

fn judge_with(
    args: &JudgeRun,
    asker: &Asker<'_>,
    rubric: Rubric,
    answers: &Answers,
    references: &[PreferencePair],
    printer: Printer,
) -> Outcome {
    let judge = Judge::new(asker, rubric);
    let material = |question, answer| Material { question, answer, examples: None };
    let mut materials: Vec<Material<'_>> =
        answers.rows.iter().map(|row| material(&row.question, &row.answer)).collect();
    materials.extend(references.iter().map(|pair| material(&pair.prompt, &pair.chosen)));
    materials.extend(references.iter().map(|pair| material(&pair.prompt, &pair.rejected)));
    let estimate = judge.estimate(&materials);
    if args.judging.ask.dry_run {
        printer.line(asking::estimate(&estimate))?;
        return printer.result(&estimate);
    }
    printer.say(asking::estimate(&estimate));
    let cancel = signals::install()?;
    let mut progress = Progress::steps(printer, "judging", materials.len());
    let judgments = judge.judge(&materials, &cancel, &mut |done| progress.at(done as u64, ""));
    drop(progress);
    let judgments = judgments?;
    let (own, sides) = judgments.split_at(answers.rows.len());
    let (chosen, rejected) = sides.split_at(references.len());
    let scale = judge.rubric.scale();
    let reference = (!references.is_empty()).then(|| ReferenceCheck::of(chosen, rejected, scale));
    if let Some(out) = &args.out {
        write_atomic(out, lines(&answers.rows, own).as_bytes())?;
    }
    let mut groups: BTreeMap<&str, Vec<Judgment>> = BTreeMap::new();
    for (row, judgment) in answers.rows.iter().zip(own) {
        groups.entry(&row.condition).or_default().push(judgment.clone());
    }
    let conditions: BTreeMap<&str, Scores> =
        groups.iter().map(|(name, judgments)| (*name, Scores::of(judgments, scale))).collect();
    show(&judge.rubric, &conditions, reference.as_ref(), printer)?;
    printer.say(asking::ledger(&asker.meter.ledger()));
    printer.result(&Judged {
        rubric: &judge.rubric.name,
        judge: asker.responder.identity(),
        file_sha256: &answers.table.sha256,
        conditions: &conditions,
        headline: reference.as_ref().is_some_and(|reference| reference.headline),
        reference: reference.as_ref(),
        ledger: asker.meter.ledger(),
    })?;
    // The results are out; whether they are a measurement is another matter.
    Scores::of(own, scale).check("answers").map_err(steerkit::SteerError::from)?;
    Scores::of(sides, scale).check("reference answers").map_err(steerkit::SteerError::from)?;
    Ok(())
}

/// An answer with its judgment.
#[derive(Serialize)]
struct Line<'a> {
    question: &'a str,
    answer: &'a str,
    condition: &'a str,
    score: Option<u8>,
    unscored: Option<Unscored>,
    reply: Option<&'a str>,
    note: Option<&'a str>,
}

fn lines(rows: &[SheetRow], judgments: &[Judgment]) -> String {
    let line = |(row, judgment): (&SheetRow, &Judgment)| {
        let line = Line {
            question: &row.question,
            answer: &row.answer,
            condition: &row.condition,
            score: judgment.score,
            unscored: judgment.unscored,
            reply: judgment.reply.as_deref(),
            note: judgment.note.as_deref(),
        };
        serde_json::to_string(&line).expect("text and numbers") + "\n"
    };
    rows.iter().zip(judgments).map(line).collect()
}

fn show(
    rubric: &Rubric,
    conditions: &BTreeMap<&str, Scores>,
    reference: Option<&ReferenceCheck>,
    printer: Printer,
) -> Outcome {
    let mut table =
        Table::new(&["condition", "n", rubric.name.as_str(), "95% interval", "shows it", "without score"]);
    let cell = |x: Option<f64>| x.map_or_else(|| "-".into(), |x| format!("{x:.2}"));
    let chosen = reference.map(|reference| ("chosen references", &reference.chosen));
    let rejected = reference.map(|reference| ("rejected references", &reference.rejected));
    let all = conditions.iter().map(|(name, scores)| (*name, scores)).chain(chosen).chain(rejected);
    for (name, scores) in all {
        table.row(&[
            if name.is_empty() { "all answers".into() } else { name.to_owned() },
            scores.n.to_string(),
            cell(scores.mean),
            scores.interval.map_or_else(|| "-".into(), |(low, high)| format!("{low:.2} to {high:.2}")),
            scores.shows.map_or_else(|| "-".into(), |share| format!("{:.0}%", 100.0 * share)),
            scores.unscored.to_string(),
        ]);
    }
    printer.line(table)?;
    let reasons = conditions.values().flat_map(|scores| &scores.reasons);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    reasons.for_each(|(reason, count)| *counts.entry(reason.name()).or_default() += count);
    if !counts.is_empty() {
        let list: Vec<String> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        printer.line(format_args!("without score: {}", list.join(", ")))?;
    }
    match reference {
        Some(reference) => printer.line(format_args!("judge: {}", reference.verdict())),
        None => printer.line("judge: not checked against reference answers; its scores are no headline"),
    }
}

fn rubrics(args: &JudgeRubrics, printer: Printer) -> Outcome {
    if let Some(name) = &args.rubric {
        let rubric = Rubric::find(name)?;
        printer.line(annotate::instructions(&rubric).trim_end())?;
        return printer.result(&rubric);
    }
    for rubric in Rubric::all() {
        printer.line(format_args!("{}\n    {}", rubric.name, rubric.task))?;
        printer.result(&rubric)?;
    }
    Ok(())
}

/// What `judge sheet` wrote.
#[derive(Serialize)]
struct Written<'a> {
    sheet: &'a Path,
    key: &'a Path,
    instructions: &'a Path,
    rows: usize,
}

fn sheet(args: &JudgeSheet, printer: Printer) -> Outcome {
    let rubric = Rubric::find(&args.rubric)?;
    let all = answers(&args.file)?.rows;
    let drawn = steerkit::eval::stats::draw(all.len(), args.limit.unwrap_or(all.len()), args.seed);
    let rows: Vec<SheetRow> = drawn.into_iter().map(|i| all[i].clone()).collect();
    fs_err::create_dir_all(&args.out)?;
    let [sheet, key, instructions] =
        ["sheet.csv", "key.json", "instructions.md"].map(|name| args.out.join(name));
    // A sheet that people are filling in must not lose its key.
    if key.exists() {
        return Err(Failure::usage(format_args!("{}: the file is there already", key.display()))
            .hint("choose another folder: sheets that were handed out are read with this key"));
    }
    annotate::export(&rows, &rubric, args.seed, &sheet, &key)?;
    write_atomic(&instructions, annotate::instructions(&rubric).as_bytes())?;
    printer.line(format_args!("{}: {} answers to score", sheet.display(), rows.len()))?;
    printer.line(format_args!("{}: keep it to yourself until the sheets are back", key.display()))?;
    printer.result(&Written { sheet: &sheet, key: &key, instructions: &instructions, rows: rows.len() })
}

fn agree(args: &JudgeAgree, printer: Printer) -> Outcome {
    let key = annotate::read_key(&args.key)?;
    let sheets =
        args.sheets.iter().map(|path| annotate::read_sheet(path, &key)).collect::<Result<Vec<_>, _>>()?;
    let found = annotate::agreement(&key, &sheets);
    let weighted = key.rubric.scale() == Scale::Grades;
    show_agreement(&found, weighted, printer)?;
    printer.result(&found)
}

fn show_agreement(found: &Agreement, weighted: bool, printer: Printer) -> Outcome {
    let cell = |x: Option<f64>| x.map_or_else(|| "-".into(), number);
    let mut table = Table::new(&["raters", "n", "same", "kappa", "weighted kappa"]);
    for PairAgreement { first, second, n, same, kappa, weighted_kappa } in
        found.people.iter().chain(&found.judge)
    {
        let weighted_kappa = if weighted { cell(*weighted_kappa) } else { "-".into() };
        table.row(&[format!("{first}, {second}"), n.to_string(), cell(*same), cell(*kappa), weighted_kappa]);
    }
    printer.line(table)?;
    printer.line("")?;
    let mut table = Table::new(&["Krippendorff's alpha", "nominal", "ordinal", "interval"]);
    table.row(&[vec!["people".into()], found.alpha.map(cell).to_vec()].concat());
    if !found.judge.is_empty() {
        table.row(&[vec!["people and judge".into()], found.alpha_with_judge.map(cell).to_vec()].concat());
    }
    printer.line(table)?;
    printer.line("")?;
    let mut table = Table::new(&["condition", "mean score of people"]);
    for (condition, mean) in &found.conditions {
        table
            .row(&[if condition.is_empty() { "all answers".into() } else { condition.clone() }, cell(*mean)]);
    }
    printer.line(table)
}
