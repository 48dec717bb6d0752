//! `steerkit data generate`.

use steerkit::ask::Asker;
use steerkit::data::check::{CheckOptions, check, render};
use steerkit::data::generate::{Draft, draft};
use steerkit::data::{ReadOptions, Splits};

use super::asking::{self, Who, with_asker};
use crate::args::DataGenerate;
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, Progress};
use crate::signals;

pub(crate) fn run(args: &DataGenerate, printer: Printer) -> Outcome {
    if args.max_length_ratio.is_nan() || args.max_length_ratio < 1.0 {
        return Err(Failure::usage("--max-length-ratio: expected a number from 1"));
    }
    if args.out.join("train.jsonl").exists() && !args.overwrite && !args.ask.dry_run {
        return Err(Failure::usage(format_args!("{}: the folder holds a set already", args.out.display()))
            .hint("replace it with --overwrite"));
    }
    let who = match (&args.endpoint, &args.endpoint_model, &args.local) {
        (Some(url), Some(model), _) => Who::Endpoint { url, model },
        (_, _, Some(name)) => Who::Local(name),
        _ => return Err(Failure::usage("an endpoint needs --endpoint-model")),
    };
    let mut plan = Draft::new(&args.behavior, args.n, args.seed);
    plan.keep_refusals = args.keep_refusals;
    plan.max_length_ratio = args.max_length_ratio;
    plan.max_calls = 4 * args.n.div_ceil(args.per_call) + 4;
    plan.per_call = args.per_call;
    let beside = (!args.ask.dry_run).then(|| args.out.join("replies.jsonl"));
    with_asker(&who, &args.ask, beside, printer, |asker| drafted(args, &plan, asker, printer))
}

fn drafted(args: &DataGenerate, plan: &Draft, asker: &Asker<'_>, printer: Printer) -> Outcome {
    let estimate = plan.estimate(asker);
    if args.ask.dry_run {
        printer.line(asking::estimate(&estimate))?;
        return printer.result(&estimate);
    }
    printer.say(asking::estimate(&estimate));
    let cancel = signals::install()?;
    let mut progress = Progress::steps(printer, "drafting pairs", args.n);
    let set = draft(asker, plan, &cancel, &mut |usable| progress.at(usable.min(args.n) as u64, ""));
    drop(progress);
    let set = set?;
    set.write(&args.out)?;
    for (why, count) in &set.dropped {
        printer.say(format_args!("dropped {count}: {}", why.name()));
    }
    printer.say(asking::ledger(&set.ledger));
    printer.line(format_args!("{}: {} pairs of {} drafts", args.out.display(), args.n, set.drafts))?;
    let report = check(&Splits::open(&args.out, &ReadOptions::default())?, CheckOptions::default());
    printer.line(render(&report, &args.out).trim_end())?;
    if !report.passes {
        printer.warn("some bars are not met; see steerkit data check --help for what they mean");
    }
    printer.result(&set)
}
