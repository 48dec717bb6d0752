//! Log-probabilities of many continuations under every strength of a plan, as one stream of batches.

use steerkit_model::{EditedScores, Pack, TextEdits};

use super::subject::{Progress, Steering, Subject, Watch};
use crate::{PromptShape, Result};

/// Rows of a batch, without those that its texts share.
const ROWS: usize = 1024;

/// A prompt with texts that may continue it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompted {
    /// Its tokens, at least one.
    pub prompt: Vec<u32>,
    /// What a scope must know of it.
    pub shape: PromptShape,
    /// The continuations, at least one token each.
    pub continuations: Vec<Vec<u32>>,
}

impl Prompted {
    fn rows(&self) -> usize {
        self.prompt.len() + self.continuations.iter().map(|c| c.len() - 1).sum::<usize>()
    }
}

/// Scores of one prompt's continuations: log-probabilities of their tokens and, where asked for, the divergence of each
/// prediction from the plain model's.
pub type ContinuationScores = Vec<EditedScores>;

/// The scores of every text's continuations under every strength: `[strength][text][continuation]`.
///
/// Blocks below the first edit run once for all strengths, and what neighbouring prompts begin with has its rows once
/// where the plan acts on all tokens alike.
///
/// # Errors
/// Those of the plans and the model, a plan without effect; [`steerkit_model::ModelError::Interrupted`].
pub fn score(
    subject: &Subject<'_>,
    texts: &[Prompted],
    divergences: bool,
    what: &str,
    watch: &mut Watch<'_>,
) -> Result<Vec<Vec<ContinuationScores>>> {
    if let Some(first) = texts.first() {
        subject.check_effect(&first.prompt, &first.shape)?;
    }
    let steerings: Vec<&Steering> = subject.steerings.iter().collect();
    score_under(subject, &steerings, texts, divergences, what, watch)
}

/// [`score`] under some strengths only.
pub(super) fn score_under(
    subject: &Subject<'_>,
    steerings: &[&Steering],
    texts: &[Prompted],
    divergences: bool,
    what: &str,
    watch: &mut Watch<'_>,
) -> Result<Vec<Vec<ContinuationScores>>> {
    let share = steerings.iter().all(|steering| !steering.plan.depends_on_prompt());
    let mut all = vec![Vec::with_capacity(texts.len()); steerings.len()];
    let mut rest = texts;
    while !rest.is_empty() {
        subject.go_on()?;
        watch(Progress { what, done: texts.len() - rest.len(), total: texts.len() });
        let batch = Batch::fill(rest, share);
        let plans = steerings.iter().map(|steering| {
            let edits = |first: &usize| steering.plan.edits(subject.model.config(), &rest[*first].shape);
            batch.firsts.iter().map(edits).collect::<Result<TextEdits>>()
        });
        let scores =
            subject.model.score_edited(&batch.pack, &plans.collect::<Result<Vec<_>>>()?, divergences)?;
        for (all, scores) in all.iter_mut().zip(&scores) {
            all.extend(batch.spans.iter().map(|spans| spans.iter().map(|span| part(scores, span)).collect()));
        }
        rest = &rest[batch.spans.len()..];
    }
    watch(Progress { what, done: texts.len(), total: texts.len() });
    Ok(all)
}

fn part(scores: &EditedScores, span: &std::ops::Range<usize>) -> EditedScores {
    let divergences = scores.divergences.get(span.clone()).unwrap_or_default().to_vec();
    EditedScores { logps: scores.logps[span.clone()].to_vec(), divergences }
}

/// Sum of a continuation's log-probabilities in nats, in order, in f64.
pub fn sum(scores: &EditedScores) -> f64 {
    scores.logps.iter().map(|&x| f64::from(x)).sum()
}

/// The first texts of a list in one pack.
#[derive(Default)]
struct Batch {
    pack: Pack,
    /// The first text of each text of the pack.
    firsts: Vec<usize>,
    /// For each text the places of its continuations in the pack's scored tokens.
    spans: Vec<Vec<std::ops::Range<usize>>>,
}

