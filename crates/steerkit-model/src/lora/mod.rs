//! LoRA adapters (Hu et al. 2021) on the weights of a base model: `W·x + scale · B·(A·x)`.
//!
//! Two kinds of files are read: folders of PEFT (`adapter_config.json` and `adapter_model.safetensors`, LoRA and
//! rsLoRA) and GGUF adapters of llama.cpp. Either kind goes onto either kind of base model. [`TrainableLora`] is an
//! adapter whose numbers still change.

mod gguf;
mod peft;
mod trainable;

pub use trainable::{AdditionGradients, Additions, LoraSettings, PeftTensor, TrainableLora};

use crate::arch::{Family, TensorNames};
use crate::config::{DecoderConfig, RopePairing};
use crate::source::hex;
use crate::weights::{Linear, LowRank, Weights};
use crate::{Loaded, ModelError, Result};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::str::FromStr;
use steerkit_kernels::Matrix;

/// An adapter to use, and how much of it.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraChoice {
    /// A PEFT folder or a GGUF adapter.
    pub path: PathBuf,
    /// Factor of its addition; 1 is the adapter as it was trained.
    pub weight: f32,
}

impl FromStr for LoraChoice {
    type Err = String;

    /// `PATH` or `PATH=WEIGHT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, weight) = match text.rsplit_once('=') {
            None => (text, 1.0),
            Some((path, weight)) => {
                let number = weight.parse::<f32>().ok().filter(|w| w.is_finite());
                (path, number.ok_or(format!("found \"{weight}\" behind =, expected a finite number"))?)
            }
        };
        Ok(Self { path: path.into(), weight })
    }
}

/// How adapters become part of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraMode {
    /// Beside the base's weights, which stay as they are stored.
    #[default]
    Beside,
    /// Added to the base's weights, which then take four bytes a number.
    Merged,
}

/// The factors of one projection.
struct Factors {
    /// Name of the projection's tensor, without `.weight`, as files of this kind call it.
    target: String,
    /// `A`, `[r, in]`.
    down: Vec<f32>,
    /// `B`, `[out, r]`, with the adapter's scale.
    up: Vec<f32>,
    r: usize,
    /// Inputs and outputs.
    cols: usize,
    rows: usize,
}

/// What an adapter's files hold.
struct Adapter {
    path: PathBuf,
    /// Whether its tensors have the names of GGUF files.
    gguf_names: bool,
    /// The order of the rows of q and k.
    pairing: RopePairing,
    factors: Vec<Factors>,
    sha256: String,
}

impl Adapter {
    fn read(choice: &LoraChoice, family: &Family) -> Result<Self> {
        let mut adapter = match choice.path.is_dir() {
            true => peft::read(&choice.path)?,
            false => gguf::read(&choice.path, family)?,
        };
        for factors in &mut adapter.factors {
            let all = factors.down.iter().chain(&factors.up);
            if !all.clone().all(|x| x.is_finite()) {
                let found = all.filter(|x| !x.is_finite()).count();
                let place = format!("{}: adapter of \"{}\"", choice.path.display(), factors.target);
                return Err(ModelError::NonFinite {
                    place,
                    found,
                    total: factors.down.len() + factors.up.len(),
                });
            }
            factors.up.iter_mut().for_each(|x| *x *= choice.weight);
        }
        Ok(adapter)
    }

    fn error(&self, target: &str, found: impl Into<String>, expected: impl Into<String>) -> ModelError {
        ModelError::malformed(&self.path, format!("adapter of \"{target}\""), found, expected)
            .advise("the adapter belongs to another base model")
    }
}

