//! `steerkit judge`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::asking::JudgeArgs;
use super::common::positive;

/// Score answers by a judge model or by people
#[derive(Debug, Args)]
pub(crate) struct JudgeCommands {
    #[command(subcommand)]
    pub(crate) command: JudgeCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JudgeCommand {
    Run(JudgeRun),
    Rubrics(JudgeRubrics),
    Sheet(JudgeSheet),
    Agree(JudgeAgree),
}

/// Have a judge model score the answers of a file
///
/// The file holds a question and an answer per row (JSONL or CSV; `answers.jsonl` of an evaluation is one). Replies
/// without a score are counted and never replaced; more than 5% of them is a failure, with exit code 1. With
/// --references the judge also scores answers whose side is known: its scores are a headline from kappa 0.4 on.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit judge run runs/eval/answers.jsonl --rubric formality --references data/formality/test.jsonl \\
      --judge http://localhost:8080/v1 --judge-model qwen --out judged.jsonl
  steerkit judge run answers.csv --rubric refusal --judge local:smollm2-135m
  steerkit judge run answers.jsonl --rubric warmth --judge https://api.example.org/v1 --judge-model m \\
      --key-env EXAMPLE_KEY --price-in 0.5 --price-out 1.5 --max-cost 2 --dry-run")]
pub(crate) struct JudgeRun {
    /// Rows with question (or prompt) and answer; further columns multiplier and condition group them
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What is graded: a name, or a TOML file
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) rubric: String,
    /// Preference pairs whose chosen answers show the behaviour and whose rejected ones do not
    #[arg(long, value_name = "FILE")]
    pub(crate) references: Option<PathBuf>,
    /// JSONL file for the scores and replies
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) judging: JudgeArgs,
}

/// Show the rubrics
#[derive(Debug, Args)]
pub(crate) struct JudgeRubrics {
    /// Show the whole text of this one
    #[arg(value_name = "NAME|FILE.toml")]
    pub(crate) rubric: Option<String>,
}

/// Write a blind, shuffled sheet for people to score answers on
///
/// Writes sheet.csv (id, question, answer, an empty score), instructions.md, and key.json, which says where each
/// answer comes from and stays with you.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steerkit judge sheet runs/eval/answers.jsonl --rubric formality --out sheets --limit 60
  steerkit judge agree sheets/key.json anna.csv ben.csv")]
pub(crate) struct JudgeSheet {
    /// Rows with question (or prompt), answer, and multiplier, condition and score where they are known
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What is graded: a name, or a TOML file
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) rubric: String,
    /// Folder for the sheet and its key
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Answers at most, drawn with the seed [default: all]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Seed of the shuffle
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
}

/// Compare sheets that people filled in, with each other and with the judge
///
/// Shows Cohen's kappa (plain and quadratically weighted) of every two, Krippendorff's alpha of all, and the mean
/// score of each condition.
#[derive(Debug, Args)]
pub(crate) struct JudgeAgree {
    /// The key that was written beside the sheet
    #[arg(value_name = "KEY")]
    pub(crate) key: PathBuf,
    /// The sheets, one per person
    #[arg(value_name = "SHEET", required = true)]
    pub(crate) sheets: Vec<PathBuf>,
}
