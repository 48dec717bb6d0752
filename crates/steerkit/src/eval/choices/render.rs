//! From questions to tokens.

use steerkit_model::{Model, Specials};

use super::read::{ChoiceSet, Item};
use super::{ChoiceSpec, Scoring};
use crate::error::malformed;
use crate::eval::scoring::Prompted;
use crate::eval::subject::Subject;
use crate::{PromptShape, Result};

/// The prompts with their choices, in the order of the questions. What is cut to the model's context is counted in a note.
pub(super) fn texts(
    spec: &ChoiceSpec,
    subject: &Subject<'_>,
    set: &ChoiceSet,
    notes: &mut Vec<String>,
) -> Result<Vec<Prompted>> {
    let context = subject.model.config().context;
    let mut texts = Vec::with_capacity(set.items.len());
    let mut cut = 0;
    for item in &set.items {
        let text = prompt(spec, set, item)?;
        let answers: Vec<String> = (0..item.choices.len()).map(|choice| answer(spec, item, choice)).collect();
        let (mut prompt, continuations) = match spec.chat {
            true => chat(subject, &text, &answers)?,
            false => plain(spec, subject.model, &text, &answers)?,
        };
        // The last token of a continuation is only predicted.
        let longest = continuations.iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1);
        let over = (prompt.len() + longest).saturating_sub(context);
        if over > 0 {
            cut += 1;
            prompt.drain(..over.min(prompt.len().saturating_sub(1)));
        }
        let shape = match spec.chat && over == 0 {
            true => subject.shape(&text, prompt.len())?,
            false => PromptShape { len: prompt.len(), last_user: 0..0 },
        };
        texts.push(Prompted { prompt, shape, continuations });
    }
    if cut > 0 {
        notes.push(format!(
            "{cut} of {} prompts are longer than the model's {context} tokens: their beginnings are cut off",
            texts.len()
        ));
    }
    Ok(texts)
}

/// Description, shown questions with their answers, question.
fn prompt(spec: &ChoiceSpec, set: &ChoiceSet, item: &Item) -> Result<String> {
    let shown: Vec<&Item> =
        set.dev.iter().filter(|shown| shown.group == item.group).take(spec.shots).collect();
    if shown.len() < spec.shots {
        let path = set.files.first().map(|(path, _)| path.clone()).unwrap_or_default();
        let found = format!("{} questions to show for the group {:?}", shown.len(), item.group);
        let hint = "name a file of questions to show as `dev` in the evaluation's [task], or lower `shots`";
        return Err(malformed(&path, "dev", found, spec.shots.to_string(), hint));
    }
    let mut text = filled(&spec.description, item);
    for shown in shown {
        text += &filled(&spec.prompt, shown);
        text += &spec.answer_delimiter;
        text += &bare_answer(spec, shown, shown.answer);
        text += &spec.shot_separator;
    }
    Ok(text + &filled(&spec.prompt, item))
}

/// What stands for choice number `choice`, behind the delimiter.
fn answer(spec: &ChoiceSpec, item: &Item, choice: usize) -> String {
    let delimiter = if spec.chat { "" } else { &spec.answer_delimiter };
    format!("{delimiter}{}", bare_answer(spec, item, choice))
}

fn bare_answer(spec: &ChoiceSpec, item: &Item, choice: usize) -> String {
    match spec.scoring {
        Scoring::Letter => letter(choice).to_string(),
        _ => item.choices[choice].clone(),
    }
}

fn letter(choice: usize) -> char {
    char::from(b'A' + choice as u8)
}

/// The template with the item's texts in it; what those texts hold is not looked at again.
fn filled(template: &str, item: &Item) -> String {
    let choices = || {
        let line = |(i, choice): (usize, &String)| format!("{}. {choice}", letter(i));
        item.choices.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
    };
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        text += &rest[..at];
        rest = &rest[at..];
        let known = ["{question}", "{choices}", "{group}"].into_iter().find(|name| rest.starts_with(name));
        match known {
            Some("{question}") => text += item.question.trim(),
            Some("{choices}") => text += &choices(),
            Some(_) => text += &item.group.replace('_', " "),
            None => text.push('{'),
        }
        rest = &rest[known.map_or(1, str::len)..];
    }
    text + rest
}

/// A prompt and its continuations as tokens.
type Tokens = (Vec<u32>, Vec<Vec<u32>>);

/// Plain text as in lm-evaluation-harness's `_encode_pair`: spaces at the end of the context go to the continuation, and a
/// continuation is what the whole has beyond as many tokens as the context has.
fn plain(spec: &ChoiceSpec, model: &Model, context: &str, answers: &[String]) -> Result<Tokens> {
    let tokenizer = model.tokenizer()?;
    let bare = context.trim_end();
    let spaces = &context[bare.len()..];
    let mut prompt = tokenizer.encode(bare, Specials::AsText)?;
    let continuations = answers
        .iter()
        .map(|answer| {
            let whole = tokenizer.encode(&format!("{bare}{spaces}{answer}"), Specials::AsText)?;
            Ok(whole[prompt.len().min(whole.len().saturating_sub(1))..].to_vec())
        })
        .collect::<Result<Vec<_>>>()?;
    let wants_bos = spec.bos && tokenizer.add_bos() || model.identity().architecture.contains("gemma");
    if let Some(bos) = tokenizer.bos().filter(|_| wants_bos) {
        prompt.insert(0, bos);
    }
    Ok((prompt, continuations))
}

/// The context as the user's turn, the answers as the beginning of the assistant's.
fn chat(subject: &Subject<'_>, context: &str, answers: &[String]) -> Result<Tokens> {
    let end = subject.prompting.tokenizer.eos();
    let mut prompt: Option<Vec<u32>> = None;
    let mut continuations = Vec::new();
    for answer in answers {
        let tokens = subject.prompting.pair(context, answer, answer)?;
        let mut own = tokens.chosen;
        if own.len() > 1 && own.last().copied() == end {
            own.pop();
        }
        // Where an answer merges into the prompt, the others get the token that it took.
        let shortest = prompt.get_or_insert_with(|| tokens.prompt.clone());
        let shared = shortest.len().min(tokens.prompt.len());
        own.splice(0..0, tokens.prompt[shared..].iter().copied());
        let given_back: Vec<u32> = shortest.drain(shared..).collect();
        continuations.iter_mut().for_each(|other: &mut Vec<u32>| {
            other.splice(0..0, given_back.iter().copied());
        });
        continuations.push(own);
    }
    Ok((prompt.unwrap_or_default(), continuations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_once() {
        let item = Item {
            group: "high_school_tea".into(),
            row: 0,
            question: " Is {choices} a set? ".into(),
            choices: vec!["yes".into(), "no".into()],
            answer: 0,
            right: vec![true, false],
            ranked: vec![0, 1],
        };
        let got = filled("About {group}.\n{question}\n{choices}\n{x} {Answer:", &item);
        assert_eq!(got, "About high school tea.\nIs {choices} a set?\nA. yes\nB. no\n{x} {Answer:");
    }
}
