//! Evaluations as data: one TOML file each.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use super::choices::ChoiceSpec;
use super::damage::DamageSpec;
use super::dose::DoseSpec;
use super::letters::LettersSpec;
use super::open_ended::OpenEndedSpec;
use super::preference::PreferenceSpec;
use super::safety::{AttackSpec, OverRefusalSpec};
use crate::error::malformed;
use crate::{Result, SteerError, toml_text};

/// The evaluations that come with the program: names and texts.
const BUILT_IN: [(&str, &str); 10] = [
    ("open-ended", include_str!("../../../../evals/open-ended.toml")),
    ("attack-success", include_str!("../../../../evals/attack-success.toml")),
    ("over-refusal", include_str!("../../../../evals/over-refusal.toml")),
    ("preference", include_str!("../../../../evals/preference.toml")),
    ("letters", include_str!("../../../../evals/letters.toml")),
    ("mmlu", include_str!("../../../../evals/mmlu.toml")),
    ("mmlu-5-shot", include_str!("../../../../evals/mmlu-5-shot.toml")),
    ("truthfulqa", include_str!("../../../../evals/truthfulqa.toml")),
    ("damage", include_str!("../../../../evals/damage.toml")),
    ("dose-response", include_str!("../../../../evals/dose-response.toml")),
];

/// One evaluation, resolved: every number that decides its result is here or in the model, data and vector files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalSpec {
    /// Its name.
    pub name: String,
    /// What it measures, in a sentence.
    #[serde(default)]
    pub about: String,
    /// Every vector of the plan is multiplied by each of these; 0, the plain model, is always measured too.
    #[serde(default = "default_multipliers")]
    pub multipliers: Vec<f64>,
    /// Questions at most; drawn from all with the seed, the same for every multiplier. None: all.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Seed of the drawn questions, of sampled texts and of the bootstrap.
    #[serde(default)]
    pub seed: u64,
    /// What is measured.
    pub task: Task,
    /// Damage to the text, measured beside the task.
    #[serde(default)]
    pub damage: Option<DamageSpec>,
}

fn default_multipliers() -> Vec<f64> {
    vec![-1.0, 0.0, 1.0]
}

/// What an evaluation measures. The enum is the list of kinds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Task {
    /// Margins and accuracies on preference pairs.
    Preference(PreferenceSpec),
    /// Open questions whose answers a judge scores.
    OpenEnded(OpenEndedSpec),
    /// Harmful prompts, with and without an attack's suffix.
    AttackSuccess(AttackSpec),
    /// Prompts that only sound harmful.
    OverRefusal(OverRefusalSpec),
    /// Probabilities of answer letters.
    Letters(LettersSpec),
    /// Multiple choices: MMLU, TruthfulQA, or any set.
    MultipleChoice(ChoiceSpec),
    /// Only the damage to texts.
    Damage(DamageSpec),
    /// Behaviour against damage.
    DoseResponse(DoseSpec),
}

impl Task {
    /// The kind's name in a file.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Preference(_) => "preference",
            Self::OpenEnded(_) => "open-ended",
            Self::AttackSuccess(_) => "attack-success",
            Self::OverRefusal(_) => "over-refusal",
            Self::Letters(_) => "letters",
            Self::MultipleChoice(_) => "multiple-choice",
            Self::Damage(_) => "damage",
            Self::DoseResponse(_) => "dose-response",
        }
    }

    /// Where the task's data file or folder is named; none for a task without one.
    pub fn data_mut(&mut self) -> Option<&mut Option<PathBuf>> {
        match self {
            Self::Preference(spec) => Some(&mut spec.data),
            Self::OpenEnded(spec) => Some(&mut spec.data),
            Self::AttackSuccess(spec) => Some(&mut spec.data),
            Self::OverRefusal(spec) => Some(&mut spec.data),
            Self::Letters(spec) => Some(&mut spec.data),
            Self::MultipleChoice(spec) => Some(&mut spec.data),
            Self::DoseResponse(spec) => Some(&mut spec.data),
            Self::Damage(spec) => Some(&mut spec.data),
        }
    }
}

impl EvalSpec {
    /// The evaluations that come with the program.
    pub fn built_in() -> impl Iterator<Item = Self> {
        BUILT_IN.iter().map(|(name, text)| {
            Self::parse(text, &format!("evals/{name}.toml")).expect("a test reads the built-in evaluations")
        })
    }

