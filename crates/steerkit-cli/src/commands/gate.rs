//! `steerkit vector gate`, and gates of `generate`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use steerkit::gate::{self, Gate, Reading, ShapedPrompt};
use steerkit::vector::{GateCalibration, Provenance};
use steerkit::{SteeringPlan, SteeringVector, TokenScope, interop};
use steerkit_model::Model;
use steerkit_model::prompting::{DEFAULT_SYSTEM, Prompting};

use super::{prompts, steering, vector};
use crate::args::{GateSpec, VectorGate};
use crate::failure::{Failure, Outcome};
use crate::output::Printer;

/// A gate of a plan, as JSON shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GatePart {
    name: String,
    path: PathBuf,
    layer: usize,
    threshold: f32,
    #[serde(flatten)]
    reading: Reading,
}

/// A gate that the user named.
pub(crate) struct NamedGate {
    name: String,
    path: PathBuf,
    gate: Gate,
}

impl NamedGate {
    /// Reads the condition that `spec` names; one of another model stops unless forced.
    pub(crate) fn load(spec: &GateSpec, model: &Model, force: bool, printer: Printer) -> Outcome<Self> {
        let path = vector::find(&spec.vector)?;
        let condition = Arc::new(steering::one_layer(&path)?);
        let plan = SteeringPlan::new().add(Arc::clone(&condition), 0.0)?;
        steering::warn(&plan, model, force, printer)?;
        let gate = Gate::new(condition, spec.threshold)?;
        Ok(Self { name: spec.vector.clone(), path, gate })
    }

    /// Whether `prompt` meets the condition.
    pub(crate) fn read(&self, model: &Model, prompt: &ShapedPrompt) -> Outcome<GatePart> {
        Ok(GatePart {
            name: self.name.clone(),
            path: self.path.clone(),
            layer: self.gate.vector().layer,
            threshold: self.gate.threshold(),
            reading: self.gate.read(model, prompt)?,
        })
    }

    /// The prompt with what the condition must know of it.
    pub(crate) fn shaped(
        &self,
        prompting: &Prompting<'_>,
        text: &str,
        prompt: &[u32],
    ) -> Outcome<ShapedPrompt> {
        shaped(self.gate.vector(), prompting, text, prompt)
    }
}

impl fmt::Display for GatePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, threshold, reading: Reading { similarity, open }, .. } = self;
        let state = if *open { "open" } else { "closed" };
        write!(f, "gate {name:?} is {state}: cosine {similarity:.3}, threshold {threshold:.3}")
    }
}

impl GatePart {
    pub(crate) fn is_open(&self) -> bool {
        self.reading.open
    }
}

fn shaped(
    condition: &SteeringVector,
    prompting: &Prompting<'_>,
    text: &str,
    prompt: &[u32],
) -> Outcome<ShapedPrompt> {
    let plan = SteeringPlan::new().add(Arc::new(condition.clone()), 0.0)?;
    Ok((prompt.to_vec(), plan.shape(prompting, text, prompt.len())?))
}

#[derive(Serialize)]
struct Made<'a> {
    vector: &'a Path,
    layer: usize,
    #[serde(flatten)]
    gate: &'a GateCalibration,
}

pub(crate) fn run(args: &VectorGate, printer: Printer) -> Outcome {
    let model = steering::open(&args.model, 1)?;
    let (path, mut condition) = match args.layer {
        Some(layer) => (PathBuf::from(format!("{}.safetensors", args.vector)), blank(args, &model, layer)?),
        None => {
            let path = vector::find(&args.vector)?;
            let condition = steering::one_layer(&path)?;
            (path, condition)
        }
    };
    let out = args.out.clone().unwrap_or(path);
    if out.extension().is_none_or(|e| e != "safetensors") {
        return Err(Failure::usage(format_args!(
            "{}: only safetensors files keep a threshold",
            out.display()
        ))
        .hint("write one: --out NAME.safetensors"));
    }
    let prompting = steering::prompting(&model, condition.provenance.system_prompt.clone())?;
    let read = |file: &Path| -> Outcome<Vec<ShapedPrompt>> {
        let texts = prompts::read(file)?;
        let prompt = |text: &String| shaped(&condition, &prompting, text, &prompting.prompt(text)?);
        texts.iter().map(prompt).collect()
    };
    let (mut positive, mut negative) = (read(&args.positive)?, read(&args.negative)?);
    if args.layer.is_some() {
        let [(from_p, rest_p), (from_n, rest_n)] = [halves(&positive), halves(&negative)];
        if from_p.is_empty() || from_n.is_empty() || rest_p.is_empty() || rest_n.is_empty() {
            return Err(Failure::input("found one prompt on a side, expected two or more")
                .hint("half of the prompts make the condition, the others its threshold"));
        }
        condition.direction = gate::condition(&model, &condition, &from_p, &from_n)?;
        (positive, negative) = (rest_p, rest_n);
    }
    let of = |prompts: &[ShapedPrompt]| -> Outcome<Vec<f64>> {
        prompts.iter().map(|prompt| Ok(gate::similarity(&model, &condition, prompt)?)).collect()
    };
    let found = gate::best_threshold(&of(&positive)?, &of(&negative)?);
    condition.provenance.gate = Some(found.clone());
    interop::export(std::slice::from_ref(&condition), &out)?;
    printer.line(format_args!(
        "open from cosine {:.3} after block {}: F1 {:.2} on {} and {} prompts",
        found.threshold, condition.layer, found.f1, found.positives, found.negatives
    ))?;
    printer.line(format_args!("vector: {}", out.display()))?;
    printer.result(&Made { vector: &out, layer: condition.layer, gate: &found })
}

/// A condition that is still to be made.
fn blank(args: &VectorGate, model: &Model, layer: usize) -> Outcome<SteeringVector> {
    let identity = model.identity();
    let name =
        Path::new(&args.vector).file_name().map_or("condition".into(), |n| n.to_string_lossy().into_owned());
    let templated = model.chat_template()?.is_some();
    let scope = args.scope.unwrap_or(if templated { TokenScope::LastUser } else { TokenScope::All });
    Ok(SteeringVector {
        direction: vec![0.0; model.config().d_model],
        layer,
        provenance: Provenance {
            name,
            method: "condition".into(),
            token_scope: scope,
            base_model: Some(identity.clone()),
            system_prompt: Some(DEFAULT_SYSTEM.to_owned()).filter(|_| templated),
            chat_template_sha256: identity.template_sha256.clone(),
            steerkit_version: env!("CARGO_PKG_VERSION").into(),
            ..Provenance::default()
        },
    })
}

/// Every other prompt, from the first, and the rest.
fn halves(prompts: &[ShapedPrompt]) -> (Vec<ShapedPrompt>, Vec<ShapedPrompt>) {
    let every_other = |from: usize| prompts.iter().skip(from).step_by(2).cloned().collect();
    (every_other(0), every_other(1))
}
