//! Multiple choices answered by a letter: what CAA compares (Eq. 1).

use crate::data::PreferencePair;

/// The pair as a multiple choice whose answers are `(A` and `(B`: at their last token the model has just said the
/// letter.
///
/// A native choice, whose responses are letters already, keeps its question. Any other pair gets its two responses as
/// choices; the chosen one is (A) in the pairs with an even `index` and (B) in the others, so that the letters
/// themselves cancel.
pub fn letter_pair(pair: &PreferencePair, index: usize) -> PreferencePair {
    if let (Some(chosen), Some(rejected)) = (letter(&pair.chosen), letter(&pair.rejected)) {
        return PreferencePair {
            prompt: pair.prompt.clone(),
            chosen: format!("({chosen}"),
            rejected: format!("({rejected}"),
        };
    }
    let (a, b) = (pair.chosen.trim(), pair.rejected.trim());
    let (a, b, chosen, rejected) =
        if index.is_multiple_of(2) { (a, b, "(A", "(B") } else { (b, a, "(B", "(A") };
    PreferencePair {
        prompt: format!("{}\n\nChoices:\n (A) {a}\n (B) {b}\n\nAnswer:", pair.prompt.trim_end()),
        chosen: chosen.into(),
        rejected: rejected.into(),
    }
}

/// The letter of `A`, `(A)`, ` (A)`, `A.` or `(A`.
fn letter(text: &str) -> Option<char> {
    let text = text.trim();
    let text = text.strip_prefix('(').unwrap_or(text);
    let mut letters = text.strip_suffix([')', '.']).unwrap_or(text).chars();
    letters.next().filter(|c| c.is_ascii_uppercase() && letters.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(prompt: &str, chosen: &str, rejected: &str) -> PreferencePair {
        PreferencePair { prompt: prompt.into(), chosen: chosen.into(), rejected: rejected.into() }
    }

    #[test]
    fn native_choices_keep_their_question() {
        let got = letter_pair(&pair("Which?\n (A) x\n (B) y", " (B)", " (A)"), 0);
        assert_eq!(got, pair("Which?\n (A) x\n (B) y", "(B", "(A"));
        assert_eq!(letter("C."), Some('C'));
        assert_eq!((letter("(a)"), letter("AB"), letter("")), (None, None, None));
    }

    #[test]
    fn letters_take_turns() {
        let of = |index| letter_pair(&pair("Tea? ", "Gladly.", " Nope."), index);
        assert_eq!(of(0), pair("Tea?\n\nChoices:\n (A) Gladly.\n (B) Nope.\n\nAnswer:", "(A", "(B"));
        assert_eq!(of(1), pair("Tea?\n\nChoices:\n (A) Nope.\n (B) Gladly.\n\nAnswer:", "(B", "(A"));
    }
}
