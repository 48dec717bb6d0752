//! An adapter in training: one flat list of numbers, and where each of them acts.

use super::{Factors, ROLES, Role, Site, permuted};
use crate::arch::Family;
use crate::config::{DecoderConfig, RopePairing};
use crate::weights::LowRank;
use crate::{ModelError, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};

/// Size and place of an adapter. The defaults are those of the BiPO paper's DPO-LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSettings {
    /// Rank of every factor.
    pub r: usize,
    /// The addition is `alpha / r · B·A`.
    pub alpha: f64,
    /// Projections that are adapted in every block, by the ends of their names in a Hugging Face checkpoint.
    pub targets: Vec<String>,
}

impl Default for LoraSettings {
    fn default() -> Self {
        Self { r: 8, alpha: 16.0, targets: ["q_proj", "v_proj"].map(String::from).to_vec() }
    }
}

/// A low-rank addition to every adapted projection of a model, four places a block: queries, keys and values; the
/// output of attention; gate and up; down.
#[derive(Clone, Debug)]
pub struct Additions(pub(crate) Vec<Option<LowRank>>);

/// Gradients with respect to `A` and `B` of every place of [`Additions`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdditionGradients(pub(crate) Vec<Option<(Vec<f32>, Vec<f32>)>>);

/// One factor as PEFT stores it.
#[derive(Clone, Debug)]
pub struct PeftTensor {
    /// Its name, without the `base_model.model.` that PEFT puts before it.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// The numbers, row by row.
    pub data: Vec<f32>,
}

/// The shape of an adapter for one model. Its numbers are a flat list, `A` `[r, in]` and `B` `[out, r]` of one adapted
/// projection after the other, blocks from the bottom; rows of `B` are in the order of Hugging Face checkpoints.
#[derive(Clone, Debug)]
pub struct TrainableLora {
    settings: LoraSettings,
    parts: Vec<Part>,
    /// Rows and columns of the projections of a block.
    shapes: [(usize, usize); 4],
    n_sites: usize,
    head_dim: usize,
    pairing: RopePairing,
}

/// One adapted projection.
#[derive(Clone, Debug)]
struct Part {
    /// As a Hugging Face checkpoint names it.
    module: String,
    /// Its place in [`Additions`].
    site: usize,
    /// Its first row there.
    first: usize,
    rows: usize,
    cols: usize,
    /// Heads whose rows stand in another order in the model than in a checkpoint.
    heads: Option<usize>,
    /// Where its numbers begin.
    at: usize,
}

impl TrainableLora {
    /// The adapter of `settings` on a model.
    ///
    /// # Errors
    /// [`ModelError::OutOfRange`] for a target that the model does not have, none at all, and a rank of 0 or beyond the
    /// projections.
    pub fn new(config: &DecoderConfig, settings: &LoraSettings) -> Result<Self> {
        let names = &Family::of(&config.architecture).hf_names;
        let known: Vec<&str> = ROLES.iter().flat_map(|role| role.names(names)).map(last).collect();
        let out_of_range = |name: &str, found: String, allowed: String| {
            Err(ModelError::OutOfRange { name: format!("adapter.{name}"), found, allowed })
        };
        if let Some(other) = settings.targets.iter().find(|t| !known.contains(&t.as_str())) {
            return out_of_range("targets", format!("\"{other}\""), known.join(", "));
        }
        if settings.targets.is_empty() {
            return out_of_range("targets", "empty".into(), format!("one or more of {}", known.join(", ")));
        }
        let (mut parts, mut at): (Vec<Part>, usize) = (Vec::new(), 0);
        for site in 0..4 * config.n_layers {
            let role = ROLES[site % 4];
            let (all_rows, cols) = role.shape(config);
            let part_names = role.names(names);
            let rows_of =
                |part: usize| if part_names.len() == 1 { all_rows.iter().sum() } else { all_rows[part] };
            for (part, name) in part_names.iter().enumerate() {
                if !settings.targets.iter().any(|t| t == last(name)) {
                    continue;
                }
                let heads = [config.n_heads, config.n_kv_heads].get(part).copied();
                let split = role == Role::Qkv && part_names.len() > 1;
                let rows = rows_of(part);
                parts.push(Part {
                    module: format!("{}{}.{name}", names.block, site / 4),
                    site,
                    first: (0..part).map(rows_of).sum(),
                    rows,
                    cols,
                    heads: heads.filter(|_| split && config.rope.pairing != RopePairing::Halves),
                    at,
                });
                at += settings.r * (rows + cols);
            }
        }
        let most = parts.iter().map(|p| p.rows.min(p.cols)).min().unwrap_or(1);
        if !(1..=most).contains(&settings.r) {
            return out_of_range("r", settings.r.to_string(), format!("1 to {most}"));
        }
        Ok(Self {
            settings: settings.clone(),
            parts,
            shapes: ROLES.map(|role| role.shape(config)).map(|(rows, cols)| (rows.iter().sum(), cols)),
            n_sites: 4 * config.n_layers,
            head_dim: config.head_dim,
            pairing: config.rope.pairing,
        })
    }

