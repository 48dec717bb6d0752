//! The vectors that requests may name: the files of one folder, looked at again every now and then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fs_err as fs;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use steerkit::interop::{self, ImportOptions};
use steerkit::{SteeringPlan, SteeringVector, files};
use steerkit_model::{DecoderConfig, ModelIdentity};

use crate::error::{ApiError, ApiResult};

/// How often the folder is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(500);

/// Files of these endings are vectors.
const ENDINGS: [&str; 2] = ["safetensors", "gguf"];

/// Whether requests may use this name.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.')
}

/// A vector that requests may name.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// One per layer, lowest first; each called `name`.
    pub(crate) vectors: Vec<Arc<SteeringVector>>,
    path: PathBuf,
    sha256: String,
    /// Time of change and size of the file.
    stamp: (SystemTime, u64),
}

impl Entry {
    /// As `/v1/vectors` shows it.
    pub(crate) fn value(&self) -> Value {
        let first = &self.vectors[0];
        let made = &first.provenance;
        let objective = made.objective.get("name").cloned().unwrap_or(Value::Null);
        json!({
            "name": self.name,
            "object": "vector",
            "behavior": made.behaviour,
            "method": made.method,
            "objective": objective,
            "layer": first.layer,
            "layers": self.vectors.iter().map(|v| v.layer).collect::<Vec<_>>(),
            "operator": "add",
            "scope": made.token_scope,
            "norm": first.norm(),
            "relative_dose": first.relative_norm(),
            "unit_dose": made.calibration.as_ref().map(|c| c.multiplier),
            "base_model": made.base_model.as_ref().map(|model| &model.name),
            "sha256": self.sha256,
            "created": self.created(),
        })
    }

    /// Seconds since 1970 at which the file was written.
    pub(crate) fn created(&self) -> u64 {
        self.stamp.0.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

/// The vectors at one moment. A request keeps those it began with.
pub(crate) type Snapshot = Arc<BTreeMap<String, Arc<Entry>>>;

/// All vectors.
pub(crate) struct Registry {
    folder: Option<PathBuf>,
    config: DecoderConfig,
    identity: ModelIdentity,
    current: RwLock<Snapshot>,
    /// Files that could not be used, by their stamp: each is told of once.
    refused: Mutex<BTreeMap<PathBuf, (SystemTime, u64)>>,
}

impl Registry {
    pub(crate) fn new(folder: Option<PathBuf>, config: DecoderConfig, identity: ModelIdentity) -> Self {
        let (current, refused) = (RwLock::default(), Mutex::default());
        Self { folder, config, identity, current, refused }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads what changed in the folder. Gives what the operator should know.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub(crate) fn refresh(&self) -> std::io::Result<Vec<String>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.snapshot();
        let mut entries = BTreeMap::new();
        let mut notes = Vec::new();
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder)?.filter_map(|entry| entry.ok()).map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Some(stamp) = stamp(&path) else { continue };
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
            if let Some(old) = before.get(&name).filter(|old| old.path == path && old.stamp == stamp) {
                entries.insert(name, Arc::clone(old));
                continue;
            }
            if refused.get(&path) == Some(&stamp) {
                // A file that broke keeps the version that worked.
                entries.extend(
                    before.get(&name).filter(|old| old.path == path).map(|old| (name, Arc::clone(old))),
                );
                continue;
            }
            let found = if entries.contains_key(&name) {
                Err(format!("{}: there is another file called {name}", path.display()))
            } else {
                self.load(&path, &name, stamp)
            };
            match found {
                Ok(entry) => {
                    entries.insert(name, Arc::new(entry));
                }
                Err(note) => {
                    notes.push(note);
                    refused.insert(path.clone(), stamp);
                    let old = before.get(&name).filter(|old| old.path == path);
                    entries.extend(old.map(|old| (name, Arc::clone(old))));
                }
            }
        }
        refused.retain(|path, _| path.exists());
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(entries);
        Ok(notes)
    }

