//! A plan that should change a model's answers must change them.

use steerkit_model::{Edit, EditOp, Model, Positions, Run, Shift};

use crate::{Result, SteerError, SteeringPlan};

/// Tokens of the prompt that are enough to see an effect.
const TOKENS: usize = 16;

/// Reads the beginning of `prompt` with and without `edits` and compares the logits bit by bit. Where edits act on some
/// tokens only, the whole prompt and one token more are read. One-sided and clamped directions may rightly leave a
/// prompt as it is; a plan of nothing else is not checked.
///
/// # Errors
/// [`SteerError::NoEffect`] when there are edits and no logit changes; those of the model.
pub fn check_effect(model: &Model, plan: &SteeringPlan, edits: &[Edit], prompt: &[u32]) -> Result<()> {
    let must_act = |edit: &&Edit| match edit.op {
        EditOp::Along { shift, .. } => matches!(shift, Shift::Ablate { .. }),
        _ => true,
    };
    let Some(first) = edits.iter().find(must_act) else { return Ok(()) };
    let everywhere = edits.iter().all(|edit| edit.positions == Positions::All);
    let tokens = match (everywhere, prompt.last()) {
        (false, Some(&last)) => [prompt, &[last]].concat(),
        _ => prompt[..prompt.len().min(TOKENS)].to_vec(),
    };
    let tokens = &tokens;
    let mut plain = model.new_sequence(Vec::new())?;
    let mut steered = model.new_sequence(edits.to_vec())?;
    let mut runs = [Run { sequence: &mut plain, tokens }, Run { sequence: &mut steered, tokens }];
    let mut logits = model.advance(&mut runs)?.into_iter();
    let (plain, steered) = (logits.next().transpose()?, logits.next().transpose()?);
    if plain != steered {
        return Ok(());
    }
    let names = plan.entries().iter().filter(|entry| entry.multiplier != 0.0);
    let names = names.map(|entry| format!("{:?} x {}", entry.vector.provenance.name, entry.multiplier));
    Err(SteerError::NoEffect { layer: first.layer, names: names.collect() })
}
