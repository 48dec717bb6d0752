//! Recipes: everything that decides the bytes of a run, in one TOML file.
//!
//! A [`Draft`] is what a person wrote (a file, options, or both). [`Draft::resolve`] fills in the preset and
//! checks every key and value; the resulting [`Recipe`] has no open choices but `layer = "auto"`, and its TOML
//! text is saved beside the result.

mod draft;
mod method;

pub use draft::Draft;
pub use method::Method;

use crate::{
    data::ColumnMap,
    objective::{Direction, Objective, View},
    optim::{Optimiser, Penalty, Warmup},
    scope::TokenScope,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use steerkit_model::{OpenOptions, lora::LoraSettings};

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Where the defaults came from.
    pub preset: Preset,
    /// A model file, a folder, or the name of a pulled model.
    pub model: String,
    /// LoRA adapters on the model, each `PATH` or `PATH=WEIGHT`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lora: Vec<String>,
    /// The run's folder.
    pub out: PathBuf,
    /// What is trained.
    pub method: Method,
    /// The block after which the vector is added.
    pub layer: LayerChoice,
    /// Several blocks in place of one, ascending: a vector is trained for each, all together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<usize>,
    /// Pairs per optimiser step.
    pub batch: usize,
    /// Passes over the data; or `steps`.
    pub epochs: Option<usize>,
    /// Optimiser steps; or `epochs`.
    pub steps: Option<usize>,
    /// How d is chosen.
    pub directions: Directions,
    /// The tokens that the vector acts on.
    #[serde(default)]
    pub scope: TokenScope,
    /// Seed of the data order, of d, of drawn factors and directions, and of the held-out pairs.
    pub seed: u64,
    /// Arithmetic of the model's large products.
    pub precision: Precision,
    /// Whether the vector of every epoch is kept.
    pub epoch_vectors: bool,
    /// Packed rows per pass through the model; bounds the memory of a step. The pairs of a pass share the rows of
    /// what their prompts begin with, so that it also decides the last digits of the gradient.
    #[serde(default = "default_micro_batch")]
    pub micro_batch_rows: usize,
    /// The pairs.
    pub data: DataSettings,
    /// How a pair becomes tokens.
    #[serde(default)]
    pub prompt: PromptSettings,
    /// The loss.
    pub objective: Objective,
    /// The optimiser.
    pub optimiser: Optimiser,
    /// What keeps the vectors of several layers small.
    pub penalty: Option<Penalty>,
    /// The adapter of the method `dpo-lora`.
    pub adapter: Option<LoraSettings>,
    /// Vectors from activations.
    #[serde(default)]
    pub extract: ExtractSettings,
    /// What is measured.
    #[serde(default)]
    pub eval: EvalSettings,
    /// Residual streams and reference log-probabilities kept between runs.
    #[serde(default)]
    pub cache: CacheSettings,
    /// Saving of a run's state.
    #[serde(default)]
    pub checkpoint: CheckpointSettings,
}

/// Defaults of a recipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// A norm budget.
    #[default]
    Auto,
    /// The settings that the paper states.
    Paper,
    /// What the authors' published code does.
    Official,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Paper, Self::Official];

    /// As a recipe names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Paper => "paper",
            Self::Official => "official",
        }
    }

    /// The preset as TOML.
    pub fn text(self) -> &'static str {
        match self {
            Self::Auto => include_str!("auto.toml"),
            Self::Paper => include_str!("paper.toml"),
            Self::Official => include_str!("official.toml"),
        }
    }
}

/// The block after which the vector is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerChoice {
    /// The best of four candidates from 40 to 55% of the depth on held-out pairs.
    Auto,
    /// This one, from 0.
    Block(usize),
}

impl Serialize for LayerChoice {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::Block(layer) => to.serialize_u64(*layer as u64),
        }
    }
}

