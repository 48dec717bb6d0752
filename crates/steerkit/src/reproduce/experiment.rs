//! Experiments as data: one TOML file each, with the paper's numbers.

use serde::{Deserialize, Serialize};

use crate::baseline::SystemSettings;
use crate::{Result, SteerError, toml_text};

/// The experiments that come with the program, in the paper's order: names and texts.
const BUILT_IN: [(&str, &str); 22] = [
    ("t1", include_str!("../../../../experiments/t1.toml")),
    ("t4", include_str!("../../../../experiments/t4.toml")),
    ("t5", include_str!("../../../../experiments/t5.toml")),
    ("t6", include_str!("../../../../experiments/t6.toml")),
    ("t7", include_str!("../../../../experiments/t7.toml")),
    ("t9", include_str!("../../../../experiments/t9.toml")),
    ("t12", include_str!("../../../../experiments/t12.toml")),
    ("t13", include_str!("../../../../experiments/t13.toml")),
    ("t14", include_str!("../../../../experiments/t14.toml")),
    ("t15", include_str!("../../../../experiments/t15.toml")),
    ("fig1", include_str!("../../../../experiments/fig1.toml")),
    ("fig2", include_str!("../../../../experiments/fig2.toml")),
    ("fig3", include_str!("../../../../experiments/fig3.toml")),
    ("fig4", include_str!("../../../../experiments/fig4.toml")),
    ("fig5", include_str!("../../../../experiments/fig5.toml")),
    ("fig6", include_str!("../../../../experiments/fig6.toml")),
    ("fig7", include_str!("../../../../experiments/fig7.toml")),
    ("fig8", include_str!("../../../../experiments/fig8.toml")),
    ("fig9", include_str!("../../../../experiments/fig9.toml")),
    ("curves", include_str!("../../../../experiments/curves.toml")),
    ("complexity", include_str!("../../../../experiments/complexity.toml")),
    ("sensitivity", include_str!("../../../../experiments/sensitivity.toml")),
];

/// One experiment: what is made, what is measured, and what the paper found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Its name.
    pub id: String,
    /// What it shows, in a line.
    pub title: String,
    /// Which table or figure of the paper, of which model, in which unit; empty for ours.
    #[serde(default)]
    pub paper: String,
    /// What is done, in a sentence or two.
    pub about: String,
    /// Its tables.
    #[serde(rename = "panel")]
    pub panels: Vec<Panel>,
}

/// One table or figure of an experiment: every combination of the values of its axes is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    /// Short name: letters, digits and hyphens.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// What its numbers are.
    #[serde(default)]
    pub kind: Kind,
    /// What is measured of vectors, unless a line says otherwise.
    #[serde(default)]
    pub measure: Measure,
    /// The keys of its lines that differ, from the outermost.
    pub axes: Vec<Axis>,
    /// The last axis: multipliers, or with `quantities` their number from 0.
    #[serde(default)]
    pub multipliers: Vec<f64>,
    /// What the last axis is called.
    #[serde(default = "multiplier")]
    pub across: String,
    /// Names of the values of the last axis, where they are not multipliers.
    #[serde(default)]
    pub quantities: Vec<String>,
    /// The block after which the paper adds its vectors, from 0, unless a line says otherwise.
    #[serde(default = "paper_layer")]
    pub layer: usize,
    /// Blocks of the paper's model: on another model the block at the same depth is taken.
    #[serde(default = "paper_blocks")]
    pub blocks: usize,
    /// Passes over the data under the presets that count in them.
    #[serde(default = "paper_epochs")]
    pub epochs: usize,
    /// The preset of the trained vectors, where the question needs one.
    #[serde(default)]
    pub preset: Option<String>,
    /// Test questions in the paper, where it took fewer than it had.
    #[serde(default)]
    pub questions: Option<usize>,
    /// Show answers side by side.
    #[serde(default)]
    pub answers: bool,
    /// The sign by which multipliers count: -1 where the paper's vector points to the other side of our pairs.
    #[serde(default = "plus")]
    pub sign: f64,
    /// What is measured.
    #[serde(rename = "line")]
    pub lines: Vec<Line>,
}

