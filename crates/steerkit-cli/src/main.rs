//! The `steerkit` binary: arguments in, tables and progress out. Everything it does is in the libraries.

mod args;
mod commands;
mod failure;
mod memory;
mod output;
#[cfg(test)]
mod reference;
mod signals;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use output::Printer;

/// Large buffers that are freed and taken again stay with the process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(cli.global.json, cli.global.quiet);
    if let Some(threads) = cli.global.threads {
        steerkit_model::set_threads(threads);
    }
    match commands::run(cli.command, printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            printer.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}
