//! What an experiment is run with, and what it needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use steerkit_model::{LoraChoice, LoraMode, Model, OpenOptions, Precision, hub};

use super::experiment::{Experiment, Kind, Line, Measure, Panel};
use crate::eval::Judging;
use crate::recipe::Preset;
use crate::{Result, SteerError};

/// How an experiment is run. Together with the experiment it decides every number but the seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The model: a file, a folder, or the name of a pulled model.
    pub model: String,
    /// Further models: relatives that vectors are carried to, or the paper's second model.
    pub also: Vec<String>,
    /// A LoRA adapter trained by DPO elsewhere, in place of one that is trained here.
    pub adapter: Option<PathBuf>,
    /// The folder with a folder of pairs for each set.
    pub data_root: PathBuf,
    /// Files and folders of sets by their names, in place of those under `data_root`; `mmlu`, `truthfulqa` and `attacks` are
    /// benchmark files.
    pub data: BTreeMap<String, PathBuf>,
    /// Few pairs, steps and questions: whether it runs, not what it finds.
    pub quick: bool,
    /// Test questions of each set at most.
    pub limit: Option<usize>,
    /// Seed of training, of drawn questions and of intervals.
    pub seed: u64,
    /// Where the defaults of trained vectors come from.
    pub preset: Preset,
    /// Keys of the recipes of all vectors; with `dpo-lora.` before them, of the adapter's.
    pub set: Vec<(String, String)>,
    /// Tokens per answer at most.
    pub answer_tokens: usize,
}

impl Setup {
    /// An experiment on `model` with this repository's data in `data`.
    pub fn new(model: &str) -> Self {
        Self {
            model: model.into(),
            also: Vec::new(),
            adapter: None,
            data_root: "data".into(),
            data: BTreeMap::new(),
            quick: false,
            limit: None,
            seed: 0,
            preset: Preset::Auto,
            set: Vec::new(),
            answer_tokens: 200,
        }
    }

    /// Where a set lies.
    pub(super) fn folder(&self, set: &str) -> PathBuf {
        self.data.get(set).cloned().unwrap_or_else(|| self.data_root.join(set))
    }

    /// The file of a split of a set, if there is one.
    pub(super) fn split(&self, set: &str, split: &str) -> Option<PathBuf> {
        let folder = self.folder(set);
        crate::data::ENDS
            .map(|end| folder.join(format!("{split}.{end}")))
            .into_iter()
            .find(|path| path.is_file())
    }

    /// The file of a split of a set.
    ///
    /// # Errors
    /// [`SteerError::Unfit`] when there is none.
    pub(super) fn split_file(&self, set: &str, split: &str) -> Result<PathBuf> {
        self.split(set, split).ok_or_else(|| SteerError::Unfit {
            what: format!(
                "{}: found no {split}.jsonl, {split}.csv or {split}.parquet",
                self.folder(set).display()
            ),
            hint: missing_set(set),
        })
    }

    /// Test questions of a panel at most.
    pub(super) fn questions(&self, panel: &Panel) -> Option<usize> {
        let paper = if self.quick { Some(QUICK_QUESTIONS) } else { panel.questions };
        self.limit.or(paper)
    }
}

/// Questions of a quick run.
const QUICK_QUESTIONS: usize = 6;

fn missing_set(set: &str) -> String {
    format!(
        "run it in a checkout of steerkit, name the folder that holds {set}/ with --data-root, or this set with --data {set}=DIR"
    )
}

/// What an experiment is run with that is no setting.
pub struct Session<'a> {
    /// How models are opened.
    pub options: OpenOptions,
    /// Who judges answers.
    pub judging: Option<Judging<'a>>,
    /// Set to end the run.
    pub cancel: &'a AtomicBool,
}

/// Something that an experiment needs, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// What: a model, a set, a judge.
    pub what: String,
    /// What serves for it here.
    pub found: String,
    /// What to do, where nothing serves.
    pub missing: Option<String>,
}

