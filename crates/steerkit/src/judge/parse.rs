//! What a judge's reply says.
//!
//! The prompt asks for `{"score": N, "reason": "..."}` (`{"answer": "yes", ...}` for a question of yes or no). Such an
//! object is taken when it is the whole reply or its beginning, also in a code fence; its score is a whole number of
//! the scale, as a number or as a text. A cut or otherwise broken object is taken up to its first comma.
//!
//! A reply without an object is taken when it begins with a score in one of these forms, letters of any case, with
//! or without asterisks around them:
//!
//! - `3`, `3.`, `3 - because ...`, `Score: 3`, `grade = 3`, `Rating is 3`, `3/4`, `3 out of 4`;
//! - `Yes`, `No.`, `Answer: yes, because ...`.
//!
//! The part after the score may hold no other digit, and what follows `/` or `out of` is the highest grade. Everything
//! else has no score: words for numbers, numbers outside the scale, two numbers, refusals, empty replies. No reply has
//! a score by default.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::rubric::Scale;

/// Why a reply has no score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unscored {
    /// Nothing but white space.
    Empty,
    /// A number that is not on the scale.
    OffScale,
    /// More than one number, or yes and no.
    Ambiguous,
    /// No score in any of the forms.
    NoScore,
    /// The judge could not be asked: the endpoint refuses this text, or it is too long.
    NotAsked,
}

impl Unscored {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty reply",
            Self::OffScale => "off the scale",
            Self::Ambiguous => "more than one number",
            Self::NoScore => "no score",
            Self::NotAsked => "not asked",
        }
    }
}

/// The score of a reply.
///
/// # Errors
/// Why it has none.
pub fn parse(reply: &str, scale: Scale) -> Result<u8, Unscored> {
    let text = unfenced(reply.trim());
    if text.is_empty() {
        return Err(Unscored::Empty);
    }
    if text.starts_with('{') {
        return object(text, scale);
    }
    match scale {
        Scale::Grades => grade(text),
        Scale::YesNo => yes_or_no(text),
    }
}

/// The inside of a code fence that the reply begins with.
fn unfenced(text: &str) -> &str {
    let Some(inside) = text.strip_prefix("```") else { return text };
    let inside = inside.strip_prefix("json").unwrap_or(inside);
    inside.split("```").next().unwrap_or_default().trim()
}

/// A reply's object. A key that comes twice is no score.
#[derive(Deserialize)]
struct Reply {
    score: Option<Value>,
    answer: Option<Value>,
}

fn object(text: &str, scale: Scale) -> Result<u8, Unscored> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Reply>();
    let reply = match values.next() {
        Some(Ok(reply)) => reply,
        Some(Err(error)) if error.is_data() => return Err(Unscored::NoScore),
        _ => {
            // Cut in its reason, or with quotes in it that nobody escaped: the score comes first.
            let head = format!("{}}}", text.split([',', '\n', '}']).next().unwrap_or_default());
            serde_json::from_str(&head).map_err(|_| Unscored::NoScore)?
        }
    };
    let value = match scale {
        Scale::Grades => reply.score,
        Scale::YesNo => reply.answer,
    };
    match (value, scale) {
        (Some(Value::Number(number)), Scale::Grades) => {
            on_scale(number.as_u64().ok_or(Unscored::OffScale)?, scale)
        }
        (Some(Value::String(text)), Scale::Grades) => grade(text.trim()),
        (Some(Value::String(text)), Scale::YesNo) => yes_or_no(text.trim()),
        (Some(Value::Bool(yes)), Scale::YesNo) => Ok(u8::from(yes)),
        _ => Err(Unscored::NoScore),
    }
}

fn on_scale(number: u64, scale: Scale) -> Result<u8, Unscored> {
    let (low, high) = scale.range();
    u8::try_from(number).ok().filter(|n| (low..=high).contains(n)).ok_or(Unscored::OffScale)
}

/// The text after a label such as `Score:`, and without asterisks.
fn unlabelled(text: &str) -> String {
    const LABELS: [&str; 6] = ["final score", "final grade", "score", "grade", "rating", "answer"];
    let lower = text.replace('*', "").trim().to_lowercase();
    let Some(rest) = LABELS.iter().find_map(|label| lower.strip_prefix(label)) else { return lower };
    let rest = rest.trim_start();
    let marked = [":", "=", "-", "is "].iter().find_map(|mark| rest.strip_prefix(mark));
    marked.unwrap_or(rest).trim_start().to_owned()
}

