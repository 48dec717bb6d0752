//! Where things lie in a run's folder.

use crate::{recipe::Method, train::checkpoint::Checkpoint};
use fs_err as fs;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Names of the vectors' file, and of the one that a diverged run leaves.
const VECTOR: [&str; 2] = ["vector.safetensors", "vector.last-finite.safetensors"];
/// Names of an adapter's folder, and of the one that a diverged run leaves.
const ADAPTER: [&str; 2] = ["adapter", "adapter.last-finite"];

/// What a run writes into its folder.
pub(super) struct Layout {
    folder: PathBuf,
    pub(super) recipe: PathBuf,
    /// The vectors' file, or the adapter's folder.
    pub(super) made: PathBuf,
    pub(super) last_finite: PathBuf,
    pub(super) checkpoints: PathBuf,
    pub(super) epoch_vectors: PathBuf,
    pub(super) metrics: PathBuf,
}

impl Layout {
    pub(super) fn new(folder: &Path, method: Method) -> Self {
        let names = if method == Method::DpoLora { ADAPTER } else { VECTOR };
        Self {
            folder: folder.into(),
            recipe: folder.join("recipe.toml"),
            made: folder.join(names[0]),
            last_finite: folder.join(names[1]),
            checkpoints: folder.join("checkpoints"),
            epoch_vectors: folder.join("vectors"),
            metrics: folder.join("metrics.jsonl"),
        }
    }

    pub(super) fn holds_a_run(&self) -> bool {
        self.recipe.exists() || self.made.exists() || Checkpoint::exists(&self.checkpoints)
    }

    pub(super) fn clear(&self) -> io::Result<()> {
        absent(fs::remove_file(&self.recipe))?;
        absent(fs::remove_file(&self.metrics))?;
        VECTOR.iter().try_for_each(|name| absent(fs::remove_file(self.folder.join(name))))?;
        for folder in [&self.checkpoints, &self.epoch_vectors] {
            absent(fs::remove_dir_all(folder))?;
        }
        ADAPTER.iter().try_for_each(|name| absent(fs::remove_dir_all(self.folder.join(name))))?;
        Ok(())
    }
}

/// Success when what was to go is not there.
fn absent(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}