impl<'de> Deserialize<'de> for LayerChoice {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = LayerChoice;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a block number from 0 or \"auto\"")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<LayerChoice, E> {
                usize::try_from(n).map(LayerChoice::Block).map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<LayerChoice, E> {
                let unexpected = serde::de::Unexpected::Signed(n);
                usize::try_from(n).map(LayerChoice::Block).map_err(|_| E::invalid_value(unexpected, &self))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<LayerChoice, E> {
                match text {
                    "auto" => Ok(LayerChoice::Auto),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// How d is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directions {
    /// One d per batch, +1 or -1 at random (the paper's algorithm 1).
    Drawn,
    /// The first half of a batch with +1, the other half with -1.
    Balanced,
    /// Always +1 (the paper's uni-directional ablation, Eq. 2).
    Toward,
    /// Every pair of a batch with +1 and with -1, at twice the cost.
    Both,
}

/// Arithmetic of the model's large products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16 inputs, 32-bit sums.
    Bf16,
}

/// The pairs of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Pairs to train on (CSV, JSONL or Parquet).
    pub train: PathBuf,
    /// Pairs to measure on while training, and to choose the layer with.
    pub valid: Option<PathBuf>,
    /// Pairs for the last evaluation only.
    pub test: Option<PathBuf>,
    /// Take this many of the training pairs: the first after a shuffle with the seed ([`crate::data::sample`]).
    pub limit: Option<usize>,
    /// Without `valid`, hold this many of the training pairs out (at most a fifth of them).
    pub holdout: usize,
    /// Leave out repeated rows.
    #[serde(default)]
    pub dedup: bool,
    /// Treat faults of the data as errors.
    #[serde(default)]
    pub strict: bool,
    /// Names of the columns, where they are not the usual ones.
    #[serde(default)]
    pub columns: ColumnMap,
}

/// Vectors from activations or one gradient.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExtractSettings {
    /// Norm of the vector as a share of the median norm of the residual stream; the method's own norm unless given.
    pub dose: Option<f64>,
    /// What the principal component is of.
    pub pca: PcaOf,
}

/// What a principal component is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PcaOf {
    /// Both responses of a pair around their own middle (repeng's `pca_center`).
    #[default]
    Centre,
    /// The pairs' differences around their mean (repeng's `pca_diff`).
    Difference,
}

/// How a pair becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptSettings {
    /// System prompt; empty for none.
    pub system: String,
    /// Whether responses begin with a space.
    pub leading_space: LeadingSpace,
    /// Longest prompt with response in tokens; longer pairs are left out and counted in a note (an error when
    /// `data.strict`). The model's context unless given.
    pub max_length: Option<usize>,
}

impl Default for PromptSettings {
    fn default() -> Self {
        Self {
            system: "You are a helpful, honest and concise assistant.".into(),
            leading_space: LeadingSpace::Auto,
            max_length: None,
        }
    }
}

/// Whether responses begin with a space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeadingSpace {
    /// Where the template's prompt does not end in white space.
    #[default]
    Auto,
    /// Always, as the authors' code does.
    Always,
    /// Never.
    Never,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSettings {
    /// Multipliers of the last evaluation.
    pub multipliers: Vec<f64>,
    /// Measure `valid` at -1 and +1 after every this many epochs; 0 for never.
    pub every_epochs: usize,
    /// Take at most this many pairs, the first of the file.
    pub limit: Option<usize>,
}

impl Default for EvalSettings {
    fn default() -> Self {
        Self { multipliers: vec![-1.0, 0.0, 1.0], every_epochs: 1, limit: None }
    }
}

/// Residual streams and reference log-probabilities kept between runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSettings {
    /// Keep them on disk for later runs that differ only in objective or optimiser.
    pub enabled: bool,
    /// The folder; the user's cache folder unless given.
    pub folder: Option<PathBuf>,
    /// How residual streams are stored: bf16 takes half the space and changes the last digits of the vector.
    pub precision: Precision,
    /// Megabytes (10^6 bytes) above which residual streams stay on disk and are read batch by batch.
    pub memory_mb: u64,
    /// Megabytes that the folder may hold; the longest unused files are removed first.
    pub disk_mb: u64,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { enabled: true, folder: None, precision: Precision::F32, memory_mb: 2000, disk_mb: 20_000 }
    }
}

/// Saving of a run's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSettings {
    /// Steps between checkpoints; ten seconds of training unless given. Every epoch ends with one anyway.
    pub every_steps: Option<usize>,
}

fn default_micro_batch() -> usize {
    1024
}

