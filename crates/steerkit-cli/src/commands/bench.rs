//! `steerkit bench`.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use steerkit::bench::decode::{DecodeBench, DecodeSpeed, decode_difference, decode_speed};
use steerkit::bench::{TrainBench, TrainSpeed, train_speed};
use steerkit::data::{ReadOptions, read};
use steerkit_model::roofline;

use super::steering;
use crate::args::{BenchDecode, BenchLoad, BenchTarget, BenchTrain};
use crate::failure::Outcome;
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

/// A training speed beside what the machine can do. bf16 on tiles has another, higher peak.
#[derive(Serialize)]
struct Trained {
    #[serde(flatten)]
    speed: Measured<TrainSpeed>,
    /// f32 multiply-adds in registers, 10^9 operations per second.
    peak_gflops: Option<f64>,
    share_of_peak: Option<f64>,
}

fn train(args: &BenchTrain, printer: Printer) -> Outcome {
    let model = steering::open(&args.model, 1)?;
    let options = ReadOptions { limit: Some(args.batch * args.steps), ..ReadOptions::default() };
    let data = read(&args.data, &options)?;
    let folder = tempfile::tempdir()?;
    let bench = TrainBench {
        layer: args.layer,
        batch: args.batch,
        steps: args.steps,
        precision: args.model.precision.resolve(1).name(),
        folder: folder.path(),
    };
    let speed = train_speed(&model, &data, &bench, &AtomicBool::new(false))?;
    let peak_gflops = roofline::peak_gflops();
    let share_of_peak = peak_gflops.map(|peak| speed.gflops / peak);
    printer.line(format_args!(
        "{} s per step of {:.0} tokens, {:.2} ms per token, {:.0} GFLOP/s{}, {} s to fill the cache",
        number(speed.seconds_per_step),
        speed.tokens_per_step,
        1e3 * speed.seconds_per_token,
        speed.gflops,
        peak_gflops.map_or(String::new(), |peak| format!(" of {peak:.0} f32 in registers")),
        number(speed.setup_seconds)
    ))?;
    printer.result(&Trained { speed: Measured::new(speed), peak_gflops, share_of_peak })
}

/// A result of `bench decode`, and the arithmetic that it is for.
#[derive(Serialize)]
struct Decoded<T> {
    #[serde(flatten)]
    result: T,
    precision: &'static str,
}

/// The speed of writing beside what the machine can do.
#[derive(Serialize)]
struct Written {
    #[serde(flatten)]
    speed: Measured<Decoded<DecodeSpeed>>,
    /// Stored weights of the blocks and the head over the time of a step, 10^9 bytes per second.
    weights_gb_s: f64,
    /// Plain reading of memory.
    bandwidth_gb_s: f64,
    share_of_bandwidth: f64,
}

fn decode(args: &BenchDecode, printer: Printer) -> Outcome {
    let model = steering::open(&args.model, args.batch)?;
    let precision = args.model.precision.resolve(args.batch).name();
    let bench = DecodeBench {
        batch: args.batch,
        plans: args.plans,
        layer: args.layer.unwrap_or(model.config().n_layers / 2),
        prompt_tokens: args.prompt_tokens,
        tokens: args.tokens,
    };
    if let Some(against) = args.against_plans {
        let found = decode_difference(&model, &bench, against, args.blocks)?;
        let percent = |x: f64| format!("{:+.2} %", 100.0 * x);
        printer.line(format_args!(
            "{} plans against {against}: {} of the time, 95 % interval {} to {}",
            found.plans,
            percent(found.difference),
            percent(found.interval.0),
            percent(found.interval.1)
        ))?;
        return printer.result(&Measured::new(Decoded { result: found, precision }));
    }
    let speed = decode_speed(&model, &bench)?;
    let weights_gb_s = model.bytes_per_pass() as f64 / speed.ms_per_step / 1e6;
    printer.line(format_args!(
        "{precision}: reads {:.0} tokens/s, writes {:.1} tokens/s ({:.1} ms per step of {} texts)",
        speed.prefill_tok_s, speed.decode_tok_s, speed.ms_per_step, speed.batch
    ))?;
    // The peak of memory is taken before the buffer that the bandwidth is measured with.
    let speed = Measured::new(Decoded { result: speed, precision });
    let bandwidth_gb_s = roofline::bandwidth_gb_s();
    let share_of_bandwidth = weights_gb_s / bandwidth_gb_s;
    printer.line(format_args!("{weights_gb_s:.1} of {bandwidth_gb_s:.1} GB/s"))?;
    printer.result(&Written { speed, weights_gb_s, bandwidth_gb_s, share_of_bandwidth })
}

#[derive(Serialize)]
struct LoadSpeed {
    seconds: f64,
    megabytes: f64,
    megabytes_per_second: f64,
}

fn load(args: &BenchLoad, printer: Printer) -> Outcome {
    let began = Instant::now();
    let model = steering::open(&args.model, 1)?;
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