/// Everything that an experiment needs here, found or missing. Nothing is read but names.
pub fn needs(experiment: &Experiment, setup: &Setup, judge: Option<&str>) -> Vec<Need> {
    let mut all = vec![model_need("model", &setup.model)];
    all.extend(setup.also.iter().map(|name| model_need("further model", name)));
    if let Some(path) = &setup.adapter {
        let missing =
            (!path.exists()).then(|| "name a PEFT folder or a GGUF adapter with --adapter".to_owned());
        all.push(Need { what: "adapter".into(), found: path.display().to_string(), missing });
    }
    let lines =
        || experiment.panels.iter().flat_map(|panel| panel.lines.iter().map(move |line| (panel, line)));
    let mut sets: Vec<String> = Vec::new();
    for (_, line) in lines() {
        sets.extend(line.parts().into_iter().map(|part| part.set).chain([line.behaviour.clone()]));
    }
    sets.sort();
    sets.dedup();
    for set in sets {
        let there = ["train", "test"].iter().all(|split| setup.split(&set, split).is_some());
        all.push(Need {
            found: setup.folder(&set).display().to_string(),
            missing: (!there).then(|| missing_set(&set)),
            what: format!("pairs of {set} (train and test)"),
        });
    }
    let of_steered =
        |wanted: &[Measure]| lines().any(|(p, l)| p.kind == Kind::Steered && wanted.contains(&p.measure(l)));
    let mut file = |name: &str, what: &str, instead: &str| {
        let path = setup.data.get(name);
        let found = path
            .map_or_else(|| format!("{instead} (--data {name}=PATH for the real one)"), |path| show(path));
        let missing =
            path.filter(|path| !path.exists()).map(|_| format!("give its place with --data {name}=PATH"));
        all.push(Need { what: what.into(), found, missing });
    };
    if of_steered(&[Measure::Mmlu]) {
        file("mmlu", "MMLU", "48 questions of our own");
    }
    if of_steered(&[Measure::Mc1, Measure::Mc2]) {
        file("truthfulqa", "TruthfulQA", "the pairs of truthfulness, true against false answer");
    }
    if of_steered(&[Measure::Compliance]) {
        file("attacks", "prompts to attack with", "harmless prompts of the refusal pairs");
    }
    if of_steered(&[Measure::Answers, Measure::Compliance]) {
        let without =
            "none: margins of the reference answers, refusals by their wording (--judge for scores)";
        all.push(Need { what: "judge".into(), found: judge.unwrap_or(without).into(), missing: None });
    }
    all
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn model_need(what: &str, name: &str) -> Need {
    let found = hub::resolve(name);
    Need {
        what: format!("{what} {name}"),
        missing: found.as_ref().err().map(|e| e.hint().unwrap_or_else(|| "steerkit model pull NAME".into())),
        found: found.map_or_else(|_| "nothing".into(), |path| path.display().to_string()),
    }
}

/// Refuses to begin when something is missing.
///
/// # Errors
/// [`SteerError::Unfit`] naming everything that is missing and what to do about it.
pub fn check(experiment: &Experiment, needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| need.missing.is_some()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what: Vec<String> =
        missing.iter().map(|need| format!("{} (looked at {})", need.what, need.found)).collect();
    let hints: Vec<&str> = missing.iter().filter_map(|need| need.missing.as_deref()).collect();
    Err(SteerError::Unfit {
        what: format!("{} lacks {}", experiment.id, what.join(", ")),
        hint: hints.first().copied().unwrap_or_default().to_owned(),
    })
}

/// A model that can be opened.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Source {
    path: PathBuf,
    lora: Option<(PathBuf, f32)>,
    precision: Precision,
}

/// The models of a run, one open at a time.
pub(super) struct Models<'a> {
    setup: &'a Setup,
    options: OpenOptions,
    open: Option<(Source, Arc<Model>)>,
}

impl<'a> Models<'a> {
    pub(super) fn new(setup: &'a Setup, options: OpenOptions) -> Self {
        Self { setup, options, open: None }
    }

    /// The model that a line measures, and what it is where it only stands in.
    pub(super) fn of_line(&mut self, line: &Line) -> Result<(Arc<Model>, Option<String>)> {
        let Setup { model, also, .. } = self.setup;
        let (name, precision, note) = match (line.slot, line.transferred) {
            (0, _) => (model, self.options.precision, None),
            (slot, true) => match also.get(slot - 1) {
                Some(other) => (other, self.options.precision, None),
                None => (
                    model,
                    Precision::Bf16,
                    Some("without --also, vectors are carried to the same model in bfloat16".to_owned()),
                ),
            },
            (slot, false) => match also.get(slot - 1) {
                Some(other) => (other, self.options.precision, None),
                None => (
                    model,
                    self.options.precision,
                    Some(format!("without --also, {model} is measured for both models")),
                ),
            },
        };
        Ok((self.get(Source { path: hub::resolve(name)?, lora: None, precision })?, note))
    }

    /// The model that a line's vector is made on.
    pub(super) fn of_vector(&mut self, line: &Line) -> Result<Arc<Model>> {
        match line.transferred {
            true => self.of_line(&Line { slot: 0, ..line.clone() }).map(|found| found.0),
            false => self.of_line(line).map(|found| found.0),
        }
    }

    /// The model with an adapter on it, `weight` times.
    pub(super) fn adapted(&mut self, adapter: &Path, weight: f32) -> Result<Arc<Model>> {
        let path = hub::resolve(&self.setup.model)?;
        self.get(Source { path, lora: Some((adapter.to_owned(), weight)), precision: self.options.precision })
    }

    fn get(&mut self, source: Source) -> Result<Arc<Model>> {
        if let Some((_, model)) = self.open.as_ref().filter(|(open, _)| *open == source) {
            return Ok(Arc::clone(model));
        }
        // Two large models need not fit at the same time.
        self.open = None;
        let lora =
            source.lora.iter().map(|(path, weight)| LoraChoice { path: path.clone(), weight: *weight });
        let options = OpenOptions { precision: source.precision, ..self.options };
        let model =
            Model::open_with_lora(&source.path, &lora.collect::<Vec<_>>(), LoraMode::Beside, &options)?;
        let model = Arc::new(model);
        self.open = Some((source, Arc::clone(&model)));
        Ok(model)
    }
}

/// The block of a model at the depth of the paper's block `layer` of `blocks`.
pub(super) fn block(layer: usize, blocks: usize, n_layers: usize) -> usize {
    if n_layers == blocks {
        return layer.min(n_layers - 1);
    }
    let depth = (layer + 1) as f64 / blocks as f64 * n_layers as f64;
    (depth.round() as usize).clamp(1, n_layers) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_keep_their_depth() {
        assert_eq!([15, 0, 31].map(|layer| block(layer, 32, 32)), [15, 0, 31]);
        assert_eq!([15, 0, 31].map(|layer| block(layer, 32, 30)), [14, 0, 29]);
        assert_eq!([11, 15, 25].map(|layer| block(layer, 32, 4)), [1, 1, 2]);
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let experiment = Experiment::find("fig1").unwrap();
        let setup = Setup { data_root: "nowhere".into(), ..Setup::new("no-such-model") };
        let needs = needs(&experiment, &setup, None);
        let error = check(&experiment, &needs).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("no-such-model") && message.contains("nowhere/power-seeking"), "{message}");
        assert!(needs.iter().any(|need| need.what == "judge" && need.missing.is_none()));
    }
}
