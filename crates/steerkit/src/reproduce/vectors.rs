//! The vectors and adapters of an experiment: each is trained once, in a folder of its own, and taken from there afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use steerkit_model::Model;

use super::experiment::{Line, Pairs, Panel};
use super::setup::{Setup, block};
use crate::data::{Dataset, PreferencePair, ReadOptions, read};
use crate::eval::stats::draw;
use crate::files::{sha256, sha256_of_file, write_atomic};
use crate::optim::{AdamW, Optimiser, Warmup};
use crate::recipe::{Draft, Method, Recipe};
use crate::text_stats::words;
use crate::train::{Observer, Outcome, Start, train_from};
use crate::{Result, SteerError, SteeringVector};

/// Training pairs, steps and pairs per step of a quick run.
const QUICK: [usize; 3] = [16, 4, 4];
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
        let train = self.pairs()?;
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

    /// The training file: the set's own, or one that was made of it.
    pub(super) fn pairs(&self) -> Result<PathBuf> {
        let file = self.setup.split_file(self.set, "train")?;
        let altered = match self.line.pairs {
            None | Some(Pairs::Clean) => return Ok(file),
            Some(altered) => altered,
        };
        let data = read(&file, &ReadOptions::default())?;
        let folder = self.out.join("pairs");
        fs_err::create_dir_all(&folder)?;
        let path = folder.join(format!("{}-{}.jsonl", self.set, altered.name()));
        let lines = alter(&data, altered, self.setup.seed).into_iter().map(|pair| {
            let line = json!({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected});
            format!("{line}\n")
        });
        write_atomic(&path, lines.collect::<String>().as_bytes())?;
        Ok(path)
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

/// The pairs with what `how` says done to them.
fn alter(data: &Dataset, how: Pairs, seed: u64) -> Vec<PreferencePair> {
    let n = data.pairs.len();
    let mut pairs = data.pairs.clone();
    let share = |part: usize, of: usize| draw(n, (n * part).div_ceil(of), seed);
    match how {
        Pairs::Clean => pairs,
        Pairs::Noisy20 | Pairs::Noisy40 => {
            for i in share(if how == Pairs::Noisy20 { 1 } else { 2 }, 5) {
                let pair = &mut pairs[i];
                std::mem::swap(&mut pair.chosen, &mut pair.rejected);
            }
            pairs
        }
        Pairs::Few => share(1, 8).into_iter().map(|i| pairs[i].clone()).collect(),
        Pairs::Narrow => narrow(&pairs, n.div_ceil(8)),
        Pairs::Mismatched => {
            let shift = 1 + n / 3;
            let moved = |i: usize| {
                let other = &data.pairs[(i + shift) % n];
                PreferencePair { prompt: pairs[i].prompt.clone(), ..other.clone() }
            };
            (0..n).map(moved).collect()
        }
    }
}

/// The `count` pairs around the question that shares most words with its nearest ones.
fn narrow(pairs: &[PreferencePair], count: usize) -> Vec<PreferencePair> {
    let bags: Vec<std::collections::BTreeSet<String>> =
        pairs.iter().map(|pair| words(&pair.prompt).into_iter().filter(|w| w.len() > 3).collect()).collect();
    let likeness = |a: usize, b: usize| {
        let common = bags[a].intersection(&bags[b]).count() as f64;
        common / (bags[a].len() + bags[b].len()).max(1) as f64
    };
    let around = |centre: usize| {
        let mut by: Vec<(f64, usize)> = (0..pairs.len())
            .map(|i| (if i == centre { f64::INFINITY } else { likeness(centre, i) }, i))
            .collect();
        by.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        by.truncate(count);
        by
    };
    let sum = |nearest: &[(f64, usize)]| nearest.iter().skip(1).map(|n| n.0).sum::<f64>();
    let best = (0..pairs.len()).map(around).max_by(|a, b| sum(a).total_cmp(&sum(b))).unwrap_or_default();
    let mut rows: Vec<usize> = best.into_iter().map(|n| n.1).collect();
    rows.sort_unstable();
    rows.into_iter().map(|i| pairs[i].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(n: usize) -> Dataset {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/wealth-seeking/train.jsonl");
        let mut data = read(&path, &ReadOptions::default()).unwrap();
        data.pairs.truncate(n);
        data
    }

    #[test]
    fn pairs_are_altered_as_their_names_say() {
        let data = pairs(40);
        let exchanged = |how| {
            let altered = alter(&data, how, 3);
            altered.iter().zip(&data.pairs).filter(|(a, b)| a.chosen == b.rejected).count()
        };
        assert_eq!((exchanged(Pairs::Noisy20), exchanged(Pairs::Noisy40)), (8, 16));
        assert_eq!(alter(&data, Pairs::Few, 3).len(), 5);
        let narrow = alter(&data, Pairs::Narrow, 3);
        assert_eq!(narrow.len(), 5);
        assert!(narrow.iter().all(|pair| data.pairs.contains(pair)));
        let moved = alter(&data, Pairs::Mismatched, 3);
        assert!(moved.iter().zip(&data.pairs).all(|(a, b)| a.prompt == b.prompt && a.chosen != b.chosen));
        assert_eq!(alter(&data, Pairs::Clean, 3), data.pairs);
    }
}
