//! Which tokens of a text a vector acts on.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use steerkit_model::{Positions, Prompting};

/// Which tokens of a text a vector acts on, in training and in generation. As text: `all`, `all-but-first`,
/// `prompt`, `generated`, `last-prompt`, `first-K+last-K` (two numbers), `last-user`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TokenScope {
    /// Every token, as in the paper.
    #[default]
    All,
    /// Every token but the first of the text, whose residual norm is far larger in many models.
    AllButFirst,
    /// The prompt.
    Prompt,
    /// The response. The last token of the prompt, which predicts the first one of the response, is not of it.
    Generated,
    /// The last token of the prompt.
    LastPrompt,
    /// The first and the last tokens of the prompt.
    Ends {
        /// How many at the beginning.
        first: usize,
        /// How many at the end.
        last: usize,
    },
    /// What the last message of the user says, without the template around it.
    LastUser,
}

/// What a scope must know of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptShape {
    /// Its tokens.
    pub len: usize,
    /// Those of the last user message.
    pub last_user: Range<usize>,
}

impl TokenScope {
    /// The positions that the scope covers in a text that begins with a prompt of `shape`.
    pub fn positions(self, shape: &PromptShape) -> Positions {
        let len = shape.len;
        let one = |range: Range<usize>| Positions::Ranges([range].into());
        match self {
            Self::All => Positions::All,
            Self::AllButFirst => one(1..usize::MAX),
            Self::Prompt => one(0..len),
            Self::Generated => one(len..usize::MAX),
            Self::LastPrompt => one(len.saturating_sub(1)..len),
            Self::Ends { first, last } if first + last >= len => one(0..len),
            Self::Ends { first, last } => Positions::Ranges([0..first, len - last..len].into()),
            Self::LastUser => one(shape.last_user.clone()),
        }
    }

    /// Whether [`PromptShape::last_user`] matters.
    pub fn needs_user(self) -> bool {
        self == Self::LastUser
    }
}

/// The tokens of the last user message in `ids` = `render(text)`: what changes when the message changes. The
/// message's first and last tokens count as the template's where every message would begin or end with them.
///
/// # Errors
/// Those of `render`.
pub fn last_user_span<E>(
    ids: &[u32],
    mut render: impl FnMut(&str) -> Result<Vec<u32>, E>,
) -> Result<Range<usize>, E> {
    // Two probes without a common first or last character.
    let probes = [render("Quick brown foxes")?, render("8 jumping lazy dogs!")?];
    let common = |a: &mut dyn Iterator<Item = (&u32, &u32)>| a.take_while(|(x, y)| x == y).count();
    let start = probes.iter().map(|p| common(&mut ids.iter().zip(p))).min().unwrap_or(0);
    let tail = probes.iter().map(|p| common(&mut ids.iter().rev().zip(p.iter().rev()))).min().unwrap_or(0);
    Ok(start..ids.len().saturating_sub(tail).max(start))
}

impl PromptShape {
    /// The shape of a prompt of `len` tokens that asks `user` and has lost `cut` tokens at its beginning.
    ///
    /// # Errors
    /// Those of [`Prompting::prompt`].
    pub fn of_question(prompting: &Prompting<'_>, user: &str, len: usize, cut: usize) -> crate::Result<Self> {
        let whole = prompting.prompt(user)?;
        let span = last_user_span(&whole, |text| prompting.prompt(text))?;
        let kept = |at: usize| at.saturating_sub(cut).min(len);
        Ok(Self { len, last_user: kept(span.start)..kept(span.end) })
    }
}

impl fmt::Display for TokenScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::AllButFirst => "all-but-first",
            Self::Prompt => "prompt",
            Self::Generated => "generated",
            Self::LastPrompt => "last-prompt",
            Self::LastUser => "last-user",
            Self::Ends { first, last } => return write!(f, "first-{first}+last-{last}"),
        })
    }
}

impl FromStr for TokenScope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends = || {
            let (first, last) = text.strip_prefix("first-")?.split_once("+last-")?;
            let count = |n: &str| n.parse().ok().filter(|&n: &usize| n <= 4096);
            Some(Self::Ends { first: count(first)?, last: count(last)? })
        };
        match text {
            "all" => Ok(Self::All),
            "all-but-first" => Ok(Self::AllButFirst),
            "prompt" => Ok(Self::Prompt),
            "generated" => Ok(Self::Generated),
            "last-prompt" => Ok(Self::LastPrompt),
            "last-user" => Ok(Self::LastUser),
            _ => ends().filter(|s| *s != Self::Ends { first: 0, last: 0 }).ok_or_else(|| {
                let known = "all, all-but-first, prompt, generated, last-prompt, last-user or first-2+last-2";
                format!("found the token scope {text:?}, expected {known}")
            }),
        }
    }
}

impl TryFrom<String> for TokenScope {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TokenScope> for String {
    fn from(scope: TokenScope) -> Self {
        scope.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let ends = TokenScope::Ends { first: 2, last: 3 };
        for scope in [TokenScope::All, TokenScope::AllButFirst, TokenScope::LastUser, ends] {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        for bad in ["", "everything", "first-2", "first-0+last-0", "first--1+last-2", "first-99999+last-1"] {
            assert!(bad.parse::<TokenScope>().is_err(), "{bad}");
        }
    }

    #[test]
    fn positions_of_a_prompt_of_five() {
        let shape = PromptShape { len: 5, last_user: 2..4 };
        let covered = |scope: TokenScope| -> Vec<usize> {
            let positions = scope.positions(&shape);
            (0..8).filter(|&at| positions.contains(at)).collect()
        };
        assert_eq!(covered(TokenScope::All).len(), 8);
        assert_eq!(covered(TokenScope::AllButFirst), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(covered(TokenScope::Prompt), [0, 1, 2, 3, 4]);
        assert_eq!(covered(TokenScope::Generated), [5, 6, 7]);
        assert_eq!(covered(TokenScope::LastPrompt), [4]);
        assert_eq!(covered(TokenScope::LastUser), [2, 3]);
        assert_eq!(covered(TokenScope::Ends { first: 1, last: 2 }), [0, 3, 4]);
        assert_eq!(covered(TokenScope::Ends { first: 3, last: 3 }), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_user_span_is_what_changes() {
        // 1 and 2 stand before a message, 3 after it; a message is its characters.
        let render = |text: &str| -> Result<Vec<u32>, ()> {
            Ok([vec![1, 2], text.chars().map(|c| 100 + c as u32).collect(), vec![3]].concat())
        };
        let ids = render("tea?").unwrap();
        assert_eq!(last_user_span(&ids, render), Ok(2..6));
        assert_eq!(last_user_span(&render("").unwrap(), render), Ok(2..2));
    }
}
