//! One writer per run folder.

use crate::{Result, SteerError};
use std::{
    fs::{File, TryLockError},
    path::Path,
};

/// The lock of a run folder; the system gives it back when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl RunLock {
    /// Takes the lock of `folder`.
    ///
    /// # Errors
    /// [`SteerError::Locked`] when another process (or another run of this one) holds it.
    pub fn take(folder: &Path) -> Result<Self> {
        let (file, path) = fs_err::File::create(folder.join(".lock"))?.into_parts();
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(SteerError::Locked { folder: folder.into() }),
            Err(TryLockError::Error(e)) => {
                let message = format!("cannot lock {}: {e}", path.display());
                Err(std::io::Error::new(e.kind(), message).into())
            }
        }
    }
}

impl Drop for RunLock {
    /// Closing the file is not enough: a child process that another thread is just starting holds a copy of it.
    fn drop(&mut self) {
        // The lock of a file that cannot be unlocked goes when the last copy is closed.
        self.file.unlock().ok();
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
