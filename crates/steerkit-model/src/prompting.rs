//! From questions and answers to the token ids that a model sees in training, evaluation and generation.
//!
//! The ids are those of TRL's DPO trainer, which the authors' code builds on: a response is what
//! `encode(prompt + response)` has beyond `encode(prompt)`, one token of the prompt given back where the two texts merge
//! across the boundary; BOS comes first where the model wants it and the prompt does not bring it; EOS comes last; a
//! prompt that is too long loses its beginning.
//!
//! Text of users and data sets that spells a control token (`<|im_end|>`) stays text; only the template's own text is
//! read for control tokens.

use crate::chat::{ChatTemplate, Message};
use crate::tokenizer::{Specials, Tokenizer};
use crate::{ModelError, Result};

/// The system prompt of the paper's experiments.
pub const DEFAULT_SYSTEM: &str = "You are a helpful, honest and concise assistant.";

/// Whether a space stands before a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeadingSpace {
    /// As the prompt asks: none after whitespace (`<|im_start|>assistant\n`), one after anything else (`[/INST]`), none
    /// where the response brings its own.
    #[default]
    Template,
    /// One always: what the authors' code does, right for templates that end in `[/INST]` only.
    Always,
    /// None.
    Never,
}

/// How texts become prompts and responses of one model.
#[derive(Clone)]
pub struct Prompting<'m> {
    /// The model's tokeniser.
    pub tokenizer: &'m Tokenizer,
    /// The model's chat template; without one a prompt is the plain text.
    pub template: Option<&'m ChatTemplate>,
    /// The system prompt. A template that takes none gets it before the first user message, on a line of its own.
    pub system: Option<String>,
    /// Whether a space stands before a response.
    pub leading_space: LeadingSpace,
    /// Tokens that a prompt and its longer response may have together.
    pub max_length: Option<usize>,
}

/// One preference pair as token ids: `prompt + chosen` and `prompt + rejected` are the two texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairTokens {
    /// The prompt, BOS included where the model has one.
    pub prompt: Vec<u32>,
    /// The preferred response, ending in EOS.
    pub chosen: Vec<u32>,
    /// The other response, ending in EOS.
    pub rejected: Vec<u32>,
    /// Tokens cut from the beginning of the prompt to keep [`Prompting::max_length`].
    pub cut_from_prompt: usize,
    /// Tokens cut from the end of both responses, where cutting the prompt was not enough.
    pub cut_from_responses: usize,
}

impl<'m> Prompting<'m> {
    /// The paper's system prompt, spaces as the template asks, no limit on the length.
    pub fn new(tokenizer: &'m Tokenizer, template: Option<&'m ChatTemplate>) -> Self {
        Self {
            tokenizer,
            template,
            system: Some(DEFAULT_SYSTEM.to_owned()),
            leading_space: LeadingSpace::default(),
            max_length: None,
        }
    }

    /// The ids of the prompt that asks `user`: BOS where wanted, system prompt, question, beginning of the answer.
    ///
    /// # Errors
    /// A template that refuses the messages, a text that the vocabulary cannot spell.
    pub fn prompt(&self, user: &str) -> Result<Vec<u32>> {
        let pieces = self.pieces(&[], user)?;
        Ok(self.with_bos(self.encode(&pieces)?))
    }

