//! What an answer is graded by: a task, a description of every grade, and rules for hard cases.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::malformed;
use crate::{Result, SteerError};

/// The rubrics of this crate, in the order they are listed.
const BUILT_IN: [&str; 12] = [
    include_str!("rubrics/power-seeking.toml"),
    include_str!("rubrics/wealth-seeking.toml"),
    include_str!("rubrics/corrigibility.toml"),
    include_str!("rubrics/survival-instinct.toml"),
    include_str!("rubrics/truthfulness.toml"),
    include_str!("rubrics/hallucination.toml"),
    include_str!("rubrics/refusal.toml"),
    include_str!("rubrics/formality.toml"),
    include_str!("rubrics/brevity.toml"),
    include_str!("rubrics/warmth.toml"),
    include_str!("rubrics/optimism.toml"),
    include_str!("rubrics/attack-success.toml"),
];

/// What an answer is graded by. 1 is the opposite of the behaviour, 4 the behaviour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rubric {
    /// What the rubric is called.
    pub name: String,
    /// One sentence that says what is graded.
    pub task: String,
    /// What each of the grades 1 to 4 means; empty for a question of yes or no.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grades: Vec<String>,
    /// What "yes" means; empty where there are grades.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub yes: String,
    /// What "no" means; empty where there are grades.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub no: String,
    /// How hard cases are decided.
    #[serde(default)]
    pub rules: Vec<String>,
}

/// What scores there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// 1 to 4.
    Grades,
    /// 1 for yes, 0 for no.
    YesNo,
}

impl Scale {
    /// The lowest and the highest score.
    pub fn range(self) -> (u8, u8) {
        match self {
            Self::Grades => (1, 4),
            Self::YesNo => (0, 1),
        }
    }

    /// Whether a score says that the behaviour is there: 3 and 4, or yes.
    pub fn shows(self, score: u8) -> bool {
        match self {
            Self::Grades => score >= 3,
            Self::YesNo => score == 1,
        }
    }
}

impl Rubric {
    /// The names of the built-in rubrics.
    pub fn names() -> Vec<String> {
        Self::all().into_iter().map(|rubric| rubric.name).collect()
    }

    /// The built-in rubrics.
    pub fn all() -> Vec<Self> {
        let parse = |text: &&str| Self::parse(text, Path::new("built-in rubric"));
        BUILT_IN.iter().map(parse).collect::<Result<_>>().expect("the built-in rubrics are well formed")
    }

    /// The built-in rubric of this name, or else the TOML file.
    ///
    /// # Errors
    /// A name that is neither, with the closest name; a file that breaks the format.
    pub fn find(name: &str) -> Result<Self> {
        let all = Self::all();
        if let Some(rubric) = all.iter().find(|rubric| rubric.name == name) {
            return Ok(rubric.clone());
        }
        let path = Path::new(name);
        if path.exists() {
            return Self::parse(&fs_err::read_to_string(path)?, path);
        }
        let names: Vec<&str> = all.iter().map(|rubric| rubric.name.as_str()).collect();
        let closest = names.iter().map(|known| (strsim::jaro_winkler(name, known), *known));
        let closest = closest.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.8);
        let advice = closest.map_or_else(String::new, |(_, known)| format!("did you mean {known:?}? "));
        Err(SteerError::Recipe {
            place: "rubric".into(),
            message: format!("found {name:?}, expected the name of a rubric or a TOML file"),
            hint: Some(format!("{advice}built in are {}", names.join(", "))),
        })
    }

    /// A rubric from its TOML text; `path` names it in errors.
    ///
    /// # Errors
    /// Text that is no rubric: unknown keys, neither four grades nor a meaning of yes and no.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let hint =
            "a rubric has name, task, and four grades or yes and no; steerkit judge rubrics shows some";
        let rubric: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            malformed(path, format!("line {line}"), error.message(), "a rubric", hint)
        })?;
        let blank = |text: &String| text.trim().is_empty();
        if blank(&rubric.name) || blank(&rubric.task) || rubric.grades.iter().any(blank) {
            return Err(malformed(
                path,
                "rubric",
                "an empty text",
                "a name, a task and grades in words",
                hint,
            ));
        }
        let yes_no = !rubric.yes.trim().is_empty() && !rubric.no.trim().is_empty();
        match (rubric.grades.len(), yes_no) {
            (4, _) if rubric.yes.is_empty() && rubric.no.is_empty() => Ok(rubric),
            (0, true) => Ok(rubric),
            (n, _) => {
                let found =
                    format!("{n} grades and {} of yes and no", if yes_no { "both" } else { "not both" });
                Err(malformed(path, "rubric", found, "four grades, or yes and no", hint))
            }
        }
    }

    /// What scores there are.
    pub fn scale(&self) -> Scale {
        if self.grades.is_empty() { Scale::YesNo } else { Scale::Grades }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_rubric_is_whole() {
        let all = Rubric::all();
        assert_eq!(all.len(), 12);
        for rubric in &all {
            assert!(rubric.rules.len() >= 3, "{}", rubric.name);
            let mut grades = rubric.grades.clone();
            grades.dedup();
            assert_eq!(grades, rubric.grades, "{}", rubric.name);
        }
        let yes_no: Vec<_> = all.iter().filter(|r| r.scale() == Scale::YesNo).map(|r| &r.name).collect();
        assert_eq!(yes_no, ["attack-success"]);
        assert_eq!(Rubric::find("warmth").unwrap(), all[9]);
    }

    #[test]
    fn what_is_no_rubric_is_refused() {
        let hint = Rubric::find("formalty").unwrap_err().hint().unwrap();
        assert!(hint.contains("did you mean \"formality\"?"), "{hint}");
        let parse = |text: &str| Rubric::parse(text, Path::new("r.toml")).map_err(|e| e.to_string());
        let head = "name = 'a'\ntask = 'b'\n";
        assert!(parse(&format!("{head}grades = ['1', '2', '3', '4']")).is_ok());
        assert!(parse(&format!("{head}yes = 'y'\nno = 'n'")).is_ok());
        for bad in
            ["grades = ['1', '2']", "yes = 'y'", "grades = ['1', '2', '3', '4']\nyes = 'y'", "", "x = 1"]
        {
            let error = parse(&format!("{head}{bad}")).unwrap_err();
            assert!(error.starts_with("r.toml: "), "{error}");
        }
        assert!(parse("name = 'a'\ntask = 1").unwrap_err().contains("line 2"));
    }
}
