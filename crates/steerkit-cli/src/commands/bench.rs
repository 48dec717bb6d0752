//! `steerkit bench`.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use steerkit::bench::{TrainBench, TrainSpeed, train_speed};
use steerkit::data::{ReadOptions, read};
use steerkit::text_stats::median;
use steerkit_model::{Model, ModelError, Run, Sequence};

use super::steering;
use crate::args::{BenchDecode, BenchLoad, BenchTarget, BenchTrain};
use crate::failure::{Failure, Outcome};
use crate::memory;
use crate::output::{Printer, number};

pub(crate) fn run(command: &BenchTarget, printer: Printer) -> Outcome {
    match command {
        BenchTarget::Train(args) => train(args, printer),
        BenchTarget::Decode(args) => decode(args, printer),
        BenchTarget::Load(args) => load(args, printer),
    }
}

#[derive(Serialize)]
struct Measured<T> {
    #[serde(flatten)]
    speed: T,
    threads: usize,
    peak_rss_mb: Option<f64>,
}

impl<T: Serialize> Measured<T> {
    fn new(speed: T) -> Self {
        Self { speed, threads: steerkit_model::threads(), peak_rss_mb: memory::peak_rss_mb() }
    }
}

fn train(args: &BenchTrain, printer: Printer) -> Outcome {
    let model = steering::open(&args.model)?;
    let options = ReadOptions { limit: Some(args.batch * args.steps), ..ReadOptions::default() };
    let data = read(&args.data, &options)?;
    let folder = tempfile::tempdir()?;
    let bench = TrainBench {
        layer: args.layer,
        batch: args.batch,
        steps: args.steps,
        precision: args.model.precision.name(),
        folder: folder.path(),
    };
    let speed: TrainSpeed = train_speed(&model, &data, &bench, &AtomicBool::new(false))?;
    printer.line(format_args!(
        "{} s per step of {:.0} tokens, {:.2} ms per token, {:.0} GFLOP/s, {} s to fill the cache",
        number(speed.seconds_per_step),
        speed.tokens_per_step,
        1e3 * speed.seconds_per_token,
        speed.gflops,
        number(speed.setup_seconds)
    ))?;
    printer.result(&Measured::new(speed))
}

/// Speed of reading a prompt and of writing.
#[derive(Serialize)]
struct DecodeSpeed {
    prompt_tokens_per_second: f64,
    seconds_per_token: f64,
    tokens_per_second: f64,
    sequences: usize,
}

fn decode(args: &BenchDecode, printer: Printer) -> Outcome {
    let model = steering::open(&args.model)?;
    let vocab = model.config().vocab as u32;
    // Any tokens do: the work does not depend on which they are.
    let prompt: Vec<u32> = (0..args.prompt_tokens as u32).map(|i| (1 + 7 * i) % vocab).collect();
    let mut sequences: Vec<Sequence> =
        (0..args.sequences).map(|_| model.new_sequence(Vec::new())).collect::<Result<_, ModelError>>()?;
    let began = Instant::now();
    let mut next = advance(&model, &mut sequences, &vec![prompt; args.sequences])?;
    let reading = began.elapsed().as_secs_f64();
    let mut seconds = Vec::new();
    for _ in 0..args.tokens {
        let began = Instant::now();
        next = advance(&model, &mut sequences, &next)?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    let seconds_per_token = median(&seconds).unwrap_or(f64::NAN);
    let speed = DecodeSpeed {
        prompt_tokens_per_second: (args.prompt_tokens * args.sequences) as f64 / reading,
        seconds_per_token,
        tokens_per_second: args.sequences as f64 / seconds_per_token,
        sequences: args.sequences,
    };
    printer.line(format_args!(
        "reads {:.0} tokens/s, writes {:.1} tokens/s ({:.1} ms per token of {} sequences)",
        speed.prompt_tokens_per_second,
        speed.tokens_per_second,
        1e3 * speed.seconds_per_token,
        speed.sequences
    ))?;
    printer.result(&Measured::new(speed))
}

/// Feeds each sequence its tokens and takes the likeliest next ones.
fn advance(model: &Model, sequences: &mut [Sequence], tokens: &[Vec<u32>]) -> Outcome<Vec<Vec<u32>>> {
    let mut runs: Vec<Run<'_>> =
        sequences.iter_mut().zip(tokens).map(|(sequence, tokens)| Run { sequence, tokens }).collect();
    let logits = model.advance(&mut runs)?;
    let best = |logits: Vec<f32>| {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        vec![best.map_or(0, |(token, _)| token as u32)]
    };
    logits.into_iter().map(|logits| logits.map(best).map_err(Failure::from)).collect()
}

#[derive(Serialize)]
struct LoadSpeed {
    seconds: f64,
    megabytes: f64,
    megabytes_per_second: f64,
}

fn load(args: &BenchLoad, printer: Printer) -> Outcome {
    let began = Instant::now();
    let model = steering::open(&args.model)?;
    let seconds = began.elapsed().as_secs_f64();
    drop(model);
    let path = super::model::resolve(&args.model.model)?;
    let bytes = |path: &std::path::Path| fs_err::metadata(path).map(|m| m.len());
    let total = if path.is_dir() {
        let files = fs_err::read_dir(&path)?.collect::<Result<Vec<_>, _>>()?;
        files.iter().map(|file| bytes(&file.path())).sum::<Result<u64, _>>()?
    } else {
        bytes(&path)?
    };
    let megabytes = total as f64 / 1e6;
    printer.line(format_args!("{seconds:.2} s for {megabytes:.0} MB"))?;
    let speed = LoadSpeed { seconds, megabytes, megabytes_per_second: megabytes / seconds };
    printer.result(&Measured::new(speed))
}
