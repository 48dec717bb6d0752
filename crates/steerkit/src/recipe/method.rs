//! The methods that make a vector, by the names that recipes and `--method` use.

use serde::{Deserialize, Serialize};

/// How a vector is made. A method is a set of defaults of a recipe; what the recipe says wins over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Bi-directional preference optimisation.
    Bipo,
    /// The same with d = +1 only (the paper's Eq. 2).
    Unidirectional,
    /// BiPO with an anchor on the chosen responses.
    BipoAnchor,
    /// Reference-free preference steering.
    Reps,
    /// Prompt-only steering: the first and last prompt tokens, with a learned factor.
    Prosv,
    /// Language modelling on both sides with a hinge.
    Split,
    /// SimPO's length-normalised margin.
    Simpo,
    /// Mean difference at the answer letter of a multiple choice.
    Caa,
    /// Mean difference at the last token but one.
    Freeform,
    /// Mean difference over the responses' tokens.
    MeanDiff,
    /// First principal component of the pairs' differences.
    Pca,
    /// A random direction, as a control.
    Random,
    /// The mean gradient of BiPO at v = 0.
    Grad0,
    /// Direct preference optimisation of a LoRA adapter: no vector, the paper's comparison.
    DpoLora,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Bipo,
        Self::Unidirectional,
        Self::BipoAnchor,
        Self::Reps,
        Self::Prosv,
        Self::Split,
        Self::Simpo,
        Self::Caa,
        Self::Freeform,
        Self::MeanDiff,
        Self::Pca,
        Self::Random,
        Self::Grad0,
        Self::DpoLora,
    ];

    /// As recipes name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bipo => "bipo",
            Self::Unidirectional => "unidirectional",
            Self::BipoAnchor => "bipo-anchor",
            Self::Reps => "reps",
            Self::Prosv => "prosv",
            Self::Split => "split",
            Self::Simpo => "simpo",
            Self::Caa => "caa",
            Self::Freeform => "freeform",
            Self::MeanDiff => "mean-diff",
            Self::Pca => "pca",
            Self::Random => "random",
            Self::Grad0 => "grad0",
            Self::DpoLora => "dpo-lora",
        }
    }

    /// What it is, in a line.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Bipo => "Bi-directional preference optimisation (arXiv 2406.00045)",
            Self::Unidirectional => "BiPO with +v only, the paper's ablation",
            Self::BipoAnchor => "BiPO with an anchor that keeps the chosen answers likely",
            Self::Reps => "Reference-free preference steering (arXiv 2505.20809)",
            Self::Prosv => "Prompt-only steering of the first and last prompt tokens (arXiv 2605.05983)",
            Self::Split => "Language modelling on both sides with a hinge (arXiv 2602.02343)",
            Self::Simpo => "SimPO's length-normalised margin (arXiv 2405.14734)",
            Self::Caa => "Mean difference at the answer letter of a multiple choice",
            Self::Freeform => "Mean difference at the last token but one",
            Self::MeanDiff => "Mean difference over the answers' tokens",
            Self::Pca => "First principal component of the pairs' differences",
            Self::Random => "A random direction: the control",
            Self::Grad0 => "The gradient of BiPO at v = 0",
            Self::DpoLora => "Not a vector: a LoRA adapter by DPO (arXiv 2305.18290), the paper's comparison",
        }
    }

    /// Whether the vector is computed from activations or one gradient, without steps.
    pub fn is_extraction(self) -> bool {
        matches!(self, Self::Caa | Self::Freeform | Self::MeanDiff | Self::Pca | Self::Random | Self::Grad0)
    }

    /// The kind of objective that the method stands for; PrOSV takes any.
    pub(crate) fn objective(self) -> Option<&'static str> {
        match self {
            Self::Prosv => None,
            Self::Reps => Some("reps"),
            Self::Split => Some("split"),
            Self::Simpo => Some("simpo"),
            _ => Some("bipo"),
        }
    }

    /// The method's defaults as TOML.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Bipo => "[objective]\nkind = \"bipo\"\n",
            Self::BipoAnchor => "[objective]\nkind = \"bipo\"\nanchor = 1.0\n",
            Self::Unidirectional => "directions = \"toward\"\n[objective]\nkind = \"bipo\"\n",
            Self::Reps => {
                "directions = \"toward\"\nscope = \"all-but-first\"\n[objective]\nkind = \"reps\"\n"
            }
            Self::Prosv => {
                "directions = \"toward\"\nscope = \"first-2+last-2\"\n[objective]\nkind = \"nll\"\n\
                 [optimiser]\nkind = \"factored-adamw\"\n"
            }
            Self::Split => "directions = \"toward\"\n[objective]\nkind = \"split\"\n",
            Self::Simpo => "directions = \"toward\"\n[objective]\nkind = \"simpo\"\n",
            Self::Caa | Self::Freeform | Self::MeanDiff => "[objective]\nkind = \"bipo\"\n",
            // Directions without a length of their own are brought to the norm budget's dose.
            Self::Pca | Self::Random | Self::Grad0 => {
                "[objective]\nkind = \"bipo\"\n[extract]\ndose = 0.095\n"
            }
            // The paper's appendix F, without its dropout.
            Self::DpoLora => {
                "directions = \"toward\"\nbatch = 4\nepochs = 2\n[objective]\nkind = \"bipo\"\n\
                 [optimiser]\nkind = \"adamw\"\nlr = 2e-4\n\
                 [adapter]\nr = 8\nalpha = 16.0\ntargets = [\"q_proj\", \"v_proj\"]\n"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_recipes() {
        for method in Method::ALL {
            assert_eq!(serde_json::to_value(method).unwrap(), method.name());
            assert!(method.text().parse::<toml::Table>().is_ok(), "{method:?}");
        }
    }
}
