//! Writing files so that a reader never sees half of one, and hashes of their bytes.

use fs_err as fs;
use safetensors::{Dtype, tensor::TensorView};
use sha2::{Digest, Sha256};
use std::{
    io::{self, Write},
    path::Path,
};

/// Writes `bytes` to `path`: a temporary file in the same folder, brought to the disk, then renamed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = temporary_beside(path)?;
    file.write_all(bytes).map_err(|e| at(path, e))?;
    persist(file, path)
}

/// Writes one f32 tensor as a safetensors file; `data` is little-endian.
///
/// # Panics
/// When `data` is not as long as `shape` says.
pub fn write_tensor(path: &Path, name: &str, shape: &[usize], data: &[u8]) -> io::Result<()> {
    let tensor = TensorView::new(Dtype::F32, shape.to_vec(), data).expect("the bytes are those of the shape");
    let bytes = safetensors::serialize([(name, tensor)], None).expect("one tensor always fits");
    write_atomic(path, &bytes)
}

/// A temporary file in the folder of `path`.
pub fn temporary_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // Temporary files are private, and a rename keeps that; results have the usual rights less the umask.
    #[cfg(unix)]
    let usual = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(usual);
    builder.prefix(".steerkit-").tempfile_in(folder).map_err(|e| at(folder, e))
}

/// Brings `file` to the disk and gives it the name `path`.
pub fn persist(file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all().map_err(|e| at(path, e))?;
    file.persist(path).map_err(|e| at(path, e.error))?;
    sync_folder(path)
}

/// Brings the entry of `path` in its folder to the disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// The error with the path it is about, which the standard library leaves out.
pub(crate) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// SHA-256 of a file in lower-case hex.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    Ok(sha256(&fs::read(path)?))
}

/// SHA-256 in lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
