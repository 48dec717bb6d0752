//! What needs no vector: examples in the context, and a sentence in the system prompt. They are measured like vectors,
//! by the margin of the same responses over the plain prompt.

use rand::seq::index;
use serde::{Deserialize, Serialize};
use steerkit_model::{Model, Prompting};

use crate::data::PreferencePair;
use crate::error::malformed;
use crate::objective::Direction;
use crate::recipe::Recipe;
use crate::train::order::{Stream, generator};
use crate::train::{TokenPair, prompting};
use crate::{PromptShape, Result};

/// Examples in the context (the paper's ICL baseline): questions of the training pairs with their chosen answers, or
/// with their rejected ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IclSettings {
    /// Examples; the paper takes 5 and 10.
    pub shots: usize,
}

impl Default for IclSettings {
    fn default() -> Self {
        Self { shots: 5 }
    }
}

/// A sentence behind the system prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemSettings {
    /// Asks for the behaviour.
    pub toward: String,
    /// Asks for its opposite.
    pub away: String,
}

/// How the prompts differ from the plain ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// Examples in the context.
    Icl(IclSettings),
    /// A sentence in the system prompt.
    SystemPrompt(SystemSettings),
}

/// Prompts of a baseline in one direction.
pub(crate) struct Prompts<'m> {
    prompting: Prompting<'m>,
    turns: Vec<(String, String)>,
}

impl<'m> Prompts<'m> {
    /// The prompts that ask for the behaviour, or for its opposite. Examples are drawn from `train` with the recipe's
    /// seed, the same ones for every question and for both directions.
    ///
    /// # Errors
    /// Those of the model's tokeniser and template.
    pub(crate) fn new(
        model: &'m Model,
        recipe: &Recipe,
        baseline: &Baseline,
        direction: Direction,
        train: &[&PreferencePair],
    ) -> Result<Self> {
        let mut prompting = prompting(model, recipe)?;
        let mut turns = Vec::new();
        match baseline {
            Baseline::Icl(icl) => {
                let n = icl.shots.min(train.len());
                let mut draw = generator(recipe.seed, Stream::Shots);
                for i in index::sample(&mut draw, train.len(), n) {
                    let PreferencePair { prompt, chosen, rejected } = train[i];
                    let answer = if direction == Direction::Toward { chosen } else { rejected };
                    turns.push((prompt.clone(), answer.clone()));
                }
            }
            Baseline::SystemPrompt(sentences) => {
                let sentence =
                    if direction == Direction::Toward { &sentences.toward } else { &sentences.away };
                let system = prompting.system.as_ref().map_or(String::new(), |system| format!("{system} "));
                prompting.system = Some(format!("{system}{sentence}"));
            }
        }
        Ok(Self { prompting, turns })
    }

    /// The tokens of a question behind such a prompt.
    ///
    /// # Errors
    /// Those of [`Prompting::prompt`].
    pub(crate) fn prompt(&self, question: &str) -> Result<Vec<u32>> {
        Ok(self.prompting.prompt(question)?)
    }

    /// The tokens of a pair behind such a prompt, and the shape of the prompt.
    ///
    /// # Errors
    /// Those of [`Prompting::pair_after`]; a prompt that is too long, because cutting it would drop what it is about.
    pub(crate) fn pair(&self, pair: &PreferencePair, user: bool) -> Result<(TokenPair, PromptShape)> {
        let turns: Vec<_> = self.turns.iter().map(|(q, a)| (q.as_str(), a.as_str())).collect();
        let tokens = self.prompting.pair_after(&turns, &pair.prompt, &pair.chosen, &pair.rejected)?;
        let cut = tokens.cut_from_prompt + tokens.cut_from_responses;
        if cut > 0 {
            let longest = self.prompting.max_length.unwrap_or(usize::MAX);
            let found = format!("{cut} tokens too many with {} examples", turns.len());
            let expected = format!("prompt and response of at most {longest} tokens");
            let place = format!("the question {:?}", pair.prompt);
            return Err(malformed("icl".as_ref(), place, found, expected, "lower icl.shots"));
        }
        let len = tokens.prompt.len();
        let mut shape = PromptShape { len, last_user: 0..0 };
        if user {
            // The last question stands at the end of the prompt, at the same distance as in the plain one.
            let plain = self.prompting.prompt(&pair.prompt)?.len();
            let of_plain = PromptShape::of_question(&self.prompting, &pair.prompt, plain, 0)?.last_user;
            let shift = len.saturating_sub(plain);
            shape.last_user = of_plain.start + shift..of_plain.end + shift;
        }
        let tokens = TokenPair { prompt: tokens.prompt, chosen: tokens.chosen, rejected: tokens.rejected };
        Ok((tokens, shape))
    }
}
