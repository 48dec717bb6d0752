//! The state of a run between two steps.
//!
//! A checkpoint is text: one line with the format and the SHA-256 of the rest, then JSON, numbers that decide bytes
//! as hexadecimal little-endian bits. Two generations are kept; writing renames `latest` to `previous` and the new
//! file to `latest`, so at every moment at least one whole checkpoint has a name.
//!
//! The data order is a function of recipe and seed (see [`super::order`]), so the step number stands for the state
//! of the random generators.

use crate::{
    Result,
    error::malformed,
    files::{hex, sha256, write_atomic},
    optim::{AdamWState, FactoredState, NormBudgetState, OptimiserState},
};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

/// First words of a checkpoint.
const FORMAT: &str = "steerkit-checkpoint 1";

/// Everything a run needs to go on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checkpoint {
    /// The resolved recipe, as TOML.
    pub(crate) recipe: String,
    /// Hashes of model, tokeniser, template, data and their tokens, by name.
    pub(crate) inputs: BTreeMap<String, String>,
    /// The block that is steered.
    pub(crate) layer: usize,
    /// Steps done.
    pub(crate) step: usize,
    /// Whether the evaluation that follows this step is in the metrics.
    pub(crate) evaluated: bool,
    /// The vector `[d]`.
    pub(crate) vector: Vec<f32>,
    /// The optimiser's state.
    pub(crate) optimiser: OptimiserState,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    recipe: String,
    inputs: BTreeMap<String, String>,
    layer: usize,
    step: usize,
    evaluated: bool,
    vector: String,
    optimiser: StoredOptimiser,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum StoredOptimiser {
    Adamw { mean: String, square: String, updates: u64 },
    NormBudget { sum: String },
    Factored { direction: String, factor: String, moments: [[String; 2]; 2], updates: u64 },
}

impl Checkpoint {
    /// Writes the checkpoint to `folder` as its latest.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let (latest, previous) = paths(folder);
        let next = folder.join("next.checkpoint");
        write_atomic(&next, self.to_text().as_bytes())?;
        match fs::rename(&latest, previous) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => fs::rename(next, latest),
        }
    }

    /// The latest whole checkpoint of `folder`, and a note when it is not the latest one written.
    ///
    /// # Errors
    /// [`crate::SteerError::Malformed`] when there are checkpoints and none is whole.
    pub(crate) fn read(folder: &Path) -> Result<Option<(Self, Option<String>)>> {
        let (latest, previous) = paths(folder);
        let mut broken: Option<(PathBuf, String)> = None;
        for path in [latest, previous] {
            let text = match fs::read(&path) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e.into()),
            };
            match (Self::parse(&text), broken) {
                (Ok(checkpoint), broken) => {
                    let note = broken.map(|(path, what)| {
                        format!(
                            "{}: {what}; going on from the one before, step {}",
                            path.display(),
                            checkpoint.step
                        )
                    });
                    return Ok(Some((checkpoint, note)));
                }
                (Err(what), before) => broken = before.or(Some((path, what))),
            }
        }
        let Some((path, what)) = broken else { return Ok(None) };
        let hint = "no whole checkpoint is left: start the run again in another folder";
        Err(malformed(&path, "checkpoint", what, "a whole checkpoint", hint))
    }

    /// Whether `folder` holds a checkpoint.
    pub(crate) fn exists(folder: &Path) -> bool {
        let (latest, previous) = paths(folder);
        latest.exists() || previous.exists()
    }

    fn to_text(&self) -> String {
        let optimiser = match &self.optimiser {
            OptimiserState::AdamW(AdamWState { mean, square, updates }) => {
                StoredOptimiser::Adamw { mean: f32_hex(mean), square: f32_hex(square), updates: *updates }
            }
            OptimiserState::NormBudget(NormBudgetState { sum }) => {
                let bytes: Vec<u8> = sum.iter().flat_map(|x| x.to_le_bytes()).collect();
                StoredOptimiser::NormBudget { sum: hex(&bytes) }
            }
            OptimiserState::Factored(s) => StoredOptimiser::Factored {
                direction: f32_hex(&s.direction),
                factor: f32_hex(&[s.factor]),
                moments: [&s.of_direction, &s.of_factor].map(|m| [f32_hex(&m.mean), f32_hex(&m.square)]),
                updates: s.of_direction.updates,
            },
        };
        let stored = Stored {
            recipe: self.recipe.clone(),
            inputs: self.inputs.clone(),
            layer: self.layer,
            step: self.step,
            evaluated: self.evaluated,
            vector: f32_hex(&self.vector),
            optimiser,
        };
        let body = serde_json::to_string(&stored).expect("text and integers");
        format!("{FORMAT} {}\n{body}", sha256(body.as_bytes()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (head, body) = text.split_once('\n').ok_or("the checkpoint is cut short")?;
        let sum = head.strip_prefix(FORMAT).ok_or("the checkpoint is of another format")?.trim();
        if sum != sha256(body.as_bytes()) {
            return Err("the checkpoint is damaged".into());
        }
        let stored: Stored = serde_json::from_str(body).map_err(|e| e.to_string())?;
        let vector = f32_values(&stored.vector)?;
        let optimiser = match stored.optimiser {
            StoredOptimiser::Adamw { mean, square, updates } => OptimiserState::AdamW(AdamWState {
                mean: f32_values(&mean)?,
                square: f32_values(&square)?,
                updates,
            }),
            StoredOptimiser::NormBudget { sum } => {
                let bytes = unhex(&sum)?;
                let sum = bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
                OptimiserState::NormBudget(NormBudgetState { sum })
            }
            StoredOptimiser::Factored { direction, factor, moments: [w, f], updates } => {
                let moments = |[mean, square]: [String; 2]| -> Result<AdamWState, String> {
                    Ok(AdamWState { mean: f32_values(&mean)?, square: f32_values(&square)?, updates })
                };
                OptimiserState::Factored(FactoredState {
                    direction: f32_values(&direction)?,
                    factor: f32_values(&factor)?.first().copied().ok_or("the factor is missing")?,
                    of_direction: moments(w)?,
                    of_factor: moments(f)?,
                })
            }
        };
        Ok(Self {
            recipe: stored.recipe,
            inputs: stored.inputs,
            layer: stored.layer,
            step: stored.step,
            evaluated: stored.evaluated,
            vector,
            optimiser,
        })
    }
}

fn paths(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("latest.checkpoint"), folder.join("previous.checkpoint"))
}

