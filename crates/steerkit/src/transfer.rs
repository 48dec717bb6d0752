//! Does a vector that was trained on one model work on another (Fig. 3 of the paper)?
//!
//! Each model is measured alone, so that two need not be open at once: [`measure`] on the vector's own model, then on
//! the other, then [`Transfer::new`].

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use steerkit_model::prompting::Prompting;
use steerkit_model::{Model, ModelError, ModelIdentity, Sampling};

use crate::data::PreferencePair;
use crate::eval::shading::side_by_side;
use crate::eval::{AnswerRequest, answer};
use crate::extract::mean_difference;
use crate::recipe::Precision;
use crate::report::Comparison;
use crate::text_stats::{Bootstrap, Estimate};
use crate::train::cache::{CachePolicy, CacheRequest, PairCache};
use crate::train::observer::{Halt, Observer};
use crate::train::pass::{Prepared, TokenPair};
use crate::train::trainee::Trainee;
use crate::{PromptShape, Result, SteeringVector};

/// Packed rows per pass through the model.
const MICRO_BATCH_ROWS: usize = 1024;
/// Answers computed at the same time.
const MAX_BATCH: usize = 16;

/// What is measured on each model.
#[derive(Clone, Copy, Debug)]
pub struct TransferRequest<'a> {
    /// The vector.
    pub vector: &'a SteeringVector,
    /// Pairs of the behaviour that it was trained for, none of them trained on.
    pub pairs: &'a [PreferencePair],
    /// The same in another language; may be empty.
    pub translated: &'a [PreferencePair],
    /// Multipliers to measure margins at.
    pub multipliers: &'a [f64],
    /// Questions to answer.
    pub questions: &'a [&'a str],
    /// Multipliers to answer them at.
    pub answered_at: &'a [f64],
    /// Tokens per answer at most.
    pub max_tokens: usize,
}

/// What the vector does to one model.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// The model.
    pub model: ModelIdentity,
    /// Median norm of the residual stream after the vector's block, over the pairs, position 0 excluded.
    pub residual_norm: f64,
    /// What the vector was multiplied by on this model, beside the multipliers.
    pub factor: f64,
    /// Cosine of the vector and the mean difference of this model's activations on chosen and rejected answers.
    pub mean_difference_cosine: f64,
    /// Margins on the pairs, by multiplier.
    pub margins: Vec<MarginPoint>,
    /// Margins on the pairs of the other language, by multiplier.
    pub translated: Vec<MarginPoint>,
    /// The questions with their answers.
    pub answers: Vec<Comparison>,
}

/// The effect of one multiplier on pairs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MarginPoint {
    /// The multiplier.
    pub multiplier: f64,
    /// Mean relative margin in nats (`(p_chosen - r_chosen) - (p_rejected - r_rejected)`) with its 95% bootstrap
    /// interval.
    pub margin: Estimate,
    /// Share of pairs whose relative margin has the sign of the multiplier; none at 0.
    pub accuracy: Option<f64>,
}

/// A vector on two models.
#[derive(Clone, Debug, Serialize)]
pub struct Transfer {
    /// What the vector is called.
    pub vector: String,
    /// The block after which it is added.
    pub layer: usize,
    /// Norm of the vector.
    pub norm: f64,
    /// Residual norm of the other model over that of the vector's own.
    pub norm_ratio: f64,
    /// Slope of the margin over the multiplier on the other model, over that on the vector's own: 1 where the vector
    /// does as much, 0 where nothing is left.
    pub strength: f64,
    /// The vector's own model.
    pub from: Side,
    /// The other model.
    pub to: Side,
}

impl Transfer {
    /// Puts both sides together.
    pub fn new(vector: &SteeringVector, from: Side, to: Side) -> Self {
        Self {
            vector: vector.provenance.name.clone(),
            layer: vector.layer,
            norm: vector.norm().into(),
            norm_ratio: to.residual_norm / from.residual_norm,
            strength: slope(&to.margins) / slope(&from.margins),
            from,
            to,
        }
    }
}

/// Slope of the least-squares line through the origin.
fn slope(points: &[MarginPoint]) -> f64 {
    let sum = |f: fn(&MarginPoint) -> f64| points.iter().map(f).sum::<f64>();
    sum(|p| p.multiplier * p.margin.value) / sum(|p| p.multiplier * p.multiplier)
}