impl Batch {
    fn fill(texts: &[Prompted], share: bool) -> Self {
        let mut batch = Self::default();
        let mut rows = 0;
        while batch.spans.len() < texts.len() {
            let at = batch.spans.len();
            let room = ROWS.saturating_sub(rows);
            if rows > 0 && texts[at].rows() > room {
                break;
            }
            let (count, shared) = group(&texts[at..], room, share);
            batch.push(&texts[at..at + count], at, shared);
            rows += texts[at..at + count].iter().map(|text| text.rows() - shared).sum::<usize>();
        }
        batch
    }

    fn push(&mut self, texts: &[Prompted], first: usize, shared: usize) {
        self.firsts.push(first);
        let trunk = (shared > 0).then(|| self.pack.push(None, &texts[0].prompt[..shared]));
        for text in texts {
            let prompt = self.pack.push(trunk, &text.prompt[shared..]);
            let spans = text.continuations.iter().map(|c| self.pack.push_response(prompt, c));
            self.spans.push(spans.collect());
        }
    }
}

/// How many of the first texts are read as one, and how many tokens their prompts begin with together: a text joins
/// while that saves rows. A prompt's last token is never shared, for it predicts the continuations.
fn group(texts: &[Prompted], room: usize, share: bool) -> (usize, usize) {
    let first = &texts[0];
    if !share {
        return (1, 0);
    }
    let (mut shared, mut own) = (first.prompt.len() - 1, first.rows());
    let mut count = 1;
    for text in &texts[1..] {
        let common = first.prompt.iter().zip(&text.prompt).take_while(|(a, b)| a == b).count();
        let common = common.min(shared).min(text.prompt.len() - 1);
        let saved = common * count;
        let total = own + text.rows() - common * (count + 1);
        if common == 0 || saved < shared * (count - 1) || total > room {
            break;
        }
        (shared, own, count) = (common, own + text.rows(), count + 1);
    }
    (count, if count > 1 { shared } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(prompt: &[u32], continuation: &[u32]) -> Prompted {
        Prompted {
            prompt: prompt.to_vec(),
            shape: PromptShape { len: prompt.len(), last_user: 0..0 },
            continuations: vec![continuation.to_vec()],
        }
    }

    #[test]
    fn neighbours_share_what_saves_rows() {
        let texts = [
            text(&[1, 2, 3, 4, 5], &[9]),
            text(&[1, 2, 3, 4, 6], &[9, 9]),
            text(&[1, 2, 3, 4, 5, 7], &[9]),
            text(&[1, 8, 8, 8], &[9]),
            text(&[1, 8, 8, 7], &[9]),
        ];
        let batch = Batch::fill(&texts, true);
        assert_eq!(batch.firsts, [0, 3]);
        assert_eq!(batch.pack.tokens, [1, 2, 3, 4, 5, 6, 9, 5, 7, 1, 8, 8, 8, 7]);
        assert_eq!(batch.spans, [[0..1], [1..3], [3..4], [4..5], [5..6]]);
        let apart = Batch::fill(&texts, false);
        assert_eq!(apart.firsts, [0, 1, 2, 3, 4]);
        assert_eq!(apart.pack.len(), texts.iter().map(Prompted::rows).sum::<usize>());
    }

    #[test]
    fn a_batch_ends_where_it_is_full() {
        let long: Vec<u32> = (0..700).collect();
        let texts = [text(&long, &[1]), text(&long[1..], &[1]), text(&[5, 6], &[1])];
        assert_eq!(Batch::fill(&texts, false).spans.len(), 1);
        assert_eq!(Batch::fill(&texts[1..], false).spans.len(), 2);
        // A text longer than a batch stands alone, and equal prompts cost one row more each.
        let endless: Vec<u32> = (0..3000).collect();
        assert_eq!(Batch::fill(&[text(&endless, &[1]), text(&[5, 6], &[1])], true).spans.len(), 1);
        assert_eq!(Batch::fill(&vec![text(&long, &[1]); 300], true).spans.len(), 300);
    }
}
