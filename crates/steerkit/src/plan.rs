//! Which vectors to add, and how strongly.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use steerkit_model::{DecoderConfig, Edit, EditOp, ModelError, ModelIdentity};

use crate::vector::{MAX_RELATIVE_NORM, SteeringVector};
use crate::{Result, SteerError};

/// Vectors with their multipliers. An empty plan, or one of zeros, is the plain model.
#[derive(Clone, Debug, Default)]
pub struct SteeringPlan {
    entries: Vec<PlanEntry>,
}

/// A vector with its multiplier.
#[derive(Clone, Debug)]
pub struct PlanEntry {
    /// The vector.
    pub vector: Arc<SteeringVector>,
    /// Times which it is added; finite.
    pub multiplier: f32,
}

/// How strong an entry is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dose {
    /// The vector.
    pub name: String,
    /// The block after which it acts.
    pub layer: usize,
    /// Its multiplier.
    pub multiplier: f32,
    /// `|multiplier| * norm / residual norm`, where the vector knows the residual norm.
    pub relative: Option<f32>,
}

/// What a user should know about a plan on a model; none of it stops the plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PlanWarning {
    /// The vector was made with another model file.
    OtherModel {
        /// The vector.
        name: String,
        /// The model it was made with.
        made_with: String,
        /// The model it is used with.
        used_with: String,
    },
    /// The vector does not say which model it was made with.
    UnknownModel {
        /// The vector.
        name: String,
    },
    /// The dose drowns the residual stream.
    LargeDose {
        /// The vector.
        name: String,
        /// Dose over the residual norm.
        relative: f32,
    },
}

impl fmt::Display for PlanWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherModel { name, made_with, used_with } => {
                write!(f, "vector {name:?} was made with another file ({made_with}) than {used_with}")
            }
            Self::UnknownModel { name } => {
                write!(f, "vector {name:?} does not say which model it was made with")
            }
            Self::LargeDose { name, relative } => {
                write!(f, "vector {name:?} is added at {relative:.0} times the norm of the residual stream")
            }
        }
    }
}

impl SteeringPlan {
    /// The plain model.
    pub fn new() -> Self {
        Self::default()
    }

    /// The plan with one more vector.
    ///
    /// # Errors
    /// [`SteerError::Multiplier`] when the multiplier is not finite.
    pub fn add(mut self, vector: Arc<SteeringVector>, multiplier: f32) -> Result<Self> {
        if !multiplier.is_finite() {
            return Err(SteerError::Multiplier { name: vector.provenance.name.clone(), found: multiplier });
        }
        self.entries.push(PlanEntry { vector, multiplier });
        Ok(self)
    }

    /// The entries, in the order they were added.
    pub fn entries(&self) -> &[PlanEntry] {
        &self.entries
    }

    /// The edits for a model, one per steered block, lowest first. Vectors of one block are summed in the order
    /// they were added; those with multiplier 0 leave no trace.
    ///
    /// # Errors
    /// [`ModelError::Width`] and [`ModelError::UnknownLayer`] for a vector of another model (whatever its
    /// multiplier), [`ModelError::NonFinite`] when a product overflows, [`SteerError::NoEffect`] when a sum is zero
    /// although the multipliers are not.
    pub fn edits(&self, config: &DecoderConfig) -> Result<Vec<Edit>> {
        let (d_model, n_layers) = (config.d_model, config.n_layers);
        let mut by_layer: BTreeMap<usize, Vec<&PlanEntry>> = BTreeMap::new();
        for entry in &self.entries {
            let vector = &entry.vector;
            if vector.direction.len() != d_model {
                return Err(ModelError::Width { found: vector.direction.len(), d_model }.into());
            }
            if vector.layer >= n_layers {
                return Err(ModelError::UnknownLayer { layer: vector.layer, n_layers }.into());
            }
            if entry.multiplier != 0.0 {
                by_layer.entry(vector.layer).or_default().push(entry);
            }
        }
        by_layer.into_iter().map(|(layer, entries)| edit(layer, &entries)).collect()
    }

    /// The dose of every entry.
    pub fn doses(&self) -> Vec<Dose> {
        let dose = |entry: &PlanEntry| Dose {
            name: entry.vector.provenance.name.clone(),
            layer: entry.vector.layer,
            multiplier: entry.multiplier,
            relative: entry.vector.relative_norm().map(|norm| entry.multiplier.abs() * norm),
        };
        self.entries.iter().map(dose).collect()
    }

    /// What to tell the user before this plan runs on the model.
    pub fn warnings(&self, model: &ModelIdentity) -> Vec<PlanWarning> {
        let mut warnings = Vec::new();
        for (entry, dose) in self.entries.iter().zip(self.doses()) {
            let name = dose.name;
            match &entry.vector.provenance.base_model {
                None => warnings.push(PlanWarning::UnknownModel { name: name.clone() }),
                Some(base) if base.file_sha256 != model.file_sha256 => {
                    let (made_with, used_with) = (base.name.clone(), model.name.clone());
                    warnings.push(PlanWarning::OtherModel { name: name.clone(), made_with, used_with });
                }
                Some(_) => {}
            }
            if let Some(relative) = dose.relative.filter(|&relative| relative > MAX_RELATIVE_NORM) {
                warnings.push(PlanWarning::LargeDose { name, relative });
            }
        }
        warnings
    }
}

/// The sum of `multiplier * direction` over the entries of one layer.
fn edit(layer: usize, entries: &[&PlanEntry]) -> Result<Edit> {
    let mut sum = vec![0.0; entries[0].vector.direction.len()];
    for entry in entries {
        for (sum, x) in sum.iter_mut().zip(&entry.vector.direction) {
            *sum += entry.multiplier * x;
        }
    }
    let found = sum.iter().filter(|x| !x.is_finite()).count();
    if found > 0 {
        let place = format!("steering after block {layer}");
        return Err(ModelError::NonFinite { place, found, total: sum.len() }.into());
    }
    if sum.iter().all(|&x| x == 0.0) {
        let name = |entry: &&PlanEntry| format!("{:?} x {}", entry.vector.provenance.name, entry.multiplier);
        return Err(SteerError::NoEffect { layer, names: entries.iter().map(name).collect() });
    }
    Ok(Edit { layer, op: EditOp::Add(sum.into()) })
}
