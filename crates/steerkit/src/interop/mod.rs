//! Vectors in other programs' files: reading, writing, and what their layer numbers mean.
//!
//! Everything is read with its lengths checked first, and nothing in a file is ever executed.

mod foreign;
mod gguf;
mod pickle;
mod pt;

use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use serde::Serialize;

use crate::error::malformed;
use crate::scope::TokenScope;
use crate::vector::{self, SteeringVector};
use crate::{Result, SteerError};

/// What number N of a file's layer means. Unless told otherwise, a vector goes where llama.cpp would add it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceConvention {
    /// The output of block N, counted from 0: the authors' files, repeng, llama.cpp when it applies a file, ours.
    #[default]
    BlockOutput,
    /// Computed from the output of block N - 1: llama.cpp's cvector-generator, jukofyork's control vectors.
    CvectorGenerator,
    /// `hidden_states[N]` of transformers, where 0 is the embedding: persona_vectors.
    HiddenStates,
    /// The input of block N: IBM's CAST.
    BlockInput,
}

impl SourceConvention {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::BlockOutput, Self::CvectorGenerator, Self::HiddenStates, Self::BlockInput];

    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BlockOutput => "block-output",
            Self::CvectorGenerator => "cvector-generator",
            Self::HiddenStates => "hidden-states",
            Self::BlockInput => "block-input",
        }
    }

    /// The block whose output number `n` means; none for the embedding.
    pub fn block(self, n: usize) -> Option<usize> {
        match self {
            Self::BlockOutput => Some(n),
            _ => n.checked_sub(1),
        }
    }
}

impl FromStr for SourceConvention {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|c| c.name() == text);
        found.ok_or_else(|| format!("found {text:?}, expected one of {known}"))
    }
}

/// How to read a file of vectors.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportOptions {
    /// What the file's layer numbers mean.
    pub convention: SourceConvention,
    /// Of a file with several layers, the one to take; of a file that names none, the layer. Counted as the file counts.
    pub layer: Option<usize>,
}

/// The vectors of a file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// One per layer, lowest first; at least one.
    pub vectors: Vec<SteeringVector>,
    /// What kind of file it was.
    pub format: &'static str,
    /// What a user should know before using them.
    pub warnings: Vec<String>,
}

/// What a file holds before its layers mean anything: vectors under the file's own numbers.
struct Raw {
    format: &'static str,
    /// The layer is none where the file does not say.
    vectors: Vec<(Option<usize>, SteeringVector)>,
    warnings: Vec<String>,
}

/// Reads a vector file of any kind: safetensors (ours, psyctl's, steering-lite's), a GGUF control vector, or a
/// PyTorch file with one tensor. The kind is told by its first bytes.
///
/// # Errors
/// The file system's; [`SteerError::Malformed`] naming the place where the file breaks its format, for numbers that are
/// not finite or all zero, and for a layer that is missing.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported> {
    let bytes = read(path)?;
    let mut raw = match bytes.get(..4) {
        Some(b"GGUF") => gguf::read(path)?,
        Some(b"PK\x03\x04") => pt::read(path, &bytes)?,
        _ => match foreign::read(path, &bytes)? {
            Some(raw) => raw,
            None => Raw {
                format: "steerkit safetensors",
                vectors: vector::parse(path, &bytes)?.into_iter().map(|v| (Some(v.layer), v)).collect(),
                warnings: Vec::new(),
            },
        },
    };
    choose(path, &mut raw.vectors, options.layer)?;
    let mut vectors = Vec::with_capacity(raw.vectors.len());
    for (number, vector) in raw.vectors {
        let number = number.ok_or_else(|| nameless(path))?;
        let layer = options.convention.block(number).ok_or_else(|| {
            let found = format!("layer {number}, which means the embedding");
            let expected = format!("layer 1 or more in the convention {}", options.convention.name());
            malformed(path, "layer", found, expected, "choose other layers, or another --source-convention")
        })?;
        vectors.push(SteeringVector { layer, ..vector });
    }
    vectors.sort_by_key(|v| v.layer);
    Ok(Imported { vectors, format: raw.format, warnings: raw.warnings })
}

/// Keeps the layer that is asked for; a file that names none takes its number from there.
fn choose(
    path: &Path,
    vectors: &mut Vec<(Option<usize>, SteeringVector)>,
    layer: Option<usize>,
) -> Result<()> {
    if let [(number @ None, _)] = &mut vectors[..] {
        *number = Some(layer.ok_or_else(|| nameless(path))?);
        return Ok(());
    }
    if let Some(layer) = layer {
        let numbers: Vec<String> = vectors.iter().filter_map(|(n, _)| n.map(|n| n.to_string())).collect();
        vectors.retain(|(n, _)| *n == Some(layer));
        if vectors.is_empty() {
            let found = format!("the layers {}", numbers.join(", "));
            return Err(malformed(path, "layer", found, format!("layer {layer}"), "choose one of them"));
        }
    }
    Ok(())
}

fn nameless(path: &Path) -> SteerError {
    let hint = "name the block, counted from 0, after which the vector is added: --layer N";
    malformed(path, "layer", "no layer in the file or its name", "a layer", hint)
}

/// Writes vectors in the format that the extension of `path` names (`safetensors`, `gguf`, `pt`) and gives what a user
/// should know. The same vectors give the same bytes.
///
/// # Errors
/// The file system's; [`SteerError::Export`] for what a format cannot hold.
pub fn export(vectors: &[SteeringVector], path: &Path) -> Result<Vec<String>> {
    let scopes = vectors.iter().map(|v| v.provenance.token_scope).find(|s| *s != TokenScope::All);
    let everywhere = |who: &str| {
        scopes.map(|scope| {
            format!("the vector was trained on the tokens {scope}; {who} adds it at every token")
        })
    };
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => vector::save_all(path, vectors).map(|()| Vec::new()),
        Some("gguf") => {
            gguf::write(path, vectors)?;
            Ok(everywhere("llama.cpp").into_iter().collect())
        }
        Some("pt") => {
            pt::write(path, vectors)?;
            let mut warnings: Vec<String> = everywhere("other code").into_iter().collect();
            let layer = vectors[0].layer;
            if pt::layer_in_name(path) != Some(layer) {
                warnings.push(format!(
                    "a .pt file says nothing about its layer: _layer{layer}.pt at the end of its name keeps it"
                ));
            }
            Ok(warnings)
        }
        _ => Err(SteerError::Export {
            path: path.into(),
            what: "the extension names no vector format".into(),
            hint: "end the name in .safetensors, .gguf or .pt".into(),
        }),
    }
}

/// The bytes of a file that is no larger than vectors are.
fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(vector::MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > vector::MAX_FILE {
        let found = format!("more than {} bytes", vector::MAX_FILE);
        return Err(malformed(path, "file", found, "a vector of some kilobytes", "is this a model file?"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_numbers_by_convention() {
        let block = |name: &str, n| name.parse::<SourceConvention>().unwrap().block(n);
        assert_eq!(block("block-output", 0), Some(0));
        assert_eq!(block("cvector-generator", 15), Some(14));
        assert_eq!(block("hidden-states", 0), None);
        assert_eq!(block("block-input", 1), Some(0));
        assert!("blocks".parse::<SourceConvention>().is_err());
    }
}
