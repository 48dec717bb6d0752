//! Every operation of the device backend against the CPU's, on random numbers.

use super::{Backend, cpu::Cpu, device::Device};
use crate::config::{Rope, RopePairing, RopeScaling};
use crate::edit::Shift;
use crate::engine::CandleDevice;
use crate::{ErrorKind, ModelError, Result};
use rand::{Rng, SeedableRng};
use steerkit_kernels::attention::{Heads, Run};
use steerkit_kernels::mlp::Activation;
use steerkit_kernels::rope::{Angles, Turn};
use steerkit_kernels::{Matrix, Precision};

const TOLERANCE: f32 = 1e-5;
const HEADS: Heads = Heads { n: 6, k: 2, h: 8, scale: 0.4, softcap: None, window: None };
const CAPPED: Heads = Heads { softcap: Some(0.9), window: Some(4), ..HEADS };

const DEVICES: &[CandleDevice] = &[
    CandleDevice::Cpu,
    #[cfg(feature = "cuda")]
    CandleDevice::Cuda(0),
    #[cfg(feature = "metal")]
    CandleDevice::Metal(0),
];

fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// What one operation gives: named results.
type Results = Result<Vec<(&'static str, Vec<f32>)>>;

fn compare(precision: Precision, on_cpu: impl Fn(&Cpu) -> Results, on_device: impl Fn(&Device) -> Results) {
    let expected = on_cpu(&Cpu::new(precision)).unwrap();
    for &choice in DEVICES {
        let found = on_device(&Device::open(choice, precision).unwrap()).unwrap();
        assert_eq!(found.len(), expected.len());
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            assert_eq!(found.len(), expected.len(), "{name}");
            let size = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
            let diff = found.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            println!("{choice:?}: {name} within {:.1e}", diff / size);
            assert!(diff <= TOLERANCE * size, "{choice:?}: {name} differs by {diff:e} of {size:e}");
        }
    }
}

/// A test that runs an operation, generic over the backend, on all of them.
macro_rules! same_on_all {
    ($($operation:ident),* $(,)?) => {
        $(#[test]
        fn $operation() {
            compare(Precision::F32, operations::$operation, operations::$operation);
        })*
    };
}

same_on_all!(
    embed_and_select,
    linear,
    rms_norm,
    rms_norm_columns,
    rope,
    attention,
    attention_cached,
    gated,
    add,
    log_probs,
    capped_log_probs,
    saturated
);

#[test]
fn linear_in_bf16() {
    compare(Precision::Bf16, operations::linear, operations::linear);
}

/// Operations and their VJPs on both backends alike.
mod operations {
    use super::*;

    pub(super) fn embed_and_select<B: Backend>(b: &B) -> Results {
        let embed = b.matrix(&Matrix::from_f32(9, 12, &noise(1, 9 * 12)))?;
        let x = b.embed(&embed, &[3, 8, 0, 3])?;
        let rows = [2, 0, 2, 2];
        let y = b.select(&x, &rows)?;
        let dx = b.select_vjp(&b.upload(&noise(2, 4 * 12), 12)?, &rows, 5)?;
        Ok(vec![
            ("embed", b.download(&x)?),
            ("select", b.download(&y)?),
            ("select_vjp", b.download(&dx)?),
            ("copy", b.download(&b.copy(&x)?)?),
        ])
    }

    pub(super) fn linear<B: Backend>(b: &B) -> Results {
        let (t, cols, rows) = (7, 96, 50);
        let w = b.matrix(&Matrix::from_f32(rows, cols, &noise(1, rows * cols)))?;
        let y = b.linear(&b.upload(&noise(2, t * cols), cols)?, &w)?;
        let dx = b.linear_vjp(&b.upload(&noise(3, t * rows), rows)?, &w)?;
        let dw = b.linear_weight_vjp(
            &b.upload(&noise(3, t * rows), rows)?,
            &b.upload(&noise(2, t * cols), cols)?,
        )?;
        Ok(vec![("linear", b.download(&y)?), ("linear_vjp", b.download(&dx)?), ("linear_weight_vjp", dw)])
    }

