//! `steerkit data`.

use std::collections::HashSet;
use std::io::{BufWriter, Error, Write};
use std::path::Path;

use serde::Serialize;
use steerkit::data::check::{CheckOptions, check, render};
use steerkit::data::{ColumnMap, Format, Import, Layout, PreferencePair, ReadOptions, Splits};
use steerkit::files;

use crate::args::{ColumnArgs, DataCheck, DataCommand, DataImport, FormatArg, LayoutArg};
use crate::failure::{Failure, Outcome};
use crate::output::Printer;

pub(crate) fn run(command: DataCommand, printer: Printer) -> Outcome {
    match command {
        DataCommand::Check(args) => check_pairs(&args, printer),
        DataCommand::Import(args) => import(&args, printer),
        DataCommand::Generate(args) => super::draft::run(&args, printer),
    }
}

/// How the arguments say to read a file.
fn read_options(columns: &ColumnArgs) -> ReadOptions {
    ReadOptions {
        format: columns.format.map(|format| match format {
            FormatArg::Csv => Format::Csv,
            FormatArg::Jsonl => Format::Jsonl,
        }),
        columns: ColumnMap {
            prompt: columns.prompt_column.clone(),
            chosen: columns.chosen_column.clone(),
            rejected: columns.rejected_column.clone(),
        },
        ..ReadOptions::default()
    }
}

fn check_pairs(args: &DataCheck, printer: Printer) -> Outcome {
    let splits = Splits::open(&args.path, &read_options(&args.columns))?;
    for (name, data) in splits.named() {
        for note in &data.notes {
            printer.warn(format_args!("{name}: {note}"));
        }
    }
    let report = check(&splits, CheckOptions { length_is_behaviour: args.length_is_behaviour });
    printer.line(render(&report, &args.path).trim_end())?;
    printer.result(&report)?;
    if report.passes {
        return Ok(());
    }
    Err(Failure::input(format_args!("{}: some bars are not met", args.path.display()))
        .hint("such data can be trained on, but scores say less about the behaviour"))
}

/// What `data import` did.
#[derive(Serialize)]
struct Imported<'a> {
    file: &'a Path,
    pairs: usize,
    removed: usize,
    source_sha256: String,
}

fn import(args: &DataImport, printer: Printer) -> Outcome {
    if args.to.exists() && !args.overwrite {
        return Err(Failure::usage(format_args!("{}: the file is there already", args.to.display()))
            .hint("replace it with --overwrite"));
    }
    let layout = match args.layout {
        LayoutArg::Pairs => Layout::Pairs,
        LayoutArg::Anthropic => Layout::Anthropic,
        LayoutArg::Caa => Layout::Caa,
        LayoutArg::Truthfulqa => Layout::TruthfulQa,
        LayoutArg::Hh => Layout::Hh,
    };
    let mut reader = Import::open(&args.from, layout, &read_options(&args.columns))?;
    let mut out = BufWriter::new(files::temporary_beside(&args.to)?);
    let at = |error: Error| Error::new(error.kind(), format!("{}: {error}", args.to.display()));
    let mut seen: HashSet<PreferencePair> = HashSet::new();
    let (mut pairs, mut removed) = (0, 0);
    while args.limit.is_none_or(|limit| pairs < limit) {
        let Some(pair) = reader.next().transpose()? else { break };
        if args.dedup && !seen.insert(pair.clone()) {
            removed += 1;
            continue;
        }
        serde_json::to_writer(&mut out, &pair).map_err(|e| at(e.into()))?;
        out.write_all(b"\n").map_err(at)?;
        pairs += 1;
    }
    if pairs == 0 {
        let place = args.from.display();
        return Err(Failure::input(format_args!("{place}: found no rows, expected at least one")));
    }
    let sha256 = reader.finish()?;
    files::persist(out.into_inner().map_err(|e| at(e.into_error()))?, &args.to)?;
    let left_out = if removed > 0 { format!(", {removed} repeated rows left out") } else { String::new() };
    printer.line(format_args!("{}: {pairs} pairs{left_out}", args.to.display()))?;
    printer.result(&Imported { file: &args.to, pairs, removed, source_sha256: sha256 })
}
