//! One writer per run folder.

use crate::{Result, SteerError, files};
use std::{
    fs::{File, TryLockError},
    path::Path,
};

/// The lock of a run folder; the system gives it back when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of `folder`.
    ///
    /// # Errors
    /// [`SteerError::Locked`] when another process (or another run of this one) holds it.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(".lock");
        let file = File::create(&path).map_err(|e| files::at(&path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(SteerError::Locked { folder: folder.into() }),
            Err(TryLockError::Error(e)) => Err(files::at(&path, e).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_in_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunLock::take(folder.path()).unwrap();
        assert!(matches!(RunLock::take(folder.path()), Err(SteerError::Locked { .. })));
        drop(first);
        RunLock::take(folder.path()).unwrap();
    }
}