    pub(super) fn rms_norm<B: Backend>(b: &B) -> Results {
        let (t, d) = (5, 96);
        let gain = b.gain(&noise(1, d))?;
        let (x, dy) = (b.upload(&noise(2, t * d), d)?, b.upload(&noise(3, t * d), d)?);
        let (y, rstd) = b.rms_norm(&x, &gain, 1e-5)?;
        let mut dx = b.upload(&noise(4, t * d), d)?;
        b.rms_norm_vjp(&x, &gain, &rstd, &dy, &mut dx)?;
        Ok(vec![
            ("rms_norm", b.download(&y)?),
            ("rstd", b.download(&rstd)?),
            ("rms_norm_vjp", b.download(&dx)?),
        ])
    }

    pub(super) fn rms_norm_columns<B: Backend>(b: &B) -> Results {
        let (t, width) = (5, 40);
        let gain = b.gain(&noise(1, 8))?;
        let x = b.upload(&noise(2, t * width), width)?;
        let mut y = b.copy(&x)?;
        b.rms_norm_columns(&mut y, 8..32, &gain, 1e-5)?;
        let mut dx = b.upload(&noise(3, t * width), width)?;
        b.rms_norm_columns_vjp(&x, 8..32, &gain, 1e-5, &mut dx)?;
        Ok(vec![("rms_norm_columns", b.download(&y)?), ("rms_norm_columns_vjp", b.download(&dx)?)])
    }

    pub(super) fn rope<B: Backend>(b: &B) -> Results {
        let positions = [0, 1, 7, 500];
        let mut results = Vec::new();
        for (pairing, names) in [
            (RopePairing::Halves, ["rope by halves", "its VJP"]),
            (RopePairing::Adjacent, ["rope by neighbours", "its VJP"]),
        ] {
            let rope = Rope { theta: 1e4, pairing, scaling: RopeScaling::None };
            for turned in [HEADS.h, 6] {
                let angles = b.angles(Angles::new(&positions, &rope.frequencies(turned), 1.2), &rope)?;
                for (name, turn) in names.into_iter().zip([Turn::Forward, Turn::Back]) {
                    let width = HEADS.qkv_width();
                    let mut x = b.upload(&noise(1, positions.len() * width), width)?;
                    b.rope(&mut x, HEADS, &angles, turn)?;
                    results.push((name, b.download(&x)?));
                }
            }
        }
        Ok(results)
    }

    /// A prompt of 5 with branches of 3 and 4, the latter with a branch of 2, and a text of 2.
    fn runs() -> Vec<Run> {
        vec![
            Run { rows: 0..5, keys: vec![0..5], tree: 0 },
            Run { rows: 5..8, keys: vec![0..5, 5..8], tree: 0 },
            Run { rows: 8..12, keys: vec![0..5, 8..12], tree: 0 },
            Run { rows: 12..14, keys: vec![0..5, 8..12, 12..14], tree: 0 },
            Run { rows: 14..16, keys: vec![14..16], tree: 4 },
        ]
    }

    pub(super) fn attention<B: Backend>(b: &B) -> Results {
        let (t, width, out_width) = (16, HEADS.qkv_width(), HEADS.n * HEADS.h);
        let runs = b.runs(runs())?;
        let qkv = b.upload(&noise(1, t * width), width)?;
        let dout = b.upload(&noise(2, t * out_width), out_width)?;
        let mut results = Vec::new();
        for heads in [HEADS, CAPPED] {
            let out = b.attention(&qkv, heads, &runs)?;
            let dqkv = b.attention_vjp(&qkv, heads, &runs, &dout)?;
            results.extend([("attention", b.download(&out)?), ("attention_vjp", b.download(&dqkv)?)]);
        }
        Ok(results)
    }

    pub(super) fn attention_cached<B: Backend>(b: &B) -> Results {
        let width = HEADS.qkv_width();
        let mut results = Vec::new();
        for heads in [HEADS, CAPPED] {
            let (mut first, mut second) = (b.new_cache(), b.new_cache());
            for (seed, m) in [(1, 4), (2, 1), (3, 3)] {
                let qkv = b.upload(&noise(seed, (m + 2) * width), width)?;
                let mut texts = [(0..m, &mut first), (m..m + 2, &mut second)];
                results
                    .push(("attention_cached", b.download(&b.attention_cached(&qkv, heads, &mut texts)?)?));
            }
        }
        Ok(results)
    }