/// Measures the vector on one model. With `like`, the residual norm of the vector's own model, the vector is rescaled to
/// the same share of this model's residual stream.
///
/// # Errors
/// [`ModelError::Width`] and [`ModelError::UnknownLayer`] for a model of another shape, [`ModelError::Interrupted`] when
/// `cancel` is set; those of the model.
pub fn measure(
    model: &Model,
    request: &TransferRequest<'_>,
    like: Option<f64>,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Side> {
    let (vector, config) = (request.vector, model.config());
    let (found, layer) = (vector.direction.len(), vector.layer);
    if found != config.d_model {
        return Err(ModelError::Width { found, d_model: config.d_model }.into());
    }
    if layer >= config.n_layers {
        return Err(ModelError::UnknownLayer { layer, n_layers: config.n_layers }.into());
    }
    let system = vector.provenance.system_prompt.clone();
    let prompting = Prompting {
        system: if model.chat_template()?.is_some() { system } else { None },
        max_length: Some(config.context),
        ..Prompting::new(model.tokenizer()?, model.chat_template()?)
    };
    let mut on_pairs = |pairs: &[PreferencePair], split: &str| {
        prepared(model, &prompting, vector, pairs, split, observer, cancel).map_err(interrupted)
    };
    let ready = on_pairs(request.pairs, "test")?;
    let residual_norm = ready.cache.residual_norm();
    let factor = like.map_or(1.0, |norm| residual_norm / norm);
    let scaled: Vec<f32> = vector.direction.iter().map(|&x| (f64::from(x) * factor) as f32).collect();
    let own = mean_difference(&ready, cancel).map_err(interrupted)?;
    let points =
        |ready: &Prepared<'_>| margins(ready, &scaled, request.multipliers, cancel).map_err(interrupted);
    let measured = points(&ready)?;
    drop(ready);
    let translated = match request.translated {
        [] => Vec::new(),
        pairs => points(&on_pairs(pairs, "translated")?)?,
    };
    let scaled = Arc::new(SteeringVector { direction: scaled, ..vector.clone() });
    Ok(Side {
        model: model.identity().clone(),
        residual_norm,
        factor,
        mean_difference_cosine: cosine(&vector.direction, &own),
        margins: measured,
        translated,
        answers: answers(model, &prompting, &scaled, request, cancel)?,
    })
}

fn interrupted(halt: Halt) -> crate::SteerError {
    match halt {
        Halt::Cancelled => ModelError::Interrupted.into(),
        Halt::Failed(error) => error,
    }
}

/// The pairs run through the blocks up to the vector's.
fn prepared<'a>(
    model: &'a Model,
    prompting: &Prompting<'_>,
    vector: &SteeringVector,
    pairs: &[PreferencePair],
    split: &str,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<Prepared<'a>, Halt> {
    let scope = vector.provenance.token_scope;
    let (mut tokens, mut scopes) = (Vec::with_capacity(pairs.len()), Vec::with_capacity(pairs.len()));
    for pair in pairs {
        let ids = prompting.pair(&pair.prompt, &pair.chosen, &pair.rejected)?;
        let len = ids.prompt.len();
        let shape = match scope.needs_user() {
            true => PromptShape::of_question(prompting, &pair.prompt, len, ids.cut_from_prompt)?,
            false => PromptShape { len, ..PromptShape::default() },
        };
        scopes.push(scope.positions(&shape));
        tokens.push(TokenPair { prompt: ids.prompt, chosen: ids.chosen, rejected: ids.rejected });
    }
    let layer = vector.layer;
    let request = CacheRequest {
        model,
        layer: Some(layer),
        precision: Precision::F32,
        split,
        pairs: &tokens,
        micro_batch_rows: MICRO_BATCH_ROWS,
    };
    let policy = CachePolicy::in_memory();
    let cache = PairCache::prepare(&request, &policy, observer, cancel)?;
    let trainee = Trainee::vector(model, layer);
    Ok(Prepared::new(model, trainee, tokens, scopes, cache, MICRO_BATCH_ROWS))
}

fn margins(
    ready: &Prepared<'_>,
    v: &[f32],
    multipliers: &[f64],
    cancel: &AtomicBool,
) -> Result<Vec<MarginPoint>, Halt> {
    let point = |&multiplier: &f64| {
        let items: Vec<_> = (0..ready.pairs.len()).map(|i| (i, multiplier as f32)).collect();
        let policy = match multiplier {
            0.0 => items.iter().map(|&(i, _)| ready.cache.reference(i)).collect(),
            _ => ready.score(&items, v, cancel)?,
        };
        let margins: Vec<f64> = policy
            .iter()
            .enumerate()
            .map(|(i, p)| p.relative_to(ready.cache.reference(i)).margin())
            .collect();
        let right = margins.iter().filter(|&&margin| margin * multiplier > 0.0).count();
        Ok(MarginPoint {
            multiplier,
            margin: Bootstrap::default().mean(&margins).unwrap_or_else(|| 0.0.into()),
            accuracy: (multiplier != 0.0).then(|| right as f64 / margins.len().max(1) as f64),
        })
    };
    multipliers.iter().map(point).collect()
}

fn answers(
    model: &Model,
    prompting: &Prompting<'_>,
    vector: &Arc<SteeringVector>,
    request: &TransferRequest<'_>,
    cancel: &AtomicBool,
) -> Result<Vec<Comparison>> {
    let asked = AnswerRequest {
        questions: request.questions,
        multipliers: request.answered_at,
        sampling: Sampling::default(),
        max_tokens: request.max_tokens,
        max_batch: MAX_BATCH,
    };
    let got = answer(model, prompting, vector, &asked, &mut |_| match cancel.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    side_by_side(model, &got.asked(request.questions), cancel)
}

/// 0 where one of the two is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let length = (dot(a, a) * dot(b, b)).sqrt();
    if length > 0.0 { dot(a, b) / length } else { 0.0 }
}