fn f32_hex(values: &[f32]) -> String {
    hex(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

fn f32_values(text: &str) -> Result<Vec<f32>, String> {
    Ok(unhex(text)?.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let digit = |c: u8| (c as char).to_digit(16).ok_or_else(|| "a number is not hexadecimal".to_owned());
    text.as_bytes().as_chunks::<2>().0.iter().map(|&[a, b]| Ok((digit(a)? << 4 | digit(b)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(step: usize) -> Checkpoint {
        Checkpoint {
            recipe: "seed = 1\n".into(),
            inputs: BTreeMap::from([("model".into(), "abc".into())]),
            layer: 3,
            step,
            evaluated: true,
            vector: vec![0.1, -1e-38, f32::MIN_POSITIVE],
            optimiser: OptimiserState::NormBudget(NormBudgetState { sum: vec![0.1, 1e-300, -2.0] }),
        }
    }

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::read(folder.path()).unwrap(), None);
        for state in [
            OptimiserState::NormBudget(NormBudgetState { sum: vec![0.1, 1e-300, -2.0] }),
            OptimiserState::AdamW(AdamWState { mean: vec![0.3], square: vec![1e-40], updates: 7 }),
            OptimiserState::Factored(FactoredState {
                direction: vec![0.1, -3e-40],
                factor: -2.5,
                of_direction: AdamWState { mean: vec![0.3, 1.0], square: vec![1e-40, 2.0], updates: 7 },
                of_factor: AdamWState { mean: vec![0.7], square: vec![0.1], updates: 7 },
            }),
        ] {
            let checkpoint = Checkpoint { optimiser: state, ..example(5) };
            checkpoint.write(folder.path()).unwrap();
            assert_eq!(Checkpoint::read(folder.path()).unwrap(), Some((checkpoint, None)));
        }
    }

    /// A file cut at any byte, or with any bit changed, is not taken; the one before is.
    #[test]
    fn a_damaged_checkpoint_falls_back_one() {
        let folder = tempfile::tempdir().unwrap();
        example(1).write(folder.path()).unwrap();
        example(2).write(folder.path()).unwrap();
        let latest = folder.path().join("latest.checkpoint");
        let whole = fs::read(&latest).unwrap();
        let falls_back = |bytes: &[u8], what: &str| {
            fs::write(&latest, bytes).unwrap();
            let (got, note) = Checkpoint::read(folder.path()).unwrap().unwrap();
            assert_eq!((got.step, note.is_some()), (1, true), "{what}");
        };
        for cut in 0..whole.len() {
            falls_back(&whole[..cut], &format!("cut at {cut}"));
        }
        for at in (0..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            falls_back(&bytes, &format!("bit at {at}"));
        }
        fs::write(folder.path().join("previous.checkpoint"), "x").unwrap();
        fs::write(&latest, &whole[..40]).unwrap();
        let error = Checkpoint::read(folder.path()).unwrap_err();
        assert!(error.to_string().contains("latest.checkpoint"), "{error}");
    }

    /// A process that dies between the two renames, or before them, leaves the older state.
    #[test]
    fn a_write_cut_short_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        example(1).write(folder.path()).unwrap();
        fs::write(folder.path().join("next.checkpoint"), "half").unwrap();
        assert_eq!(Checkpoint::read(folder.path()).unwrap().unwrap().0.step, 1);
        let (latest, previous) = paths(folder.path());
        fs::rename(&latest, previous).unwrap();
        assert_eq!(Checkpoint::read(folder.path()).unwrap().unwrap().0.step, 1);
        example(2).write(folder.path()).unwrap();
        assert_eq!(Checkpoint::read(folder.path()).unwrap().unwrap().0.step, 2);
    }
}
