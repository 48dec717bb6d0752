//! What `generate`, `chat` and `demo` share: opening a model, and vectors with their multipliers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use steerkit::interop::{self, ImportOptions};
use steerkit::plan::{PlanEntry, PlanWarning};
use steerkit::{Operator, PromptShape, SteeringPlan, SteeringVector, TokenScope};
use steerkit_model::prompting::{DEFAULT_SYSTEM, Prompting};
use steerkit_model::{Model, OpenOptions, Sampling};

use super::{model, vector};
use crate::args::{ModelArgs, PromptArgs, SamplingArgs, SteerSpec};
use crate::failure::{Failure, Outcome};
use crate::output::Printer;

/// Opens the model that the options name, to write this many texts at a time.
pub(crate) fn open(args: &ModelArgs, texts: usize) -> Outcome<Model> {
    let options = OpenOptions {
        precision: args.precision.resolve(texts),
        device: args.device.choice(),
        long_context: args.device.long_context,
    };
    let path = model::resolve(&args.model)?;
    Ok(Model::open_with_lora(&path, &args.lora.lora, args.lora.mode(), &options)?)
}

/// A vector, or those of a file for several layers, with the multiplier.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    /// As the user names it.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// One for each layer of the file.
    pub(crate) vectors: Vec<Arc<SteeringVector>>,
    pub(crate) multiplier: f64,
    pub(crate) operator: Operator,
    pub(crate) scope: TokenScope,
    /// The multiplier that counts as 1.
    pub(crate) unit: f64,
}

/// A vector of a plan, as JSON shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PlanPart {
    name: String,
    path: PathBuf,
    layer: usize,
    multiplier: f64,
    norm: f32,
    relative_dose: Option<f32>,
    operator: Operator,
    scope: TokenScope,
}

impl Applied {
    /// Reads the vector that `spec` names, to be applied as the options say.
    pub(crate) fn load(spec: &SteerSpec, args: &PromptArgs) -> Outcome<Self> {
        let path = vector::find(&spec.vector)?;
        let imported = interop::import(&path, &ImportOptions::default())?;
        let made = &imported.vectors[0].provenance;
        let unit = match (args.calibrated, &made.calibration) {
            (false, _) => 1.0,
            (true, Some(calibration)) => f64::from(calibration.multiplier),
            (true, None) => {
                let name = &spec.vector;
                return Err(Failure::input(format_args!("vector {name:?} has no calibrated unit dose"))
                    .hint(format_args!("steerkit vector calibrate {name} --model MODEL")));
            }
        };
        let scope = args.scope.unwrap_or(made.token_scope);
        let name = spec.vector.clone();
        let vectors = imported.vectors.into_iter().map(Arc::new).collect();
        Ok(Self { name, path, vectors, multiplier: spec.multiplier, operator: args.operator, scope, unit })
    }

    /// The parts of a plan where every multiplier is multiplied by `factor`.
    pub(crate) fn parts(&self, factor: f64) -> impl Iterator<Item = PlanPart> {
        let multiplier = self.multiplier * factor * self.unit;
        self.vectors.iter().map(move |vector| PlanPart {
            name: self.name.clone(),
            path: self.path.clone(),
            layer: vector.layer,
            multiplier,
            norm: vector.norm(),
            relative_dose: vector.relative_norm().map(|norm| norm * multiplier.abs() as f32),
            operator: self.operator,
            scope: self.scope,
        })
    }
}

/// The vector of a file of any kind that holds one layer.
pub(crate) fn one_layer(path: &Path) -> Outcome<SteeringVector> {
    let mut vectors = interop::import(path, &ImportOptions::default())?.vectors;
    match vectors.len() {
        1 => Ok(vectors.remove(0)),
        n => Err(Failure::input(format_args!("{}: found {n} layers, expected one", path.display()))
            .hint("choose one: steerkit vector convert FILE OUT.safetensors --layer N")),
    }
}

/// The plan of vectors with every multiplier multiplied by `factor`.
pub(crate) fn plan(vectors: &[Applied], factor: f64) -> Outcome<SteeringPlan> {
    let entries = vectors.iter().flat_map(|v| {
        let multiplier = (v.multiplier * factor * v.unit) as f32;
        let (operator, scope) = (v.operator, v.scope);
        let entry =
            move |vector: &Arc<_>| PlanEntry { vector: Arc::clone(vector), multiplier, operator, scope };
        v.vectors.iter().map(entry)
    });
    Ok(entries.into_iter().try_fold(SteeringPlan::new(), SteeringPlan::with)?)
}

/// Tells what is odd about a plan on a model; a vector of another model stops unless forced.
pub(crate) fn warn(plan: &SteeringPlan, model: &Model, force: bool, printer: Printer) -> Outcome {
    // A vector of another width is an error of its own, and says more.
    plan.edits(model.config(), &PromptShape::default())?;
    for warning in plan.warnings(model.identity()) {
        if matches!(warning, PlanWarning::OtherModel { .. }) && !force {
            return Err(Failure::input(warning).hint("apply it all the same with --force"));
        }
        printer.warn(warning);
    }
    Ok(())
}

/// The system prompt: the one asked for, else the one that the vectors were trained with, else the default.
pub(crate) fn system_prompt(args: &PromptArgs, vectors: &[Applied], printer: Printer) -> Option<String> {
    if let Some(text) = &args.system {
        return Some(text.clone()).filter(|text| !text.is_empty());
    }
    let all = vectors.iter().map(|v| (v, &v.vectors[0].provenance));
    let trained: Vec<_> = all.filter(|(_, made)| made.method != "unknown").collect();
    let Some((first, made)) = trained.first() else { return Some(DEFAULT_SYSTEM.to_owned()) };
    let system = &made.system_prompt;
    if trained.iter().any(|(_, made)| made.system_prompt != *system) {
        printer.warn(format_args!(
            "the vectors were trained with different system prompts; that of {:?} is used",
            first.name
        ));
    }
    system.clone()
}

/// How questions become prompts of this model.
pub(crate) fn prompting(model: &Model, system: Option<String>) -> Outcome<Prompting<'_>> {
    Ok(Prompting { system, ..Prompting::new(model.tokenizer()?, model.chat_template()?) })
}

impl From<&SamplingArgs> for Sampling {
    fn from(args: &SamplingArgs) -> Self {
        let plain = Self::default();
        Self {
            temperature: args.temperature,
            top_k: args.top_k.unwrap_or(plain.top_k),
            top_p: args.top_p.unwrap_or(plain.top_p),
            min_p: args.min_p.unwrap_or(plain.min_p),
            repetition_penalty: args.repetition_penalty.unwrap_or(plain.repetition_penalty),
            seed: args.seed,
            ..plain
        }
    }
}
