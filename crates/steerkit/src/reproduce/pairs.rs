//! Training pairs with something done to them, and pairs whose answers the model wrote itself.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use steerkit_model::{Completion, Finish, Model, Request};

use super::experiment::Pairs;
use super::vectors::{Order, QUICK};
use crate::Result;
use crate::baseline::{Baseline, Prompts};
use crate::data::{Dataset, PreferencePair, ReadOptions, read};
use crate::error::malformed;
use crate::eval::stats::draw;
use crate::eval::{Progress, Watch};
use crate::files::{sha256, sha256_of_file, write_atomic};
use crate::objective::Direction;
use crate::recipe::Draft;
use crate::text_stats::words;

/// Tokens of an answer that the model writes, at most; in a quick run.
const WRITTEN: [usize; 2] = [64, 16];
/// Answers written at the same time.
const BATCH: usize = 32;

impl Order<'_> {
    /// The training file: the set's own, or one that was made of it. The one of [`Pairs::Synthetic`] is there after
    /// [`Self::write_synthetic`].
    pub(super) fn pairs(&self, model: &Model) -> Result<PathBuf> {
        let file = self.setup.split_file(self.set, "train")?;
        let altered = match self.line.pairs {
            None | Some(Pairs::Clean) => return Ok(file),
            Some(Pairs::Synthetic) => return self.synthetic(model, &file),
            Some(altered) => altered,
        };
        let data = read(&file, &ReadOptions::default())?;
        let path = self.made_of_set(altered.name());
        write(&path, &alter(&data, altered, self.setup.seed))?;
        Ok(path)
    }

    fn made_of_set(&self, name: &str) -> PathBuf {
        self.out.join("pairs").join(format!("{}-{name}.jsonl", self.set))
    }

    /// The file of the pairs that `model` writes, named by what decides them.
    fn synthetic(&self, model: &Model, file: &Path) -> Result<PathBuf> {
        let of = json!({
            "model": model.identity().file_sha256,
            "questions": sha256_of_file(file)?,
            "sentences": self.line.system_prompt,
            "quick": self.setup.quick,
        });
        Ok(self.made_of_set(&format!(
            "{}-{}",
            Pairs::Synthetic.name(),
            &sha256(of.to_string().as_bytes())[..8]
        )))
    }

    /// Has the model answer the set's questions behind the line's two sentences, greedily: what it writes when it is
    /// asked for the behaviour is the chosen answer, and when it is asked for the opposite the rejected one. Questions
    /// that are answered alike are left out. Gives a note of how many pairs there are.
    ///
    /// # Errors
    /// Those of the model; [`crate::SteerError::Malformed`] when it answers every question alike.
    pub(super) fn write_synthetic(
        &self,
        model: &Model,
        watch: &mut Watch<'_>,
        cancel: &AtomicBool,
    ) -> Result<String> {
        let file = self.setup.split_file(self.set, "train")?;
        let path = self.synthetic(model, &file)?;
        let mut questions = read(&file, &ReadOptions::default())?.pairs;
        if self.setup.quick {
            questions.truncate(QUICK[0]);
        }
        if !path.is_file() {
            self.write_answers(model, &questions, &path, watch, cancel)?;
        }
        let kept = read(&path, &ReadOptions::default())?.pairs.len();
        Ok(format!(
            "synthetic {}: the model answered {kept} of {} questions differently when it was asked for the behaviour and \
             for its opposite",
            self.set,
            questions.len()
        ))
    }

    fn write_answers(
        &self,
        model: &Model,
        questions: &[PreferencePair],
        path: &Path,
        watch: &mut Watch<'_>,
        cancel: &AtomicBool,
    ) -> Result<()> {
        let sentences = self.line.system_prompt.clone().expect("checked with the experiment");
        let mut draft = Draft::default();
        draft.set_text("model", &self.setup.model);
        draft.set_text("data.train", &path.display().to_string());
        draft.set_text("out", &self.out.display().to_string());
        draft.set("layer", "0");
        let recipe = draft.resolve()?;
        let mut requests = Vec::new();
        for direction in [Direction::Toward, Direction::Away] {
            let baseline = Baseline::SystemPrompt(sentences.clone());
            let prompts = Prompts::new(model, &recipe, &baseline, direction, &[])?;
            for pair in questions {
                let max_tokens = WRITTEN[usize::from(self.setup.quick)];
                requests.push(Request {
                    prompt: prompts.prompt(&pair.prompt)?,
                    max_tokens,
                    ..Request::default()
                });
            }
        }
        let (total, mut done) = (requests.len(), 0);
        let written = model.generate(requests, BATCH, &mut |event| {
            done += usize::from(event.news.as_ref().is_ok_and(|new| new.finish.is_some()));
            watch(Progress { what: "writing pairs", done, total });
            if cancel.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let pairs = of_answers(questions, &written);
        if pairs.is_empty() {
            let hint = "other sentences (system-prompt in the experiment), or a larger model";
            return Err(malformed(
                path,
                "pairs",
                "the same answer to both sentences",
                "two that differ",
                hint,
            ));
        }
        write(path, &pairs)
    }
}

/// Questions with their answers: those that ask for the behaviour first, then the others.
fn of_answers(questions: &[PreferencePair], written: &[Completion]) -> Vec<PreferencePair> {
    let (toward, away) = written.split_at(questions.len());
    let pair = |((asked, chosen), rejected): ((&PreferencePair, &Completion), &Completion)| PreferencePair {
        prompt: asked.prompt.clone(),
        chosen: whole_sentences(chosen).to_owned(),
        rejected: whole_sentences(rejected).to_owned(),
    };
    let differ = |pair: &PreferencePair| {
        pair.chosen != pair.rejected && !pair.chosen.is_empty() && !pair.rejected.is_empty()
    };
    questions.iter().zip(toward).zip(away).map(pair).filter(differ).collect()
}

/// The text of an answer, without a last sentence that was cut off where there is an earlier one.
fn whole_sentences(answer: &Completion) -> &str {
    let text = answer.text.trim();
    match (answer.finish, text.rfind(['.', '!', '?'])) {
        (Finish::Length, Some(end)) => &text[..=end],
        _ => text,
    }
}

fn write(path: &Path, pairs: &[PreferencePair]) -> Result<()> {
    let lines = pairs.iter().map(|pair| {
        let line = json!({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected});
        format!("{line}\n")
    });
    fs_err::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    Ok(write_atomic(path, lines.collect::<String>().as_bytes())?)
}

/// The pairs with what `how` says done to them.
fn alter(data: &Dataset, how: Pairs, seed: u64) -> Vec<PreferencePair> {
    let n = data.pairs.len();
    let mut pairs = data.pairs.clone();
    let share = |part: usize, of: usize| draw(n, (n * part).div_ceil(of), seed);
    match how {
        Pairs::Clean | Pairs::Synthetic => pairs,
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
    let bags: Vec<BTreeSet<String>> =
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