    fn load(&self, path: &Path, name: &str, stamp: (SystemTime, u64)) -> Result<Entry, String> {
        if !is_name(name) {
            let allowed = "1 to 64 of a-z, 0-9, dot, underscore and hyphen";
            return Err(format!(
                "{}: the file's name cannot be a vector's: expected {allowed}",
                path.display()
            ));
        }
        let bytes = fs::read(path).map_err(|e| e.to_string())?;
        let imported = interop::import(path, &ImportOptions::default()).map_err(|e| e.to_string())?;
        let vectors = imported.vectors.into_iter().map(|mut vector| {
            vector.provenance.name = name.to_owned();
            Arc::new(vector)
        });
        let vectors: Vec<Arc<SteeringVector>> = vectors.collect();
        for vector in &vectors {
            let plan = SteeringPlan::new().add(Arc::clone(vector), 1.0);
            plan.and_then(|plan| plan.edits(&self.config, &Default::default()))
                .map_err(|e| format!("{}: {e}", path.display()))?;
        }
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Entry { name: name.to_owned(), vectors, path: path.to_owned(), sha256, stamp })
    }

    /// Takes a new version of a vector, or a new one.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> ApiResult<Arc<Entry>> {
        let folder = self.folder()?;
        let failed = |e: std::io::Error| ApiError::internal(format!("the vector was not stored: {e}"));
        let path = folder.join(format!("{name}.safetensors"));
        let mut file = files::temporary_beside(&path).map_err(failed)?;
        std::io::Write::write_all(&mut file, bytes).map_err(failed)?;
        let shown = |e: String| e.replace(&file.path().display().to_string(), "the file");
        if bytes.get(8..9).is_none_or(|b| b != b"{") {
            return Err(ApiError::bad("body", "the body is no safetensors file"));
        }
        self.load(file.path(), name, (SystemTime::UNIX_EPOCH, 0))
            .map_err(|e| ApiError::bad("body", shown(e)))?;
        files::persist(file, &path).map_err(failed)?;
        self.refresh().map_err(failed)?;
        self.snapshot().get(name).cloned().ok_or_else(|| {
            ApiError::bad("name", format!("another file is called {name}: delete that vector first"))
        })
    }

    /// Forgets a vector and removes its file.
    pub(crate) fn delete(&self, name: &str) -> ApiResult<()> {
        self.folder()?;
        let entry = find(&self.snapshot(), name)?;
        let failed = |e: std::io::Error| ApiError::internal(format!("the vector was not removed: {e}"));
        fs::remove_file(&entry.path).map_err(failed)?;
        self.refresh().map_err(failed)?;
        Ok(())
    }

    fn folder(&self) -> ApiResult<&Path> {
        let none = "this server has no folder of vectors (--vectors DIR)";
        self.folder.as_deref().ok_or_else(|| ApiError::new(axum::http::StatusCode::FORBIDDEN, none))
    }

    /// The model that vectors are for.
    pub(crate) fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}

/// The vector called `name`.
pub(crate) fn find(vectors: &Snapshot, name: &str) -> ApiResult<Arc<Entry>> {
    if let Some(entry) = vectors.get(name) {
        return Ok(Arc::clone(entry));
    }
    let known: Vec<&str> = vectors.keys().map(String::as_str).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    // A name that no vector can have is not repeated.
    let shown = if is_name(name) { format!(" {name:?}") } else { String::new() };
    Err(ApiError::not_found(
        "steering",
        "vector_not_found",
        format!("no vector{shown} here (vectors: {known})"),
    ))
}

/// Time of change and size of a vector file; none for anything else.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let ending = path.extension()?.to_str()?;
    let hidden = path.file_name()?.to_str()?.starts_with('.');
    let metadata = fs::metadata(path).ok().filter(|m| m.is_file() && !hidden && ENDINGS.contains(&ending))?;
    Some((metadata.modified().ok()?, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_are_names() {
        for good in ["a", "formality", "a.b_c-9", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".a", "A", "a/b", "../x", "a b", "a\0", "é", "a%2e", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