    /// What it was made of.
    pub fn settings(&self) -> &LoraSettings {
        &self.settings
    }

    /// Numbers.
    #[allow(clippy::len_without_is_empty, reason = "an adapter is never empty")]
    pub fn len(&self) -> usize {
        self.parts.last().map_or(0, |p| p.at + self.settings.r * (p.rows + p.cols))
    }

    /// Inputs of the adapted projections of one block, which a pass with gradients keeps.
    pub fn kept_per_row(&self) -> usize {
        (0..4).filter(|&i| self.parts.iter().any(|p| p.site == i)).map(|i| self.shapes[i].1).sum()
    }

    /// The numbers before the first step, as PEFT draws them: `A` uniform in ±1/√in, `B` zero.
    pub fn start(&self, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        rng.set_stream(STREAM);
        let mut params = vec![0.0; self.len()];
        for part in &self.parts {
            let bound = 1.0 / (part.cols as f32).sqrt();
            let a = &mut params[part.at..part.at + self.settings.r * part.cols];
            a.iter_mut().for_each(|x| *x = bound * (2.0 * rng.random::<f32>() - 1.0));
        }
        params
    }

    /// `A` and `B` of a part.
    fn factors<'p>(&self, part: &Part, params: &'p [f32]) -> (&'p [f32], &'p [f32]) {
        let r = self.settings.r;
        params[part.at..part.at + r * (part.rows + part.cols)].split_at(r * part.cols)
    }

    fn scale(&self, weight: f32) -> f32 {
        (self.settings.alpha / self.settings.r as f64) as f32 * weight
    }

    /// What the adapter of these numbers adds to the model, `weight` times.
    ///
    /// # Panics
    /// When `params` is not as long as [`Self::len`].
    pub fn additions(&self, params: &[f32], weight: f32) -> Additions {
        assert_eq!(params.len(), self.len());
        let (r, scale) = (self.settings.r, self.scale(weight));
        let mut sites: Vec<Site> = (0..self.n_sites).map(|_| Site::default()).collect();
        for part in &self.parts {
            let (a, b) = self.factors(part, params);
            let mut up: Vec<f32> = b.iter().map(|x| scale * x).collect();
            if let Some(heads) = part.heads {
                up = permuted(&up, heads, self.head_dim, r, self.pairing);
            }
            let (target, down) = (part.module.clone(), a.to_vec());
            let factors = Factors { target, down, up, r, cols: part.cols, rows: part.rows };
            sites[part.site].0.push((part.first, factors));
        }
        let low_rank = |(i, site): (usize, Site)| {
            let (rows, cols) = self.shapes[i % 4];
            (!site.0.is_empty()).then(|| site.low_rank(rows, cols))
        };
        Additions(sites.into_iter().enumerate().map(low_rank).collect())
    }

    /// Adds the gradient with respect to the numbers, from that of [`Self::additions`] at the same weight, to `grad`.
    ///
    /// # Panics
    /// When the gradients are not those of such additions.
    pub fn add_gradient(&self, of: &AdditionGradients, weight: f32, grad: &mut [f64]) {
        let (r, scale) = (self.settings.r, self.scale(weight));
        let mut column = 0;
        for (i, part) in self.parts.iter().enumerate() {
            if i == 0 || self.parts[i - 1].site != part.site {
                column = 0;
            }
            let (down, up) = of.0[part.site].as_ref().expect("every adapted projection has a gradient");
            let width = down.len() / part.cols;
            let rows = (part.first..part.first + part.rows).map(|row| row * width + column);
            let mut db: Vec<f32> = rows.flat_map(|at| up[at..at + r].iter().map(|x| scale * x)).collect();
            if let Some(heads) = part.heads {
                db = permuted(&db, heads, self.head_dim, r, RopePairing::Halves);
            }
            let da = &down[column * part.cols..(column + r) * part.cols];
            let into = &mut grad[part.at..part.at + r * (part.rows + part.cols)];
            into.iter_mut().zip(da.iter().chain(&db)).for_each(|(g, &x)| *g += f64::from(x));
            column += r;
        }
    }

    /// The factors as PEFT stores them.
    pub fn peft_tensors(&self, params: &[f32]) -> Vec<PeftTensor> {
        let r = self.settings.r;
        let of_part = |part: &Part| {
            let (a, b) = self.factors(part, params);
            [("A", [r, part.cols], a), ("B", [part.rows, r], b)].map(|(which, shape, data)| PeftTensor {
                name: format!("{}.lora_{which}.weight", part.module),
                shape,
                data: data.to_vec(),
            })
        };
        self.parts.iter().flat_map(of_part).collect()
    }

    /// Norm of what the adapter adds to the weights: `alpha / r · |B·A|` over all adapted projections (Frobenius).
    pub fn norm(&self, params: &[f32]) -> f64 {
        let r = self.settings.r;
        let square = |part: &Part| {
            // |B·A|² = Σ (BᵀB) ∘ (A·Aᵀ), two matrices of r by r.
            let (a, b) = self.factors(part, params);
            let dot =
                |x: &mut dyn Iterator<Item = (f32, f32)>| x.map(|(x, y)| f64::from(x) * f64::from(y)).sum();
            let mut sum = 0.0;
            for i in 0..r {
                for j in 0..r {
                    let (row_i, row_j) = (&a[i * part.cols..(i + 1) * part.cols], &a[j * part.cols..]);
                    let aa: f64 = dot(&mut row_i.iter().copied().zip(row_j.iter().copied()));
                    let bb: f64 = dot(&mut b.chunks_exact(r).map(|row| (row[i], row[j])));
                    sum += aa * bb;
                }
            }
            sum
        };
        f64::from(self.scale(1.0)) * self.parts.iter().map(square).sum::<f64>().max(0.0).sqrt()
    }
}

