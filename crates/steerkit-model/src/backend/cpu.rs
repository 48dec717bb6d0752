//! The decoder's operations on our own CPU kernels, with reused buffers.

use super::Backend;
use super::pool::Pool;
use crate::Result;
use crate::config::{Rope, RopePairing};
use crate::edit::Shift;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use steerkit_kernels::attention::{self, Heads, Run};
use steerkit_kernels::gemm::{self, Interleaved};
use steerkit_kernels::kv::{CachedText, KeyValues, attention_cached};
use steerkit_kernels::mlp::Activation;
use steerkit_kernels::rope::{Angles, Pairing, Turn};
use steerkit_kernels::{Matrix, Precision, logprob, mlp, norm, parallel, rope, rows};

/// The CPU, in one numeric mode.
pub(crate) struct Cpu {
    precision: Precision,
    pool: Arc<Pool>,
    /// A text was begun: from then on matrices may be laid out for few rows.
    writing: AtomicBool,
}

impl Cpu {
    pub(crate) fn new(precision: Precision) -> Self {
        Self { precision, pool: Arc::default(), writing: AtomicBool::new(false) }
    }

    /// Most bytes that tensors took at a time, and those of all buffers.
    #[cfg(test)]
    pub(crate) fn measured_bytes(&self) -> [usize; 2] {
        let measured = self.pool.measured();
        [measured.peak, measured.held].map(|n| n * size_of::<f32>())
    }

    /// A tensor whose numbers are whatever an earlier one left.
    fn tensor(&self, rows: usize, width: usize) -> Tensor {
        Tensor { data: self.pool.take(rows, width), width, pool: self.pool.clone() }
    }
}

/// Rows of numbers in a buffer that goes back to the pool.
pub(crate) struct Tensor {
    data: Vec<f32>,
    width: usize,
    pool: Arc<Pool>,
}

impl Tensor {
    fn rows(&self) -> usize {
        self.data.len() / self.width
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.data), self.width);
    }
}

/// Rows up to which a product is one with few rows: what a batch of texts that are being written needs.
const FEW_ROWS: usize = 48;

/// A frozen matrix as it is stored and, from its first product with few rows on, in the layout for those.
pub(crate) struct Weight {
    stored: Matrix,
    interleaved: OnceLock<Option<Interleaved>>,
}

impl Weight {
    /// The layout for few rows if it serves a product with `rows` rows. In int8 it serves them all, because their bits
    /// are its own. In bf16 it expands faster than the stored blocks, but training alone, which has a product with few rows
    /// now and then, must not pay its memory.
    fn interleaved(&self, rows: usize, backend: &Cpu) -> Option<&Interleaved> {
        let precision = backend.precision;
        let few = rows <= FEW_ROWS && backend.writing.load(Ordering::Relaxed);
        if few || precision == Precision::Int8 {
            return self.interleaved.get_or_init(|| Interleaved::new(&self.stored)).as_ref();
        }
        self.interleaved.get().and_then(Option::as_ref).filter(|_| precision == Precision::Bf16)
    }
}

pub(crate) struct CpuAngles {
    angles: Angles,
    pairing: Pairing,
}

impl Backend for Cpu {
    type Tensor = Tensor;
    type Matrix = Weight;
    type Gain = Vec<f32>;
    type Angles = CpuAngles;
    type Runs = Vec<Run>;
    type Cache = KeyValues;

    fn matrix(&self, matrix: &Matrix) -> Result<Weight> {
        Ok(Weight { stored: matrix.clone(), interleaved: OnceLock::new() })
    }

    fn gain(&self, gain: &[f32]) -> Result<Vec<f32>> {
        Ok(gain.to_vec())
    }

    fn angles(&self, angles: Angles, rope: &Rope) -> Result<CpuAngles> {
        let pairing = match rope.pairing {
            RopePairing::Halves => Pairing::Halves,
            RopePairing::Adjacent => Pairing::Adjacent,
        };
        Ok(CpuAngles { angles, pairing })
    }

    fn runs(&self, runs: Vec<Run>) -> Result<Vec<Run>> {
        Ok(runs)
    }

