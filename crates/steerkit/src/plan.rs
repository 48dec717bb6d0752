//! Which vectors act, how strongly, how and where.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use steerkit_model::{DecoderConfig, Edit, EditOp, ModelError, ModelIdentity, Prompting};

use crate::operator::Operator;
use crate::scope::{PromptShape, TokenScope};
use crate::vector::SteeringVector;
use crate::{Result, SteerError};

/// Vectors with their multipliers. An empty plan, or one of zeros, is the plain model.
#[derive(Clone, Debug, Default)]
pub struct SteeringPlan {
    entries: Vec<PlanEntry>,
}

/// Dose above which texts tend to break.
pub const LARGE_DOSE: f32 = 0.8;

/// A vector with its multiplier, what is done with it, and where.
#[derive(Clone, Debug)]
pub struct PlanEntry {
    /// The vector.
    pub vector: Arc<SteeringVector>,
    /// Times which it is added, or the strength of another operator; finite.
    pub multiplier: f32,
    /// What is done with it.
    pub operator: Operator,
    /// The tokens it acts on.
    pub scope: TokenScope,
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
    /// The vector acts on other tokens than in training.
    OtherScope {
        /// The vector.
        name: String,
        /// The tokens of training.
        trained: TokenScope,
        /// The tokens it acts on now.
        used: TokenScope,
    },
    /// The dose is past [`LARGE_DOSE`].
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
            Self::OtherScope { name, trained, used } => {
                write!(f, "vector {name:?} was trained on the tokens {trained} and acts on {used} now")
            }
            Self::UnknownModel { name } => {
                write!(f, "vector {name:?} does not say which model it was made with")
            }
            Self::LargeDose { name, relative } => {
                write!(
                    f,
                    "vector {name:?} is added at {relative:.2} times the norm of the residual stream: "
                )?;
                write!(f, "texts tend to break past {LARGE_DOSE}")
            }
        }
    }
}

impl SteeringPlan {
    /// The plain model.
    pub fn new() -> Self {
        Self::default()
    }

    /// The plan with one more vector, added at the tokens that it was trained on.
    ///
    /// # Errors
    /// [`SteerError::Multiplier`] when the multiplier is not finite.
    pub fn add(self, vector: Arc<SteeringVector>, multiplier: f32) -> Result<Self> {
        let scope = vector.provenance.token_scope;
        self.with(PlanEntry { vector, multiplier, operator: Operator::Add, scope })
    }

    /// The plan with one more entry.
    ///
    /// # Errors
    /// [`SteerError::Multiplier`] when the multiplier is not finite.
    pub fn with(mut self, entry: PlanEntry) -> Result<Self> {
        if !entry.multiplier.is_finite() {
            let name = entry.vector.provenance.name.clone();
            return Err(SteerError::Multiplier { name, found: entry.multiplier });
        }
        self.entries.push(entry);
        Ok(self)
    }

    /// Whether the edits depend on the prompt.
    pub fn depends_on_prompt(&self) -> bool {
        self.entries.iter().any(|e| !matches!(e.scope, TokenScope::All | TokenScope::AllButFirst))
    }

    /// Whether the edits depend on where the user's message stands in the prompt.
    pub fn needs_user(&self) -> bool {
        self.entries.iter().any(|e| e.scope.needs_user())
    }

    /// The entries, in the order they were added.
    pub fn entries(&self) -> &[PlanEntry] {
        &self.entries
    }

    /// The edits of a text that begins with `prompt`, lowest block first. Within a block they act in the order of the
    /// entries; vectors that are added one after another at the same tokens are summed. Entries with multiplier 0 leave
    /// no trace.
    ///
    /// # Errors
    /// [`ModelError::Width`] and [`ModelError::UnknownLayer`] for a vector of another model (whatever its
    /// multiplier), [`ModelError::NonFinite`] when a product overflows, [`SteerError::NoEffect`] when a sum is zero
    /// although the multipliers are not.
    pub fn edits(&self, config: &DecoderConfig, prompt: &PromptShape) -> Result<Vec<Edit>> {
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
        let mut edits = Vec::new();
        for (layer, entries) in by_layer {
            let sums = |a: &&PlanEntry, b: &&PlanEntry| {
                a.operator == Operator::Add && b.operator == Operator::Add && a.scope == b.scope
            };
            for group in entries.chunk_by(sums) {
                let op = match group[0].operator.shift(group[0].multiplier) {
                    None => EditOp::Add(sum(layer, group)?.into()),
                    Some(shift) => EditOp::Along { unit_d: unit(layer, group[0])?.into(), shift },
                };
                edits.push(Edit { layer, op, positions: group[0].scope.positions(prompt) });
            }
        }
        Ok(edits)
    }

    /// What the plan must know of the prompt of `len` tokens that asks `question`.
    ///
    /// # Errors
    /// Those of [`PromptShape::of_question`].
    pub fn shape(&self, prompting: &Prompting<'_>, question: &str, len: usize) -> Result<PromptShape> {
        match self.needs_user() {
            true => PromptShape::of_question(prompting, question, len, 0),
            false => Ok(PromptShape { len, last_user: 0..0 }),
        }
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
            let (trained, used) = (entry.vector.provenance.token_scope, entry.scope);
            if trained != used {
                warnings.push(PlanWarning::OtherScope { name: name.clone(), trained, used });
            }
            if let Some(relative) =
                dose.relative.filter(|&r| r > LARGE_DOSE && entry.operator == Operator::Add)
            {
                warnings.push(PlanWarning::LargeDose { name, relative });
            }
        }
        warnings
    }
}

/// The sum of `multiplier * direction` over entries of one layer.
fn sum(layer: usize, entries: &[&PlanEntry]) -> Result<Vec<f32>> {
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
        return Err(no_effect(layer, entries));
    }
    Ok(sum)
}

/// The unit vector of an entry.
fn unit(layer: usize, entry: &PlanEntry) -> Result<Vec<f32>> {
    let norm = f64::from(entry.vector.norm());
    if norm == 0.0 {
        return Err(no_effect(layer, &[entry]));
    }
    Ok(entry.vector.direction.iter().map(|&x| (f64::from(x) / norm) as f32).collect())
}

fn no_effect(layer: usize, entries: &[&PlanEntry]) -> SteerError {
    let name = |entry: &&PlanEntry| format!("{:?} x {}", entry.vector.provenance.name, entry.multiplier);
    SteerError::NoEffect { layer, names: entries.iter().map(name).collect() }
}
