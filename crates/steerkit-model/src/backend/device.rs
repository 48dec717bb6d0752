//! The decoder's operations as tensor expressions of candle-core, for GPUs.
//!
//! Every gradient is written out: the tensor library's own would compute those of frozen weights too. Numbers
//! agree with [`super::cpu::Cpu`] up to the rounding of sums, whose order the library chooses: a text's bits may
//! depend on its batch.

use super::Backend;
use crate::config::{Rope, RopePairing};
use crate::edit::Shift;
use crate::engine::CandleDevice;
use crate::{ModelError, Result};
use candle_core::{DType, Tensor};
use std::ops::Range;
use steerkit_kernels::attention::{Heads, Run};
use steerkit_kernels::mlp::Activation;
use steerkit_kernels::rope::{Angles, Turn};
use steerkit_kernels::{Matrix, Precision};

/// A device of the tensor library, in one numeric mode.
pub(crate) struct Device {
    device: candle_core::Device,
    /// Of stored matrices.
    dtype: DType,
}

/// Cosines and sines of the numbers that turn, `[t, 1, half]`.
pub(crate) struct DeviceAngles {
    cos: Tensor,
    sin: Tensor,
    pairing: RopePairing,
}

/// The rows of one text with its branches.
pub(crate) struct Tree {
    rows: Range<usize>,
    /// 0 where a row sees another, −∞ elsewhere, `[t, t]`.
    mask: Tensor,
    /// How many tokens before a row a key that it sees stands in their text, `[t, t]`.
    distance: Tensor,
}

impl Tree {
    /// The mask with the keys outside the window hidden too.
    fn mask(&self, window: Option<usize>) -> Result<Tensor> {
        let Some(window) = window else { return Ok(self.mask.clone()) };
        let hidden = self.mask.zeros_like()?.affine(1.0, f64::NEG_INFINITY)?;
        Ok(self.distance.ge(window as f64)?.where_cond(&hidden, &self.mask)?)
    }
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error.to_string())
    }
}

impl Device {
    pub(crate) fn open(choice: CandleDevice, precision: Precision) -> Result<Self> {
        let device = match choice {
            CandleDevice::Cpu => candle_core::Device::Cpu,
            CandleDevice::Cuda(number) => candle_core::Device::new_cuda(number)?,
            CandleDevice::Metal(number) => candle_core::Device::new_metal(number)?,
        };
        let dtype = match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::Int8 => {
                return Err(crate::ModelError::Device("8-bit activations are for the CPU backend".into()));
            }
        };
        Ok(Self { device, dtype })
    }

    fn ids(&self, ids: impl IntoIterator<Item = u32>) -> Result<Tensor> {
        let ids: Vec<u32> = ids.into_iter().collect();
        let n = ids.len();
        Ok(Tensor::from_vec(ids, n, &self.device)?)
    }

    fn rows(&self, rows: &[usize]) -> Result<Tensor> {
        self.ids(rows.iter().map(|&row| row as u32))
    }

    /// 0 where `sees(row, key)`, −∞ elsewhere, `[m, s]`.
    fn mask(&self, m: usize, s: usize, sees: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
        self.grid(m, s, |row, key| if sees(row, key) { 0.0 } else { f32::NEG_INFINITY })
    }

    /// `at(row, key)`, `[m, s]`.
    fn grid(&self, m: usize, s: usize, at: impl Fn(usize, usize) -> f32) -> Result<Tensor> {
        let numbers: Vec<f32> = (0..m * s).map(|i| at(i / s, i % s)).collect();
        Ok(Tensor::from_vec(numbers, (m, s), &self.device)?)
    }

    /// `x` as a product sees it: rounded to the type of the matrices, in f32.
    fn rounded(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.to_dtype(self.dtype)?.to_dtype(DType::F32)?)
    }
}