    pub(super) fn gated<B: Backend>(b: &B) -> Results {
        let (t, f) = (5, 40);
        let mut results = Vec::new();
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let gate_up = b.upload(&noise(1, t * 2 * f), 2 * f)?;
            let y = b.gated(activation, &gate_up)?;
            let dx = b.gated_vjp(activation, gate_up, &b.upload(&noise(2, t * f), f)?)?;
            results.extend([("gated", b.download(&y)?), ("gated_vjp", b.download(&dx)?)]);
        }
        Ok(results)
    }

    pub(super) fn add<B: Backend>(b: &B) -> Results {
        let (t, d) = (6, 10);
        let mut x = b.upload(&noise(1, t * d), d)?;
        b.add(&mut x, &b.upload(&noise(2, t * d), d)?)?;
        let mut results = vec![("add", b.download(&x)?)];
        for rows in [0..t, 0..1, 2..5, 5..t] {
            b.add_to_rows(&mut x, rows, &noise(3, d))?;
            results.push(("add_to_rows", b.download(&x)?));
        }
        b.add_bias(&mut x, &b.gain(&noise(4, d))?)?;
        results.push(("add_bias", b.download(&x)?));
        b.scale(&mut x, 1.7)?;
        b.scale_rows(&mut x, &noise(9, t))?;
        results.push(("scale", b.download(&x)?));
        b.softcap(&mut x, 2.5)?;
        results.push(("softcap", b.download(&x)?));
        results.push(("zeros_like", b.download(&b.zeros_like(&x)?)?));
        let unit: Vec<f32> =
            (0..d).map(|i| [0.0, 0.6, -0.8][usize::from(i == 3) + 2 * usize::from(i == 7)]).collect();
        for rows in [0..t, 2..5, 5..t] {
            b.shift_rows(&mut x, rows, &unit, Shift::OneSided { strength: 0.5, bias: 0.1 })?;
            results.push(("shift_rows", b.download(&x)?));
        }
        Ok(results)
    }

    pub(super) fn log_probs<B: Backend>(b: &B) -> Results {
        let (v, targets) = (2000, [0, 1999, 77, 77]);
        let logits = b.upload(&noise(1, targets.len() * v), v)?;
        let logps = b.log_probs(&logits, &targets)?;
        let dlogits = b.log_probs_vjp(logits, &targets, &noise(2, targets.len()), None)?;
        Ok(vec![("log_probs", logps), ("log_probs_vjp", b.download(&dlogits)?)])
    }

    pub(super) fn capped_log_probs<B: Backend>(b: &B) -> Results {
        let (v, targets, cap) = (2000, [0, 1999, 77, 77], 1.5);
        let mut logits = b.upload(&noise(1, targets.len() * v), v)?;
        b.softcap(&mut logits, cap)?;
        let dlogits = b.log_probs_vjp(logits, &targets, &noise(2, targets.len()), Some(cap))?;
        Ok(vec![("log_probs_vjp of capped logits", b.download(&dlogits)?)])
    }

    /// Gates and logits whose exponentials leave the range of f32.
    pub(super) fn saturated<B: Backend>(b: &B) -> Results {
        let gate_up = b.upload(&[-200.0, 200.0, 1.0, 2.0], 4)?;
        let silu = Activation::Silu;
        let y = b.download(&b.gated(silu, &gate_up)?)?;
        let dgate_up = b.download(&b.gated_vjp(silu, gate_up, &b.upload(&[1.0, 1.0], 2)?)?)?;
        let logits = [300.0, -300.0, 299.0, -1e4, -1e4, -1e4];
        let logps = b.log_probs(&b.upload(&logits, 3)?, &[1, 2])?;
        let dlogits = b.download(&b.log_probs_vjp(b.upload(&logits, 3)?, &[1, 2], &[1.0, -2.0], None)?)?;
        Ok(vec![("gated", y), ("gated_vjp", dgate_up), ("log_probs", logps), ("log_probs_vjp", dlogits)])
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_without_support_in_this_build_is_refused() {
    let error = Device::open(CandleDevice::Cuda(0), Precision::F32).err().unwrap();
    assert!(matches!(&error, ModelError::Device(what) if what.contains("cuda")), "{error}");
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.hint().unwrap().contains("--features cuda"));
}
