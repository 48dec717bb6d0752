//! Products against `f64` sums, and the promises about bits.

use super::driver::CHAIN;
use super::*;
use crate::isa::with_isa;
use crate::{BlockFormat, Bytes, parallel};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A matrix of random blocks with scales about 1.
fn random_matrix(format: BlockFormat, rows: usize, cols: usize, seed: u64) -> Matrix {
    if format == BlockFormat::F32 {
        return Matrix::from_f32(rows, cols, &random(rows * cols, seed));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let len = rows * format.row_bytes(cols).unwrap();
    let mut bytes: Vec<u8> = (0..len).map(|_| rng.random()).collect();
    let halves: &[usize] = match format {
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4_K | BlockFormat::Q5_K => &[0, 2],
        BlockFormat::Q2_K => &[80, 82],
        BlockFormat::Q3_K => &[108],
        BlockFormat::Q6_K => &[208],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for &at in halves {
            let scale = half::f16::from_f32(rng.random_range(0.001..0.01));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    Matrix::new(format, rows, cols, Bytes::new(Arc::new(bytes)))
}

fn expanded(w: &Matrix) -> Vec<f32> {
    let mut out = vec![0.0; w.rows() * w.cols()];
    for (i, row) in out.chunks_exact_mut(w.cols().max(1)).enumerate() {
        w.expand_row(i, row);
    }
    out
}

/// The sum that `linear` and `linear_vjp` promise.
fn chains(k: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> f32 {
    let sums = (0..k).step_by(CHAIN).map(|from| {
        let n = CHAIN.min(k - from);
        chain(n, |p| a(from + p), |p| b(from + p))
    });
    sums.reduce(|sum, part| sum + part).unwrap_or(0.0)
}

/// One chain: what `product` promises.
fn chain(k: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> f32 {
    (0..k).fold(0.0, |acc, p| a(p).mul_add(b(p), acc))
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn assert_near_f64(k: usize, got: f32, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) {
    let terms = || (0..k).map(|p| f64::from(a(p)) * f64::from(b(p)));
    let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
    let bound = size * k as f64 * f64::from(f32::EPSILON) + 1e-30;
    assert!((f64::from(got) - want).abs() <= bound, "{got} for {want} (k = {k})");
}

const SHAPES: [(usize, usize, usize); 16] = [
    (1, 1, 1),
    (1, 33, 2),
    (2, 31, 17),
    (3, 32, 64),
    (5, 70, 3),
    (6, 16, 16),
    (7, 48, 31),
    (13, 64, 33),
    (14, 15, 47),
    (15, 65, 66),
    (28, 17, 70),
    (29, 1, 5),
    (43, 96, 1),
    (70, 69, 68),
    (31, 300, 700),
    (65, 40, 1300),
];

#[test]
fn linear_is_the_promised_chain_on_every_level() {
    for isa in Isa::available() {
        for (t, n, k) in SHAPES {
            let (w, x) = (random_matrix(BlockFormat::F32, n, k, 1), random(t * k, 2));
            let (wide, mut y) = (expanded(&w), vec![f32::NAN; t * n]);
            with_isa(isa, || linear(&w, &x, t, &mut y, Precision::F32));
            for i in 0..t {
                for j in 0..n {
                    let want = chains(k, |p| x[i * k + p], |p| wide[j * k + p]);
                    assert_eq!(y[i * n + j].to_bits(), want.to_bits(), "{isa:?} [{t}, {n}, {k}] ({i}, {j})");
                    assert_near_f64(k, want, |p| x[i * k + p], |p| wide[j * k + p]);
                }
            }
        }
    }
}

#[test]
fn linear_vjp_is_the_promised_chain_on_every_level() {
    for isa in Isa::available() {
        for (t, n, k) in SHAPES {
            let (w, dy) = (random_matrix(BlockFormat::F32, k, n, 3), random(t * k, 4));
            let (wide, mut dx) = (expanded(&w), vec![f32::NAN; t * n]);
            with_isa(isa, || linear_vjp(&w, &dy, t, &mut dx, Precision::F32));
            for i in 0..t {
                for j in 0..n {
                    let want = chains(k, |p| dy[i * k + p], |p| wide[p * n + j]);
                    assert_eq!(dx[i * n + j].to_bits(), want.to_bits(), "{isa:?} [{t}, {n}, {k}] ({i}, {j})");
                }
            }
        }
    }
}

#[test]
fn quantised_stacked_weights_equal_their_expansion() {
    let stack = |a, b, cols| Matrix::stack([random_matrix(a, 50, cols, 5), random_matrix(b, 37, cols, 6)]);
    let cases = [
        stack(BlockFormat::Q4_1, BlockFormat::Q8_0, 96),
        stack(BlockFormat::Q4_0, BlockFormat::F16, 704),
        stack(BlockFormat::Q6_K, BlockFormat::Q4_1, 1536),
    ];
    for w in cases {
        let (n, k, t) = (w.rows(), w.cols(), 19);
        let wide = Matrix::from_f32(n, k, &expanded(&w));
        let (x, dy) = (random(t * k, 7), random(t * n, 8));
        for isa in Isa::available() {
            with_isa(isa, || {
                let (mut y, mut y_wide) = (vec![0.0; t * n], vec![1.0; t * n]);
                linear(&w, &x, t, &mut y, Precision::F32);
                linear(&wide, &x, t, &mut y_wide, Precision::F32);
                assert_eq!(bits(&y), bits(&y_wide));
                let (mut dx, mut dx_wide) = (vec![0.0; t * k], vec![1.0; t * k]);
                linear_vjp(&w, &dy, t, &mut dx, Precision::F32);
                linear_vjp(&wide, &dy, t, &mut dx_wide, Precision::F32);
                assert_eq!(bits(&dx), bits(&dx_wide));
            });
        }
    }
}

/// A row's bits do not depend on the rows beside it, on the number of threads or (in f32) on the level.
fn assert_rows_are_independent(precision: Precision, isa: Isa) {
    let (n, k, t) = (130, 1344, 120);
    let w = random_matrix(BlockFormat::Q8_0, n, k, 9);
    let (x, dy) = (random(t * k, 10), random(t * n, 11));
    let both = |t: usize, first: usize| {
        with_isa(isa, || {
            let (mut y, mut dx) = (vec![0.0; t * n], vec![0.0; t * k]);
            linear(&w, &x[first * k..][..t * k], t, &mut y, precision);
            linear_vjp(&w, &dy[first * n..][..t * n], t, &mut dx, precision);
            (bits(&y), bits(&dx))
        })
    };
    let before = parallel::threads();
    let (y, dx) = both(t, 0);
    for threads in [1, 2, 5] {
        parallel::set_threads(threads);
        for (rows, first) in [(1, 0), (1, 101), (2, 60), (13, 14), (15, 3), (64, 50), (t, 0)] {
            let (y_part, dx_part) = both(rows, first);
            assert_eq!(y_part, y[first * n..(first + rows) * n], "{isa:?} {threads} threads, {rows} rows");
            assert_eq!(dx_part, dx[first * k..(first + rows) * k], "{isa:?} {threads} threads, {rows} rows");
        }
    }
    parallel::set_threads(before);
}

#[test]
fn a_rows_bits_do_not_depend_on_its_company() {
    for isa in Isa::available() {
        assert_rows_are_independent(Precision::F32, isa);
        assert_rows_are_independent(Precision::Bf16, isa);
    }
}

#[test]
fn bf16_is_close_to_the_sum_of_rounded_inputs() {
    let rounded = |x: &[f32]| x.iter().map(|&x| bf16::round(x)).collect::<Vec<f32>>();
    for isa in Isa::available() {
        for (t, n, k) in SHAPES {
            let x = random(t * k, 15);
            let x_rounded = rounded(&x);
            let (w, w_t) =
                (random_matrix(BlockFormat::F32, n, k, 16), random_matrix(BlockFormat::F32, k, n, 17));
            let (mut y, mut dx) = (vec![f32::NAN; t * n], vec![f32::NAN; t * n]);
            with_isa(isa, || {
                linear(&w, &x, t, &mut y, Precision::Bf16);
                linear_vjp(&w_t, &x, t, &mut dx, Precision::Bf16);
            });
            let (wide, wide_t) = (rounded(&expanded(&w)), rounded(&expanded(&w_t)));
            for (i, j) in (0..t).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let row = &x_rounded[i * k..(i + 1) * k];
                assert_near_f64(k, y[i * n + j], |p| row[p], |p| wide[j * k + p]);
                assert_near_f64(k, dx[i * n + j], |p| row[p], |p| wide_t[p * n + j]);
            }
        }
    }
}

#[test]
fn product_is_the_promised_chain_for_every_layout() {
    for isa in Isa::available() {
        for (m, n, k) in SHAPES {
            for layout in 0..4 {
                let (pad_a, pad_b, ldc) = (3, 5, n + 2);
                let (a_row, a_col) = if layout & 1 == 0 { (k + pad_a, 1) } else { (1, m + pad_a) };
                let (b_row, b_col) = if layout & 2 == 0 { (n + pad_b, 1) } else { (1, k + pad_b) };
                let a_data = random((m - 1) * a_row + (k - 1) * a_col + 1, 12);
                let b_data = random((k - 1) * b_row + (n - 1) * b_col + 1, 13);
                let a = View { data: &a_data, row_stride: a_row, col_stride: a_col };
                let b = View { data: &b_data, row_stride: b_row, col_stride: b_col };
                for (alpha, accumulate) in [(1.0, false), (0.125, false), (1.0, true), (-0.3, true)] {
                    let before = random((m - 1) * ldc + n, 14);
                    let mut c = before.clone();
                    with_isa(isa, || product(m, n, k, alpha, a, b, accumulate, &mut c, ldc));
                    for (at, (&got, &old)) in c.iter().zip(&before).enumerate() {
                        let (i, j) = (at / ldc, at % ldc);
                        let sum = chain(
                            k,
                            |p| a_data[i * a_row + p * a_col],
                            |p| b_data[p * b_row + j.min(n - 1) * b_col],
                        );
                        let want = match (j < n, accumulate) {
                            (false, _) => old,
                            (true, true) => alpha.mul_add(sum, old),
                            (true, false) => alpha * sum,
                        };
                        assert_eq!(got.to_bits(), want.to_bits(), "{isa:?} [{m}, {n}, {k}] ({i}, {j})");
                    }
                }
            }
        }
    }
}

#[test]
fn empty_products() {
    let w = Matrix::from_f32(3, 2, &[1.0; 6]);
    linear(&w, &[], 0, &mut [], Precision::F32);
    linear_vjp(&w, &[], 0, &mut [], Precision::F32);
    let none = View { data: &[], row_stride: 1, col_stride: 1 };
    let mut c = [7.0; 2];
    product(1, 2, 0, 2.0, none, none, false, &mut c, 2);
    assert_eq!(c, [0.0; 2]);
}

#[test]
fn interleaved_weights_give_the_same_bits() {
    let stack = |a, b, cols| Matrix::stack([random_matrix(a, 50, cols, 5), random_matrix(b, 37, cols, 6)]);
    let coded: Vec<BlockFormat> = BlockFormat::ALL.into_iter().filter(|f| f.has_codes()).collect();
    assert_eq!(coded.len(), 12);
    for (i, &format) in coded.iter().enumerate() {
        let cols = if format.block_len() == 32 { [32, 576, 1568][i % 3] } else { [256, 1536][i % 2] };
        let other = if cols == 1536 { BlockFormat::Q6_K } else { BlockFormat::Q4_1 };
        let w = stack(format, other, cols);
        let interleaved = Interleaved::new(&w).expect("all parts have codes");
        for t in [1, 2, 9, 17, 33, 70] {
            let x = random(t * cols, 7);
            for (isa, precision) in
                Isa::available().flat_map(|isa| [(isa, Precision::F32), (isa, Precision::Bf16)])
            {
                let (mut y, mut y_few) = (vec![0.0; t * w.rows()], vec![1.0; t * w.rows()]);
                with_isa(isa, || {
                    linear(&w, &x, t, &mut y, precision);
                    linear_interleaved(&interleaved, &x, t, &mut y_few, precision);
                });
                assert_eq!(bits(&y), bits(&y_few), "{format:?} {isa:?} {precision:?} [{t}, {cols}]");
            }
        }
    }
}

#[test]
fn weights_without_codes_are_not_interleaved() {
    let w = |format| random_matrix(format, 3, 32, 1);
    for format in [BlockFormat::F32, BlockFormat::F16, BlockFormat::BF16, BlockFormat::MXFP4] {
        assert!(Interleaved::new(&w(format)).is_none());
        assert!(Interleaved::new(&Matrix::stack([w(BlockFormat::Q8_0), w(format)])).is_none());
    }
}

/// `x` rounded to 8 bits in runs of 32, in numbers.
fn rounded_to_8_bits(x: &[f32]) -> Vec<f32> {
    let run = |run: &[f32]| {
        let scale = run.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
        run.iter()
            .map(|x| if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even() * scale })
            .collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(run).collect()
}

#[test]
fn int8_is_the_product_of_the_rounded_inputs() {
    for (i, format) in BlockFormat::ALL.into_iter().filter(|f| f.has_codes()).enumerate() {
        let k = if format.block_len() == 32 { [32, 576, 1568][i % 3] } else { [256, 1536][i % 2] };
        let w = Matrix::stack([random_matrix(format, 50, k, 5), random_matrix(format, 1030, k, 6)]);
        let (n, wide, interleaved) = (w.rows(), expanded(&w), Interleaved::new(&w).unwrap());
        let mut x = random(6 * k, 7);
        x[..32].fill(0.0);
        x[40] = 3000.0;
        let near = rounded_to_8_bits(&x);
        let mut levels = Isa::available().map(|isa| {
            let mut y = vec![f32::NAN; 6 * n];
            with_isa(isa, || linear_interleaved(&interleaved, &x, 6, &mut y, Precision::Int8));
            y
        });
        let y = levels.next().expect("the portable level");
        for (i, j) in (0..6).flat_map(|i| (0..n).map(move |j| (i, j))) {
            // Minima are multiplied apart, so terms of the size of the largest weight cancel.
            let most = wide[j * k..(j + 1) * k].iter().fold(0f32, |most, w| most.max(w.abs()));
            let terms = || (0..k).map(|p| f64::from(near[i * k + p]) * f64::from(wide[j * k + p]));
            let (want, got) = (terms().sum::<f64>(), f64::from(y[i * n + j]));
            let size = near[i * k..(i + 1) * k].iter().map(|x| f64::from(x.abs())).sum::<f64>();
            let bound = size * f64::from(most) * 1e-5;
            assert!((got - want).abs() <= bound, "{format:?} ({i}, {j}): {got} for {want}, size {size}");
        }
        for other in levels {
            assert_eq!(bits(&other), bits(&y), "{format:?}");
        }
    }
}

#[test]
fn int8_rows_do_not_depend_on_their_company_and_pass_nan_on() {
    let (n, k, t) = (1040, 576, 70);
    let w = Interleaved::new(&random_matrix(BlockFormat::Q4_1, n, k, 9)).unwrap();
    let mut x = random(t * k, 10);
    x[5 * k + 100] = f32::NAN;
    x[6 * k + 100] = f32::INFINITY;
    let part = |first: usize, rows: usize| {
        let mut y = vec![0.0; rows * n];
        linear_interleaved(&w, &x[first * k..(first + rows) * k], rows, &mut y, Precision::Int8);
        y
    };
    let all = part(0, t);
    for (first, rows) in [(0, 1), (3, 2), (10, 3), (7, 4), (60, 5), (20, 50)] {
        assert_eq!(bits(&part(first, rows)), bits(&all[first * n..(first + rows) * n]), "{rows} rows");
    }
    let finite = |row: usize| all[row * n..(row + 1) * n].iter().filter(|y| y.is_finite()).count();
    assert_eq!((0..t).map(finite).filter(|&f| f == n).count(), t - 2);
    assert_eq!((finite(5), finite(6)), (0, 0));
}