/// The generator's stream, apart from those of the data order.
const STREAM: u64 = 8;

/// The last part of a dotted name.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Features, Rope, RopeScaling};

    fn config(pairing: RopePairing) -> DecoderConfig {
        DecoderConfig {
            architecture: "llama".into(),
            n_layers: 2,
            d_model: 8,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 4,
            d_ff: 12,
            vocab: 20,
            context: 64,
            norm_eps: 1e-5,
            rope: Rope { theta: 1e4, pairing, scaling: RopeScaling::None },
            features: Features::default(),
        }
    }

    fn settings(targets: &[&str]) -> LoraSettings {
        LoraSettings { r: 2, alpha: 3.0, targets: targets.iter().map(|t| (*t).to_owned()).collect() }
    }

    #[test]
    fn only_known_targets_and_ranks() {
        let config = config(RopePairing::Halves);
        let refused = |s: &LoraSettings| TrainableLora::new(&config, s).unwrap_err().to_string();
        assert_eq!(
            refused(&settings(&["q_proj", "query"])),
            "adapter.targets is \"query\", allowed is q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
        );
        assert!(refused(&settings(&[])).contains("one or more of"));
        for r in [0, 5] {
            assert!(refused(&LoraSettings { r, ..settings(&["v_proj"]) }).ends_with("allowed is 1 to 4"));
        }
    }

    /// The gradient is the adjoint of the additions: for a linear function of the additions both give its value.
    #[test]
    fn gradients_return_to_where_the_numbers_came_from() {
        for pairing in [RopePairing::Halves, RopePairing::Adjacent] {
            let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
            for targets in [&all[..], &["q_proj", "v_proj"], &["up_proj"]] {
                let lora = TrainableLora::new(&config(pairing), &settings(targets)).unwrap();
                let params: Vec<f32> = (0..lora.len()).map(|i| (i as f32 * 0.7).sin()).collect();
                let additions = lora.additions(&params, -0.5);
                let expand = |m: &steerkit_kernels::Matrix| {
                    let mut all = vec![0.0; m.rows() * m.cols()];
                    all.chunks_exact_mut(m.cols()).enumerate().for_each(|(i, row)| m.expand_row(i, row));
                    all
                };
                let (mut value, mut number) = (0.0, 0u32);
                let mut weigh = |x: Vec<f32>| -> Vec<f32> {
                    x.iter()
                        .map(|x| {
                            number += 1;
                            let weight = (f64::from(number) * 0.7).cos() as f32;
                            value += f64::from(weight) * f64::from(*x);
                            weight
                        })
                        .collect()
                };
                let gradients = additions
                    .0
                    .iter()
                    .map(|a| a.as_ref().map(|a| (weigh(expand(&a.down)), weigh(expand(&a.up)))))
                    .collect();
                let mut grad = vec![0.0; lora.len()];
                lora.add_gradient(&AdditionGradients(gradients), -0.5, &mut grad);
                let got: f64 = grad.iter().zip(&params).map(|(g, &p)| g * f64::from(p)).sum();
                assert!(
                    (got - value).abs() < 1e-4 * value.abs().max(1.0),
                    "{targets:?} {pairing:?}: {got} {value}"
                );
            }
        }
    }

    #[test]
    fn the_norm_is_that_of_the_product() {
        let lora = TrainableLora::new(&config(RopePairing::Halves), &settings(&["v_proj"])).unwrap();
        let start = lora.start(7);
        assert_eq!(lora.norm(&start), 0.0);
        assert!(
            start[..16].iter().all(|x| x.abs() <= 8f32.sqrt().recip())
                && start[16..24].iter().all(|&x| x == 0.0)
        );
        let params: Vec<f32> = (0..lora.len()).map(|i| (i as f32).sin()).collect();
        let mut square = 0f64;
        for block in params.chunks_exact(24) {
            let (a, b) = block.split_at(16);
            for row in b.chunks_exact(2) {
                square += (0..8).map(|c| f64::from(row[0] * a[c] + row[1] * a[8 + c]).powi(2)).sum::<f64>();
            }
        }
        assert!((lora.norm(&params) / (1.5 * square.sqrt()) - 1.0).abs() < 1e-5);
    }
}