/// `[m, k·g·h]` as `[k, g·m, h]`: the heads that share a key/value head below each other.
fn by_head(x: &Tensor, heads: Heads) -> Result<Tensor> {
    let (m, width) = x.dims2()?;
    let group = width / (heads.k * heads.h);
    let x = x.reshape((m, heads.k, group, heads.h))?.permute((1, 2, 0, 3))?;
    Ok(x.reshape((heads.k, group * m, heads.h))?)
}

/// The reverse of [`by_head`].
fn by_row(x: &Tensor, m: usize) -> Result<Tensor> {
    let (k, all, h) = x.dims3()?;
    let x = x.reshape((k, all / m, m, h))?.permute((2, 0, 1, 3))?;
    Ok(x.reshape((m, k * all / m * h))?)
}

/// Queries `[k, g·m, h]`, keys and values `[k, m, h]` of some rows.
fn split(qkv: &Tensor, heads: Heads, rows: &Range<usize>) -> Result<[Tensor; 3]> {
    let qkv = qkv.narrow(0, rows.start, rows.len())?;
    let (q, kv) = (heads.n * heads.h, heads.k * heads.h);
    let part = |from, width| by_head(&qkv.narrow(1, from, width)?, heads);
    Ok([part(0, q)?, part(q, kv)?, part(q + kv, kv)?])
}

/// `softmax(scale · q·kᵀ + mask)`, `[k, g·m, s]`, and the tanh of scores that are capped.
fn probabilities(q: &Tensor, keys: &Tensor, mask: &Tensor, heads: Heads) -> Result<(Tensor, Option<Tensor>)> {
    let mut scores = (q.matmul(&keys.t()?)? * f64::from(heads.scale))?;
    let mut tanh = None;
    if let Some(cap) = heads.softcap.map(f64::from) {
        let t = (&scores / cap)?.tanh()?;
        scores = (&t * cap)?;
        tanh = Some(t);
    }
    let (k, all, s) = scores.dims3()?;
    let m = mask.dim(0)?;
    let scores = scores.reshape((k * all / m, m, s))?.broadcast_add(mask)?;
    Ok((softmax(&scores)?.reshape((k, all, s))?, tanh))
}

/// Softmax over the last dimension.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let last = x.rank() - 1;
    let e = x.broadcast_sub(&x.max_keepdim(last)?)?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(last)?)?)
}

/// Gate and up of `gate | up`, the sigmoid `s` with which the activation is `gate · s`, and the slope of its argument:
/// `gate` itself for SiLU, `2√(2/π)(gate + 0.044715 gate³)` for GELU.
fn gate_up_sigmoid(activation: Activation, gate_up: &Tensor) -> Result<[Tensor; 4]> {
    let f = gate_up.dim(1)? / 2;
    let (gate, up) = (gate_up.narrow(1, 0, f)?, gate_up.narrow(1, f, f)?);
    let (argument, slope) = match activation {
        Activation::Silu => (gate.clone(), gate.ones_like()?),
        Activation::GeluTanh => {
            let c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            let square = gate.sqr()?;
            let argument = (&gate * square.affine(c * 0.044_715, c)?)?;
            (argument, square.affine(3.0 * c * 0.044_715, c)?)
        }
    };
    let sigmoid = (argument.neg()?.exp()? + 1.0)?.recip()?;
    Ok([gate, up, sigmoid, slope])
}

/// `columns` of `x` as `[t, runs, gain]`.
fn runs_of_columns(x: &Tensor, columns: &Range<usize>, gain: &Tensor) -> Result<Tensor> {
    let d = gain.dim(0)?;
    let part = x.narrow(1, columns.start, columns.len())?.contiguous()?;
    Ok(part.reshape((x.dim(0)?, columns.len() / d, d))?)
}

/// `x` with its `columns` replaced by `part`, `[t, runs, gain]`.
fn with_columns(x: &Tensor, columns: &Range<usize>, part: &Tensor) -> Result<Tensor> {
    let (t, width) = x.dims2()?;
    let part = part.reshape((t, columns.len()))?;
    let before = x.narrow(1, 0, columns.start)?;
    let after = x.narrow(1, columns.end, width - columns.end)?;
    Ok(Tensor::cat(&[before, part, after], 1)?)
}

