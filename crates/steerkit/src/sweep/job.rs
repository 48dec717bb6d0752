//! One job: its vector, and what vector or prompt does to a set of pairs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use steerkit_model::lora::TrainableLora;
use steerkit_model::{Model, Positions};

use super::spec::{Job, Measure, Split};
use crate::baseline::Prompts;
use crate::data::{Dataset, PreferencePair, Splits};
use crate::files::{sha256, write_atomic};
use crate::objective::{Direction, PairLogps};
use crate::optim::norm;
use crate::train::{
    Added, Event, Observer, Prefix, RunData, Start, TokenPair, TokenSet, plain_logps, prompting,
    steered_logps, train_tokens,
};
use crate::{PromptShape, Result, SteerError, SteeringVector, eval};

/// What is said of a job that trains an adapter.
pub(super) const NO_UNIT: &str =
    "an adapter has no norm in the residual stream and no unit dose: it is measured at its multipliers only";

/// What was measured of a job, as its file holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The job.
    pub id: String,
    /// The pairs it was measured on.
    pub split: Split,
    /// Name of the model.
    pub model: String,
    /// SHA-256 of the data files that were read, by split.
    pub data: BTreeMap<String, String>,
    /// What was asked for.
    pub measure: Measure,
    /// The vector, where there is one: neither an adapter nor a prompt has one.
    pub vector: Option<VectorFacts>,
    /// What could not be measured, and why.
    pub notes: Vec<String>,
    /// A short hash of the prompt of each pair: pairs of one question have the same.
    pub questions: Vec<String>,
    /// The margins at each strength.
    pub points: Vec<Strength>,
}

/// What a table says of a vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorFacts {
    /// The block after which it is added.
    pub layer: usize,
    /// Euclidean norm.
    pub norm: f64,
    /// Median norm of the residual stream there.
    pub residual_norm: f64,
}

/// Relative margins of every pair at one strength in both directions, in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strength {
    /// Which: `multiplier 1`, `equal norm`, `equal KL`.
    pub at: String,
    /// The multiplier of the vector or the adapter; 1 where there is neither.
    pub multiplier: f64,
    /// At plus the multiplier, or with the prompt that asks for the behaviour.
    pub toward: Vec<f64>,
    /// At minus the multiplier, or with the prompt that asks for the opposite.
    pub away: Vec<f64>,
}

/// Why a job gave no numbers, as its file holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// The job.
    pub id: String,
    /// What went wrong.
    pub error: String,
    /// What to do.
    pub hint: Option<String>,
}

/// What a job's recipe made.
enum Made {
    Vector(Arc<SteeringVector>),
    Adapter(TrainableLora, Vec<f32>),
}

/// Everything a job is run with.
pub(super) struct Bench<'a> {
    pub(super) model: &'a Model,
    pub(super) measure: &'a Measure,
    pub(super) split: Split,
    pub(super) splits: &'a Splits,
    pub(super) data: &'a RunData,
    pub(super) prefix: &'a Arc<Prefix>,
}

/// The files of a job below the sweep's folder.
pub(super) struct JobFiles {
    pub(super) folder: PathBuf,
}

impl JobFiles {
    pub(super) fn new(out: &Path, job: &Job) -> Self {
        Self { folder: out.join("jobs").join(&job.id) }
    }

    pub(super) fn result(&self, split: Split) -> PathBuf {
        self.folder.join(format!("{}.json", split.name()))
    }

    fn error(&self) -> PathBuf {
        self.folder.join("error.json")
    }

    fn vector(&self) -> PathBuf {
        self.folder.join("run/vector.safetensors")
    }

    /// The finished measurement on `split`, if there is one; what cannot be read counts as none.
    pub(super) fn measured(&self, split: Split) -> Option<Measured> {
        serde_json::from_slice(&fs_err::read(self.result(split)).ok()?).ok()
    }

    /// Why the job failed, if it did.
    pub(super) fn failed(&self) -> Option<Failed> {
        serde_json::from_slice(&fs_err::read(self.error()).ok()?).ok()
    }

    /// Writes the measurement; an earlier failure is forgotten.
    pub(super) fn finish(&self, measured: &Measured) -> Result<()> {
        write_json(&self.result(measured.split), measured)?;
        if self.error().exists() {
            fs_err::remove_file(self.error())?;
        }
        Ok(())
    }

    /// Writes why the job failed.
    pub(super) fn fail(&self, id: &str, error: &SteerError) -> Result<()> {
        fs_err::create_dir_all(&self.folder)?;
        write_json(&self.error(), &Failed { id: id.into(), error: error.to_string(), hint: error.hint() })
    }