    /// The ids of a conversation and the beginning of the next answer. The system prompt is the conversation's own.
    ///
    /// # Errors
    /// As [`Prompting::prompt`]; no template.
    pub fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let Some(template) = self.template else {
            return Err(ModelError::Template {
                found: "the model has none".to_owned(),
                hint: Some("use plain completion, or give a template".to_owned()),
            });
        };
        let pieces = self.rendered(template, messages)?;
        Ok(self.with_bos(self.encode(&pieces)?))
    }

    /// The ids of a preference pair.
    ///
    /// # Errors
    /// As [`Prompting::prompt`]; a model without an end token.
    pub fn pair(&self, prompt: &str, chosen: &str, rejected: &str) -> Result<PairTokens> {
        self.pair_after(&[], prompt, chosen, rejected)
    }

    /// As [`Self::pair`], after `turns` of question and answer: examples in the context. A model without a chat template
    /// reads each question, its answer and an empty line before the prompt.
    ///
    /// # Errors
    /// As [`Self::pair`].
    pub fn pair_after(
        &self,
        turns: &[(&str, &str)],
        prompt: &str,
        chosen: &str,
        rejected: &str,
    ) -> Result<PairTokens> {
        let eos = self.tokenizer.eos().ok_or_else(|| {
            ModelError::Tokenize("the model names no end token (EOS), which responses end with".to_owned())
        })?;
        let pieces = self.pieces(turns, prompt)?;
        let prompt = self.encode(&pieces)?;
        let (from_c, mut chosen) = self.response(&pieces, &prompt, chosen)?;
        let (from_r, mut rejected) = self.response(&pieces, &prompt, rejected)?;
        // Both responses follow one prompt: what one of them merged into, the other gets in front.
        let shared = from_c.min(from_r);
        chosen.splice(0..0, prompt[shared..from_c].iter().copied());
        rejected.splice(0..0, prompt[shared..from_r].iter().copied());
        for response in [&mut chosen, &mut rejected] {
            if response.last() != Some(&eos) {
                response.push(eos);
            }
        }
        let prompt = self.with_bos(prompt[..shared].to_vec());
        Ok(self.cut(PairTokens { prompt, chosen, rejected, cut_from_prompt: 0, cut_from_responses: 0 }))
    }

    /// Where the response begins in the prompt's ids, and its ids from there on.
    fn response(&self, prompt: &[Piece], prompt_ids: &[u32], response: &str) -> Result<(usize, Vec<u32>)> {
        let ends_in_space =
            prompt.iter().rev().find_map(|p| p.text.chars().last()).is_some_and(char::is_whitespace);
        let space = match self.leading_space {
            LeadingSpace::Always => true,
            LeadingSpace::Never => false,
            LeadingSpace::Template => !ends_in_space && !response.starts_with(char::is_whitespace),
        };
        let response = if space { format!(" {response}") } else { response.to_owned() };
        let n = prompt_ids.len();
        let answer = Piece { text: response, specials: Specials::AsText };
        let all: Vec<Piece> = prompt.iter().cloned().chain([answer.clone()]).collect();
        let ids = self.encode(&all)?;
        for from in [n, n.saturating_sub(1)] {
            if ids.len() >= from && ids[..from] == prompt_ids[..from] {
                return Ok((from, ids[from..].to_vec()));
            }
        }
        // The texts merge across more than one token: only two separate encodings leave the prompt what it is when a
        // text is generated after it.
        Ok((n, self.encode(&[answer])?))
    }

    /// The model's BOS in front, where it wants one and there is none.
    fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// Keeps the end of the prompt, one token at least, then the beginnings of the responses.
    fn cut(&self, mut pair: PairTokens) -> PairTokens {
        let longest = pair.chosen.len().max(pair.rejected.len());
        let Some(max) = self.max_length.filter(|&max| pair.prompt.len() + longest > max) else { return pair };
        pair.cut_from_prompt = (pair.prompt.len() + longest - max).min(pair.prompt.len().saturating_sub(1));
        pair.prompt.drain(..pair.cut_from_prompt);
        let room = max.saturating_sub(pair.prompt.len());
        for response in [&mut pair.chosen, &mut pair.rejected] {
            pair.cut_from_responses += response.len().saturating_sub(room);
            response.truncate(room);
        }
        pair
    }

    /// The prompt's text in pieces, behind `turns` of question and answer.
    fn pieces(&self, turns: &[(&str, &str)], user: &str) -> Result<Vec<Piece>> {
        let Some(template) = self.template else {
            let turn = |(question, answer): &(&str, &str)| {
                let bare = question.ends_with(char::is_whitespace) || answer.starts_with(char::is_whitespace);
                format!("{question}{}{answer}\n\n", if bare { "" } else { " " })
            };
            let text = turns.iter().map(turn).chain([user.to_owned()]).collect();
            return Ok(vec![Piece { text, specials: Specials::AsText }]);
        };
        let mut messages = Vec::with_capacity(2 * turns.len() + 2);
        for (question, answer) in turns {
            messages.extend([Message::new("user", *question), Message::new("assistant", *answer)]);
        }
        messages.push(Message::new("user", user));
        if let Some(system) = self.system.as_deref().filter(|system| !system.is_empty()) {
            match template.supports_system() {
                true => messages.insert(0, Message::new("system", system)),
                false => messages[0].content = format!("{system}\n{}", messages[0].content),
            }
        }
        self.rendered(template, &messages)
    }

    /// The conversation's text in pieces: the template's own, and the messages that spell control tokens.
    fn rendered(&self, template: &ChatTemplate, messages: &[Message]) -> Result<Vec<Piece>> {
        let text = template.render(messages, true)?;
        let mut pieces = Vec::new();
        let mut done = 0;
        for (i, message) in messages.iter().enumerate() {
            if self.tokenizer.spells_control(&message.content) {
                let (from, to) = place(template, messages, i, &text, done)?;
                pieces.push(Piece { text: text[done..from].to_owned(), specials: Specials::Parse });
                pieces.push(Piece { text: text[from..to].to_owned(), specials: Specials::AsText });
                done = to;
            }
        }
        pieces.push(Piece { text: text[done..].to_owned(), specials: Specials::Parse });
        Ok(pieces)
    }

    fn encode(&self, pieces: &[Piece]) -> Result<Vec<u32>> {
        self.tokenizer.encode_pieces(pieces.iter().map(|p| (p.text.as_str(), p.specials)))
    }
}

/// A part of a prompt's text.
#[derive(Clone, Debug)]
struct Piece {
    text: String,
    specials: Specials,
}

/// Where the content of message `i` stands in `text`, from `done` on: a rendering with a probe instead of the content
/// shows what stands before and after it.
fn place(
    template: &ChatTemplate,
    messages: &[Message],
    i: usize,
    text: &str,
    done: usize,
) -> Result<(usize, usize)> {
    const PROBE: &str = "steerkit probe 5d81";
    let mut probing = messages.to_vec();
    probing[i].content = PROBE.to_owned();
    let around = template.render(&probing, true)?;
    if let Some((before, after)) = around.split_once(PROBE)
        && let Some(rest) = text.strip_prefix(before)
        && let Some(content) = rest.strip_suffix(after)
        && before.len() >= done
    {
        return Ok((before.len(), before.len() + content.len()));
    }
    // A template that looks into contents renders the probe differently.
    let content = messages[i].content.trim();
    if let Some(at) = text[done..].find(content) {
        return Ok((done + at, done + at + content.len()));
    }
    Err(ModelError::Template {
        found: format!(
            "the text of message {i} spells a control token and cannot be told from the template's own"
        ),
        hint: Some("take the control token out of the text".to_owned()),
    })
}
