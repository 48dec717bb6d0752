//! Model files as bytes, and the tensors found in them.

use crate::{ModelError, Result};
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};
use steerkit_kernels::{BlockFormat, Bytes, mapped};

/// Files up to this size (1 GiB) are copied into memory.
pub const COPY_LIMIT: u64 = 1 << 30;

/// A file's bytes.
///
/// A file of at most [`COPY_LIMIT`] bytes is copied into memory, so that whatever happens to it later cannot
/// hurt. A larger one is mapped: it costs no memory of its own and opens at once, but it must not be shortened
/// or written to while the model is in use. If it is, reading the lost part ends the process with SIGBUS, and
/// there is no clean way to catch that; replacing it by a rename, as downloads do, is safe.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    bytes: Bytes,
}

impl Source {
    /// Reads or maps the file.
    ///
    /// # Errors
    /// The file system's, a path that is no plain file, a file that shrinks while it is read, and a git-LFS
    /// pointer in place of the file.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with_limit(path, COPY_LIMIT)
    }

    /// Like [`Source::open`], copying files of at most `copy_limit` bytes.
    fn open_with_limit(path: &Path, copy_limit: u64) -> Result<Self> {
        let meta = fs::metadata(path)?;
        if !meta.is_file() {
            let found = if meta.is_dir() { "a folder" } else { "no plain file" };
            return Err(ModelError::malformed(path, "path", found, "a file"));
        }
        let bytes = if meta.len() <= copy_limit {
            Bytes::new(Arc::new(read_exactly(path, meta.len())?))
        } else {
            mapped::map(fs::File::open(path)?.file())?
        };
        let source = Self { path: path.to_owned(), bytes };
        source.refuse_lfs_pointer()?;
        Ok(source)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Bytes `start..start + len`, shared; `None` when they leave the file.
    pub fn slice(&self, start: usize, len: usize) -> Option<Bytes> {
        self.bytes.slice(start, len)
    }

    /// SHA-256 of the bytes, in hexadecimal.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(self.bytes()))
    }

    /// Git leaves a small text file in place of a large one that was not fetched.
    fn refuse_lfs_pointer(&self) -> Result<()> {
        if !self.bytes().starts_with(b"version https://git-lfs.github.com/spec/") {
            return Ok(());
        }
        Err(ModelError::malformed(&self.path, "first line", "a git-LFS pointer", "the file itself")
            .advise("fetch the file it points to: git lfs pull, or download it again"))
    }
}

/// Reads `len` bytes; a file that turns out shorter is an error, one that grows is cut.
fn read_exactly(path: &Path, len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let wanted = usize::try_from(len).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(wanted).map_err(|_| {
        ModelError::malformed(path, "size", format!("{len} bytes"), "a file that fits into memory")
    })?;
    fs::File::open(path)?.take(len).read_to_end(&mut bytes)?;
    if bytes.len() < wanted {
        let found = format!("only {} bytes left", bytes.len());
        return Err(ModelError::malformed(path, "size while reading", found, format!("{len} bytes")));
    }
    Ok(bytes)
}

/// Reads a small text file whole.
///
/// # Errors
/// More than `limit` bytes, or not UTF-8 (the offset of the first bad byte is named).
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let len = fs::metadata(path)?.len();
    if len > limit {
        let expected = format!("at most {limit} bytes");
        return Err(ModelError::malformed(path, "size", format!("{len} bytes"), expected));
    }
    let source = Source::open(path)?;
    let text = std::str::from_utf8(source.bytes()).map_err(|e| {
        let place = format!("offset {}", e.valid_up_to());
        ModelError::malformed(path, place, "bytes that are not UTF-8", "UTF-8 text")
    })?;
    Ok(text.to_owned())
}

/// SHA-256 of a file's contents in hexadecimal, read in pieces.
///
/// # Errors
/// The file system's.
pub fn file_sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A tensor in a file: where it lies and how it is stored. The file kinds check that `bytes` is exactly
/// `shape` numbers in `format`, with rows of whole blocks.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// The file.
    pub path: Arc<Path>,
    /// Sizes, the slowest-varying first (`[rows = outputs, cols = inputs]`), whatever order the file uses.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub format: BlockFormat,
    /// The stored numbers.
    pub bytes: Bytes,
}

impl TensorInfo {
    /// Numbers in it.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// No numbers at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All its numbers, expanded; a copy of four bytes each.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.format.expand(self.bytes.as_slice(), &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_and_mapped_bytes_are_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"abcdef").unwrap();
        for limit in [COPY_LIMIT, 0] {
            let source = Source::open_with_limit(&path, limit).unwrap();
            assert_eq!(source.bytes(), b"abcdef");
            assert_eq!(source.slice(2, 3).unwrap().as_slice(), b"cde");
            assert!(source.slice(4, 3).is_none());
            assert!(source.slice(usize::MAX, 2).is_none());
            assert_eq!(source.sha256(), "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721");
            assert_eq!(source.sha256(), file_sha256(&path).unwrap());
        }
    }

    #[test]
    fn a_copied_file_may_be_cut_while_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let source = Source::open(&path).unwrap();
        std::fs::write(&path, b"").unwrap();
        assert_eq!(source.bytes()[(1 << 20) - 1], 7);
    }

    #[test]
    fn folders_and_shrunken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = Source::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("found a folder, expected a file"), "{text}");
        let path = dir.path().join("f");
        std::fs::write(&path, b"abc").unwrap();
        let text = read_exactly(&path, 10).unwrap_err().to_string();
        assert!(text.contains("only 3 bytes left"), "{text}");
    }
}
