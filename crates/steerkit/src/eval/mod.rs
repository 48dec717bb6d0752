//! What a vector does to the texts that a model writes, and to those that it reads.
//!
//! An evaluation is an [`EvalSpec`]: one TOML with a task of some kind. [`run`] measures it on a [`Subject`], a model
//! under several strengths of one plan, and gives [`Findings`]; [`output`] saves them.

mod answers;
pub mod choices;
mod damage;
mod disturbance;
mod dose;
mod findings;
pub(crate) mod judged;
mod letters;
mod open_ended;
pub mod output;
pub(crate) mod pairs;
mod perplexity;
mod preference;
mod prompt_set;
mod safety;
pub mod scoring;
mod sentinel;
pub(crate) mod shading;
mod spec;
pub mod stats;
mod subject;
mod surface;

pub use answers::{AnswerRequest, Answers, answer};
pub use damage::{Damage, DamagePoint, DamageSpec, measure_damage};
pub use disturbance::{EditedPrompt, calibrate, divergences, percentile};
pub use dose::{DamageLimits, DoseSpec, recommended};
pub use findings::{Cell, Column, Findings, Style, Table};
pub use judged::Judging;
pub use letters::{LetterPoint, LettersSpec, WordsPoint};
pub use open_ended::OpenEndedSpec;
pub use perplexity::perplexities;
pub use preference::{HalfSpread, Preference, PreferencePoint, PreferenceSpec, measure_pairs};
pub use prompt_set::{PromptSet, SetLayout, SetPrompt};
pub use safety::{AttackSpec, OverRefusalSpec};
pub use sentinel::check_effect;
pub use spec::{EvalSpec, Task};
pub use subject::{Progress, Steering, Subject, Watch};
pub use surface::{SurfacePoint, surface_points};

use crate::Result;

/// Measures what the evaluation asks for.
///
/// # Errors
/// Data that cannot be read or holds nothing, a plan that does not fit the model or has no effect, those of the model;
/// [`steerkit_model::ModelError::Interrupted`] when the subject's `cancel` is set.
pub fn run(spec: &EvalSpec, subject: &Subject<'_>, watch: &mut Watch<'_>) -> Result<Findings> {
    let mut findings = match &spec.task {
        Task::Preference(task) => preference::run(task, subject, watch),
        Task::OpenEnded(task) => open_ended::run(task, subject, watch),
        Task::AttackSuccess(task) => safety::attack(task, subject, watch),
        Task::OverRefusal(task) => safety::over_refusal(task, subject, watch),
        Task::Letters(task) => letters::run(task, subject, watch),
        Task::MultipleChoice(task) => choices::run(task, subject, watch),
        Task::Damage(task) => damage::run(task, subject, watch),
        Task::DoseResponse(task) => dose::run(task, subject, watch),
    }?;
    if let Some(task) = &spec.damage {
        damage::add(task, subject, &mut findings, watch)?;
    }
    Ok(findings)
}
