//! Scores of answers by a judge model, and how far to believe them.
//!
//! A [`Rubric`] says what is graded; [`Judge`] asks for every answer, keeps the replies, and reads scores out of them
//! by a strict grammar ([`parse()`]). A reply without a score is counted, never replaced. The same judge grades answers
//! whose score is known, and its agreement with those ([`ReferenceCheck`]) says whether its scores mean anything.

pub mod agreement;
pub mod annotate;
pub mod parse;
mod prompt;
mod rubric;
mod summary;

use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::json;

use crate::Result;
use crate::ask::{Asker, Decoding, Estimate, Question, Record};
use crate::files::sha256;

pub use parse::{Unscored, parse};
pub use prompt::{Material, Nonces, prompt};
pub use rubric::{Rubric, Scale};
pub use summary::{HEADLINE_KAPPA, MAX_UNSCORED, ReferenceCheck, Scores};

/// Tokens of a judge's reply: the score and a sentence.
const REPLY_TOKENS: usize = 120;

/// A judge: who is asked, and by which rubric.
pub struct Judge<'a> {
    /// Who is asked, and how.
    pub asker: &'a Asker<'a>,
    /// What is graded.
    pub rubric: Rubric,
    /// How replies are written.
    pub decoding: Decoding,
}

/// What a judge said of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgment {
    /// The score on the rubric's scale.
    pub score: Option<u8>,
    /// Why there is none.
    pub unscored: Option<Unscored>,
    /// The reply.
    pub reply: Option<String>,
    /// What is odd about it.
    pub note: Option<String>,
}

impl<'a> Judge<'a> {
    /// A judge that says its likeliest reply.
    pub fn new(asker: &'a Asker<'a>, rubric: Rubric) -> Self {
        let decoding = Decoding { max_tokens: REPLY_TOKENS, temperature: 0.0, seed: 0 };
        Self { asker, rubric, decoding }
    }

    /// The questions that ask for the scores of `materials`.
    fn questions(&self, materials: &[Material<'_>]) -> Vec<Question> {
        let identity = self.asker.responder.identity();
        let nonces = match self.asker.responder.is_local() {
            true => Nonces::repeatable(),
            false => Nonces::random(),
        };
        let question = |material: &Material<'_>| {
            let Material { question, answer, examples } = material;
            // The nonce is left out: it changes nothing that a judge should heed.
            let depends =
                json!([prompt::WORDING, self.rubric, question, answer, examples, identity, self.decoding]);
            Question {
                key: sha256(depends.to_string().as_bytes()),
                prompt: prompt(&self.rubric, material, &nonces),
                decoding: self.decoding,
            }
        };
        materials.iter().map(question).collect()
    }

    /// What judging `materials` takes at most.
    pub fn estimate(&self, materials: &[Material<'_>]) -> Estimate {
        self.asker.estimate(&self.questions(materials))
    }

    /// Judges `materials`; `on_judged` is told how many are done.
    ///
    /// # Errors
    /// Those of [`Asker::ask`]. Replies without a score are no error here.
    pub fn judge(
        &self,
        materials: &[Material<'_>],
        cancel: &AtomicBool,
        on_judged: &mut dyn FnMut(usize),
    ) -> Result<Vec<Judgment>> {
        let questions = self.questions(materials);
        let records = self.asker.ask(&self.rubric.name, &questions, cancel, on_judged)?;
        Ok(records.into_iter().map(|record| self.judgment(record)).collect())
    }

    fn judgment(&self, record: Record) -> Judgment {
        let parsed = match &record.reply {
            Some(reply) => parse(reply, self.rubric.scale()),
            None => Err(Unscored::NotAsked),
        };
        Judgment { score: parsed.ok(), unscored: parsed.err(), reply: record.reply, note: record.note }
    }
}