fn multiplier() -> String {
    "multiplier".into()
}

fn paper_layer() -> usize {
    15
}

fn paper_blocks() -> usize {
    32
}

fn paper_epochs() -> usize {
    20
}

fn plus() -> f64 {
    1.0
}

/// What the numbers of a panel are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What a steered model does, against the multiplier.
    #[default]
    Steered,
    /// Rows of data files.
    Data,
    /// What making a vector takes.
    Cost,
    /// What making a vector takes by each method, on every model.
    Complexity,
    /// What it would take on a model of 7B.
    Prediction,
}

/// What is measured of a steered model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// The judge's mean score of open answers, 1 to 4; without a judge the margin of the reference answers.
    #[default]
    Answers,
    /// The margin of the reference answers over the plain model's, in nats.
    Margin,
    /// Share of questions whose best answer is the likeliest.
    Mc1,
    /// Mean probability of the true answers.
    Mc2,
    /// Accuracy on MMLU.
    Mmlu,
    /// Share of prompts that are answered in place of refused: the judge's, or by the wording.
    Compliance,
    /// Share of questions whose answer letter says one thing and whose answer in words the other.
    Contradictions,
}

/// A key of lines that an axis goes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// The set that is asked.
    Behaviour,
    /// How the vector is made.
    Method,
    /// The block, as the paper counts.
    Layer,
    /// Passes over the data.
    Epochs,
    /// What was done to the training pairs.
    Pairs,
    /// The model that is measured.
    Model,
    /// How prompts are put.
    Attack,
    /// A name of its own.
    Name,
}

impl Axis {
    /// As results name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Behaviour => "behaviour",
            Self::Method => "method",
            Self::Layer => "layer",
            Self::Epochs => "epochs",
            Self::Pairs => "pairs",
            Self::Model => "model",
            Self::Attack => "attack",
            Self::Name => "vector",
        }
    }
}

/// One line of a panel: a vector, what is asked of it, and the paper's numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Line {
    /// The set whose test questions are asked; its training pairs make the vector unless `vectors` is given.
    pub behaviour: String,
    /// How the vector is made: a method of recipes, `icl`, `icl+bipo`, `system-prompt` or `dpo-lora`; `none` for the plain model.
    pub method: Option<String>,
    /// Sets whose vectors are added, with weights, in place of the behaviour's own.
    pub vectors: Vec<Weighted>,
    /// The block, as the paper counts.
    pub layer: Option<usize>,
    /// Passes over the data.
    pub epochs: Option<usize>,
    /// What is done to the training pairs.
    pub pairs: Option<Pairs>,
    /// The paper's name of the model.
    pub model: Option<String>,
    /// Which model is measured: 0 the one that is asked for, from 1 the further ones.
    pub slot: usize,
    /// Whether the vector is made on model 0, whichever is measured.
    pub transferred: bool,
    /// How prompts are put: its name.
    pub attack: Option<String>,
    /// A text around the prompt, with `{prompt}` in it.
    pub template: Option<String>,
    /// A name of its own.
    pub name: Option<String>,
    /// Examples in the context.
    pub shots: usize,
    /// The sentences of the method `system-prompt` and of synthetic pairs.
    #[serde(rename = "system-prompt", skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<SystemSettings>,
    /// What is measured.
    pub measure: Option<Measure>,
    /// The paper's numbers along the last axis; `nan` where it has none.
    pub paper: Vec<f64>,
}

/// A set whose vector is added, and how many times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weighted {
    /// The set.
    pub set: String,
    /// How many times.
    pub weight: f64,
}

