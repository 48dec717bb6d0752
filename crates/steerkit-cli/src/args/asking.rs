//! Options of commands that ask another model.

use std::path::PathBuf;

use clap::Args;

use super::common::positive;

/// How another model is asked, and what that may cost.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Asking another model")]
pub(crate) struct AskArgs {
    /// Environment variable that holds the endpoint's key [default: no key]
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) key_env: Option<String>,
    /// Calls in flight, or texts at a time of a local model
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    pub(crate) concurrency: usize,
    /// Longest time of a call
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = positive)]
    pub(crate) timeout: usize,
    /// Calls for one answer before giving up
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = positive)]
    pub(crate) attempts: usize,
    /// Price of a million tokens that the endpoint reads
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = price)]
    pub(crate) price_in: f64,
    /// Price of a million tokens that the endpoint writes
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = price)]
    pub(crate) price_out: f64,
    /// Stop before more than this is spent, in the currency of the prices
    #[arg(long, value_name = "X", value_parser = price)]
    pub(crate) max_cost: Option<f64>,
    /// Stop before more tokens than this are read and written
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) token_cap: Option<usize>,
    /// File that keeps every answer, so that none is paid for twice [default: beside the output]
    #[arg(long, value_name = "FILE")]
    pub(crate) store: Option<PathBuf>,
    /// Show what asking would take at most, and ask nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Who judges.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Asking another model")]
pub(crate) struct JudgeArgs {
    /// The judge: address of an OpenAI-compatible endpoint (up to /v1), or local:MODEL in this process
    #[arg(long, value_name = "URL|local:MODEL")]
    pub(crate) judge: Option<String>,
    /// The endpoint's model
    #[arg(long, value_name = "NAME", requires = "judge")]
    pub(crate) judge_model: Option<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// What evaluations with a judge ask and show.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Evaluations with a judge")]
pub(crate) struct AnswerArgs {
    /// What the judge grades, in place of the evaluation's own: a name (steerkit judge rubrics) or a TOML file
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) rubric: Option<String>,
    /// Preference pairs whose chosen answers show what is judged and whose rejected ones do not: checks the judge
    #[arg(long, value_name = "FILE")]
    pub(crate) references: Option<PathBuf>,
    /// Attack suffix for every prompt, in a second round
    #[arg(long, value_name = "TEXT")]
    pub(crate) suffix: Option<String>,
    /// Tokens per answer at most
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) answer_tokens: Option<usize>,
    /// Keep answers in the outputs where the evaluation hides them
    #[arg(long, conflicts_with = "redact")]
    pub(crate) show_answers: bool,
    /// Keep answers and the judge's reasons out of the outputs
    #[arg(long)]
    pub(crate) redact: bool,
}

fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("expected a number from 0".into()),
    }
}
