//! Plans: what they add up to, and what they refuse.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::sync::Arc;

use steerkit::plan::{PlanEntry, PlanWarning, SteeringPlan};
use steerkit::vector::{Provenance, SteeringVector};
use steerkit::{Operator, PromptShape, Result, SteerError, TokenScope};
use steerkit_model::config::{Features, Rope, RopePairing, RopeScaling};
use steerkit_model::{DecoderConfig, Edit, EditOp, ModelError, ModelIdentity, Positions, Shift};

fn config() -> DecoderConfig {
    DecoderConfig {
        architecture: "llama".into(),
        n_layers: 4,
        d_model: 2,
        n_heads: 1,
        n_kv_heads: 1,
        head_dim: 2,
        d_ff: 4,
        vocab: 8,
        context: 16,
        norm_eps: 1e-5,
        rope: Rope { theta: 1e4, pairing: RopePairing::Halves, scaling: RopeScaling::None },
        features: Features::default(),
    }
}

fn vector(name: &str, layer: usize, direction: &[f32]) -> Arc<SteeringVector> {
    let provenance = Provenance { name: name.into(), ..Provenance::default() };
    Arc::new(SteeringVector { direction: direction.to_vec(), layer, provenance })
}

fn plan(entries: &[(&Arc<SteeringVector>, f32)]) -> Result<Vec<Edit>> {
    let plan = entries.iter().try_fold(SteeringPlan::new(), |plan, (v, m)| plan.add(Arc::clone(v), *m))?;
    plan.edits(&config(), &PromptShape::default())
}

fn add(layer: usize, numbers: &[f32]) -> Edit {
    Edit::new(layer, EditOp::Add(numbers.into()))
}

#[test]
fn multiplier_zero_is_the_plain_model() {
    let v = vector("v", 1, &[1.0, 2.0]);
    assert_eq!(plan(&[]).unwrap(), []);
    assert_eq!(plan(&[(&v, 0.0), (&v, -0.0)]).unwrap(), []);
    assert_eq!(plan(&[(&v, 0.0), (&v, -2.0)]).unwrap(), [add(1, &[-2.0, -4.0])]);
}

#[test]
fn a_multiplier_and_a_scaled_vector_are_the_same() {
    let v = vector("v", 1, &[0.3, -1.7]);
    let doubled = vector("w", 1, &[0.6, -3.4]);
    assert_eq!(plan(&[(&v, 2.0)]).unwrap(), plan(&[(&doubled, 1.0)]).unwrap());
}

#[test]
fn vectors_of_one_layer_are_summed_in_order() {
    let (a, b, c) = (vector("a", 2, &[1.0, 0.5]), vector("b", 2, &[-3.0, 0.25]), vector("c", 0, &[7.0, 0.0]));
    let edits = plan(&[(&a, 1.0), (&c, 1.0), (&b, 2.0)]).unwrap();
    assert_eq!(edits, [add(0, &[7.0, 0.0]), add(2, &[-5.0, 1.0])]);
    let (big, small) = (vector("big", 2, &[1e8, 1.0]), vector("small", 2, &[1.0, 1.0]));
    let edits = plan(&[(&big, 1.0), (&small, 1.0), (&big, -1.0)]).unwrap();
    assert_eq!(edits, [add(2, &[(1e8_f32 + 1.0) - 1e8, 1.0])]);
}

#[test]
fn operators_and_scopes_keep_their_order() {
    let (a, b) = (vector("a", 2, &[3.0, 4.0]), vector("b", 2, &[1.0, 0.0]));
    let entry = |v: &Arc<SteeringVector>, operator, scope| PlanEntry {
        vector: Arc::clone(v),
        multiplier: 0.5,
        operator,
        scope,
    };
    let clamp = Operator::Clamp { low: -1.0, high: 2.0 };
    let plan = [
        entry(&a, Operator::Add, TokenScope::All),
        entry(&b, Operator::Add, TokenScope::All),
        entry(&a, clamp, TokenScope::Generated),
        entry(&b, Operator::Add, TokenScope::LastPrompt),
    ]
    .into_iter()
    .try_fold(SteeringPlan::new(), SteeringPlan::with)
    .unwrap();
    assert!(plan.depends_on_prompt() && !plan.needs_user());
    let edits = plan.edits(&config(), &PromptShape { len: 7, last_user: 0..0 }).unwrap();
    let shift = Shift::Clamp { strength: 0.5, low: -1.0, high: 2.0 };
    let along = EditOp::Along { unit_d: [0.6, 0.8].into(), shift };
    let at = |start, end| Positions::Ranges([start..end].into());
    assert_eq!(
        edits,
        [
            add(2, &[2.0, 2.0]),
            Edit { layer: 2, op: along, positions: at(7, usize::MAX) },
            Edit { positions: at(6, 7), ..add(2, &[0.5, 0.0]) },
        ]
    );
    let ablated = |m| PlanEntry { multiplier: m, ..entry(&a, Operator::Ablate, TokenScope::All) };
    let edits = SteeringPlan::new().with(ablated(0.0)).unwrap().edits(&config(), &PromptShape::default());
    assert_eq!(edits.unwrap(), []);
}