    /// Removes what an earlier state of the data gave.
    pub(super) fn clear(&self) -> Result<()> {
        if self.folder.exists() {
            fs_err::remove_dir_all(&self.folder)?;
        }
        Ok(())
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(value).expect("text, numbers and lists of them");
    text.push('\n');
    Ok(write_atomic(path, text.as_bytes())?)
}

/// The hashes of the data files that `splits` came from.
pub(super) fn hashes(splits: &Splits) -> BTreeMap<String, String> {
    splits.named().into_iter().map(|(name, set)| (name.to_owned(), set.sha256.clone())).collect()
}

impl Bench<'_> {
    /// Makes the job's vector or adapter unless it is there, and measures it.
    pub(super) fn run(
        &self,
        job: &Job,
        files: &JobFiles,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Measured> {
        fs_err::create_dir_all(&files.folder)?;
        let began = Instant::now();
        let made = match job.steers {
            true => Some(self.made(job, files, observer, cancel)?),
            false => None,
        };
        let trained = began.elapsed().as_secs_f64();
        let mut notes = Vec::new();
        let strengths = match &made {
            Some(Made::Vector(vector)) => self.strengths(job, vector, &mut notes, cancel)?,
            Some(Made::Adapter(..)) => {
                notes.push(NO_UNIT.into());
                self.multipliers()
            }
            None => vec![("multiplier 1".to_owned(), 1.0)],
        };
        let calibrated = began.elapsed().as_secs_f64();
        let set = self.set(job)?;
        let plain = plain_logps(self.model, &job.recipe, &set.pairs, Some(self.prefix), cancel)?;
        let multipliers: Vec<f64> = strengths.iter().map(|s| s.1).collect();
        let toward = self.logps(job, made.as_ref(), Direction::Toward, &multipliers, observer, cancel)?;
        let away = self.logps(job, made.as_ref(), Direction::Away, &multipliers, observer, cancel)?;
        let margins = |logps: &[PairLogps]| -> Vec<f64> {
            logps.iter().zip(&plain).map(|(steered, &plain)| steered.relative_to(plain).margin()).collect()
        };
        let points = strengths.into_iter().zip(toward.iter().zip(&away));
        let points = points.map(|((at, multiplier), (toward, away))| Strength {
            at,
            multiplier,
            toward: margins(toward),
            away: margins(away),
        });
        let measured = Measured {
            id: job.id.clone(),
            split: self.split,
            model: self.model.identity().name.clone(),
            data: hashes(self.splits),
            measure: self.measure.clone(),
            vector: match &made {
                Some(Made::Vector(vector)) => Some(facts(vector)),
                Some(Made::Adapter(..)) | None => None,
            },
            notes,
            questions: set.pairs.iter().map(question).collect(),
            points: points.collect(),
        };
        let seconds = serde_json::json!({
            "vector": trained,
            "calibration": calibrated - trained,
            "measurement": began.elapsed().as_secs_f64() - calibrated,
        });
        write_json(&files.folder.join("seconds.json"), &seconds)?;
        Ok(measured)
    }

    /// The pairs that are measured.
    fn set(&self, job: &Job) -> Result<&TokenSet> {
        let set = match self.split {
            Split::Valid => &self.data.valid,
            Split::Test => &self.data.test,
        };
        set.as_ref().filter(|set| !set.pairs.is_empty()).ok_or_else(|| SteerError::Recipe {
            place: format!("job {}", job.id),
            message: format!("the data has no {} pairs to measure on", self.split.name()),
            hint: Some(format!("set data.{}, or name a folder that holds them", self.split.name())),
        })
    }

    fn made(
        &self,
        job: &Job,
        files: &JobFiles,
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Made> {
        let model = Some(&self.model.identity().file_sha256);
        if let Ok(vector) = SteeringVector::load(&files.vector())
            && vector.provenance.base_model.as_ref().map(|base| &base.file_sha256) == model
        {
            return Ok(Made::Vector(Arc::new(vector)));
        }
        let start = if job.recipe.out.join("recipe.toml").exists() { Start::Resume } else { Start::New };
        let mut train = |start| {
            let run = train_tokens(start, self.model, &job.recipe, self.data, observer, cancel)?;
            Ok(match run.adapter {
                Some((lora, numbers)) => Made::Adapter(lora, numbers),
                None => {
                    let vector = run.vectors.into_iter().next();
                    Made::Vector(Arc::new(vector.expect("a job's recipe makes the vector of one layer")))
                }
            })
        };
        match train(start) {
            Err(SteerError::ResumeMismatch { .. } | SteerError::RunExists { .. }) => train(Start::Overwrite),
            done => done,
        }
    }

    /// The multipliers that were asked for.
    fn multipliers(&self) -> Vec<(String, f64)> {
        self.measure.multipliers.iter().map(|m| (format!("multiplier {m}"), *m)).collect()
    }

    /// The multipliers to measure a vector at, above 0, and what each is for.
    fn strengths(
        &self,
        job: &Job,
        vector: &Arc<SteeringVector>,
        notes: &mut Vec<String>,
        cancel: &AtomicBool,
    ) -> Result<Vec<(String, f64)>> {
        let mut all = self.multipliers();
        let facts = facts(vector);
        if self.measure.dose > 0.0 && facts.residual_norm > 0.0 {
            all.push(("equal norm".into(), self.measure.dose * facts.residual_norm / facts.norm));
        }
        if self.measure.kl > 0.0 {
            match self.unit_dose(job, vector, cancel) {
                Ok(multiplier) => all.push(("equal KL".into(), multiplier)),
                Err(error @ SteerError::Calibration { .. }) => notes.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// The multiplier of the common divergence, over answers to validation prompts (to training prompts without any).
    fn unit_dose(&self, job: &Job, vector: &Arc<SteeringVector>, cancel: &AtomicBool) -> Result<f64> {
        let (tokens, texts) = match (&self.data.valid, &self.splits.valid) {
            (Some(tokens), Some(texts)) => (tokens, texts),
            (Some(tokens), None) => (tokens, &self.splits.train),
            (None, _) => (&self.data.train, &self.splits.train),
        };
        let prompting = prompting(self.model, &job.recipe)?;
        let rows = tokens.rows.iter().take(self.measure.prompts);
        let prompts = rows.map(|&row| {
            let text = &texts.pairs[row].prompt;
            let ids = prompting.prompt(text)?;
            let user = job.recipe.scope.needs_user();
            let shape = if user {
                PromptShape::of_question(&prompting, text, ids.len(), 0)?
            } else {
                PromptShape { len: ids.len(), last_user: 0..0 }
            };
            Ok((ids, shape))
        });
        let prompts = prompts.collect::<Result<Vec<_>>>()?;
        let Measure { kl, tokens, .. } = *self.measure;
        let found = eval::calibrate(self.model, vector, &prompts, kl, tokens, cancel)?;
        Ok(f64::from(found.multiplier))
    }

    /// Log-probabilities of the measured pairs in one direction, for each of `multipliers`.
    fn logps(
        &self,
        job: &Job,
        made: Option<&Made>,
        direction: Direction,
        multipliers: &[f64],
        observer: &mut dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<Vec<Vec<PairLogps>>> {
        let (recipe, set) = (&job.recipe, self.set(job)?);
        let (pairs, shapes): (Vec<TokenPair>, Vec<PromptShape>) = match &job.baseline {
            None => (set.pairs.clone(), (0..set.pairs.len()).map(|i| set.shape(i)).collect()),
            Some(baseline) => {
                let train = self.train_texts();
                let prompts = Prompts::new(self.model, recipe, baseline, direction, &train)?;
                let (texts, user) = (self.texts(), recipe.scope.needs_user());
                let pair = |&row: &usize| prompts.pair(&texts.pairs[row], user);
                set.rows.iter().map(pair).collect::<Result<Vec<_>>>()?.into_iter().unzip()
            }
        };
        let added = match made {
            Some(Made::Vector(vector)) => Added::Vector(vector.layer, &vector.direction),
            Some(Made::Adapter(lora, numbers)) => Added::Adapter(lora, numbers),
            None => {
                let logps = plain_logps(self.model, recipe, &pairs, None, cancel)?;
                return Ok(vec![logps; multipliers.len()]);
            }
        };
        let scopes: Vec<Positions> = shapes.iter().map(|shape| recipe.scope.positions(shape)).collect();
        let signed: Vec<f32> = multipliers.iter().map(|&m| m as f32 * direction.sign()).collect();
        let (model, prefix) = (self.model, Some(self.prefix));
        steered_logps(model, recipe, added, (pairs, scopes), prefix, &signed, observer, cancel)
    }

    /// The texts that the rows of the measured pairs count in.
    fn texts(&self) -> &Dataset {
        let own = match self.split {
            Split::Valid => &self.splits.valid,
            Split::Test => &self.splits.test,
        };
        own.as_ref().unwrap_or(&self.splits.train)
    }

    /// The training pairs that are not held out.
    fn train_texts(&self) -> Vec<&PreferencePair> {
        self.data.train.rows.iter().map(|&row| &self.splits.train.pairs[row]).collect()
    }
}

fn facts(vector: &SteeringVector) -> VectorFacts {
    VectorFacts {
        layer: vector.layer,
        norm: norm(&vector.direction),
        residual_norm: vector.provenance.residual_norm.map_or(0.0, f64::from),
    }
}

fn question(pair: &TokenPair) -> String {
    let bytes: Vec<u8> = pair.prompt.iter().flat_map(|token| token.to_le_bytes()).collect();
    sha256(&bytes)[..12].to_owned()
}

/// Passes everything on but notes that were seen before: jobs on the same data say the same.
pub(super) struct Once<'a> {
    pub(super) inner: &'a mut dyn Observer,
    pub(super) seen: std::collections::HashSet<String>,
}

impl Observer for Once<'_> {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Note(note) = &event
            && !self.seen.insert(note.clone())
        {
            return;
        }
        self.inner.event(event);
    }
}
