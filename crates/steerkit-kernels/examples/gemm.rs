//! Speed of the matrix products on this machine, beside the peak of a loop of fused multiply-adds in
//! registers: `cargo run --release -p steerkit-kernels --example gemm [LEVEL] [THREADS [ROWS]...]`,
//! with a level of [`Isa`] in lower case

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::sync::Arc;
use std::time::{Duration, Instant};
use steerkit_kernels::gemm::{View, linear, linear_vjp, product};
use steerkit_kernels::isa::{Isa, with_isa};
use steerkit_kernels::roofline::peak_gflops;
use steerkit_kernels::{BlockFormat, Bytes, Matrix, Precision, parallel};

/// The matrices of SmolLM2-135M: outputs and inputs.
const SHAPES: [(usize, usize); 5] = [(960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)];

/// Seconds of the fastest of several runs over about a second.
fn best(mut f: impl FnMut()) -> f64 {
    f();
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed() < Duration::from_millis(700) {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
}

fn matrix(format: BlockFormat, rows: usize, cols: usize) -> Matrix {
    if format == BlockFormat::F32 {
        return Matrix::from_f32(rows, cols, &numbers(rows * cols));
    }
    let len = rows * format.row_bytes(cols).expect("whole blocks");
    // Every half-precision scale or minimum among these bytes is finite.
    let bytes: Vec<u8> = (0..len).map(|i| (i * 7919 % 251) as u8 & 0x3b).collect();
    Matrix::new(format, rows, cols, Bytes::new(Arc::new(bytes)))
}

fn linear_speeds(t: usize, precision: Precision, peak: f64) {
    println!("\n{precision:?}, {t} rows: GFLOP/s (share of the f32 peak) of linear | linear_vjp");
    let formats = [BlockFormat::F32, BlockFormat::Q8_0, BlockFormat::Q4_1, BlockFormat::F16];
    println!("{:12}{}", "", formats.map(|f| format!("{:>12}{:14}", f.name(), "")).concat());
    for (n, k) in SHAPES {
        print!("{n:5} x {k:<4}");
        for format in formats {
            let w = matrix(format, n, k);
            let (x, mut y) = (numbers(t * k), vec![0.0; t * n]);
            let speed = |seconds: f64| (2 * t * n * k) as f64 / seconds * 1e-9;
            let forward = speed(best(|| linear(&w, &x, t, &mut y, precision)));
            let mut dx = vec![0.0; t * k];
            let backward = speed(best(|| linear_vjp(&w, &y, t, &mut dx, precision)));
            let share = |v: f64| format!("{v:6.0} ({:3.0}%)", 100.0 * v / peak);
            print!(" {} |{}", share(forward), share(backward));
        }
        println!();
    }
}

fn product_speeds(peak: f64) {
    println!("\nproduct, one thread: GFLOP/s of q·kᵀ | p·v | pᵀ·do (share of one thread's peak)");
    for (m, s, h) in [(3, 400, 64), (24, 24, 64), (100, 100, 64), (400, 400, 64), (400, 400, 128)] {
        let (q, kv, p) = (numbers(m * 9 * h), numbers(s * 3 * h), numbers(m * s));
        let mut c = vec![0.0; m.max(s) * s.max(h)];
        let q = View { data: &q, row_stride: 9 * h, col_stride: 1 };
        let k_t = View { data: &kv, row_stride: 1, col_stride: 3 * h };
        let v = View { data: &kv, row_stride: 3 * h, col_stride: 1 };
        let p_ts = View { data: &p, row_stride: s, col_stride: 1 };
        let p_st = View { data: &p, row_stride: 1, col_stride: s };
        let seconds = [
            best(|| product(m, s, h, 0.125, q, k_t, false, &mut c, s)),
            best(|| product(m, h, s, 1.0, p_ts, v, false, &mut c, h)),
            best(|| product(s, h, m, 1.0, p_st, q, true, &mut c, h)),
        ];
        let speeds = seconds.map(|x| (2 * m * s * h) as f64 / x * 1e-9);
        println!(
            "{m:4} rows, {s:4} keys, h {h:3}: {}",
            speeds.map(|v| format!("{v:6.1} ({:3.0}%)  ", 100.0 * v / peak)).concat()
        );
    }
}

fn main() {
    let name = |isa: &Isa| format!("{isa:?}").to_lowercase();
    let asked = std::env::args().nth(1).and_then(|arg| Isa::available().find(|isa| name(isa) == arg));
    with_isa(asked.unwrap_or_else(Isa::current), measure);
}

fn measure() {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let (rows, threads) = match asked.as_slice() {
        [] => (vec![452, 32, 1], None),
        [threads] => (vec![452, 32, 1], Some(*threads)),
        [threads, rows @ ..] => (rows.to_vec(), Some(*threads)),
    };
    if let Some(threads) = threads {
        parallel::set_threads(threads);
    }
    let peak = peak_gflops().unwrap_or(0.0);
    let threads = parallel::threads();
    println!("{:?}, {threads} threads: {peak:.0} GFLOP/s of f32 multiply-adds in registers", Isa::current());
    for t in rows {
        linear_speeds(t, Precision::F32, peak);
        linear_speeds(t, Precision::Bf16, peak);
    }
    product_speeds(peak / threads as f64);
}
