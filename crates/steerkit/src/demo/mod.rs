//! The demonstration: train a formality vector on a small model, measure it, and show what it does.
//!
//! Everything is fixed (pairs, layer, recipe, questions), so that the numbers can be compared between machines and
//! versions. The pairs are those of `data/formality`, built into the library.

mod page;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use steerkit_model::prompting::Prompting;
use steerkit_model::{Model, Sampling};

use crate::data::PreferencePair;
use crate::eval::shading::side_by_side;
use crate::eval::{AnswerRequest, Answers, SurfacePoint, answer, surface_points};
use crate::files::write_atomic;
use crate::recipe::{Draft, Recipe};
use crate::report::Comparison;
use crate::surface::SurfaceMetric;
use crate::train::{EvalPoint, Event, Outcome, Start, train_from};
use crate::{Result, SteerError};

/// The recipe but for its paths. Nothing is kept for later runs, so that every run takes the same time.
const RECIPE: &str = "\
preset = \"auto\"
[eval]
multipliers = [-1.0, -0.5, 0.0, 0.5, 1.0]
every_epochs = 2
[cache]
enabled = false
";
/// The block after which the vector is added; the demonstration is made for SmolLM2-135M.
const LAYER: usize = 15;
/// Pairs taken of each split: the first of the file with lines of at most [`MAX_LINE`] bytes.
const PAIRS: [(&str, &str, usize); 3] = [
    ("train", include_str!("../../../../data/formality/train.jsonl"), 64),
    ("valid", include_str!("../../../../data/formality/valid.jsonl"), 24),
    ("test", include_str!("../../../../data/formality/test.jsonl"), 40),
];
/// Keeps the pairs below 90 packed tokens on average.
const MAX_LINE: usize = 360;
/// Multipliers that questions are answered at.
const ANSWERED_AT: [f64; 3] = [-1.0, 0.0, 1.0];
/// Questions that are answered for the surface metric: the prompts of the test pairs.
const QUESTIONS: usize = 40;
/// Questions whose answers are shown.
const SHOWN: usize = 5;
/// Tokens per answer at most.
const MAX_TOKENS: usize = 32;
/// Answers computed at the same time.
const MAX_BATCH: usize = 40;

/// What happens meanwhile.
#[derive(Debug)]
#[non_exhaustive]
pub enum DemoEvent<'a> {
    /// Training says something.
    Train(Event<'a>),
    /// Questions are being answered.
    Answering {
        /// Answers that are complete.
        done: usize,
        /// Answers in all.
        total: usize,
    },
    /// The answers are being read by the plain model.
    Reading,
}

