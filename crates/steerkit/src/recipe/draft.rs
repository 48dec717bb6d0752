//! From what a person wrote to a recipe.

use super::{Method, Preset, Recipe};
use crate::{Result, SteerError, toml_text};
use serde::Deserialize;
use std::{
    borrow::Cow,
    ops::Range,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// What a person wrote: the text of a recipe file and values set on top of it. Keys that neither names come
/// from the preset.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    path: Option<PathBuf>,
    text: String,
    sets: Vec<Set>,
}

#[derive(Clone, Debug)]
struct Set {
    key: String,
    value: String,
    is_text: bool,
}

type Table<'i> = DeTable<'i>;

impl Draft {
    /// The recipe file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs_err::read(path)?;
        let text = String::from_utf8(bytes).map_err(|e| SteerError::Recipe {
            place: format!("{}: byte {}", path.display(), e.utf8_error().valid_up_to()),
            message: "found bytes that are not UTF-8, expected TOML".into(),
            hint: Some("save the recipe as UTF-8".into()),
        })?;
        Ok(Self { path: Some(path.into()), text, sets: Vec::new() })
    }

    /// A recipe from text.
    pub fn parse(text: &str) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Sets the dotted `key` to a TOML value (`--set optimiser.lr=1e-3`); what is no TOML value is taken as
    /// text. Later settings win.
    pub fn set(&mut self, key: &str, value: &str) {
        self.sets.push(Set { key: key.into(), value: value.into(), is_text: false });
    }

    /// Sets the dotted `key` to text, whatever it looks like.
    pub fn set_text(&mut self, key: &str, value: &str) {
        self.sets.push(Set { key: key.into(), value: value.into(), is_text: true });
    }

    /// Fills in the preset and checks every key and value.
    ///
    /// # Errors
    /// [`SteerError::Recipe`] with line and column (or the name of the setting), and the nearest known key.
    pub fn resolve(&self) -> Result<Recipe> {
        let mut root = DeTable::parse(&self.text).map_err(|e| self.error(e.message(), e.span(), None))?;
        for (i, set) in self.sets.iter().enumerate() {
            self.apply(root.get_mut(), i, set)?;
        }
        self.fill(root.get_mut())?;
        let keys = root.clone();
        let recipe = Recipe::deserialize(toml::Deserializer::from(root))
            .map_err(|e| self.error(e.message(), e.span(), Some(keys.get_ref())))?;
        recipe.check().map_err(|(key, what)| {
            let span = toml_text::locate(keys.get_ref(), &key);
            self.error(&format!("`{key}`: {what}"), span, None)
        })?;
        Ok(recipe)
    }

    /// The span that stands for setting `i`; it lies behind the text.
    fn set_span(&self, i: usize) -> Range<usize> {
        let at = self.text.len() + 1 + i;
        at..at
    }

    fn apply<'i>(&'i self, root: &mut Table<'i>, i: usize, set: &'i Set) -> Result<()> {
        let span = self.set_span(i);
        let text = || DeValue::String(Cow::Borrowed(set.value.as_str()));
        let value = match DeValue::parse(&set.value) {
            Ok(value) if !set.is_text => value.into_inner(),
            _ => text(),
        };
        let mut parts: Vec<&str> = set.key.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        let mut table = root;
        for part in parts {
            let key = Spanned::new(span.clone(), Cow::Borrowed(part));
            let empty = Spanned::new(span.clone(), DeValue::Table(Table::new()));
            table = match table.entry(key).or_insert(empty).get_mut() {
                DeValue::Table(inner) => inner,
                _ => {
                    let message = format!("`{part}` is a value, expected a table");
                    return Err(self.error(&message, Some(span), None));
                }
            };
        }
        // Insertion keeps an old key with its old span; the setting is to be named instead.
        table.remove(last);
        table.insert(Spanned::new(span.clone(), Cow::Borrowed(last)), Spanned::new(span, value));
        Ok(())
    }

    /// Inserts the preset's values for keys that are not there.
    fn fill<'i>(&self, root: &mut Table<'i>) -> Result<()> {
        let preset = match root.get("preset") {
            None => Preset::default(),
            Some(value) => {
                let name = value.get_ref().as_str().unwrap_or(value.get_ref().type_str());
                Preset::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
                    let known = Preset::ALL.map(|p| format!("`{}`", p.name())).join(", ");
                    let message = format!("unknown variant `{name}`, expected one of {known}");
                    self.error(&message, Some(value.span()), None)
                })?
            }
        };
        let of_preset = DeTable::parse(preset.text()).expect("the presets are TOML").into_inner();
        let nowhere = self.set_span(self.sets.len());
        let method = self.method(root, &of_preset)?;
        let of_method = DeTable::parse(method.text()).expect("the methods are TOML").into_inner();
        for mut defaults in [of_method, of_preset] {
            if root.contains_key("epochs") || root.contains_key("steps") {
                defaults.remove("epochs");
                defaults.remove("steps");
            }
            merge(root, defaults, &nowhere);
        }
        let word = |text: &'static str| Spanned::new(nowhere.clone(), DeValue::String(Cow::Borrowed(text)));
        let key = |text: &'static str| Spanned::new(nowhere.clone(), Cow::Borrowed(text));
        root.entry(key("preset")).or_insert(word(preset.name()));
        Ok(())
    }

    /// The method that the person names, or the preset's.
    fn method(&self, root: &Table<'_>, preset: &Table<'_>) -> Result<Method> {
        let Some(value) = root.get("method").or(preset.get("method")) else { return Ok(Method::Bipo) };
        let name = value.get_ref().as_str().unwrap_or(value.get_ref().type_str());
        Method::ALL.into_iter().find(|m| m.name() == name).ok_or_else(|| {
            let known = Method::ALL.map(|m| format!("`{}`", m.name())).join(", ");
            let message = format!("unknown variant `{name}`, expected one of {known}");
            self.error(&message, Some(value.span()), None)
        })
    }

    /// An error at `span`; `keys` gives the place of an unknown key, which serde loses inside tagged tables.
    fn error(&self, message: &str, span: Option<Range<usize>>, keys: Option<&Table<'_>>) -> SteerError {
        let (message, span, hint) = toml_text::explain(message, span, keys);
        SteerError::Recipe { place: self.place(span), message, hint }
    }

    /// `file: line 3, column 7` or `--set optimiser.lr`.
    fn place(&self, span: Option<Range<usize>>) -> String {
        let file = self.path.as_ref().map_or("recipe".into(), |p| p.display().to_string());
        match span {
            Some(span) if span.start > self.text.len() => {
                match self.sets.get(span.start - self.text.len() - 1) {
                    Some(set) => format!("--set {}={}", set.key, set.value),
                    None => file,
                }
            }
            Some(span) => {
                let (line, column) = toml_text::line_column(&self.text, span.start);
                format!("{file}: line {line}, column {column}")
            }
            None => file,
        }
    }
}