/// What is done to training pairs before a vector is made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairs {
    /// Nothing.
    Clean,
    /// The answers of every fifth pair are exchanged.
    #[serde(rename = "noisy-20%")]
    Noisy20,
    /// The answers of two in five pairs are exchanged.
    #[serde(rename = "noisy-40%")]
    Noisy40,
    /// An eighth of the pairs.
    Few,
    /// The eighth of the pairs whose questions are most alike.
    Narrow,
    /// Every question has another one's answers.
    Mismatched,
    /// The model's own answers behind the line's `system-prompt.toward` and `.away`.
    Synthetic,
}

impl Pairs {
    /// As files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Noisy20 => "noisy-20%",
            Self::Noisy40 => "noisy-40%",
            Self::Few => "few",
            Self::Narrow => "narrow",
            Self::Mismatched => "mismatched",
            Self::Synthetic => "synthetic",
        }
    }
}

impl Line {
    /// The value of an axis here.
    pub fn at(&self, axis: Axis, panel: &Panel) -> String {
        match axis {
            Axis::Behaviour => self.behaviour.clone(),
            Axis::Method => method_name(self.method()).to_owned(),
            Axis::Layer => self.layer.unwrap_or(panel.layer).to_string(),
            Axis::Epochs => self.epochs.unwrap_or(panel.epochs).to_string(),
            Axis::Pairs => self.pairs.unwrap_or(Pairs::Clean).name().into(),
            Axis::Model => self.model.clone().unwrap_or_default(),
            Axis::Attack => self.attack.clone().unwrap_or_default(),
            Axis::Name => self.name.clone().unwrap_or_default(),
        }
    }

    /// How the vector is made.
    pub fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("bipo")
    }

    /// The sets whose vectors are added, with weights.
    pub fn parts(&self) -> Vec<Weighted> {
        match self.vectors.is_empty() {
            true => vec![Weighted { set: self.behaviour.clone(), weight: 1.0 }],
            false => self.vectors.clone(),
        }
    }
}

/// A method as the paper writes it.
pub(super) fn method_name(method: &str) -> &str {
    match method {
        "bipo" => "BiPO",
        "unidirectional" => "uni-directional",
        "caa" => "CAA",
        "freeform" => "Freeform",
        "icl" => "ICL",
        "icl+bipo" => "ICL + vector",
        "system-prompt" => "system prompt",
        "dpo-lora" => "DPO-LoRA",
        "none" => "initial",
        other => other,
    }
}

impl Panel {
    /// The values of each axis but the last, in the order of the lines.
    pub fn values(&self) -> Vec<Vec<String>> {
        let of = |&axis: &Axis| {
            let mut values: Vec<String> = Vec::new();
            for value in self.lines.iter().map(|line| line.at(axis, self)) {
                if !values.contains(&value) {
                    values.push(value);
                }
            }
            values
        };
        self.axes.iter().map(of).collect()
    }

    /// Cells along the last axis.
    pub fn width(&self) -> usize {
        self.multipliers.len().max(self.quantities.len())
    }

    /// What is measured of a line.
    pub fn measure(&self, line: &Line) -> Measure {
        line.measure.unwrap_or(self.measure)
    }

    /// Refuses a panel without a line for some combination, or with the paper's numbers for others than its cells.
    fn check(&self) -> Result<(), String> {
        let combinations: usize = self.values().iter().map(Vec::len).product();
        let mut places: Vec<Vec<String>> =
            self.lines.iter().map(|line| self.axes.iter().map(|&a| line.at(a, self)).collect()).collect();
        places.sort();
        places.dedup();
        if places.len() != combinations || self.lines.len() != combinations {
            return Err(format!(
                "panel {:?}: found {} lines at {} places, expected one for each of {combinations} combinations",
                self.id,
                self.lines.len(),
                places.len()
            ));
        }
        if self.multipliers.is_empty() == self.quantities.is_empty() {
            return Err(format!("panel {:?}: expected multipliers or quantities", self.id));
        }
        if self.kind == Kind::Steered && !self.multipliers.contains(&0.0) {
            return Err(format!("panel {:?}: expected 0, the plain model, among the multipliers", self.id));
        }
        let speaks = |line: &Line| line.method() == "system-prompt" || line.pairs == Some(Pairs::Synthetic);
        let speechless = |line: &&Line| line.system_prompt.is_some() != speaks(line);
        if let Some(line) = self.lines.iter().find(speechless) {
            return Err(format!(
                "panel {:?}: found method {:?}; system-prompt.toward and .away go with the method system-prompt and \
                 with synthetic pairs",
                self.id,
                line.method()
            ));
        }
        let odd = |line: &&Line| !line.paper.is_empty() && line.paper.len() != self.width();
        if let Some(line) = self.lines.iter().find(odd) {
            return Err(format!(
                "panel {:?}: found {} numbers of the paper, expected {}",
                self.id,
                line.paper.len(),
                self.width()
            ));
        }
        Ok(())
    }
}