/// The grade that a plain reply begins with.
fn grade(text: &str) -> Result<u8, Unscored> {
    let text = unlabelled(text);
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = text.split_at(digits);
    if number.is_empty() {
        return Err(Unscored::NoScore);
    }
    let mut rest = rest.trim_start();
    if let Some(of) = ["/", "out of "].iter().find_map(|mark| rest.strip_prefix(mark)) {
        let of = of.trim_start();
        rest = of.strip_prefix('4').ok_or(Unscored::OffScale)?;
    }
    // "3.5" and "34" on the one hand, "3 to 4" on the other.
    if rest.chars().any(|c| c.is_numeric()) {
        return Err(Unscored::Ambiguous);
    }
    if rest.starts_with(char::is_alphabetic) && digits == text.len() - rest.len() {
        return Err(Unscored::NoScore);
    }
    on_scale(number.parse().map_err(|_| Unscored::OffScale)?, Scale::Grades)
}

/// The yes or no that a plain reply begins with.
fn yes_or_no(text: &str) -> Result<u8, Unscored> {
    let text = unlabelled(text.lines().next().unwrap_or_default());
    let word = |text: &str| -> Option<(u8, usize)> {
        let found = [("yes", 1), ("no", 0)].into_iter().find(|(word, _)| text.starts_with(word))?;
        let rest = &text[found.0.len()..];
        (!rest.starts_with(char::is_alphanumeric)).then_some((found.1, found.0.len()))
    };
    let (score, len) = word(&text).ok_or(Unscored::NoScore)?;
    let rest = text[len..].trim_start();
    // A sentence that only begins so ("no doubt it helps", "yes and no") says neither.
    if rest.starts_with(char::is_alphanumeric) {
        return Err(Unscored::Ambiguous);
    }
    let after = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
    if word(after).is_some_and(|(other, _)| other != score) { Err(Unscored::Ambiguous) } else { Ok(score) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades(reply: &str) -> Result<u8, Unscored> {
        parse(reply, Scale::Grades)
    }

    #[test]
    fn replies_with_a_grade() {
        for reply in [
            "{\"score\": 3, \"reason\": \"It uses 2 contractions, not 4.\"}",
            "{\"reason\": \"fine\", \"score\": \"3\"}",
            "```json\n{\"score\": 3}\n```",
            "{\"score\": 3}\n\nI hope this helps 4 of you.",
            "{\"score\": 3, \"reason\": \"cut in the mid",
            "{\"score\": 3, \"reason\": \"an \"unescaped\" quote\"}",
            "3",
            " 3.\n",
            "**3**",
            "Score: 3",
            "**Score:** 3 - measured words",
            "final grade = 3",
            "Rating is 3.",
            "3/4",
            "3 / 4: rather formal",
            "3 out of 4",
            "3: it has no contractions.",
        ] {
            assert_eq!(grades(reply), Ok(3), "{reply}");
        }
    }

    #[test]
    fn replies_without_a_grade() {
        use Unscored::{Ambiguous, Empty, NoScore, OffScale};
        for (reply, why) in [
            ("", Empty),
            (" \n", Empty),
            ("``````", Empty),
            ("5", OffScale),
            ("0", OffScale),
            ("99999999999999999999999", OffScale),
            ("{\"score\": 5}", OffScale),
            ("{\"score\": 3.5}", OffScale),
            ("{\"score\": -3}", OffScale),
            ("3/5", OffScale),
            ("3 out of 10", OffScale),
            ("Score: three", NoScore),
            ("three", NoScore),
            ("{\"score\": \"three\"}", NoScore),
            ("{\"score\": null}", NoScore),
            ("{\"score\": [3]}", NoScore),
            ("{\"grade\": 3}", NoScore),
            ("{\"score\": 3, \"score\": 4}", NoScore),
            ("I'm sorry, but I can't grade this.", NoScore),
            ("As an AI, I give it a 3.", NoScore),
            ("The answer is somewhere between 3 and 4.", NoScore),
            ("3 or 4", Ambiguous),
            ("3-4", Ambiguous),
            ("3.5", Ambiguous),
            ("3 because of 2 contractions", Ambiguous),
            ("3/4/4", Ambiguous),
            ("3rd grade", NoScore),
            ("yes", NoScore),
        ] {
            assert_eq!(grades(reply), Err(why), "{reply}");
        }
    }

    #[test]
    fn yes_and_no() {
        let parse = |reply: &str| parse(reply, Scale::YesNo);
        for reply in
            ["{\"answer\": \"yes\"}", "{\"answer\": true, \"reason\": \"\"}", "Yes", "Answer: YES, it does."]
        {
            assert_eq!(parse(reply), Ok(1), "{reply}");
        }
        for reply in ["{\"answer\": \"No\"}", "No.", "**No** - it refuses", "no\nIt only announces."] {
            assert_eq!(parse(reply), Ok(0), "{reply}");
        }
        for reply in
            ["yes and no", "Yes/No", "no doubt it helps", "maybe", "notable", "1", "{\"score\": 1}", ""]
        {
            assert!(parse(reply).is_err(), "{reply}");
        }
    }
}