#[test]
fn bad_plans_are_refused() {
    let v = vector("v", 1, &[1.0, 2.0]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(matches!(plan(&[(&v, bad)]), Err(SteerError::Multiplier { .. })));
    }
    for multiplier in [0.0, 1.0] {
        let error = plan(&[(&vector("w", 1, &[1.0]), multiplier)]).unwrap_err();
        assert!(matches!(error, SteerError::Model(ModelError::Width { found: 1, d_model: 2 })), "{error}");
        let error = plan(&[(&vector("w", 4, &[1.0, 1.0]), multiplier)]).unwrap_err();
        assert!(
            matches!(error, SteerError::Model(ModelError::UnknownLayer { layer: 4, n_layers: 4 })),
            "{error}"
        );
    }
    let error = plan(&[(&vector("w", 1, &[1e30, 1.0]), 1e30)]).unwrap_err();
    assert!(matches!(error, SteerError::Model(ModelError::NonFinite { found: 1, total: 2, .. })), "{error}");
}

#[test]
fn a_plan_that_changes_nothing_is_refused() {
    let v = vector("v", 1, &[1.0, 2.0]);
    let error = plan(&[(&v, 1.5), (&v, -1.5)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "steering after block 1 changes nothing: \"v\" x 1.5 and \"v\" x -1.5 add up to zero"
    );
    assert!(matches!(plan(&[(&vector("z", 1, &[0.0, 0.0]), 1.0)]), Err(SteerError::NoEffect { .. })));
    let tiny = vector("tiny", 1, &[1e-30, 0.0]);
    assert!(matches!(plan(&[(&tiny, 1e-30)]), Err(SteerError::NoEffect { .. })), "underflow");
}

#[test]
fn doses_and_warnings() {
    let identity = |hash: &str| ModelIdentity {
        name: format!("model {hash}"),
        architecture: "llama".into(),
        d_model: 2,
        n_layers: 4,
        vocab: 8,
        file_sha256: hash.into(),
        tokenizer_sha256: None,
        template_sha256: None,
    };
    let mut known = (*vector("known", 1, &[3.0, 4.0])).clone();
    known.provenance.base_model = Some(identity("a"));
    known.provenance.residual_norm = Some(50.0);
    let plan = SteeringPlan::new()
        .add(Arc::new(known), -2.0)
        .and_then(|plan| plan.add(vector("stray", 0, &[1.0, 0.0]), 1.0))
        .unwrap();
    let doses = plan.doses();
    assert_eq!((doses[0].relative, doses[1].relative), (Some(0.2), None));
    assert_eq!(plan.warnings(&identity("a")), [PlanWarning::UnknownModel { name: "stray".into() }]);
    let warnings = plan.warnings(&identity("b"));
    assert_eq!(warnings[0].to_string(), "vector \"known\" was made with another file (model a) than model b");
    assert_eq!(warnings.len(), 2);
    let loud = SteeringPlan::new().add(Arc::clone(&plan.entries()[0].vector), 9.0).unwrap();
    assert_eq!(
        loud.warnings(&identity("a")),
        [PlanWarning::LargeDose { name: "known".into(), relative: loud.doses()[0].relative.unwrap() }]
    );
    let elsewhere = PlanEntry { scope: TokenScope::Generated, multiplier: 1.0, ..plan.entries()[0].clone() };
    let elsewhere = SteeringPlan::new().with(elsewhere).unwrap().warnings(&identity("a"));
    assert!(elsewhere[0].to_string().contains("trained on the tokens all and acts on generated now"));
}
