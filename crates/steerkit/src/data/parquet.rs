//! Parquet files, as Hugging Face's data sets come, read as JSON lines: a row is a line.

use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;

use crate::Result;
use crate::error::malformed;

/// The first bytes of every file.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// The rows of a file as lines of JSON. Memory is that of a page of each column.
pub(super) struct ParquetLines {
    rows: RowIter<'static>,
    line: Vec<u8>,
    at: usize,
    ended: bool,
}

impl ParquetLines {
    /// Reads the file's description.
    ///
    /// # Errors
    /// A file that cannot be read or whose description is damaged.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = fs_err::File::open(path)?.into_parts().0;
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(|found| {
            malformed(path, "file", found.to_string(), "a whole Parquet file", "fetch the file again")
        })?;
        let rows = RowIter::from_file_into(Box::new(reader));
        Ok(Self { rows, line: Vec::new(), at: 0, ended: false })
    }

    fn next_row(&mut self) -> io::Result<()> {
        self.line.clear();
        self.at = 0;
        match guarded(|| self.rows.next().transpose()) {
            Ok(Some(row)) => {
                serde_json::to_writer(&mut self.line, &row.to_json_value())?;
                self.line.push(b'\n');
            }
            Ok(None) => self.ended = true,
            Err(error) => {
                self.ended = true;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The library panics on some damaged files: that is an error like the others it finds.
fn guarded<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "damaged or unknown contents")),
    }
}

impl BufRead for ParquetLines {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.line.len() && !self.ended {
            self.next_row()?;
        }
        Ok(&self.line[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for ParquetLines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}