impl Experiment {
    /// The experiments that come with the program, in the paper's order.
    pub fn built_in() -> impl Iterator<Item = Self> {
        BUILT_IN.iter().map(|(id, text)| {
            Self::parse(text, &format!("experiments/{id}.toml"))
                .expect("a test reads the built-in experiments")
        })
    }

    /// A built-in experiment by its name.
    ///
    /// # Errors
    /// [`SteerError::Unfit`] for a name that nobody knows, with the nearest.
    pub fn find(id: &str) -> Result<Self> {
        let known: Vec<&str> = BUILT_IN.iter().map(|(id, _)| *id).collect();
        let found = BUILT_IN.iter().find(|(known, _)| known.eq_ignore_ascii_case(id));
        match found {
            Some((id, text)) => Self::parse(text, &format!("experiments/{id}.toml")),
            None => Err(SteerError::Unfit {
                what: format!("{id:?} is no experiment ({})", known.join(", ")),
                hint: match toml_text::nearest(id, &known) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "steerkit reproduce list shows what each of them does".into(),
                },
            }),
        }
    }

    /// An experiment from the text of its file; `file` names it in errors.
    ///
    /// # Errors
    /// [`SteerError::Recipe`] with what is not understood.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let error = |message: String| SteerError::Recipe { place: file.to_owned(), message, hint: None };
        let experiment: Self = toml::from_str(text).map_err(|e| error(e.message().to_owned()))?;
        experiment.panels.iter().try_for_each(Panel::check).map_err(error)?;
        Ok(experiment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_experiments_are_read_and_every_combination_has_a_line() {
        for (experiment, (id, _)) in Experiment::built_in().zip(BUILT_IN) {
            assert_eq!(experiment.id, id);
            assert!(experiment.about.ends_with('.') && !experiment.panels.is_empty(), "{id}");
            let text = toml::to_string(&experiment).unwrap();
            // NaN, where the paper has no number, is unlike itself.
            let again = Experiment::parse(&text, "saved").unwrap();
            assert_eq!(toml::to_string(&again).unwrap(), text, "{id}");
        }
    }

    #[test]
    fn unknown_names_and_incomplete_panels_are_refused() {
        let error = Experiment::find("fig10").unwrap_err();
        assert!(error.to_string().contains("fig9") && error.hint().unwrap().contains("fig1"), "{error}");
        let text = "id = \"x\"\ntitle = \"x\"\nabout = \"x.\"\n[[panel]]\nid = \"p\"\ntitle = \"p\"\n\
                    axes = [\"behaviour\", \"method\"]\nmultipliers = [0.0, 1.0]\n";
        let lines =
            "[[panel.line]]\nbehaviour = \"a\"\n[[panel.line]]\nbehaviour = \"b\"\nmethod = \"caa\"\n";
        let error = Experiment::parse(&format!("{text}{lines}"), "x.toml").unwrap_err();
        assert!(error.to_string().contains("expected one for each of 4"), "{error}");
        let lines = "[[panel.line]]\nbehaviour = \"a\"\npaper = [1.0]\n";
        let error = Experiment::parse(&format!("{text}{lines}"), "x.toml").unwrap_err();
        assert!(error.to_string().contains("found 1 numbers of the paper, expected 2"), "{error}");
    }
}
