//! Making an asker from options: an endpoint or a local model, with store, prices and cap.

use std::path::{Path, PathBuf};
use std::time::Duration;

use steerkit::ask::{
    Asker, Backoff, Cap, Endpoint, Estimate, Ledger, Local, Meter, Prices, Responder, Store,
};
use steerkit_model::{Model, OpenOptions};

use super::model;
use crate::args::{AskArgs, JudgeArgs};
use crate::failure::{Failure, Outcome};
use crate::output::Printer;

/// Who is asked.
pub(crate) enum Who<'w> {
    /// The model at an address.
    Endpoint { url: &'w str, model: &'w str },
    /// A model of this process.
    Local(&'w str),
}

impl<'w> Who<'w> {
    /// The judge of the options, if they name one.
    pub(crate) fn judge(args: &'w JudgeArgs) -> Outcome<Option<Self>> {
        let Some(judge) = &args.judge else { return Ok(None) };
        match (judge.strip_prefix("local:"), &args.judge_model) {
            (Some(name), None) => Ok(Some(Self::Local(name))),
            (Some(_), Some(_)) => {
                Err(Failure::usage("--judge-model belongs to an endpoint, and the judge is local"))
            }
            (None, Some(model)) => Ok(Some(Self::Endpoint { url: judge, model })),
            (None, None) => Err(Failure::usage("an endpoint needs the name of its model")
                .hint("name it with --judge-model, or judge with --judge local:MODEL")),
        }
    }
}

/// Calls `work` with an asker as the options say. Answers are kept in the store that the options name, else in
/// `beside`; an endpoint is not asked without either.
pub(crate) fn with_asker<T>(
    who: &Who<'_>,
    args: &AskArgs,
    beside: Option<PathBuf>,
    printer: Printer,
    work: impl FnOnce(&Asker<'_>) -> Outcome<T>,
) -> Outcome<T> {
    let path = args.store.clone().or(beside);
    let local;
    let responder = match *who {
        Who::Endpoint { url, model } => {
            if path.is_none() && !args.dry_run {
                return Err(Failure::usage("nothing would keep what the endpoint answers")
                    .hint("name a file with --store, or a place for the results with --out"));
            }
            let timeout = Duration::from_secs(args.timeout as u64);
            Responder::Endpoint(Endpoint::new(url, model, args.key_env.as_deref(), timeout)?)
        }
        Who::Local(name) => {
            local = Model::open(&model::resolve(name)?, &OpenOptions::default())?;
            Responder::Local(Local::new(&local, args.concurrency))
        }
    };
    let mut asker = Asker::new(&responder, path.as_deref().map(|path| open(path, printer)).transpose()?);
    let cap = Cap { cost: args.max_cost, tokens: args.token_cap.map(|n| n as u64) };
    if cap.cost.is_some() && args.price_in + args.price_out == 0.0 {
        return Err(Failure::usage("--max-cost without prices never stops anything")
            .hint("give --price-in and --price-out, or limit tokens with --token-cap"));
    }
    asker.meter = Meter::new(Prices { input: args.price_in, output: args.price_out }, cap);
    asker.backoff = Backoff { attempts: args.attempts as u32, ..Backoff::default() };
    asker.concurrency = args.concurrency;
    work(&asker)
}

fn open(path: &Path, printer: Printer) -> Outcome<Store> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs_err::create_dir_all(folder)?;
    }
    let store = Store::open(path)?;
    if store.was_torn() {
        printer.warn(format_args!(
            "{}: the last answer was not written to its end and is asked for again",
            path.display()
        ));
    }
    if !store.is_empty() {
        printer.say(format_args!("{}: {} stored answers", path.display(), store.len()));
    }
    Ok(store)
}

/// What asking would take, in a sentence.
pub(crate) fn estimate(estimate: &Estimate) -> String {
    let Estimate { calls, stored, tokens, cost } = estimate;
    format!(
        "at most {calls} calls ({stored} answers are stored), {} tokens in and {} out, {cost:.4} in the currency of the prices",
        tokens.input, tokens.output
    )
}

/// What asking took, in a sentence.
pub(crate) fn ledger(ledger: &Ledger) -> String {
    let Ledger { calls, stored, tokens, cost, estimated, .. } = ledger;
    let unsure = if *estimated > 0 { format!(" ({estimated} calls by estimate)") } else { String::new() };
    format!(
        "{calls} calls, {stored} answers from the store, {} tokens in and {} out{unsure}, {cost:.4} in the currency of the prices",
        tokens.input, tokens.output
    )
}