/// Puts adapters onto a loaded model. Its identity then names them too.
///
/// # Errors
/// A file that breaks its format, an adapter of another kind than LoRA, one that changes parts which this program
/// does not adapt (embedding, head, norms), and one whose shapes are not those of the base model.
pub fn apply(loaded: &mut Loaded, choices: &[LoraChoice], mode: LoraMode) -> Result<()> {
    if choices.is_empty() {
        return Ok(());
    }
    let family = Family::of(&loaded.config.architecture);
    let mut identity = Sha256::new();
    identity.update(&loaded.identity.file_sha256);
    let mut sites = Sites::new(&loaded.config, loaded.weights.layers.len());
    for choice in choices {
        let adapter = Adapter::read(choice, family)?;
        sites.add(&adapter, family, &loaded.config)?;
        identity.update(format!("\n{}={}", adapter.sha256, choice.weight));
        let name = choice.path.file_stem().unwrap_or_default().to_string_lossy();
        loaded.identity.name.push_str(&format!(" + {name}"));
    }
    loaded.identity.file_sha256 = hex(&identity.finalize());
    sites.put(&mut loaded.weights, mode);
    Ok(())
}

/// A projection of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Qkv,
    AttnOut,
    GateUp,
    Down,
}

const ROLES: [Role; 4] = [Role::Qkv, Role::AttnOut, Role::GateUp, Role::Down];

impl Role {
    fn names(self, names: &TensorNames) -> Vec<&'static str> {
        match self {
            Self::Qkv => names.qkv.to_vec(),
            Self::AttnOut => vec![names.attn_out],
            Self::GateUp => names.gate_up.to_vec(),
            Self::Down => vec![names.down],
        }
    }

    /// Outputs of the parts, and inputs.
    fn shape(self, c: &DecoderConfig) -> (Vec<usize>, usize) {
        let (q, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        match self {
            Self::Qkv => (vec![q, kv, kv], c.d_model),
            Self::AttnOut => (vec![c.d_model], q),
            Self::GateUp => (vec![c.d_ff, c.d_ff], c.d_model),
            Self::Down => (vec![c.d_model], c.d_ff),
        }
    }

    fn of(self, layer: &mut crate::weights::LayerWeights) -> &mut Linear {
        match self {
            Self::Qkv => &mut layer.qkv,
            Self::AttnOut => &mut layer.attn_out,
            Self::GateUp => &mut layer.gate_up,
            Self::Down => &mut layer.down,
        }
    }
}

/// The additions to one projection, in order: first output row, and factors.
#[derive(Default)]
struct Site(Vec<(usize, Factors)>);

/// The additions to all projections, four a block.
struct Sites {
    sites: Vec<Site>,
    shapes: [(Vec<usize>, usize); 4],
}

impl Sites {
    fn new(config: &DecoderConfig, n_layers: usize) -> Self {
        Self {
            sites: (0..4 * n_layers).map(|_| Site::default()).collect(),
            shapes: ROLES.map(|role| role.shape(config)),
        }
    }

    fn add(&mut self, adapter: &Adapter, family: &Family, c: &DecoderConfig) -> Result<()> {
        let names = if adapter.gguf_names { &family.gguf_names } else { &family.hf_names };
        for factors in &adapter.factors {
            let target = factors.target.as_str();
            let known = || ROLES.iter().flat_map(|r| r.names(names)).collect::<Vec<_>>().join(", ");
            let Some((layer, i, part)) = find(target, names) else {
                return Err(adapter.error(target, "a part that is not adapted here", known()));
            };
            if layer >= c.n_layers {
                return Err(adapter.error(
                    target,
                    format!("block {layer}"),
                    format!("0 to {}", c.n_layers - 1),
                ));
            }
            let (rows, cols) = &self.shapes[i];
            let (first, n) = match ROLES[i].names(names).len() {
                1 => (0, rows.iter().sum()),
                _ => (rows[..part].iter().sum(), rows[part]),
            };
            if (factors.rows, factors.cols) != (n, *cols) {
                let found = format!("{} outputs and {} inputs", factors.rows, factors.cols);
                return Err(adapter.error(target, found, format!("{n} and {cols}")));
            }
            let mut up = factors.up.clone();
            if adapter.pairing != c.rope.pairing && ROLES[i] == Role::Qkv && part < 2 {
                let heads = if part == 0 { c.n_heads } else { c.n_kv_heads };
                up = permuted(&up, heads, c.head_dim, factors.r, c.rope.pairing);
            }
            let (target, down) = (factors.target.clone(), factors.down.clone());
            self.sites[4 * layer + i].0.push((first, Factors { target, down, up, ..*factors }));
        }
        Ok(())
    }