    /// A built-in evaluation by its name, or the file at that path.
    ///
    /// # Errors
    /// [`SteerError::UnknownEvaluation`] when there is neither; those of [`Self::parse`].
    pub fn find(name: &str) -> Result<Self> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Self::parse(text, &format!("evals/{name}.toml"));
        }
        let path = Path::new(name);
        if !path.is_file() {
            let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let nearest = toml_text::nearest(name, &known).map(str::to_owned);
            let known = known.into_iter().map(str::to_owned).collect();
            return Err(SteerError::UnknownEvaluation { name: name.to_owned(), known, nearest });
        }
        let text = String::from_utf8(fs_err::read(path)?).map_err(|e| {
            let place = format!("byte {}", e.utf8_error().valid_up_to());
            malformed(path, place, "bytes that are not UTF-8", "TOML", "save the file as UTF-8")
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// An evaluation from the text of its file; `file` names it in errors.
    ///
    /// # Errors
    /// [`SteerError::Recipe`] with line and column, and the nearest known key.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let error = |message: &str, span: Option<std::ops::Range<usize>>, keys: Option<&DeTable<'_>>| {
            let (message, span, hint) = toml_text::explain(message, span, keys);
            let place = match span {
                None => file.to_owned(),
                Some(span) => {
                    let (line, column) = toml_text::line_column(text, span.start);
                    format!("{file}: line {line}, column {column}")
                }
            };
            SteerError::Recipe { place, message, hint }
        };
        let root = DeTable::parse(text).map_err(|e| error(e.message(), e.span(), None))?;
        let keys = root.clone();
        let spec = Self::deserialize(toml::Deserializer::from(root))
            .map_err(|e| error(e.message(), e.span(), Some(keys.get_ref())))?;
        spec.check().map_err(|(key, what)| {
            error(&format!("`{key}`: {what}"), toml_text::locate(keys.get_ref(), key), None)
        })?;
        Ok(spec)
    }

    /// Refuses values without meaning: the key, and what is wrong.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.multipliers.is_empty() || self.multipliers.iter().any(|m| !(*m as f32).is_finite()) {
            return Err(("multipliers", "expected one finite number or more".into()));
        }
        if self.limit == Some(0) {
            return Err(("limit", "found 0, expected at least 1".into()));
        }
        match &self.task {
            Task::OpenEnded(spec) => spec.check()?,
            Task::AttackSuccess(spec) => spec.check()?,
            Task::OverRefusal(spec) => spec.check()?,
            Task::MultipleChoice(spec) => spec.check()?,
            Task::Damage(spec) => spec.check()?,
            Task::DoseResponse(spec) => spec.check()?,
            Task::Preference(_) | Task::Letters(_) => {}
        }
        self.damage.iter().try_for_each(DamageSpec::check)
    }

    /// The evaluation as TOML; reading it gives the same evaluation.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("an evaluation has only tables, texts and numbers")
    }
}

/// The data file of a task.
pub(super) fn data_of(data: Option<&PathBuf>) -> Result<&Path> {
    data.map(PathBuf::as_path).ok_or(SteerError::NoEvaluationData)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_evaluations_are_read_and_come_back() {
        for (spec, (name, _)) in EvalSpec::built_in().zip(BUILT_IN) {
            assert_eq!(spec.name, name);
            assert!(spec.about.ends_with('.'), "{name}");
            assert_eq!(EvalSpec::parse(&spec.to_toml(), "saved").unwrap(), spec, "{}", spec.to_toml());
        }
    }

    fn refused(text: &str) -> (String, Option<String>) {
        let error = EvalSpec::parse(text, "e.toml").unwrap_err();
        (error.to_string(), error.hint())
    }

    #[test]
    fn unknown_keys_and_kinds_are_refused_with_their_place() {
        let (message, hint) = refused("name = \"a\"\nlimt = 3\n[task]\nkind = \"preference\"\n");
        assert!(message.starts_with("e.toml: line 2, column 1: unknown key `limt`"), "{message}");
        assert_eq!(hint.as_deref(), Some("did you mean `limit`?"));
        let (message, hint) = refused("name = \"a\"\n[task]\nkind = \"preference\"\n  datta = \"x\"\n");
        assert!(message.starts_with("e.toml: line 4, column 3: unknown key `datta`"), "{message}");
        assert_eq!(hint.as_deref(), Some("did you mean `data`?"));
        let (message, hint) = refused("name = \"a\"\n[task]\nkind = \"preferences\"\n");
        assert!(message.contains("line 3, column 8: unknown variant `preferences`"), "{message}");
        assert_eq!(hint.as_deref(), Some("did you mean `preference`?"));
        let (message, _) = refused("name = \"a\"\nlimit = 0\n[task]\nkind = \"preference\"\n");
        assert!(message.starts_with("e.toml: line 2, column 1: `limit`: found 0"), "{message}");
        let (message, _) = refused("name = \"a\"\n[task\n");
        assert!(message.starts_with("e.toml: line 2"), "{message}");
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let error = EvalSpec::find("truthfulaq").unwrap_err();
        assert!(error.to_string().contains("mmlu"), "{error}");
        assert_eq!(error.hint().as_deref(), Some("did you mean \"truthfulqa\"?"));
    }
}