impl Recipe {
    /// How the model of this recipe is to be opened.
    pub fn open_options(&self) -> OpenOptions {
        let precision = match self.precision {
            Precision::F32 => steerkit_model::Precision::F32,
            Precision::Bf16 => steerkit_model::Precision::Bf16,
        };
        OpenOptions { precision, ..OpenOptions::default() }
    }

    /// The recipe as TOML; [`Draft::parse`] reads it back to the same recipe.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds only text, numbers and tables of them")
    }

    /// What differs from `other` as `key: mine -> theirs`, without the keys that cannot change the result
    /// (`out`, `cache` but for its precision, `checkpoint`).
    pub fn differences(&self, other: &Recipe) -> Vec<String> {
        let (mine, theirs) = (self.decisive(), other.decisive());
        let keys: std::collections::BTreeSet<_> = mine.keys().chain(theirs.keys()).collect();
        let text = |value: Option<&String>| value.map_or("nothing".into(), Clone::clone);
        keys.into_iter()
            .filter(|k| mine.get(*k) != theirs.get(*k))
            .map(|k| format!("{k}: {} -> {}", text(mine.get(k)), text(theirs.get(k))))
            .collect()
    }

    /// Dotted keys and TOML values of everything that decides the result.
    pub(crate) fn decisive(&self) -> std::collections::BTreeMap<String, String> {
        let mut flat = std::collections::BTreeMap::new();
        let mut table = toml::Table::try_from(self).expect("a recipe is a table");
        for key in ["out", "cache", "checkpoint"] {
            table.remove(key);
        }
        flatten("", &toml::Value::Table(table), &mut flat);
        if self.cache.precision != Precision::default() {
            flat.insert("cache.precision".into(), toml::Value::from("bf16").to_string());
        }
        flat
    }

    /// Checks the values that the types leave open.
    fn check(&self) -> Result<(), (String, String)> {
        let fault = |key: &str, what: String| Err((key.to_owned(), what));
        let positive = |key: &str, x: f64| match x.is_finite() && x > 0.0 {
            true => Ok(()),
            false => fault(key, format!("found {x}, expected a number above 0")),
        };
        if self.epochs.is_some() == self.steps.is_some() {
            return fault("steps", "expected either `epochs` or `steps`".into());
        }
        let counts = [("batch", Some(self.batch)), ("epochs", self.epochs), ("steps", self.steps)];
        for (key, n) in counts
            .into_iter()
            .chain([("micro_batch_rows", Some(self.micro_batch_rows)), ("eval.limit", self.eval.limit)])
        {
            if n == Some(0) {
                let key = key.rsplit('.').next().unwrap_or(key);
                return fault(key, "found 0, expected at least 1".into());
            }
        }
        if let Some((key, found, expected)) = self.objective.fault() {
            return fault(key, format!("found {found}, expected {expected}"));
        }
        if let Some(kind) = self.method.objective().filter(|kind| *kind != self.objective.kind()) {
            let (method, found) = (self.method.name(), self.objective.kind());
            return fault(
                "objective",
                format!("found {found:?}, expected {kind:?} for the method {method:?}"),
            );
        }
        self.check_layers()?;
        self.check_adapter()?;
        self.extract.dose.map_or(Ok(()), |dose| positive("dose", dose))?;
        match &self.optimiser {
            Optimiser::NormBudget(o) => positive("dose", o.dose)?,
            Optimiser::Factored(o) => {
                for (key, x) in [("lr", o.lr), ("lr_factor", o.lr_factor), ("norm", o.norm)] {
                    positive(key, x)?;
                }
                positive("factor", o.factor)?;
                o.clip.map_or(Ok(()), |c| positive("clip", c))?;
                if !(o.weight_decay.is_finite() && o.weight_decay >= 0.0) {
                    return fault("weight_decay", format!("found {}, expected 0 or more", o.weight_decay));
                }
            }
            Optimiser::AdamW(o) => {
                positive("lr", o.lr)?;
                positive("eps", o.eps)?;
                o.clip.map_or(Ok(()), |c| positive("clip", c))?;
                if o.betas.iter().any(|b| !(0.0..1.0).contains(b)) {
                    return fault("betas", format!("found {:?}, expected two numbers in [0, 1)", o.betas));
                }
                if !(o.weight_decay.is_finite() && o.weight_decay >= 0.0) {
                    return fault("weight_decay", format!("found {}, expected 0 or more", o.weight_decay));
                }
                if let Warmup::Fraction(f) = o.warmup
                    && !(0.0..=1.0).contains(&f)
                {
                    return fault("warmup", format!("found {f}, expected a share from 0 to 1"));
                }
            }
        }
        match self.eval.multipliers.iter().find(|m| !m.is_finite()) {
            Some(m) => fault("multipliers", format!("found {m}, expected finite numbers")),
            None => Ok(()),
        }
    }
}

