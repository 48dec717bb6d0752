//! Writing files so that no half-written one is ever seen.

use std::io::{Error, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Writes `bytes` to a temporary file in the folder of `path`, flushes it to the disk and renames it.
///
/// # Errors
/// The file system's; the message names `path`, and what stood there before is untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let write = || -> std::io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        // The usual rights less the umask: temporary files are private otherwise, and the rename keeps that.
        #[cfg(unix)]
        let rights = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        #[cfg(unix)]
        builder.permissions(rights);
        let mut file = builder.prefix(".steerkit-").tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        #[cfg(unix)]
        std::fs::File::open(folder)?.sync_all()?;
        Ok(())
    };
    write().map_err(|error| Error::new(error.kind(), format!("cannot write {}: {error}", path.display())))
}

/// SHA-256 in lower-case hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
