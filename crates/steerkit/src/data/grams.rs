//! Words, openings and shared runs of words.

use std::collections::{BTreeSet, HashMap, HashSet};

/// Words that two prompts may not share in a row.
pub(super) const GRAM: usize = 6;

/// The words of a text: runs of `[a-z0-9']` of its lower-cased form. Other scripts have none.
pub(super) fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let runs = lower.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '\''));
    runs.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The first four words, or all where there are fewer; `None` without words.
pub(super) fn opening(text: &str) -> Option<Vec<String>> {
    let mut words = words(text);
    words.truncate(4);
    (!words.is_empty()).then_some(words)
}

/// Words that both texts have over words that either has; 1 when neither has any.
pub(super) fn jaccard(a: &str, b: &str) -> f64 {
    let (a, b): (HashSet<_>, HashSet<_>) = (words(a).into_iter().collect(), words(b).into_iter().collect());
    let union = a.union(&b).count();
    if union == 0 { 1.0 } else { a.intersection(&b).count() as f64 / union as f64 }
}

/// Most earlier prompts that one prompt is said to share a run with: keeps a file of one template from taking
/// quadratic time.
const MAX_SHARING: usize = 1000;

/// The runs of [`GRAM`] words of a text, each once and sorted.
fn grams(text: &str) -> BTreeSet<String> {
    words(text).windows(GRAM).map(|run| run.join(" ")).collect()
}

/// Which prompts have a run of [`GRAM`] words.
#[derive(Default)]
pub(super) struct GramIndex {
    prompts: HashMap<String, Vec<usize>>,
    /// For each prompt, the number of the last prompt that was found to share a run with it.
    found_by: Vec<usize>,
}

impl GramIndex {
    /// Adds the next prompt and gives the earlier ones that share a run with it, in order, at most
    /// [`MAX_SHARING`].
    pub(super) fn add(&mut self, prompt: &str) -> Vec<usize> {
        let this = self.found_by.len();
        let mut sharing = Vec::new();
        for gram in grams(prompt) {
            let having = self.prompts.entry(gram).or_default();
            for &other in having.iter() {
                if sharing.len() == MAX_SHARING {
                    break;
                }
                if std::mem::replace(&mut self.found_by[other], this) != this {
                    sharing.push(other);
                }
            }
            having.push(this);
        }
        self.found_by.push(this);
        sharing.sort_unstable();
        sharing
    }
}
