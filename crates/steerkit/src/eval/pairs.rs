//! The pairs that an evaluation asks about.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::scoring::Prompted;
use super::subject::Subject;
use crate::Result;
use crate::data::{ColumnMap, Import, Layout, PreferencePair, ReadOptions};
use crate::error::malformed;

/// Bytes at the beginning of a file that tell its layout.
const HEAD: u64 = 1 << 16;

/// The pairs of a file that an evaluation measures.
pub(crate) struct Pairs {
    pub(crate) pairs: Vec<PreferencePair>,
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
    pub(crate) notes: Vec<String>,
}

/// Reads a file of pairs, of Anthropic's or of CAA's letters, and draws what the subject's limit leaves.
pub(crate) fn read(subject: &Subject<'_>, path: &Path, columns: &ColumnMap) -> Result<Pairs> {
    let options = ReadOptions { columns: columns.clone(), ..ReadOptions::default() };
    let layout = if *columns == ColumnMap::default() { layout(path)? } else { Layout::Pairs };
    let mut import = Import::open(path, layout, &options)?;
    let all = import.by_ref().collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Err(malformed(path, "data", "no rows", "at least one pair", "one row holds one pair"));
    }
    let sha256 = import.finish()?;
    let drawn = subject.drawn(all.len());
    let mut notes = Vec::new();
    if drawn.len() < all.len() {
        notes.push(format!("{} of {} pairs, drawn with seed {}", drawn.len(), all.len(), subject.seed));
    }
    let pairs = drawn.into_iter().map(|i| all[i].clone()).collect();
    Ok(Pairs { pairs, path: path.to_owned(), sha256, notes })
}

/// The layout of a file, by its beginning.
fn layout(path: &Path) -> Result<Layout> {
    let mut head = Vec::new();
    fs_err::File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    let head = String::from_utf8_lossy(&head);
    let letters = head.contains("\"answer_matching_behavior\"");
    Ok(match head.trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t']).starts_with('[') {
        true if letters => Layout::Caa,
        false if letters => Layout::Anthropic,
        _ => Layout::Pairs,
    })
}

/// The tokens of pairs: chosen and rejected behind their prompt, both ending in the end-of-text token unless `bare`. What
/// is cut to the model's context is counted in a note.
pub(crate) fn tokens<'p>(
    subject: &Subject<'_>,
    pairs: impl IntoIterator<Item = &'p PreferencePair>,
    bare: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<Prompted>> {
    let context = subject.model.config().context;
    let prompting = steerkit_model::Prompting { max_length: Some(context), ..subject.prompting.clone() };
    let mut cut = 0;
    let mut texts = Vec::new();
    for pair in pairs {
        let tokens = prompting.pair(&pair.prompt, &pair.chosen, &pair.rejected)?;
        cut += usize::from(tokens.cut_from_prompt + tokens.cut_from_responses > 0);
        let shape = match tokens.cut_from_prompt {
            0 => subject.shape(&pair.prompt, tokens.prompt.len())?,
            cut => crate::PromptShape::of_question(&prompting, &pair.prompt, tokens.prompt.len(), cut)?,
        };
        let mut continuations = vec![tokens.chosen, tokens.rejected];
        if bare {
            let end = prompting.tokenizer.eos();
            continuations.iter_mut().filter(|c| c.len() > 1 && c.last().copied() == end).for_each(|c| {
                c.pop();
            });
        }
        texts.push(Prompted { prompt: tokens.prompt, shape, continuations });
    }
    if cut > 0 {
        notes.push(format!(
            "{cut} of {} pairs are longer than the model's {context} tokens: the beginnings of their prompts, then the ends \
             of their responses, are cut off",
            texts.len()
        ));
    }
    Ok(texts)
}
