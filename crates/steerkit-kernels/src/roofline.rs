//! What this machine can do at most: multiply-adds in registers, and reading of memory that no cache holds.

use crate::isa::{Isa, multiversion};
use crate::parallel;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long each of the two is tried.
const TRIAL: Duration = Duration::from_millis(300);
/// Numbers that are read: 256 MiB.
const READ: usize = 1 << 26;
/// Numbers of a task, so that a thread that loses its core does not hold the others up.
const PIECE: usize = 1 << 18;
/// Rounds of multiply-adds in a task.
const ROUNDS: usize = 20_000;

/// 10^9 f32 operations per second of fused multiply-adds in registers on all threads; `None` where there are no such
/// instructions.
pub fn peak_gflops() -> Option<f64> {
    let isa = Isa::current();
    let per_round = match isa {
        Isa::Avx512 | Isa::Amx => 12 * 16 * 2,
        Isa::Avx2 => 12 * 8 * 2,
        Isa::Portable => return None,
    };
    let tasks = 8 * parallel::threads();
    let seconds = fastest(|| {
        parallel::for_each(tasks, |_| {
            #[cfg(target_arch = "x86_64")]
            match isa {
                // SAFETY: `Isa::current` is available.
                Isa::Avx512 | Isa::Amx => _ = black_box(unsafe { registers::avx512(ROUNDS) }),
                // SAFETY: as above.
                Isa::Avx2 => _ = black_box(unsafe { registers::avx2(ROUNDS) }),
                Isa::Portable => {}
            }
        });
    });
    Some((tasks * ROUNDS * per_round) as f64 / seconds / 1e9)
}

/// 10^9 bytes per second that all threads read from memory. It takes 256 MiB itself.
pub fn bandwidth_gb_s() -> f64 {
    let numbers = vec![1f32; READ];
    let seconds = fastest(|| {
        parallel::for_each(READ / PIECE, |i| {
            black_box(sum(&numbers[i * PIECE..(i + 1) * PIECE]));
        });
    });
    (READ * size_of::<f32>()) as f64 / seconds / 1e9
}

/// Seconds of the fastest of the runs that fit into the trial.
fn fastest(run: impl Fn()) -> f64 {
    let (began, mut best) = (Instant::now(), f64::INFINITY);
    while began.elapsed() < TRIAL {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

multiversion! {
    /// The sum in 64 independent parts, so that nothing but reading takes time.
    fn sum(x: &[f32]) -> f32 {
        let mut parts = [0f32; 64];
        for chunk in x.as_chunks::<64>().0 {
            parts.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
        }
        parts.iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod registers {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// `rounds × 12` vector multiply-adds in independent chains.
    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(rounds: usize) -> f32 {
        let mut acc: [__m512; 12] = std::array::from_fn(|i| _mm512_set1_ps(i as f32));
        let (x, y) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        for _ in 0..rounds {
            for a in &mut acc {
                *a = _mm512_fmadd_ps(*a, x, y);
            }
        }
        acc.into_iter().map(|a| _mm512_reduce_add_ps(a)).sum()
    }

    /// `rounds × 12` vector multiply-adds in independent chains.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(rounds: usize) -> f32 {
        let mut acc: [__m256; 12] = std::array::from_fn(|i| _mm256_set1_ps(i as f32));
        let (x, y) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        for _ in 0..rounds {
            for a in &mut acc {
                *a = _mm256_fmadd_ps(*a, x, y);
            }
        }
        acc.into_iter().map(|a| _mm256_cvtss_f32(a)).sum()
    }
}
