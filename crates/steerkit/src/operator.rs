//! What is done to the residual stream with a vector.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use steerkit_model::Shift;

/// What is done to a row `h` of the residual stream with a vector `v` and a multiplier `m`. `u` is `v` at norm 1 and
/// `p = u·h`. As text: `add`, `ablate`, `one-sided` or `one-sided:BIAS`, `clamp:LOW:HIGH`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Operator {
    /// `h + m·v`.
    #[default]
    Add,
    /// `h - m·p·u`: at 1 the direction is gone.
    Ablate,
    /// `h - m·max(p + bias, 0)·u`.
    OneSided {
        /// Added to the projection.
        bias: f32,
    },
    /// `h + m·(min(max(p, low), high) - p)·u`: at 1 the projection lies in the interval.
    Clamp {
        /// The smallest projection.
        low: f32,
        /// The largest projection.
        high: f32,
    },
}

impl Operator {
    /// The shift along `u` at multiplier `strength`; none for [`Self::Add`].
    pub(crate) fn shift(self, strength: f32) -> Option<Shift> {
        match self {
            Self::Add => None,
            Self::Ablate => Some(Shift::Ablate { strength }),
            Self::OneSided { bias } => Some(Shift::OneSided { strength, bias }),
            Self::Clamp { low, high } => Some(Shift::Clamp { strength, low, high }),
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add => f.write_str("add"),
            Self::Ablate => f.write_str("ablate"),
            Self::OneSided { bias: 0.0 } => f.write_str("one-sided"),
            Self::OneSided { bias } => write!(f, "one-sided:{bias}"),
            Self::Clamp { low, high } => write!(f, "clamp:{low}:{high}"),
        }
    }
}

impl FromStr for Operator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<f32>().ok().filter(|x| x.is_finite());
        let parts: Vec<&str> = text.split(':').collect();
        let parsed = match parts[..] {
            ["add"] => Some(Self::Add),
            ["ablate"] => Some(Self::Ablate),
            ["one-sided"] => Some(Self::OneSided { bias: 0.0 }),
            ["one-sided", bias] => number(bias).map(|bias| Self::OneSided { bias }),
            ["clamp", low, high] => number(low)
                .zip(number(high))
                .filter(|(low, high)| low <= high)
                .map(|(low, high)| Self::Clamp { low, high }),
            _ => None,
        };
        parsed.ok_or_else(|| {
            format!("found {text:?}, expected add, ablate, one-sided, one-sided:BIAS or clamp:LOW:HIGH")
        })
    }
}

impl TryFrom<String> for Operator {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Operator> for String {
    fn from(operator: Operator) -> Self {
        operator.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        for text in ["add", "ablate", "one-sided", "one-sided:-0.5", "clamp:-1:2.5"] {
            assert_eq!(text.parse::<Operator>().unwrap().to_string(), text);
        }
        for bad in ["", "addd", "clamp", "clamp:2:1", "clamp:nan:1", "one-sided:x", "ablate:1"] {
            assert!(bad.parse::<Operator>().is_err(), "{bad}");
        }
    }
}