    fn upload(&self, data: &[f32], width: usize) -> Result<Tensor> {
        let mut x = self.tensor(data.len() / width, width);
        x.data.copy_from_slice(data);
        Ok(x)
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.clone())
    }

    fn download_to(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&x.data);
        Ok(())
    }

    fn copy(&self, x: &Tensor) -> Result<Tensor> {
        self.upload(&x.data, x.width)
    }

    fn zeros_like(&self, x: &Tensor) -> Result<Tensor> {
        let mut zeros = self.tensor(x.rows(), x.width);
        zeros.data.fill(0.0);
        Ok(zeros)
    }

    fn embed(&self, embed: &Weight, tokens: &[u32]) -> Result<Tensor> {
        let embed = &embed.stored;
        let mut x = self.tensor(tokens.len(), embed.cols());
        for (row, &token) in x.data.chunks_exact_mut(embed.cols()).zip(tokens) {
            embed.expand_row(token as usize, row);
        }
        Ok(x)
    }

    fn select(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let mut y = self.tensor(rows.len(), x.width);
        for (to, &row) in y.data.chunks_exact_mut(x.width).zip(rows) {
            to.copy_from_slice(&x.data[row * x.width..(row + 1) * x.width]);
        }
        Ok(y)
    }

    fn select_vjp(&self, dy: &Tensor, rows: &[usize], t: usize) -> Result<Tensor> {
        let mut dx = self.tensor(t, dy.width);
        dx.data.fill(0.0);
        for (from, &row) in dy.data.chunks_exact(dy.width).zip(rows) {
            rows::add_to_rows(&mut dx.data[row * dy.width..(row + 1) * dy.width], from);
        }
        Ok(dx)
    }

    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        let (t, mut y) = (x.rows(), self.tensor(x.rows(), w.stored.rows()));
        match w.interleaved(t, self) {
            Some(w) => gemm::linear_interleaved(w, &x.data, t, &mut y.data, self.precision),
            None => gemm::linear(&w.stored, &x.data, t, &mut y.data, self.precision),
        }
        Ok(y)
    }

    fn linear_vjp(&self, dy: &Tensor, w: &Weight) -> Result<Tensor> {
        let w = &w.stored;
        let mut dx = self.tensor(dy.rows(), w.cols());
        gemm::linear_vjp(w, &dy.data, dy.rows(), &mut dx.data, self.precision);
        Ok(dx)
    }

    fn linear_weight_vjp(&self, dy: &Tensor, x: &Tensor) -> Result<Vec<f32>> {
        let mut dw = vec![0.0; dy.width * x.width];
        gemm::linear_weight_vjp(&dy.data, &x.data, x.rows(), &mut dw);
        Ok(dw)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Vec<f32>, eps: f32) -> Result<(Tensor, Tensor)> {
        let (mut y, mut rstd) = (self.tensor(x.rows(), x.width), self.tensor(x.rows(), 1));
        norm::rms_norm(&x.data, gain, eps, &mut y.data, &mut rstd.data);
        Ok((y, rstd))
    }

    fn rms_norm_vjp(
        &self,
        x: &Tensor,
        gain: &Vec<f32>,
        rstd: &Tensor,
        dy: &Tensor,
        dx: &mut Tensor,
    ) -> Result<()> {
        norm::rms_norm_vjp(&x.data, gain, &rstd.data, &dy.data, &mut dx.data);
        Ok(())
    }

    fn rms_norm_columns(
        &self,
        x: &mut Tensor,
        columns: Range<usize>,
        gain: &Vec<f32>,
        eps: f32,
    ) -> Result<()> {
        norm::rms_norm_columns(&mut x.data, x.width, columns, gain, eps);
        Ok(())
    }

    fn rms_norm_columns_vjp(
        &self,
        x: &Tensor,
        columns: Range<usize>,
        gain: &Vec<f32>,
        eps: f32,
        dx: &mut Tensor,
    ) -> Result<()> {
        norm::rms_norm_columns_vjp(&x.data, x.width, columns, gain, eps, &mut dx.data);
        Ok(())
    }

    fn rope(&self, qkv: &mut Tensor, heads: Heads, angles: &CpuAngles, turn: Turn) -> Result<()> {
        let turned = (heads.n + heads.k, heads.h);
        rope::rope(&mut qkv.data, qkv.width, turned, &angles.angles, angles.pairing, turn);
        Ok(())
    }

    fn attention(&self, qkv: &Tensor, heads: Heads, runs: &Vec<Run>) -> Result<Tensor> {
        let mut out = self.tensor(qkv.rows(), heads.n * heads.h);
        attention::attention(heads, &qkv.data, runs, &mut out.data);
        Ok(out)
    }

    fn attention_vjp(&self, qkv: &Tensor, heads: Heads, runs: &Vec<Run>, dout: &Tensor) -> Result<Tensor> {
        let mut dqkv = self.tensor(qkv.rows(), qkv.width);
        attention::attention_vjp(heads, &qkv.data, runs, &dout.data, &mut dqkv.data);
        Ok(dqkv)
    }

    fn new_cache(&self) -> KeyValues {
        self.writing.store(true, Ordering::Relaxed);
        KeyValues::default()
    }

    fn cache_prefix(&self, cache: &KeyValues, len: usize) -> Result<KeyValues> {
        Ok(cache.prefix(len))
    }

    fn attention_cached(
        &self,
        qkv: &Tensor,
        heads: Heads,
        texts: &mut [(Range<usize>, &mut KeyValues)],
    ) -> Result<Tensor> {
        parallel::for_each_mut(texts, |(rows, cache)| {
            cache.push(heads, &qkv.data[rows.start * qkv.width..rows.end * qkv.width]);
        });
        let texts: Vec<_> =
            texts.iter().map(|(rows, cache)| CachedText { cache, rows: (rows.start, rows.end) }).collect();
        let mut out = self.tensor(qkv.rows(), heads.n * heads.h);
        attention_cached(heads, &qkv.data, &texts, &mut out.data);
        Ok(out)
    }

    fn gated(&self, activation: Activation, gate_up: &Tensor) -> Result<Tensor> {
        let f = gate_up.width / 2;
        let mut y = self.tensor(gate_up.rows(), f);
        mlp::gated(activation, &gate_up.data, f, &mut y.data);
        Ok(y)
    }

    fn gated_vjp(&self, activation: Activation, mut gate_up: Tensor, dy: &Tensor) -> Result<Tensor> {
        mlp::gated_vjp(activation, &mut gate_up.data, dy.width, &dy.data);
        Ok(gate_up)
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        rows::add(&mut x.data, &y.data);
        Ok(())
    }

    fn add_to_rows(&self, x: &mut Tensor, rows: Range<usize>, v: &[f32]) -> Result<()> {
        rows::add_to_rows(&mut x.data[rows.start * x.width..rows.end * x.width], v);
        Ok(())
    }

    fn add_bias(&self, x: &mut Tensor, bias: &Vec<f32>) -> Result<()> {
        rows::add_to_rows(&mut x.data, bias);
        Ok(())
    }

    fn scale(&self, x: &mut Tensor, factor: f32) -> Result<()> {
        rows::scale(&mut x.data, factor);
        Ok(())
    }

    fn scale_rows(&self, x: &mut Tensor, factors: &[f32]) -> Result<()> {
        for (row, &factor) in x.data.chunks_exact_mut(x.width).zip(factors) {
            rows::scale(row, factor);
        }
        Ok(())
    }

    fn softcap(&self, x: &mut Tensor, cap: f32) -> Result<()> {
        rows::softcap(&mut x.data, cap);
        Ok(())
    }

    fn shift_rows(&self, x: &mut Tensor, rows: Range<usize>, unit_d: &[f32], shift: Shift) -> Result<()> {
        for row_d in x.data[rows.start * x.width..rows.end * x.width].chunks_exact_mut(unit_d.len()) {
            shift.apply(row_d, unit_d);
        }
        Ok(())
    }

    fn log_probs(&self, logits: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; targets.len()];
        logprob::log_probs(&logits.data, logits.width, targets, &mut out);
        Ok(out)
    }

    fn log_probs_vjp(
        &self,
        mut logits: Tensor,
        targets: &[u32],
        coef: &[f32],
        softcap: Option<f32>,
    ) -> Result<Tensor> {
        logprob::log_probs_vjp(&mut logits.data, logits.width, targets, coef, softcap);
        Ok(logits)
    }
}