/// Inserts what `table` lacks. A table whose `kind` the person chose takes nothing from a default of another
/// kind.
fn merge<'i>(table: &mut Table<'i>, defaults: Table<'i>, span: &Range<usize>) {
    for (key, default) in defaults {
        match (table.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut), default.into_inner()) {
            (Some(DeValue::Table(mine)), DeValue::Table(default)) => {
                let other_kind = mine.get("kind").is_some_and(|kind| {
                    kind.get_ref().as_str() != default.get("kind").and_then(|k| k.get_ref().as_str())
                });
                if !other_kind {
                    merge(mine, default, span);
                }
            }
            (Some(_), _) => {}
            (None, default) => {
                let key = Spanned::new(span.clone(), key.into_inner());
                table.insert(key, Spanned::new(span.clone(), default));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        objective::{Bipo, Objective},
        optim::{AdamW, Optimiser},
        recipe::{Directions, LayerChoice, Warmup},
        scope::TokenScope,
    };

    const MINIMAL: &str = "model = \"m.gguf\"\nout = \"runs/a\"\n[data]\ntrain = \"a.csv\"\n";

    fn resolve(text: &str) -> Recipe {
        Draft::parse(text).resolve().unwrap()
    }

    fn refused(text: &str) -> (String, Option<String>) {
        let error = Draft::parse(text).resolve().unwrap_err();
        (error.to_string(), error.hint())
    }

    #[test]
    fn presets_fill_what_is_missing() {
        let auto = resolve(MINIMAL);
        assert_eq!((auto.batch, auto.steps, auto.epochs, auto.layer), (16, Some(8), None, LayerChoice::Auto));
        let paper = resolve(&format!("preset = \"paper\"\n{MINIMAL}"));
        assert_eq!(paper.optimiser, Optimiser::AdamW(AdamW::default()));
        assert_eq!((paper.batch, paper.steps, paper.epochs), (4, None, Some(20)));
        let official = resolve(&format!("preset = \"official\"\nepochs = 3\nlayer = 15\n{MINIMAL}"));
        let want =
            AdamW { weight_decay: 0.0, clip: Some(1.0), schedule_epochs: Some(100), ..AdamW::default() };
        assert_eq!(official.optimiser, Optimiser::AdamW(want));
        assert_eq!((official.epochs, official.layer), (Some(3), LayerChoice::Block(15)));
    }

    #[test]
    fn the_saved_text_gives_the_same_recipe() {
        for preset in ["auto", "paper", "official"] {
            let recipe = resolve(&format!("preset = \"{preset}\"\n{MINIMAL}"));
            assert_eq!(resolve(&recipe.to_toml()), recipe);
        }
    }

    #[test]
    fn another_kind_takes_no_default_of_the_preset() {
        let mut draft = Draft::parse(MINIMAL);
        draft.set("optimiser.kind", "adamw");
        draft.set("optimiser.lr", "1e-3");
        draft.set("optimiser.warmup.fraction", "0.1");
        draft.set("epochs", "2");
        draft.set_text("data.train", "7");
        let recipe = draft.resolve().unwrap();
        let want = AdamW { lr: 1e-3, warmup: Warmup::Fraction(0.1), ..AdamW::default() };
        assert_eq!(recipe.optimiser, Optimiser::AdamW(want));
        assert_eq!((recipe.epochs, recipe.steps), (Some(2), None));
        assert_eq!(recipe.data.train, PathBuf::from("7"));
    }

    #[test]
    fn unknown_keys_are_refused_with_their_place() {
        let (message, hint) = refused(&format!("{MINIMAL}[objective]\n  betta = 0.2\n"));
        assert!(message.contains("line 6, column 3: unknown key `betta`"), "{message}");
        assert_eq!(hint.as_deref(), Some("did you mean `beta`?"));
        let (message, hint) = refused(&format!("sed = 1\n{MINIMAL}"));
        assert!(message.contains("line 1, column 1: unknown key `sed`"), "{message}");
        assert_eq!(hint.as_deref(), Some("did you mean `seed`?"));
        let mut draft = Draft::parse(MINIMAL);
        draft.set("objective.betta", "0.2");
        let error = draft.resolve().unwrap_err().to_string();
        assert!(error.starts_with("--set objective.betta=0.2: unknown key"), "{error}");
    }

    #[test]
    fn bad_values_are_refused_with_their_place() {
        for (line, place, what) in [
            ("batch = 0", "line 1, column 1", "expected at least 1"),
            ("layer = -1", "line 1, column 9", "block number"),
            ("layer = \"middle\"", "line 1, column 9", "auto"),
            ("preset = \"papr\"", "line 1, column 10", "unknown variant"),
            ("steps = 3\nepochs = 1", "line 1, column 1", "either"),
            ("batch = ", "line 1", ""),
        ] {
            let (message, _) = refused(&format!("{line}\n{MINIMAL}"));
            assert!(message.contains(place) && message.contains(what), "{line}: {message}");
        }
        let (message, _) = refused(&format!("{MINIMAL}[objective]\nbeta = nan\n"));
        assert!(message.contains("line 6, column 1: `beta`"), "{message}");
        assert!(refused("model = \"m\"\n").0.contains("missing key"), "{:?}", refused("model = \"m\"\n"));
    }

    #[test]
    fn methods_bring_their_defaults() {
        let of = |line: &str| resolve(&format!("{line}\n{MINIMAL}"));
        let reps = of("method = \"reps\"");
        assert_eq!((reps.objective.kind(), reps.scope), ("reps", TokenScope::AllButFirst));
        assert_eq!((reps.directions, reps.batch), (Directions::Toward, 16));
        let prosv = of("method = \"prosv\"\nscope = \"first-1+last-3\"");
        assert_eq!(prosv.scope, TokenScope::Ends { first: 1, last: 3 });
        assert!(matches!(prosv.optimiser, Optimiser::Factored(_)) && prosv.objective.kind() == "nll");
        assert!(matches!(
            of("method = \"prosv\"\nobjective = { kind = \"reps\" }").objective,
            Objective::Reps(_)
        ));
        let anchor = of("method = \"bipo-anchor\"\npreset = \"paper\"");
        assert_eq!(anchor.objective, Objective::Bipo(Bipo { beta: 0.1, anchor: 1.0 }));
        assert_eq!(anchor.directions, Directions::Drawn);
        for method in Method::ALL {
            let recipe = of(&format!("method = {:?}", method.name()));
            assert_eq!((resolve(&recipe.to_toml()), recipe.method), (recipe.clone(), method));
        }
        let (message, hint) = refused(&format!("method = \"rep\"\n{MINIMAL}"));
        assert!(message.contains("line 1, column 10: unknown variant `rep`"), "{message}");
        assert_eq!(hint.as_deref(), Some("did you mean `reps`?"));
        let (message, _) =
            refused(&format!("method = \"caa\"\nobjective = {{ kind = \"reps\" }}\n{MINIMAL}"));
        assert!(message.contains("expected \"bipo\" for the method \"caa\""), "{message}");
        let (message, _) = refused(&format!("scope = \"everywhere\"\n{MINIMAL}"));
        assert!(message.contains("line 1, column 9") && message.contains("last-user"), "{message}");
        let (message, _) = refused(&format!("method = \"reps\"\n{MINIMAL}[objective]\nfactors = [1, -2]\n"));
        assert!(message.contains("`factors`: found -2"), "{message}");
    }

    #[test]
    fn differences_name_what_decides() {
        let a = resolve(MINIMAL);
        let mut b = a.clone();
        b.seed = 7;
        b.out = "elsewhere".into();
        assert_eq!(a.differences(&b), ["seed: 42 -> 7"]);
    }
}