/// What the demonstration found.
#[derive(Clone, Debug, Serialize)]
pub struct Demo {
    /// Wall-clock seconds, without fetching and opening the model.
    pub seconds: f64,
    /// Seconds of each part.
    pub phases: Vec<(&'static str, f64)>,
    /// What each multiplier does to the test pairs.
    pub eval: Vec<EvalPoint>,
    /// How the answers read.
    pub surface: Vec<SurfacePoint>,
    /// A few questions with their answers.
    pub answers: Vec<Comparison>,
    /// The vector's file.
    pub vector: PathBuf,
    /// The page that shows it all.
    pub report: PathBuf,
}

/// Runs the demonstration and writes `report.html` and its figures as SVG files, `vector.safetensors`, `metrics.jsonl`, `recipe.toml` and the
/// pairs into `folder`, in place of an earlier demonstration. `model_name` is what the recipe calls the model, and
/// `command` what the report says it was made with.
///
/// # Errors
/// Those of training and generation; [`SteerError::Interrupted`] when `cancel` is set.
pub fn run(
    model: &Model,
    model_name: &str,
    folder: &Path,
    command: &str,
    observer: &mut dyn FnMut(DemoEvent<'_>),
    cancel: &AtomicBool,
) -> Result<Demo> {
    let began = Instant::now();
    let mut phases = Vec::new();
    let mut page = page::Page::new(command);
    let recipe = recipe(model_name, folder)?;
    let outcome = train_from(
        Start::Overwrite,
        model,
        &recipe,
        &mut |event: Event<'_>| {
            page.observe(&event);
            observer(DemoEvent::Train(event));
        },
        cancel,
    )?;
    phases.push(("train", began.elapsed().as_secs_f64()));

    let test = pairs(PAIRS[2].1, PAIRS[2].2);
    let answering = Instant::now();
    let answers = answers(model, &recipe, &outcome, &test, observer, cancel)?;
    phases.push(("answer", answering.elapsed().as_secs_f64()));

    observer(DemoEvent::Reading);
    let reading = Instant::now();
    let surface = surface_points(model, &answers, SurfaceMetric::Formality, cancel)?;
    phases.push(("read", reading.elapsed().as_secs_f64()));

    let questions: Vec<&str> = test.iter().take(SHOWN).map(|pair| pair.prompt.as_str()).collect();
    let shown = side_by_side(model, &answers.asked(&questions), cancel)?;
    let demo = Demo {
        seconds: began.elapsed().as_secs_f64(),
        phases,
        eval: outcome.eval.clone(),
        surface,
        answers: shown,
        vector: outcome.folder.join("vector.safetensors"),
        report: outcome.folder.join("report.html"),
    };
    let report = page.report(model, &recipe, &outcome, &demo)?;
    write_atomic(&demo.report, report.html().as_bytes())?;
    for chart in report.charts() {
        chart.save(&outcome.folder)?;
    }
    Ok(Demo { seconds: began.elapsed().as_secs_f64(), ..demo })
}

/// The recipe, with its pairs written beside it so that it can be run again.
fn recipe(model_name: &str, folder: &Path) -> Result<Recipe> {
    let pairs_folder = folder.join("pairs");
    fs_err::create_dir_all(&pairs_folder)?;
    let mut draft = Draft::parse(RECIPE);
    draft.set_text("model", model_name);
    draft.set_text("out", &folder.to_string_lossy());
    draft.set("layer", &LAYER.to_string());
    for (split, text, n) in PAIRS {
        let path = pairs_folder.join(format!("{split}.jsonl"));
        let text: String = lines(text, n).map(|line| format!("{line}\n")).collect();
        write_atomic(&path, text.as_bytes())?;
        draft.set_text(&format!("data.{split}"), &path.to_string_lossy());
    }
    draft.resolve()
}

/// The first `n` lines of a built-in file that are not too long.
fn lines(text: &str, n: usize) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| line.len() <= MAX_LINE).take(n)
}

/// The first `n` pairs of a built-in file that are not too long.
fn pairs(text: &str, n: usize) -> Vec<PreferencePair> {
    let pair = |line| serde_json::from_str(line).expect("the built-in pairs are read in a test");
    lines(text, n).map(pair).collect()
}

fn answers(
    model: &Model,
    recipe: &Recipe,
    outcome: &Outcome,
    test: &[PreferencePair],
    observer: &mut dyn FnMut(DemoEvent<'_>),
    cancel: &AtomicBool,
) -> Result<Answers> {
    let questions: Vec<&str> = test.iter().take(QUESTIONS).map(|pair| pair.prompt.as_str()).collect();
    let total = questions.len() * ANSWERED_AT.len();
    let prompting = Prompting {
        system: Some(recipe.prompt.system.clone()),
        ..Prompting::new(model.tokenizer()?, model.chat_template()?)
    };
    let request = AnswerRequest {
        questions: &questions,
        multipliers: &ANSWERED_AT,
        sampling: Sampling::default(),
        max_tokens: MAX_TOKENS,
        max_batch: MAX_BATCH,
    };
    let vector = Arc::new(outcome.vectors[0].clone());
    let answers = answer(model, &prompting, &vector, &request, &mut |done| {
        observer(DemoEvent::Answering { done, total });
        let stop = cancel.load(Ordering::Relaxed);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    answers.map_err(|error| match cancel.load(Ordering::Relaxed) {
        true => SteerError::Interrupted {
            step: outcome.steps,
            total: outcome.steps,
            folder: outcome.folder.clone(),
        },
        false => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_pairs_are_whole() {
        for (split, text, n) in PAIRS {
            let pairs = pairs(text, n);
            assert_eq!(pairs.len(), n, "{split}");
            assert!(pairs.iter().all(|p| !p.prompt.is_empty() && p.chosen != p.rejected));
        }
    }

    #[test]
    fn the_recipe_resolves() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = recipe("smollm2-135m", folder.path()).unwrap();
        assert_eq!(recipe.eval.multipliers, [-1.0, -0.5, 0.0, 0.5, 1.0]);
        let train = std::fs::read_to_string(folder.path().join("pairs/train.jsonl")).unwrap();
        assert_eq!(train.lines().count(), 64);
    }
}
