//! A sweep's file, and the jobs that it stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::baseline::{Baseline, IclSettings, SystemSettings};
use crate::files::sha256;
use crate::recipe::{Draft, Method, Recipe};
use crate::toml_text::nearest;
use crate::{Result, SteerError};

/// Most jobs of one sweep.
const MAX_JOBS: usize = 10_000;
/// What a job without a vector depends on.
const PROMPT_KEYS: [&str; 8] =
    ["model", "lora", "data", "prompt", "precision", "eval", "system-prompt", "icl"];

/// A sweep: grids of recipes, and what is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The sweep's folder; `runs/` and the name of the file unless given.
    pub out: Option<PathBuf>,
    /// The pairs that jobs are measured on.
    #[serde(default)]
    pub report_on: Split,
    /// What is chosen among, and by what.
    pub choose: Option<Choose>,
    /// Keys of a recipe that all jobs have in common.
    #[serde(default)]
    pub base: Table,
    /// Sets of keys with a name: `[variants.AXIS.NAME]` is chosen by `AXIS = ["NAME", ..]` in a grid.
    #[serde(default)]
    pub variants: BTreeMap<String, BTreeMap<String, Table>>,
    /// Grids: every combination of the values of its lists is a job.
    pub grid: Vec<Table>,
    /// What is measured.
    #[serde(default)]
    pub measure: Measure,
}

/// The pairs that jobs are measured on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// The validation pairs: the test pairs are not read.
    #[default]
    Valid,
    /// The test pairs, for jobs that were fixed before or chosen on the validation pairs.
    Test,
}

impl Split {
    /// As files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// What is chosen on the validation pairs: among jobs that are alike in all else but the seed, the values of these keys
/// with the largest two-sided margin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choose {
    /// Keys of the grids.
    pub over: Vec<String>,
    /// The strength at which margins compare.
    #[serde(default)]
    pub by: By,
}

/// The strength at which margins compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// As the vector is.
    Multiplier1,
    /// At the same norm.
    #[default]
    EqualNorm,
    /// At the same divergence from the plain model.
    EqualKl,
}

/// What is measured of every vector, at plus and at minus each strength.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Measure {
    /// Multipliers of the vector as it is, above 0.
    pub multipliers: Vec<f64>,
    /// The common norm, as a share of the median norm of the residual stream; 0 for none.
    pub dose: f64,
    /// The common divergence: the 95th percentile over tokens of KL(steered || plain) in nats; 0 for none.
    pub kl: f64,
    /// Validation prompts that are answered to find it.
    pub prompts: usize,
    /// Tokens per answer.
    pub tokens: usize,
    /// The method that the others are compared with.
    pub against: String,
    /// Resamples of the questions behind each interval.
    pub resamples: usize,
}

impl Default for Measure {
    fn default() -> Self {
        Self {
            multipliers: vec![1.0],
            dose: 0.095,
            kl: 1.0,
            prompts: 8,
            tokens: 20,
            against: "bipo".into(),
            resamples: 1000,
        }
    }
}

impl Measure {
    /// Whether jobs give the same numbers under `other`.
    pub(crate) fn same_numbers(&self, other: &Self) -> bool {
        let table = |m: &Self| Self { against: String::new(), resamples: 0, ..m.clone() };
        table(self) == table(other)
    }
}

/// One job of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Hash of everything that decides its result but for the contents of files.
    pub id: String,
    /// The values of the grids' keys, as a person wrote them.
    pub keys: BTreeMap<String, String>,
    /// The method, as the grid names it: `bipo`, `icl`, `icl+bipo`.
    pub method: String,
    /// What stands in the prompt, if anything.
    pub baseline: Option<Baseline>,
    /// Whether something is trained: a vector or an adapter.
    pub steers: bool,
    /// The recipe of the vector; of a job without one, what says which pairs it is measured on.
    pub recipe: Recipe,
}

impl Job {
    /// Whether an adapter is trained, which has no layer.
    pub(super) fn adapts(&self) -> bool {
        self.recipe.adapter.is_some()
    }
}

/// A table of recipe keys being put together.
#[derive(Clone, Default)]
struct Combination {
    table: Table,
    keys: BTreeMap<String, String>,
    /// Axes that a job without a vector depends on.
    of_prompts: BTreeSet<String>,
}

impl Spec {
    /// Reads a sweep's file.
    ///
    /// # Errors
    /// The file system's; [`SteerError::Recipe`] with line and column.
    pub fn read(path: &Path) -> Result<Self> {
        let text = String::from_utf8(fs_err::read(path)?).map_err(|e| SteerError::Recipe {
            place: format!("{}: byte {}", path.display(), e.utf8_error().valid_up_to()),
            message: "found bytes that are not UTF-8, expected TOML".into(),
            hint: Some("save the file as UTF-8".into()),
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// A sweep from text; `name` stands in errors.
    ///
    /// # Errors
    /// [`SteerError::Recipe`] with line and column.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let spec: Self = toml::from_str(text).map_err(|e| {
            let before = &text[..e.span().map_or(0, |span| span.start.min(text.len()))];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let mut quoted = e.message().split('`').skip(1).step_by(2);
            let found = quoted.next().unwrap_or_default();
            let hint = nearest(found, &quoted.collect::<Vec<_>>()).map(|n| format!("did you mean `{n}`?"));
            let message = e.message().replace("unknown field", "unknown key");
            SteerError::Recipe { place: format!("{name}: line {line}, column {column}"), message, hint }
        })?;
        spec.check(name)?;
        Ok(spec)
    }