    fn put(self, weights: &mut Weights, mode: LoraMode) {
        let shapes = self.shapes;
        for (i, site) in self.sites.into_iter().enumerate().filter(|(_, site)| !site.0.is_empty()) {
            let (rows, cols) = &shapes[i % 4];
            let low_rank = site.low_rank(rows.iter().sum(), *cols);
            let linear = ROLES[i % 4].of(&mut weights.layers[i / 4]);
            match mode {
                LoraMode::Beside => linear.low_rank = Some(low_rank),
                LoraMode::Merged => linear.matrix = merged(&linear.matrix, &low_rank),
            }
        }
    }
}

impl Site {
    /// All factors as one pair: those of `A` below each other, those of `B` side by side in their rows.
    fn low_rank(self, rows: usize, cols: usize) -> LowRank {
        let r: usize = self.0.iter().map(|(_, f)| f.r).sum();
        let (mut down, mut up) = (Vec::with_capacity(r * cols), vec![0.0; rows * r]);
        let mut column = 0;
        for (first, f) in self.0 {
            down.extend_from_slice(&f.down);
            for (row, values) in f.up.chunks_exact(f.r).enumerate() {
                let at = (first + row) * r + column;
                up[at..at + f.r].copy_from_slice(values);
            }
            column += f.r;
        }
        LowRank { down: Matrix::from_f32(r, cols, &down), up: Matrix::from_f32(rows, r, &up) }
    }
}

/// Block, role and part of a tensor's name.
fn find(target: &str, names: &TensorNames) -> Option<(usize, usize, usize)> {
    let (layer, role) = target.strip_prefix(names.block)?.split_once('.')?;
    let layer = layer.parse().ok()?;
    (0..4).find_map(|i| {
        let part = ROLES[i].names(names).iter().position(|name| *name == role)?;
        Some((layer, i, part))
    })
}

/// The rows of q or k in the other order: from halves to neighbours, or back.
fn permuted(up: &[f32], heads: usize, h: usize, r: usize, to: RopePairing) -> Vec<f32> {
    let mut out = vec![0.0; up.len()];
    for head in 0..heads {
        for i in 0..h / 2 {
            for side in 0..2 {
                let (halves, adjacent) = (head * h + side * h / 2 + i, head * h + 2 * i + side);
                let (from, to) = match to {
                    RopePairing::Adjacent => (halves, adjacent),
                    RopePairing::Halves => (adjacent, halves),
                };
                out[to * r..(to + 1) * r].copy_from_slice(&up[from * r..(from + 1) * r]);
            }
        }
    }
    out
}

/// `W + B·A`.
fn merged(base: &Matrix, low_rank: &LowRank) -> Matrix {
    let (rows, cols, r) = (base.rows(), base.cols(), low_rank.down.rows());
    let mut a = vec![0.0; r * cols];
    for (k, row) in a.chunks_exact_mut(cols).enumerate() {
        low_rank.down.expand_row(k, row);
    }
    let (mut out, mut b) = (vec![0.0; rows * cols], vec![0.0; r]);
    for (i, row) in out.chunks_exact_mut(cols).enumerate() {
        base.expand_row(i, row);
        low_rank.up.expand_row(i, &mut b);
        for (a, &b) in a.chunks_exact(cols).zip(&b).filter(|(_, b)| **b != 0.0) {
            row.iter_mut().zip(a).for_each(|(w, a)| *w += b * a);
        }
    }
    Matrix::from_f32(rows, cols, &out)
}
