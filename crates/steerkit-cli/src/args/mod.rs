//! The command line, as clap reads it. One file per command; shared groups are in [`common`].

mod asking;
mod bench;
mod chat;
mod common;
mod data;
mod demo;
mod eval;
mod generate;
mod judge;
mod model;
mod reproduce;
mod serve;
mod sweep;
mod train;
mod vector;

pub(crate) use asking::{AnswerArgs, AskArgs, JudgeArgs};
pub(crate) use bench::{BenchArgs, BenchDecode, BenchLoad, BenchTarget, BenchTrain};
pub(crate) use chat::ChatArgs;
pub(crate) use common::{GateSpec, Global, ModelArgs, PromptArgs, SamplingArgs, SteerSpec};
pub(crate) use data::{
    ColumnArgs, DataArgs, DataCheck, DataCommand, DataGenerate, DataImport, FormatArg, LayoutArg,
};
pub(crate) use demo::DemoArgs;
pub(crate) use eval::EvalArgs;
pub(crate) use generate::GenerateArgs;
pub(crate) use judge::{JudgeAgree, JudgeCommand, JudgeCommands, JudgeRubrics, JudgeRun, JudgeSheet};
pub(crate) use model::{ModelCommand, ModelCommands, ModelLogits};
pub(crate) use reproduce::ReproduceArgs;
pub(crate) use serve::ServeArgs;
pub(crate) use sweep::{SweepArgs, SweepCommand};
pub(crate) use train::{LayerArg, TrainArgs};
pub(crate) use vector::{
    VectorArgs, VectorCalibrate, VectorCombine, VectorCommand, VectorCompare, VectorConvert, VectorGate,
    VectorTransfer,
};

use clap::{Parser, Subcommand};

/// Train, apply and measure steering vectors for local language models.
///
/// steerkit learns one vector from pairs of answers (one that shows a behaviour, one that shows its opposite)
/// and adds it, times a multiplier, to the model's residual stream: +1 gives more of the behaviour, -1 its
/// opposite, 0 the plain model. The model's weights stay as they are.
#[derive(Debug, Parser)]
#[command(
    name = "steerkit",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
Begin with:
  steerkit demo
      Trains a vector on a small model and shows what it does, in about a minute.
  steerkit train --model smollm2-135m --data pairs.csv
      A vector from your own pairs, in runs/pairs.
  steerkit chat --model smollm2-135m --steer pairs=1

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong use,
3 bad input, 4 file system, 5 training diverged, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArgs),
    Train(TrainArgs),
    Sweep(SweepArgs),
    Reproduce(ReproduceArgs),
    Generate(GenerateArgs),
    Chat(ChatArgs),
    Eval(EvalArgs),
    Judge(JudgeCommands),
    Serve(ServeArgs),
    Vector(VectorArgs),
    Model(ModelCommands),
    Data(DataArgs),
    Bench(BenchArgs),
    /// Print a completion script for a shell
    ///
    /// The script goes to stdout; your shell's manual says where it looks for such files.
    #[command(after_help = "\
Examples:
  steerkit completions bash > ~/.local/share/bash-completion/completions/steerkit
  steerkit completions zsh > ~/.zfunc/_steerkit
  steerkit completions fish > ~/.config/fish/completions/steerkit.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}
