//! The vectors and adapters of an experiment: each is trained once, in a folder of its own, and taken from there afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use steerkit_model::Model;

use super::experiment::{Line, Panel};
use super::setup::{Setup, block};
use crate::data::{ReadOptions, read};
use crate::files::{sha256, sha256_of_file};
use crate::optim::{AdamW, Optimiser, Warmup};
use crate::recipe::{Draft, Method, Recipe};
use crate::train::{Observer, Outcome, Start, train_from};
use crate::{Result, SteerError, SteeringVector};

/// Training pairs, steps and pairs per step of a quick run.
pub(super) const QUICK: [usize; 3] = [16, 4, 4];
/// By how much a quick run divides epochs.
const QUICK_EPOCHS: usize = 5;

/// Passes over the data that an adapter is trained for, pairs per step and steps of warm-up: the paper's appendix F.
pub(super) const ADAPTER_EPOCHS: usize = 2;
const ADAPTER_BATCH: usize = 4;
const ADAPTER_WARMUP: usize = 100;

/// A vector to be made, or an adapter.
pub(super) struct Order<'a> {
    pub(super) setup: &'a Setup,
    pub(super) panel: &'a Panel,
    pub(super) line: &'a Line,
    /// The set whose pairs it is made of.
    pub(super) set: &'a str,
    /// The method of a recipe.
    pub(super) method: &'a str,
    /// The experiment's folder.
    pub(super) out: &'a Path,
}