/// Reciprocal of the root mean square over the last dimension.
fn rstd(x: &Tensor, eps: f32) -> Result<Tensor> {
    Ok((x.sqr()?.mean_keepdim(x.rank() - 1)? + f64::from(eps))?.sqrt()?.recip()?)
}

impl Backend for Device {
    type Tensor = Tensor;
    type Matrix = Tensor;
    type Gain = Tensor;
    type Angles = DeviceAngles;
    type Runs = Vec<Tree>;
    /// `[k, s, h]` each.
    type Cache = Option<(Tensor, Tensor)>;

    fn matrix(&self, matrix: &Matrix) -> Result<Tensor> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let mut expanded = vec![0.0; rows * cols];
        for (row, out) in expanded.chunks_exact_mut(cols).enumerate() {
            matrix.expand_row(row, out);
        }
        Ok(Tensor::from_vec(expanded, (rows, cols), &self.device)?.to_dtype(self.dtype)?)
    }

    fn gain(&self, gain: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(gain, gain.len(), &self.device)?)
    }

    fn angles(&self, angles: Angles, rope: &Rope) -> Result<DeviceAngles> {
        let half = angles.half();
        let upload = |x: &[f32]| Tensor::from_slice(x, (x.len() / half, 1, half), &self.device);
        Ok(DeviceAngles { cos: upload(angles.cos())?, sin: upload(angles.sin())?, pairing: rope.pairing })
    }

    fn runs(&self, runs: Vec<Run>) -> Result<Vec<Tree>> {
        let tree = |runs: &[Run]| {
            let first = runs[0].rows.start;
            let rows = first..runs[runs.len() - 1].rows.end;
            let run = |row| &runs[runs.partition_point(|r| r.rows.end <= row)];
            let sees = |i, j| {
                let (row, key) = (first + i, first + j);
                key <= row && run(row).keys.iter().any(|keys| keys.contains(&key))
            };
            let mask = self.mask(rows.len(), rows.len(), sees)?;
            // A run's keys are its text from the beginning, so the last of them stands at the row itself.
            let position = |i| {
                let run = run(first + i);
                run.keys.iter().map(Range::len).sum::<usize>() - (run.rows.end - (first + i))
            };
            let positions: Vec<usize> = (0..rows.len()).map(position).collect();
            let distance = |i: usize, j: usize| positions[i] as f32 - positions[j] as f32;
            let distance = self.grid(rows.len(), rows.len(), distance)?;
            Ok(Tree { rows, mask, distance })
        };
        runs.chunk_by(|a, b| a.tree == b.tree).map(tree).collect()
    }

    fn upload(&self, data: &[f32], width: usize) -> Result<Tensor> {
        Ok(Tensor::from_slice(data, (data.len() / width, width), &self.device)?)
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.flatten_all()?.to_vec1()?)
    }

    fn copy(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn zeros_like(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.zeros_like()?)
    }

    fn embed(&self, embed: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        Ok(embed.index_select(&self.ids(tokens.iter().copied())?, 0)?.to_dtype(DType::F32)?)
    }

    fn select(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        Ok(x.index_select(&self.rows(rows)?, 0)?)
    }

    fn select_vjp(&self, dy: &Tensor, rows: &[usize], t: usize) -> Result<Tensor> {
        let dx = Tensor::zeros((t, dy.dim(1)?), DType::F32, &self.device)?;
        Ok(dx.index_add(&self.rows(rows)?, dy, 0)?)
    }

    fn linear(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        Ok(self.rounded(x)?.matmul(&w.to_dtype(DType::F32)?.t()?)?)
    }

    fn linear_vjp(&self, dy: &Tensor, w: &Tensor) -> Result<Tensor> {
        Ok(self.rounded(dy)?.matmul(&w.to_dtype(DType::F32)?)?)
    }

    fn linear_weight_vjp(&self, dy: &Tensor, x: &Tensor) -> Result<Vec<f32>> {
        self.download(&dy.t()?.matmul(x)?)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        let rstd = rstd(x, eps)?;
        Ok((x.broadcast_mul(&rstd)?.broadcast_mul(gain)?, rstd))
    }

    /// `dx += rstd·gain·dy − x·rstd³·Σ(gain·dy·x)/d`.
    fn rms_norm_vjp(
        &self,
        x: &Tensor,
        gain: &Tensor,
        rstd: &Tensor,
        dy: &Tensor,
        dx: &mut Tensor,
    ) -> Result<()> {
        let g = dy.broadcast_mul(gain)?;
        let along = ((&g * x)?.mean_keepdim(1)? * rstd.powf(3.0)?)?;
        *dx = ((&*dx + g.broadcast_mul(rstd)?)? - x.broadcast_mul(&along)?)?;
        Ok(())
    }

    fn rms_norm_columns(&self, x: &mut Tensor, columns: Range<usize>, gain: &Tensor, eps: f32) -> Result<()> {
        let part = runs_of_columns(x, &columns, gain)?;
        let normed = part.broadcast_mul(&rstd(&part, eps)?)?.broadcast_mul(gain)?;
        *x = with_columns(x, &columns, &normed)?;
        Ok(())
    }

    /// As [`Self::rms_norm_vjp`], run by run.
    fn rms_norm_columns_vjp(
        &self,
        x: &Tensor,
        columns: Range<usize>,
        gain: &Tensor,
        eps: f32,
        dx: &mut Tensor,
    ) -> Result<()> {
        let (x, dy) = (runs_of_columns(x, &columns, gain)?, runs_of_columns(dx, &columns, gain)?);
        let rstd = rstd(&x, eps)?;
        let g = dy.broadcast_mul(gain)?;
        let along = ((&g * &x)?.mean_keepdim(2)? * rstd.powf(3.0)?)?;
        let dpart = (g.broadcast_mul(&rstd)? - x.broadcast_mul(&along)?)?;
        *dx = with_columns(dx, &columns, &dpart)?;
        Ok(())
    }

    fn rope(&self, qkv: &mut Tensor, heads: Heads, angles: &DeviceAngles, turn: Turn) -> Result<()> {
        let (t, width) = qkv.dims2()?;
        let (turned, half) = ((heads.n + heads.k) * heads.h, angles.cos.dim(2)?);
        // The two numbers of a pair lie along this dimension.
        let (shape, pair) = match angles.pairing {
            RopePairing::Halves => ([t, heads.n + heads.k, 2, half], 2),
            RopePairing::Adjacent => ([t, heads.n + heads.k, half, 2], 3),
        };
        let all = qkv.narrow(1, 0, turned)?.reshape((t, heads.n + heads.k, heads.h))?;
        let rest = all.narrow(2, 2 * half, heads.h - 2 * half)?;
        let x = all.narrow(2, 0, 2 * half)?.contiguous()?.reshape(&shape)?;
        let part = |i| x.narrow(pair, i, 1)?.squeeze(pair);
        let (a, b) = (part(0)?, part(1)?);
        let sin = match turn {
            Turn::Forward => angles.sin.clone(),
            Turn::Back => angles.sin.neg()?,
        };
        let by = |x: &Tensor, factor: &Tensor| x.broadcast_mul(factor);
        let first = (by(&a, &angles.cos)? - by(&b, &sin)?)?;
        let second = (by(&a, &sin)? + by(&b, &angles.cos)?)?;
        let x = Tensor::stack(&[first, second], pair)?.reshape((t, heads.n + heads.k, 2 * half))?;
        let x = Tensor::cat(&[x, rest], 2)?.reshape((t, turned))?;
        *qkv = Tensor::cat(&[x, qkv.narrow(1, turned, width - turned)?], 1)?;
        Ok(())
    }

    fn attention(&self, qkv: &Tensor, heads: Heads, trees: &Vec<Tree>) -> Result<Tensor> {
        let attend = |tree: &Tree| {
            let [q, keys, values] = split(qkv, heads, &tree.rows)?;
            let (probs, _) = probabilities(&q, &keys, &tree.mask(heads.window)?, heads)?;
            by_row(&probs.matmul(&values)?, tree.rows.len())
        };
        Ok(Tensor::cat(&trees.iter().map(attend).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// With `p` the probabilities and `o = p·v`: `dv = pᵀ·do`, `dp = do·vᵀ`, `ds = scale·p·(dp − Σ p·dp)`,
    /// `dq = ds·k`, `dk = dsᵀ·q`; where scores are capped, `ds` is multiplied by `1 − tanh²`.
    fn attention_vjp(&self, qkv: &Tensor, heads: Heads, trees: &Vec<Tree>, dout: &Tensor) -> Result<Tensor> {
        let tree_vjp = |tree: &Tree| {
            let m = tree.rows.len();
            let [q, keys, values] = split(qkv, heads, &tree.rows)?;
            let dout = by_head(&dout.narrow(0, tree.rows.start, m)?, heads)?;
            let (probs, tanh) = probabilities(&q, &keys, &tree.mask(heads.window)?, heads)?;
            let dvalues = probs.t()?.matmul(&dout)?;
            let dprobs = dout.matmul(&values.t()?)?;
            let mean = (&probs * &dprobs)?.sum_keepdim(2)?;
            let mut dscores = ((&probs * dprobs.broadcast_sub(&mean)?)? * f64::from(heads.scale))?;
            if let Some(tanh) = tanh {
                dscores = (dscores * tanh.sqr()?.affine(-1.0, 1.0)?)?;
            }
            let (dq, dkeys) = (dscores.matmul(&keys)?, dscores.t()?.matmul(&q)?);
            let parts = [by_row(&dq, m)?, by_row(&dkeys, m)?, by_row(&dvalues, m)?];
            Ok(Tensor::cat(&parts, 1)?)
        };
        Ok(Tensor::cat(&trees.iter().map(tree_vjp).collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn new_cache(&self) -> Option<(Tensor, Tensor)> {
        None
    }

    fn cache_prefix(&self, cache: &Self::Cache, len: usize) -> Result<Self::Cache> {
        let Some((keys, values)) = cache.as_ref().filter(|_| len > 0) else { return Ok(None) };
        Ok(Some((keys.narrow(1, 0, len)?, values.narrow(1, 0, len)?)))
    }

    fn attention_cached(
        &self,
        qkv: &Tensor,
        heads: Heads,
        texts: &mut [(Range<usize>, &mut Option<(Tensor, Tensor)>)],
    ) -> Result<Tensor> {
        let mut outs = Vec::with_capacity(texts.len());
        for (rows, cache) in texts {
            let [q, new_keys, new_values] = split(qkv, heads, rows)?;
            let (keys, values) = match cache.take() {
                None => (new_keys, new_values),
                Some((keys, values)) => {
                    (Tensor::cat(&[keys, new_keys], 1)?, Tensor::cat(&[values, new_values], 1)?)
                }
            };
            let (m, s) = (rows.len(), keys.dim(1)?);
            let window = heads.window.unwrap_or(s);
            let mask = self.mask(m, s, |row, key| key <= s - m + row && s - m + row < key + window)?;
            let (probs, _) = probabilities(&q, &keys, &mask, heads)?;
            outs.push(by_row(&probs.matmul(&values)?, m)?);
            **cache = Some((keys, values));
        }
        Ok(Tensor::cat(&outs, 0)?)
    }

    fn gated(&self, activation: Activation, gate_up: &Tensor) -> Result<Tensor> {
        let [gate, up, sigmoid, _] = gate_up_sigmoid(activation, gate_up)?;
        Ok(((gate * sigmoid)? * up)?)
    }

    /// With `s` the sigmoid of `z(gate)` and `act = gate·s`: `dgate = dy·up·(s + act·(1 − s)·z')`, `dup = dy·act`.
    fn gated_vjp(&self, activation: Activation, gate_up: Tensor, dy: &Tensor) -> Result<Tensor> {
        let [gate, up, sigmoid, slope] = gate_up_sigmoid(activation, &gate_up)?;
        let act = (gate * &sigmoid)?;
        let dact = (&sigmoid + ((&act * sigmoid.affine(-1.0, 1.0)?)? * slope)?)?;
        Ok(Tensor::cat(&[((dy * up)? * dact)?, (dy * act)?], 1)?)
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        *x = (&*x + y)?;
        Ok(())
    }

    fn add_to_rows(&self, x: &mut Tensor, rows: Range<usize>, v: &[f32]) -> Result<()> {
        let v = self.gain(v)?;
        let end = x.dim(0)?;
        let part = |rows: Range<usize>| x.narrow(0, rows.start, rows.len());
        let parts = [part(0..rows.start)?, part(rows.clone())?.broadcast_add(&v)?, part(rows.end..end)?];
        *x = Tensor::cat(&parts, 0)?;
        Ok(())
    }

    fn add_bias(&self, x: &mut Tensor, bias: &Tensor) -> Result<()> {
        *x = x.broadcast_add(bias)?;
        Ok(())
    }

    fn scale(&self, x: &mut Tensor, factor: f32) -> Result<()> {
        *x = (&*x * f64::from(factor))?;
        Ok(())
    }

    fn scale_rows(&self, x: &mut Tensor, factors: &[f32]) -> Result<()> {
        *x = x.broadcast_mul(&self.upload(factors, 1)?)?;
        Ok(())
    }

    fn softcap(&self, x: &mut Tensor, cap: f32) -> Result<()> {
        let cap = f64::from(cap);
        *x = ((&*x / cap)?.tanh()? * cap)?;
        Ok(())
    }

    /// On the host: a few rows per step, and one text of the formula for every backend.
    fn shift_rows(&self, x: &mut Tensor, rows: Range<usize>, unit_d: &[f32], shift: Shift) -> Result<()> {
        let part = |rows: Range<usize>| x.narrow(0, rows.start, rows.len());
        let mut moved = self.download(&part(rows.clone())?)?;
        moved.chunks_exact_mut(unit_d.len()).for_each(|row_d| shift.apply(row_d, unit_d));
        let moved = self.upload(&moved, unit_d.len())?;
        *x = Tensor::cat(&[part(0..rows.start)?, moved, part(rows.end..x.dim(0)?)?], 0)?;
        Ok(())
    }

    fn log_probs(&self, logits: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let targets = self.ids(targets.iter().copied())?.unsqueeze(1)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
        let log_sum = shifted.exp()?.sum_keepdim(1)?.log()?;
        self.download(&(shifted.gather(&targets, 1)? - log_sum)?)
    }

    /// `coef · (onehot(target) − softmax(logits))`, times `1 − (logit / cap)²` where they are capped.
    fn log_probs_vjp(
        &self,
        logits: Tensor,
        targets: &[u32],
        coef: &[f32],
        softcap: Option<f32>,
    ) -> Result<Tensor> {
        let targets = self.ids(targets.iter().copied())?.unsqueeze(1)?;
        let coef = self.upload(coef, 1)?;
        let dlogits = softmax(&logits)?.broadcast_mul(&coef.neg()?)?.scatter_add(&targets, &coef, 1)?;
        match softcap.map(f64::from) {
            None => Ok(dlogits),
            Some(cap) => Ok((dlogits * (logits / cap)?.sqr()?.affine(-1.0, 1.0)?)?),
        }
    }
}
