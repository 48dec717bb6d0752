//! The splits of a data folder, and seeded samples of a dataset.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::{Dataset, Note, NoteKind, ReadOptions, read};
use crate::error::malformed;
use crate::{Result, SteerError};

/// A training set with what belongs to it.
#[derive(Clone, Debug)]
pub struct Splits {
    /// The pairs to train on.
    pub train: Dataset,
    /// The pairs to choose layers and settings on.
    pub valid: Option<Dataset>,
    /// The pairs to report on.
    pub test: Option<Dataset>,
}

impl Splits {
    /// Opens a folder with `train`, and where they are there `valid` (or `validation`) and `test`, each `.jsonl` or
    /// `.csv`; or a single file, which is then the training set. Rows whose prompt is in an earlier split are noted.
    ///
    /// # Errors
    /// As [`read`]; also a folder without a training set or with two files for one split, and with `strict` prompts
    /// that are in two splits.
    pub fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        Self::open_some(path, options, true)
    }

    /// As [`Self::open`]; without `test`, a folder's test file is left alone.
    pub(crate) fn open_some(path: &Path, options: &ReadOptions, test: bool) -> Result<Self> {
        if !path.is_dir() {
            return Ok(Self { train: read(path, options)?, valid: None, test: None });
        }
        let Some(train) = split_file(path, &["train"])? else {
            let hint =
                "a data folder holds train.jsonl, train.csv or train.parquet, and valid and test beside it";
            return Err(malformed(path, "folder", "no training set", "train.jsonl, .csv or .parquet", hint));
        };
        let open = |file: Option<PathBuf>| file.map(|file| read(&file, options)).transpose();
        let mut splits = Self {
            train: read(&train, options)?,
            valid: open(split_file(path, &["valid", "validation"])?)?,
            test: if test { open(split_file(path, &["test"])?)? } else { None },
        };
        splits.note_overlap(options.strict)?;
        Ok(splits)
    }

    /// The splits that are there, with their names.
    pub fn named(&self) -> Vec<(&'static str, &Dataset)> {
        let all =
            [("train", Some(&self.train)), ("valid", self.valid.as_ref()), ("test", self.test.as_ref())];
        all.into_iter().filter_map(|(name, set)| Some((name, set?))).collect()
    }

    /// Notes the rows of later splits whose prompt is in an earlier one; with `strict` they are an error.
    pub(crate) fn note_overlap(&mut self, strict: bool) -> Result<()> {
        let mut seen: HashSet<&str> = self.train.pairs.iter().map(|pair| pair.prompt.as_str()).collect();
        for later in [&mut self.valid, &mut self.test].into_iter().flatten() {
            later.notes.retain(|note| note.kind != NoteKind::Overlap);
            let mut overlap = Note::new(NoteKind::Overlap, 0);
            for (i, _) in
                later.pairs.iter().enumerate().filter(|(_, pair)| seen.contains(pair.prompt.as_str()))
            {
                overlap.add(i + 1);
            }
            if overlap.count > 0 {
                if strict {
                    return Err(SteerError::FaultyData { path: later.path.clone(), faults: vec![overlap] });
                }
                later.notes.push(overlap);
            }
            seen.extend(later.pairs.iter().map(|pair| pair.prompt.as_str()));
        }
        Ok(())
    }
}

/// What a data file's name may end in.
pub(crate) const ENDS: [&str; 3] = ["jsonl", "csv", "parquet"];

/// The one file of a split.
fn split_file(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>> {
    let files = names.iter().flat_map(|name| ENDS.map(|end| folder.join(format!("{name}.{end}"))));
    let mut files: Vec<PathBuf> = files.filter(|file| file.is_file()).collect();
    if files.len() > 1 {
        let found =
            files.iter().filter_map(|file| file.file_name()?.to_str()).collect::<Vec<_>>().join(" and ");
        return Err(malformed(
            folder,
            "folder",
            found,
            "one file for this split",
            "remove one, or name the file",
        ));
    }
    Ok(files.pop())
}

/// The first `n` rows after a seeded shuffle (all of them, shuffled, when there are no more), and their places in
/// `data`, counted from 0.
///
/// The shuffle is Fisher-Yates from the front: place `i` changes with a place drawn from `i..len`. A draw below `m`
/// takes 64-bit words from ChaCha20 (`seed_from_u64(seed)`), widens `word * m` to 128 bits, drops words whose low
/// half is under `2^64 mod m`, and keeps the high half: the same rows on every machine and in every version.
pub fn sample(data: &Dataset, n: usize, seed: u64) -> (Vec<usize>, Dataset) {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let len = data.pairs.len();
    let n = n.min(len);
    let mut rows: Vec<usize> = (0..len).collect();
    for i in 0..n {
        let other = i + below(&mut rng, (len - i) as u64) as usize;
        rows.swap(i, other);
    }
    rows.truncate(n);
    let pairs = rows.iter().map(|&row| data.pairs[row].clone()).collect();
    let sampled =
        Dataset { pairs, path: data.path.clone(), sha256: data.sha256.clone(), notes: data.notes.clone() };
    (rows, sampled)
}

/// A uniform number below `m` (Lemire's method).
fn below(rng: &mut ChaCha20Rng, m: u64) -> u64 {
    loop {
        let wide = u128::from(rng.next_u64()) * u128::from(m);
        if wide as u64 >= m.wrapping_neg() % m {
            return (wide >> 64) as u64;
        }
    }
}
