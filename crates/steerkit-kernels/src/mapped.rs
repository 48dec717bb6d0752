//! Files as shared bytes without copying them.

use crate::Bytes;
use std::{fs::File, io, sync::Arc};

/// The bytes of `file`, mapped read-only.
///
/// Nobody may shorten or overwrite the file while the bytes are alive: reading a page that is gone ends the
/// process with SIGBUS, and changed pages change the weights. Replacing the file by renaming another over it
/// is safe.
///
/// # Errors
/// When the system refuses the mapping.
pub fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: the map is private to this process and read-only. That the file stays as it is cannot be
    // enforced; the caller's documentation asks for it, as every loader of mapped weights does.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::new(Arc::new(map)))
}