impl Recipe {
    /// Refuses what does not make the vector of one layer, and says what it is.
    pub(crate) fn makes_one_vector(&self) -> Result<(), String> {
        match self.method {
            Method::DpoLora => {
                let method = self.method.name();
                Err(format!("the method {method:?} makes an adapter, expected a vector"))
            }
            _ => self.has_one_layer(),
        }
    }

    /// Refuses several layers that are trained together.
    pub(crate) fn has_one_layer(&self) -> Result<(), String> {
        match &self.layers[..] {
            [] => Ok(()),
            layers => Err(format!("`layers` = {layers:?} are trained together, expected one layer")),
        }
    }

    /// Several layers, and what goes only with them.
    fn check_layers(&self) -> Result<(), (String, String)> {
        let fault = |key: &str, what: String| Err((key.to_owned(), what));
        if let Some(penalty) = self.penalty {
            let weight = penalty.weight();
            if !(weight.is_finite() && weight > 0.0) {
                return fault("weight", format!("found {weight}, expected a number above 0"));
            }
            if self.layers.len() < 2 || !matches!(self.optimiser, Optimiser::AdamW(_)) {
                return fault("penalty", "expected several `layers` and the optimiser \"adamw\"".into());
            }
        }
        if self.layers.is_empty() {
            return Ok(());
        }
        if !self.layers.is_sorted_by(|a, b| a < b) {
            return fault("layers", format!("found {:?}, expected block numbers that ascend", self.layers));
        }
        if self.layer != LayerChoice::Auto {
            return fault("layers", "expected either `layer` or `layers`".into());
        }
        let nulls = |d| self.objective.views(d, 1.0).contains(&View::Nulled);
        if self.method.is_extraction() || [Direction::Toward, Direction::Away].into_iter().any(nulls) {
            let method = self.method.name();
            return fault("layers", format!("the method {method:?} makes the vector of one layer"));
        }
        match self.optimiser {
            Optimiser::Factored(_) => {
                fault("layers", "expected the optimiser \"adamw\" or \"norm-budget\"".into())
            }
            _ => Ok(()),
        }
    }

    /// The adapter, and what cannot be had with it.
    fn check_adapter(&self) -> Result<(), (String, String)> {
        let fault = |key: &str, what: &str| Err((key.to_owned(), what.to_owned()));
        let method = self.method == Method::DpoLora;
        match &self.adapter {
            None if method => return fault("adapter", "expected a table for the method \"dpo-lora\""),
            None => return Ok(()),
            Some(_) if !method => return fault("adapter", "expected only for the method \"dpo-lora\""),
            Some(a) if !(a.alpha.is_finite() && a.alpha > 0.0) => {
                return fault("alpha", &format!("found {}, expected a number above 0", a.alpha));
            }
            Some(_) => {}
        }
        if !self.layers.is_empty() {
            return fault("layers", "an adapter changes all blocks");
        }
        if self.directions != Directions::Toward {
            return fault("directions", "expected \"toward\": an adapter has but one direction");
        }
        if self.scope != TokenScope::All {
            return fault("scope", "expected \"all\": an adapter acts on every token");
        }
        match self.optimiser {
            Optimiser::AdamW(_) => Ok(()),
            _ => fault("optimiser", "expected the kind \"adamw\" for an adapter"),
        }
    }
}

fn flatten(prefix: &str, value: &toml::Value, into: &mut std::collections::BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, into);
            }
        }
        value => {
            into.insert(prefix.into(), value.to_string());
        }
    }
}
