//! Answers side by side, with what steering changed in the probability of each of their tokens.

use std::sync::atomic::AtomicBool;

use steerkit_model::{Completion, Finish, Model, Tokenizer};

use super::perplexity::log_probabilities;
use crate::Result;
use crate::report::{Answer, Comparison, Shade};

/// Rows of a pass at which the next one begins.
const ROWS: usize = 1024;

/// A question with its answers.
pub(crate) struct Asked<'a> {
    pub(crate) question: &'a str,
    /// The tokens of its prompt.
    pub(crate) prompt: &'a [u32],
    /// Multipliers with the answers there.
    pub(crate) answers: Vec<(f64, &'a Completion)>,
}

/// The answers as a report shows them: an answer that was cut off says so, and the plain model has read the steered
/// ones, each token behind those before it.
///
/// # Errors
/// Those of [`Model::score`]; [`steerkit_model::ModelError::Interrupted`] when `cancel` is set.
pub(crate) fn side_by_side(
    model: &Model,
    asked: &[Asked<'_>],
    cancel: &AtomicBool,
) -> Result<Vec<Comparison>> {
    // The plain model has read its own answers while it wrote them.
    let steered = |asked: &Asked<'_>| -> Vec<usize> {
        (0..asked.answers.len()).filter(|&a| asked.answers[a].0 != 0.0).collect()
    };
    let texts: Vec<(&[u32], Vec<&[u32]>)> = asked
        .iter()
        .map(|asked| (asked.prompt, steered(asked).iter().map(|&a| &asked.answers[a].1.tokens[..]).collect()))
        .collect();
    let plain = log_probabilities(model, &texts, ROWS, cancel)?;
    let tokenizer = model.tokenizer()?;
    let comparison = |(asked, plain): (&Asked<'_>, &Vec<Vec<f32>>)| {
        let mut plain = plain.iter();
        let answer = |&(multiplier, completion): &(f64, &Completion)| Answer {
            multiplier,
            text: text(completion),
            shades: match multiplier {
                0.0 => Vec::new(),
                _ => shades(tokenizer, completion, plain.next().expect("one for each steered answer")),
            },
        };
        Comparison {
            question: asked.question.to_owned(),
            answers: asked.answers.iter().map(answer).collect(),
        }
    };
    Ok(asked.iter().zip(&plain).map(comparison).collect())
}

fn text(completion: &Completion) -> String {
    match completion.finish {
        Finish::Length => format!("{} …", completion.text.trim()),
        _ => completion.text.trim().to_owned(),
    }
}

/// The pieces of an answer, without space around them.
fn shades(tokenizer: &Tokenizer, completion: &Completion, plain: &[f32]) -> Vec<Shade> {
    let mut stream = tokenizer.decode_stream();
    let mut shades: Vec<Shade> = Vec::new();
    let mut change = 0.0;
    for ((&token, &own), &plain) in completion.tokens.iter().zip(&completion.logprobs).zip(plain) {
        if tokenizer.is_end(token) {
            break;
        }
        change += f64::from(own - plain);
        if let Some(text) = stream.push(token) {
            shades.push(Shade { text, change });
            change = 0.0;
        }
    }
    shades.extend(stream.finish().map(|text| Shade { text, change }));
    let written = |shade: &Shade| !shade.text.trim().is_empty();
    let first = shades.iter().position(written).unwrap_or(shades.len());
    shades.drain(..first);
    shades.truncate(shades.iter().rposition(written).map_or(0, |last| last + 1));
    if let Some(first) = shades.first_mut() {
        first.text = first.text.trim_start().to_owned();
    }
    if let Some(last) = shades.last_mut() {
        last.text = last.text.trim_end().to_owned();
    }
    shades
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use steerkit_model::{OpenOptions, Request, Specials};

    use super::*;

    #[test]
    fn pieces_put_together_are_the_answer_and_changes_are_those_of_the_model() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
        let model =
            Model::open(&root.join("tiny-llama-gguf/tiny-llama-f32.gguf"), &OpenOptions::default()).unwrap();
        let prompt = model.tokenizer().unwrap().encode("one two", Specials::AsText).unwrap();
        let request = Request { prompt: prompt.clone(), max_tokens: 12, ..Request::default() };
        let written = model.generate(vec![request], 1, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        let cancel = AtomicBool::new(false);
        // The plain model's own answer, said to be a steered one, changes nothing.
        let asked =
            |multiplier| Asked { question: "q", prompt: &prompt, answers: vec![(multiplier, &written[0])] };
        let shown = side_by_side(&model, &[asked(1.0), asked(0.0)], &cancel).unwrap();
        let answer = &shown[0].answers[0];
        let joined: String = answer.shades.iter().map(|shade| shade.text.as_str()).collect();
        assert!(!joined.is_empty() && joined == written[0].text.trim(), "{joined:?} {:?}", written[0].text);
        assert!(answer.shades.iter().all(|shade| shade.change.abs() < 1e-3), "{:?}", answer.shades);
        assert!(shown[1].answers[0].shades.is_empty());
        // Tokens that were twice as likely when they were written are shaded by ln 2 each; a piece may have several.
        let mut likelier = written[0].clone();
        likelier.logprobs.iter_mut().for_each(|logprob| *logprob += std::f32::consts::LN_2);
        let asked = Asked { question: "q", prompt: &prompt, answers: vec![(-1.0, &likelier)] };
        let shown = side_by_side(&model, &[asked], &cancel).unwrap();
        for Shade { change, .. } in &shown[0].answers[0].shades {
            let doublings = change / std::f64::consts::LN_2;
            assert!(doublings > 0.9 && (doublings - doublings.round()).abs() < 1e-2, "{change}");
        }
    }
}
