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
use steerkit_kernels::rope::{Angles, Turn};
use steerkit_kernels::{Matrix, Precision};

/// A device of the tensor library, in one numeric mode.
pub(crate) struct Device {
    device: candle_core::Device,
    /// Of stored matrices.
    dtype: DType,
}

/// Cosines and sines, `[t, 1, h/2]`.
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
        let at = |i| if sees(i / s, i % s) { 0.0 } else { f32::NEG_INFINITY };
        Ok(Tensor::from_vec((0..m * s).map(at).collect::<Vec<f32>>(), (m, s), &self.device)?)
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

/// `softmax(scale · q·kᵀ + mask)`, `[k, g·m, s]`.
fn probabilities(q: &Tensor, keys: &Tensor, mask: &Tensor, scale: f32) -> Result<Tensor> {
    let scores = (q.matmul(&keys.t()?)? * f64::from(scale))?;
    let (k, all, s) = scores.dims3()?;
    let m = mask.dim(0)?;
    let scores = scores.reshape((k * all / m, m, s))?.broadcast_add(mask)?;
    Ok(softmax(&scores)?.reshape((k, all, s))?)
}

/// Softmax over the last dimension.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let last = x.rank() - 1;
    let e = x.broadcast_sub(&x.max_keepdim(last)?)?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(last)?)?)
}

/// Gate, up and `sigmoid(gate)` of `gate | up`.
fn gate_up_sigmoid(gate_up: &Tensor) -> Result<[Tensor; 3]> {
    let f = gate_up.dim(1)? / 2;
    let (gate, up) = (gate_up.narrow(1, 0, f)?, gate_up.narrow(1, f, f)?);
    let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
    Ok([gate, up, sigmoid])
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
            Ok(Tree { rows, mask })
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

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        let rstd = (x.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?.recip()?;
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

    fn rope(&self, qkv: &mut Tensor, heads: Heads, angles: &DeviceAngles, turn: Turn) -> Result<()> {
        let (t, width) = qkv.dims2()?;
        let (turned, half) = ((heads.n + heads.k) * heads.h, heads.h / 2);
        // The two numbers of a pair lie along this dimension.
        let (shape, pair) = match angles.pairing {
            RopePairing::Halves => ([t, heads.n + heads.k, 2, half], 2),
            RopePairing::Adjacent => ([t, heads.n + heads.k, half, 2], 3),
        };
        let x = qkv.narrow(1, 0, turned)?.reshape(&shape)?;
        let part = |i| x.narrow(pair, i, 1)?.squeeze(pair);
        let (a, b) = (part(0)?, part(1)?);
        let sin = match turn {
            Turn::Forward => angles.sin.clone(),
            Turn::Back => angles.sin.neg()?,
        };
        let by = |x: &Tensor, factor: &Tensor| x.broadcast_mul(factor);
        let first = (by(&a, &angles.cos)? - by(&b, &sin)?)?;
        let second = (by(&a, &sin)? + by(&b, &angles.cos)?)?;
        let x = Tensor::stack(&[first, second], pair)?.reshape((t, turned))?;
        *qkv = Tensor::cat(&[x, qkv.narrow(1, turned, width - turned)?], 1)?;
        Ok(())
    }

    fn attention(&self, qkv: &Tensor, heads: Heads, trees: &Vec<Tree>) -> Result<Tensor> {
        let attend = |tree: &Tree| {
            let [q, keys, values] = split(qkv, heads, &tree.rows)?;
            let probs = probabilities(&q, &keys, &tree.mask, heads.scale)?;
            by_row(&probs.matmul(&values)?, tree.rows.len())
        };
        Ok(Tensor::cat(&trees.iter().map(attend).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// With `p` the probabilities and `o = p·v`: `dv = pᵀ·do`, `dp = do·vᵀ`, `ds = scale·p·(dp − Σ p·dp)`,
    /// `dq = ds·k`, `dk = dsᵀ·q`.
    fn attention_vjp(&self, qkv: &Tensor, heads: Heads, trees: &Vec<Tree>, dout: &Tensor) -> Result<Tensor> {
        let tree_vjp = |tree: &Tree| {
            let m = tree.rows.len();
            let [q, keys, values] = split(qkv, heads, &tree.rows)?;
            let dout = by_head(&dout.narrow(0, tree.rows.start, m)?, heads)?;
            let probs = probabilities(&q, &keys, &tree.mask, heads.scale)?;
            let dvalues = probs.t()?.matmul(&dout)?;
            let dprobs = dout.matmul(&values.t()?)?;
            let mean = (&probs * &dprobs)?.sum_keepdim(2)?;
            let dscores = ((&probs * dprobs.broadcast_sub(&mean)?)? * f64::from(heads.scale))?;
            let (dq, dkeys) = (dscores.matmul(&keys)?, dscores.t()?.matmul(&q)?);
            let parts = [by_row(&dq, m)?, by_row(&dkeys, m)?, by_row(&dvalues, m)?];
            Ok(Tensor::cat(&parts, 1)?)
        };
        Ok(Tensor::cat(&trees.iter().map(tree_vjp).collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn new_cache(&self) -> Option<(Tensor, Tensor)> {
        None
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
            let mask = self.mask(m, s, |row, key| key <= s - m + row)?;
            let probs = probabilities(&q, &keys, &mask, heads.scale)?;
            outs.push(by_row(&probs.matmul(&values)?, m)?);
            **cache = Some((keys, values));
        }
        Ok(Tensor::cat(&outs, 0)?)
    }

    fn swiglu(&self, gate_up: &Tensor) -> Result<Tensor> {
        let [gate, up, sigmoid] = gate_up_sigmoid(gate_up)?;
        Ok(((gate * sigmoid)? * up)?)
    }

    /// With `s` the sigmoid and `silu = gate·s`: `dgate = dy·up·(s + silu·(1 − s))`, `dup = dy·silu`.
    fn swiglu_vjp(&self, gate_up: Tensor, dy: &Tensor) -> Result<Tensor> {
        let [gate, up, sigmoid] = gate_up_sigmoid(&gate_up)?;
        let silu = (gate * &sigmoid)?;
        let slope = (&sigmoid + (&silu * sigmoid.affine(-1.0, 1.0)?)?)?;
        Ok(Tensor::cat(&[((dy * up)? * slope)?, (dy * silu)?], 1)?)
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

    /// `coef · (onehot(target) − softmax(logits))`.
    fn log_probs_vjp(&self, logits: Tensor, targets: &[u32], coef: &[f32]) -> Result<Tensor> {
        let targets = self.ids(targets.iter().copied())?.unsqueeze(1)?;
        let coef = self.upload(coef, 1)?;
        Ok(softmax(&logits)?.broadcast_mul(&coef.neg()?)?.scatter_add(&targets, &coef, 1)?)
    }
}