    fn check(&self, name: &str) -> Result<()> {
        let m = &self.measure;
        let positive = |x: &f64| x.is_finite() && *x > 0.0 && *x <= 1e3;
        let amount = |x: f64| x == 0.0 || positive(&x);
        let faults = [
            (self.grid.is_empty(), "grid", "found no grid", "write [[grid]] with lists under it"),
            (!m.multipliers.iter().all(positive), "measure.multipliers", "expected numbers above 0", ""),
            (!amount(m.dose), "measure.dose", "expected a number above 0, or 0 for none", ""),
            (!amount(m.kl), "measure.kl", "expected a number above 0, or 0 for none", ""),
            (m.prompts == 0 || m.tokens == 0, "measure", "expected 1 or more prompts and tokens", ""),
        ];
        match faults.into_iter().find(|fault| fault.0) {
            None => Ok(()),
            Some((_, key, what, hint)) => Err(SteerError::Recipe {
                place: format!("{name}: `{key}`"),
                message: what.into(),
                hint: Some(hint.to_owned()).filter(|h| !h.is_empty()),
            }),
        }
    }

    /// The jobs of all grids in order, each once. Their runs lie below `out`.
    ///
    /// # Errors
    /// [`SteerError::Recipe`] naming the job whose recipe is not understood.
    pub fn jobs(&self, name: &str, out: &Path) -> Result<Vec<Job>> {
        let mut jobs: Vec<Job> = Vec::new();
        for grid in &self.grid {
            for combination in self.combinations(grid, name)? {
                let job = self.job(combination, name, out)?;
                if !jobs.iter().any(|other| other.id == job.id) {
                    jobs.push(job);
                }
            }
        }
        if let Some(choose) = &self.choose {
            let known: Vec<&str> = self.grid.iter().flat_map(|g| g.keys().map(String::as_str)).collect();
            if let Some(key) = choose.over.iter().find(|k| !jobs.iter().any(|j| j.keys.contains_key(*k))) {
                return Err(SteerError::Recipe {
                    place: format!("{name}: `choose.over`"),
                    message: format!("found `{key}`, expected keys of the grids"),
                    hint: nearest(key, &known).map(|n| format!("did you mean `{n}`?")),
                });
            }
        }
        Ok(jobs)
    }

    /// Every combination of a grid's values.
    fn combinations(&self, grid: &Table, name: &str) -> Result<Vec<Combination>> {
        let mut axes = Vec::new();
        flatten("", grid, &mut axes);
        // Variants come first: what the grid says itself wins.
        axes.sort_by_key(|(key, _)| !self.variants.contains_key(key));
        let mut all = vec![Combination { table: self.base.clone(), ..Combination::default() }];
        for (key, values) in &axes {
            if all.len().saturating_mul(values.len()) > MAX_JOBS {
                let message = format!("more than {MAX_JOBS} combinations");
                return Err(SteerError::Recipe { place: format!("{name}: grid"), message, hint: None });
            }
            let mut next = Vec::with_capacity(all.len() * values.len());
            for combination in &all {
                for value in values {
                    let mut with = combination.clone();
                    self.set(&mut with, key, value, name)?;
                    next.push(with);
                }
            }
            all = next;
        }
        Ok(all)
    }

    fn set(&self, to: &mut Combination, key: &str, value: &Value, name: &str) -> Result<()> {
        to.keys.insert(key.into(), shown(value));
        let Some(variants) = self.variants.get(key) else {
            let root = key.split('.').next().unwrap_or(key);
            if PROMPT_KEYS.contains(&root) || key == "method" {
                to.of_prompts.insert(key.into());
            }
            let nested = key.rsplit('.').fold(value.clone(), |inner, part| {
                Value::Table(Table::from_iter([(part.to_owned(), inner)]))
            });
            if let Value::Table(nested) = nested {
                merge(&mut to.table, &nested);
            }
            return Ok(());
        };
        let Some(table) = value.as_str().and_then(|variant| variants.get(variant)) else {
            let known: Vec<&str> = variants.keys().map(String::as_str).collect();
            return Err(SteerError::Recipe {
                place: format!("{name}: grid, `{key}`"),
                message: format!("found {value}, expected one of {}", known.join(", ")),
                hint: nearest(value.as_str().unwrap_or_default(), &known)
                    .map(|n| format!("did you mean {n:?}?")),
            });
        };
        if table.keys().any(|k| PROMPT_KEYS.contains(&k.as_str())) {
            to.of_prompts.insert(key.into());
        }
        merge(&mut to.table, table);
        Ok(())
    }

