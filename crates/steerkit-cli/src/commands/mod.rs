//! One file per command: what its arguments mean, and what it prints.

mod algebra;
mod asking;
mod bench;
mod chat;
mod data;
mod demo;
mod draft;
mod eval;
mod gate;
mod generate;
mod judge;
mod model;
mod prompts;
mod reproduce;
mod serve;
mod steering;
mod sweep;
mod train;
mod training;
mod transfer;
mod vector;

use clap::CommandFactory;

use crate::args::{Cli, Command};
use crate::failure::Outcome;
use crate::output::Printer;

/// Runs a command.
pub(crate) fn run(command: Command, printer: Printer) -> Outcome {
    match command {
        Command::Demo(args) => demo::run(&args, printer),
        Command::Train(args) => train::run(&args, printer),
        Command::Sweep(args) => sweep::run(&args, printer),
        Command::Reproduce(args) => reproduce::run(&args, printer),
        Command::Generate(args) => generate::run(&args, printer),
        Command::Chat(args) => chat::run(&args, printer),
        Command::Eval(args) => eval::run(&args, printer),
        Command::Judge(args) => judge::run(args.command, printer),
        Command::Serve(args) => serve::run(&args, printer),
        Command::Vector(args) => vector::run(args.command, printer),
        Command::Model(args) => model::run(args.command, printer),
        Command::Data(args) => data::run(args.command, printer),
        Command::Bench(args) => bench::run(&args.command, printer),
        Command::Completions { shell } => completions(shell, printer),
    }
}

/// The script goes through a buffer: `clap_complete` panics when stdout is closed.
fn completions(shell: clap_complete::Shell, printer: Printer) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "steerkit", &mut script);
    printer.raw(&script)
}
