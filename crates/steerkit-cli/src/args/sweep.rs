//! `steerkit sweep`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use steerkit::sweep::Shard;

/// Run a grid of recipes, measured alike, and print a table
///
/// A sweep is a TOML file: keys of a recipe that all jobs share ([base]), and grids of lists ([[grid]]); every combination
/// of their values is a job. What jobs have in common is computed once. Finished jobs are not run again, so an
/// interrupted sweep goes on where it stopped, and a failed job does not lose the others. Values are chosen on
/// validation pairs; the test file is read only to report on it. docs/methods.md explains the keys.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  steerkit sweep recipes/layers.toml
  steerkit sweep recipes/compare.toml --shard 1/4 --out runs/compare-1
      A quarter of the jobs, for a job array; the shards may also share one folder.
  steerkit sweep merge runs/compare-1 runs/compare-2 runs/compare-3 runs/compare-4 --out runs/compare
      The same files as one process would have written.

The folder gets results.json, .csv, .md and .txt, heat-map.svg, report.html, and a folder per job.
Exit code 1 when a job failed: its error is in the table, and the next run tries it again."
)]
pub(crate) struct SweepArgs {
    #[command(subcommand)]
    pub(crate) command: Option<SweepCommand>,
    /// The sweep (TOML)
    #[arg(value_name = "SWEEP")]
    pub(crate) file: Option<PathBuf>,
    /// Run only the I-th of N parts of the jobs
    #[arg(long, value_name = "I/N")]
    pub(crate) shard: Option<ShardArg>,
    /// The sweep's folder [default: the file's `out`, else runs/ and its name]
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print the jobs and their ids, and run nothing
    #[arg(long)]
    pub(crate) list: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SweepCommand {
    /// Put the folders of a sweep's shards together
    Merge {
        /// Folders that `sweep --shard` wrote to
        #[arg(value_name = "DIR", required = true)]
        folders: Vec<PathBuf>,
        /// The folder of the whole sweep
        #[arg(long, short, value_name = "DIR")]
        out: PathBuf,
    },
}

/// `I/N`, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardArg(pub(crate) Shard);

impl FromStr for ShardArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((i, n)) if (1..=n).contains(&i) => Ok(Self(Shard { index: i - 1, count: n })),
            _ => Err("expected I/N with I from 1 to N, such as 2/4".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_count_from_one() {
        assert_eq!("2/4".parse(), Ok(ShardArg(Shard { index: 1, count: 4 })));
        for bad in ["0/4", "5/4", "1", "a/b", "1/0", ""] {
            assert!(bad.parse::<ShardArg>().is_err(), "{bad}");
        }
    }
}
