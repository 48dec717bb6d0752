//! What many judgments come to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::agreement::{Weights, cohen_kappa};
use super::{Judgment, Scale, Unscored};
use crate::Result;
use crate::ask::AskError;
use crate::text_stats::{Bootstrap, mean};

/// Largest share of replies without a score.
pub const MAX_UNSCORED: f64 = 0.05;
/// Kappa on the reference answers from which on a judge's scores are a headline.
pub const HEADLINE_KAPPA: f64 = 0.4;

/// The scores of some answers. Answers without a score are left out of the mean and counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Answers judged.
    pub n: usize,
    /// Mean of the scores: the grade, or the share of yes.
    pub mean: Option<f64>,
    /// 95% bootstrap interval of the mean.
    pub interval: Option<(f64, f64)>,
    /// Share of the scored answers that show the behaviour.
    pub shows: Option<f64>,
    /// Answers without a score.
    pub unscored: usize,
    /// The same by reason.
    pub reasons: BTreeMap<Unscored, usize>,
}

impl Scores {
    /// Counts judgments.
    pub fn of(judgments: &[Judgment], scale: Scale) -> Self {
        let scores: Vec<f64> = judgments.iter().filter_map(|j| j.score).map(f64::from).collect();
        let shows = judgments.iter().filter_map(|j| j.score).map(|s| f64::from(u8::from(scale.shows(s))));
        let shows: Vec<f64> = shows.collect();
        let mut reasons = BTreeMap::new();
        for reason in judgments.iter().filter_map(|j| j.unscored) {
            *reasons.entry(reason).or_default() += 1;
        }
        let estimate = Bootstrap::default().mean(&scores);
        Self {
            n: judgments.len(),
            mean: estimate.map(|e| e.value),
            interval: estimate.and_then(|e| e.interval),
            shows: mean(&shows),
            unscored: judgments.len() - scores.len(),
            reasons,
        }
    }

    /// Refuses scores of which too many are missing.
    ///
    /// # Errors
    /// [`AskError::Unscored`] past [`MAX_UNSCORED`].
    pub fn check(&self, what: &'static str) -> Result<(), AskError> {
        let Self { unscored, n: total, .. } = *self;
        if unscored as f64 <= MAX_UNSCORED * total as f64 {
            return Ok(());
        }
        Err(AskError::Unscored { what, unscored, total, limit: MAX_UNSCORED })
    }
}

/// How a judge grades answers whose side is known: the chosen and the rejected ones of a preference set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReferenceCheck {
    /// Scores of the chosen answers.
    pub chosen: Scores,
    /// Scores of the rejected answers.
    pub rejected: Scores,
    /// Cohen's kappa of "shows the behaviour" (3 and 4, or yes) against the side of the pair; `None` when the judge
    /// gave no score.
    pub kappa: Option<f64>,
    /// Quadratically weighted kappa of the score against the highest for chosen and the lowest for rejected answers.
    pub weighted_kappa: Option<f64>,
    /// Whether the judge's scores are a headline.
    pub headline: bool,
}

impl ReferenceCheck {
    /// Compares judgments of the two sides. Answers without a score are left out of the kappas.
    pub fn of(chosen: &[Judgment], rejected: &[Judgment], scale: Scale) -> Self {
        let (low, high) = scale.range();
        let scored = |judgments: &[Judgment], side: u8| -> Vec<(u8, u8)> {
            judgments.iter().filter_map(|j| Some((j.score?, side))).collect()
        };
        let pairs = [scored(chosen, high), scored(rejected, low)].concat();
        let sides: Vec<(u8, u8)> = pairs
            .iter()
            .map(|&(score, side)| (scale.shows(score).into(), scale.shows(side).into()))
            .collect();
        let kappa = cohen_kappa(&sides, Weights::None);
        Self {
            chosen: Scores::of(chosen, scale),
            rejected: Scores::of(rejected, scale),
            kappa,
            weighted_kappa: cohen_kappa(&pairs, Weights::Quadratic),
            headline: kappa.is_some_and(|kappa| kappa >= HEADLINE_KAPPA),
        }
    }

    /// What the agreement means, in a sentence.
    pub fn verdict(&self) -> String {
        match self.kappa {
            None => "the judge gave no score to the reference answers: its scores mean nothing".into(),
            Some(kappa) if self.headline => {
                format!(
                    "kappa {kappa:.2} on the reference answers (at least {HEADLINE_KAPPA}): its scores count"
                )
            }
            Some(kappa) => format!(
                "kappa {kappa:.2} on the reference answers, under {HEADLINE_KAPPA}: the judge's scores are shown, but \
                 they are no result"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judgments(scores: &[Option<u8>]) -> Vec<Judgment> {
        let judgment = |score: &Option<u8>| Judgment {
            score: *score,
            unscored: score.is_none().then_some(Unscored::NoScore),
            reply: None,
            note: None,
        };
        scores.iter().map(judgment).collect()
    }

    #[test]
    fn missing_scores_are_counted_and_never_replaced() {
        let scores = Scores::of(&judgments(&[Some(4), Some(2), None]), Scale::Grades);
        assert_eq!((scores.n, scores.mean, scores.shows, scores.unscored), (3, Some(3.0), Some(0.5), 1));
        assert_eq!(scores.reasons, BTreeMap::from([(Unscored::NoScore, 1)]));
        let error = scores.check("answers").unwrap_err();
        assert_eq!(error.to_string(), "1 of 3 answers have no score (33.3%), at most 5% may");
        assert_eq!(error.kind(), steerkit_model::ErrorKind::Failed);
        let none = Scores::of(&judgments(&[None]), Scale::Grades);
        assert_eq!((none.mean, none.shows), (None, None));
        let mut many = vec![Some(3); 19];
        many.push(None);
        assert!(Scores::of(&judgments(&many), Scale::Grades).check("answers").is_ok());
        many.push(None);
        assert!(Scores::of(&judgments(&many), Scale::Grades).check("answers").is_err());
    }

    #[test]
    fn a_judge_is_believed_from_a_kappa_of_0_4() {
        // By hand: 7 of 10 right on each side gives 0.7 agreement against 0.5 by chance.
        let side = |shows: usize| {
            let scores: Vec<Option<u8>> = (0..10).map(|i| Some(if i < shows { 4 } else { 1 })).collect();
            judgments(&scores)
        };
        let check = ReferenceCheck::of(&side(7), &side(3), Scale::Grades);
        assert!((check.kappa.unwrap() - 0.4).abs() < 1e-12 && check.headline, "{check:?}");
        assert!((check.weighted_kappa.unwrap() - 0.4).abs() < 1e-12);
        let worse = ReferenceCheck::of(&side(7), &side(4), Scale::Grades);
        assert!(!worse.headline && worse.verdict().contains("no result"), "{}", worse.verdict());
        // Always the same grade agrees with chance only.
        let same = ReferenceCheck::of(&side(10), &side(10), Scale::Grades);
        assert_eq!(same.kappa, Some(0.0));
        let none = ReferenceCheck::of(&judgments(&[None]), &judgments(&[None]), Scale::Grades);
        assert!(none.kappa.is_none() && !none.headline);
    }
}