    fn job(&self, combination: Combination, name: &str, out: &Path) -> Result<Job> {
        let Combination { mut table, mut keys, of_prompts } = combination;
        let label: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let place = format!("{name}: job {}", label.join(", "));
        let fault = |message: String, hint: Option<&str>| SteerError::Recipe {
            place: place.clone(),
            message,
            hint: hint.map(str::to_owned),
        };
        let method = table.get("method").map_or("bipo".into(), shown);
        let icl =
            settings::<IclSettings>(table.remove("icl")).map_err(|e| fault(format!("icl: {e}"), None))?;
        let system = settings::<SystemSettings>(table.remove("system-prompt"))
            .map_err(|e| fault(format!("system-prompt: {e}"), None))?;
        let (prompted, vector) = match method.split_once('+') {
            Some((prompted, vector)) => (Some(prompted), Some(vector)),
            None if ["icl", "system-prompt"].contains(&method.as_str()) => (Some(method.as_str()), None),
            None => (None, Some(method.as_str())),
        };
        let baseline = match prompted {
            None => None,
            Some("icl") => Some(Baseline::Icl(icl.unwrap_or_default())),
            Some("system-prompt") => Some(Baseline::SystemPrompt(system.ok_or_else(|| {
                let hint = "set system-prompt.toward and system-prompt.away to a sentence each";
                fault("the method system-prompt has no sentences".into(), Some(hint))
            })?)),
            Some(other) => {
                return Err(fault(format!("found {other:?} before +, expected icl or system-prompt"), None));
            }
        };
        match vector {
            Some(vector) => {
                table.insert("method".into(), vector.into());
                if vector == Method::DpoLora.name() {
                    table.remove("layer");
                }
            }
            None => {
                let seed = table.get("seed").filter(|_| matches!(baseline, Some(Baseline::Icl(_)))).cloned();
                table.retain(|key, _| PROMPT_KEYS.contains(&key));
                table.extend(seed.clone().map(|seed| ("seed".to_owned(), seed)));
                // No vector, so no layer; a number keeps the recipe from asking for a search.
                table.insert("layer".into(), Value::Integer(0));
                for (key, value) in &mut keys {
                    if !(of_prompts.contains(key) || key == "seed" && seed.is_some()) {
                        *value = "-".into();
                    }
                }
            }
        }
        quiet(&mut table);
        let recipe = resolve(&table, Path::new("run"), &place)?;
        recipe.has_one_layer().map_err(|message| {
            fault(message, Some("train it by itself: a sweep compares vectors of one layer each"))
        })?;
        let id = id(&recipe, &method, &baseline);
        let recipe = Recipe { out: out.join("jobs").join(&id).join("run"), ..recipe };
        keys.insert("method".into(), method.clone());
        Ok(Job { steers: vector.is_some(), id, keys, method, baseline, recipe })
    }
}

/// Runs measure nothing by themselves unless the file says so: the sweep measures them.
fn quiet(table: &mut Table) {
    let Value::Table(eval) = table.entry("eval").or_insert_with(|| Value::Table(Table::new())) else {
        return;
    };
    eval.entry("multipliers").or_insert_with(|| Value::Array(Vec::new()));
    eval.entry("every_epochs").or_insert(Value::Integer(0));
}

/// The recipe of a job.
fn resolve(table: &Table, out: &Path, place: &str) -> Result<Recipe> {
    let mut table = table.clone();
    table.insert("out".into(), out.to_string_lossy().into_owned().into());
    Draft::parse(&table.to_string()).resolve().map_err(|error| match error {
        // Line numbers would be those of a text that nobody has seen.
        SteerError::Recipe { message, hint, .. } => SteerError::Recipe { place: place.into(), message, hint },
        other => other,
    })
}

/// Hash of what decides a job's result.
fn id(recipe: &Recipe, method: &str, baseline: &Option<Baseline>) -> String {
    let baseline = serde_json::to_string(baseline).expect("settings are text and numbers");
    let mut text = format!("{method}\n{baseline}\n");
    for (key, value) in recipe.decisive() {
        text.push_str(&format!("{key} = {value}\n"));
    }
    sha256(text.as_bytes())[..12].to_owned()
}

fn settings<T: serde::de::DeserializeOwned>(value: Option<Value>) -> Result<Option<T>, String> {
    value.map(|value| value.try_into().map_err(|e: toml::de::Error| e.message().to_owned())).transpose()
}

/// A value as a person writes it, text without quotes.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The dotted keys of a grid with their values; what is no list has one.
fn flatten(prefix: &str, table: &Table, into: &mut Vec<(String, Vec<Value>)>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => flatten(&path, inner, into),
            Value::Array(values) => into.push((path, values.clone())),
            value => into.push((path, vec![value.clone()])),
        }
    }
}

/// Sets the keys of `from` in `to`. A table of another `kind` takes the place of the old one.
fn merge(to: &mut Table, from: &Table) {
    for (key, value) in from {
        match (to.get_mut(key), value) {
            (Some(Value::Table(old)), Value::Table(new))
                if new.get("kind").is_none_or(|kind| old.get("kind") == Some(kind)) =>
            {
                merge(old, new);
            }
            _ => {
                to.insert(key.clone(), value.clone());
            }
        }
    }
}