impl Order<'_> {
    /// Whether an adapter is made.
    pub(super) fn is_adapter(&self) -> bool {
        self.method == Method::DpoLora.name()
    }

    /// The recipe on `model`.
    pub(super) fn recipe(&self, model: &Model) -> Result<Recipe> {
        let Self { setup, panel, .. } = self;
        let mut draft = Draft::default();
        let train = self.pairs(model)?;
        let preset = panel.preset.as_deref().unwrap_or(setup.preset.name());
        let texts = [
            ("preset", preset.to_owned()),
            ("model", setup.model.clone()),
            ("method", self.method.to_owned()),
            ("data.train", train.display().to_string()),
            ("out", self.out.join("vectors").display().to_string()),
            ("cache.folder", self.out.join("cache").display().to_string()),
        ];
        texts.iter().for_each(|(key, value)| draft.set_text(key, value));
        draft.set("seed", &setup.seed.to_string());
        // Every pair is trained on, and what a vector does is measured elsewhere.
        draft.set("data.holdout", "0");
        draft.set("eval", "{ multipliers = [], every_epochs = 0 }");
        draft.set("epoch_vectors", "false");
        if self.is_adapter() {
            self.of_adapter(&mut draft, &train)?;
        } else {
            self.of_vector(&mut draft, preset, model);
        }
        // What is set without a method's name is for the vectors.
        for (key, value) in &setup.set {
            match (key.strip_prefix("dpo-lora."), self.is_adapter()) {
                (Some(key), true) => draft.set(key, value),
                (None, false) => draft.set(key, value),
                _ => {}
            }
        }
        let recipe = draft.resolve()?;
        let out = self.out.join("vectors").join(self.id(&recipe, model, &train)?);
        Ok(Recipe { out, ..recipe })
    }

    /// Layer and length of a vector's training.
    fn of_vector(&self, draft: &mut Draft, preset: &str, model: &Model) {
        let Self { setup, panel, line, .. } = self;
        let layer = block(line.layer.unwrap_or(panel.layer), panel.blocks, model.config().n_layers);
        draft.set("layer", &layer.to_string());
        let epochs = line.epochs.unwrap_or(panel.epochs);
        let passes = preset != "auto";
        if setup.quick {
            let [pairs, steps, batch] = QUICK;
            draft.set("data.limit", &pairs.to_string());
            draft.set("batch", &batch.to_string());
            match passes {
                // The paper's warm-up is longer than the run, and its rate is for longer runs on larger models.
                true => {
                    draft.set("epochs", &epochs.div_ceil(QUICK_EPOCHS).to_string());
                    draft.set("optimiser.lr", "0.02");
                    draft.set("optimiser.warmup.steps", "2");
                }
                false => draft.set("steps", &steps.to_string()),
            }
        } else if passes {
            draft.set("epochs", &epochs.to_string());
        }
    }

    /// Length and warm-up of an adapter's training; the rest of the paper's settings are the method's defaults.
    fn of_adapter(&self, draft: &mut Draft, train: &Path) -> Result<()> {
        let [pairs, steps, batch] = QUICK;
        if self.setup.quick {
            // The paper's rate is for some hundred steps.
            let settings = [("data.limit", pairs), ("batch", batch), ("steps", steps)];
            settings.iter().for_each(|(key, n)| draft.set(key, &n.to_string()));
            draft.set("optimiser.lr", "2e-3");
            draft.set("optimiser.warmup.steps", "0");
            return Ok(());
        }
        let epochs = self.line.epochs.unwrap_or(ADAPTER_EPOCHS);
        draft.set("epochs", &epochs.to_string());
        let steps = epochs * read(train, &ReadOptions::default())?.pairs.len().div_ceil(ADAPTER_BATCH);
        // The paper's run is more than twice as long as its warm-up; a short one would end in it.
        if steps < 2 * ADAPTER_WARMUP {
            draft.set("optimiser.warmup.steps", &(steps / 10).to_string());
        }
        Ok(())
    }

    /// A hash of everything that decides the vector.
    fn id(&self, recipe: &Recipe, model: &Model, train: &Path) -> Result<String> {
        let mut decisive = recipe.decisive();
        // Places differ from machine to machine; what lies there decides.
        decisive.retain(|key, _| key != "model" && key != "data.train");
        let of = json!({
            "recipe": decisive,
            "model": model.identity().file_sha256,
            "pairs": sha256_of_file(train)?,
            "version": env!("CARGO_PKG_VERSION"),
        });
        Ok(format!("{}-{}-{}", self.set, self.method, &sha256(of.to_string().as_bytes())[..10]))
    }

    /// The vector: from its folder, or made now.
    pub(super) fn vector(
        &self,
        model: &Model,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Arc<SteeringVector>> {
        let recipe = self.recipe(model)?;
        let done = recipe.out.join("vector.safetensors");
        if done.is_file()
            && let Ok(vector) = SteeringVector::load(&done)
        {
            return Ok(Arc::new(vector));
        }
        let run = trained(model, &recipe, observer, cancel)?;
        Ok(Arc::new(run.vectors.into_iter().next().expect("one block, one vector")))
    }

    /// The folder of the adapter, which is there or made now, and how it was trained.
    pub(super) fn adapter(
        &self,
        model: &Model,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<(PathBuf, String)> {
        let recipe = self.recipe(model)?;
        let folder = recipe.out.join("adapter");
        // The last file that is written.
        if !folder.join("steerkit.json").is_file() {
            trained(model, &recipe, observer, cancel)?;
        }
        let length = match (recipe.epochs, recipe.steps) {
            (Some(epochs), _) => format!("{epochs} epochs"),
            (None, steps) => format!("{} steps", steps.unwrap_or(0)),
        };
        let Optimiser::AdamW(AdamW { lr, warmup, .. }) = &recipe.optimiser else {
            unreachable!("a recipe refuses an adapter with another optimiser")
        };
        let warmup = match warmup {
            Warmup::Steps(n) => format!("{n} steps"),
            Warmup::Fraction(share) => format!("{share} of the steps"),
        };
        let batch = recipe.batch;
        let note = format!(
            "DPO-LoRA was trained here: {length} in steps of {batch} pairs, learning rate {lr}, warm-up {warmup}"
        );
        Ok((folder, note))
    }
}

/// Trains in the recipe's folder, on from where an earlier run stopped.
fn trained(
    model: &Model,
    recipe: &Recipe,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let start = if recipe.out.join("recipe.toml").exists() { Start::Resume } else { Start::New };
    match train_from(start, model, recipe, observer, cancel) {
        Err(SteerError::ResumeMismatch { .. }) => {
            train_from(Start::Overwrite, model, recipe, observer, cancel)
        }
        done => done,
    }
}
