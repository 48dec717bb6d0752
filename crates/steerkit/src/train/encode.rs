//! From data files to tokens.

use super::{Order, TokenPair};
use crate::files::sha256;
use std::collections::BTreeMap;
use steerkit_model::Model;

/// The pairs of one split as tokens.
#[derive(Clone, Debug, Default)]
pub struct TokenSet {
    /// The pairs.
    pub pairs: Vec<TokenPair>,
    /// The row of the data file that each pair came from, from 0.
    pub rows: Vec<usize>,
    /// SHA-256 of the data file.
    pub sha256: String,
}

/// All pairs of a run.
#[derive(Clone, Debug, Default)]
pub struct RunData {
    /// To train on.
    pub train: TokenSet,
    /// To measure on while training, and to choose the layer with.
    pub valid: Option<TokenSet>,
    /// For the last evaluation.
    pub test: Option<TokenSet>,
    /// The order of another program's run, to be replayed; laid out by the recipe unless given.
    pub order: Option<Order>,
}

impl RunData {
    /// Names and hashes of everything but the recipe that decides the result.
    pub(crate) fn hashes(&self, model: &Model) -> BTreeMap<String, String> {
        let identity = model.identity();
        let none = || "none".to_owned();
        let mut all = BTreeMap::from([
            ("model".to_owned(), identity.file_sha256.clone()),
            ("tokenizer".to_owned(), identity.tokenizer_sha256.clone().unwrap_or_else(none)),
            ("chat template".to_owned(), identity.template_sha256.clone().unwrap_or_else(none)),
        ]);
        let splits =
            [("train", Some(&self.train)), ("valid", self.valid.as_ref()), ("test", self.test.as_ref())];
        for (name, set) in splits {
            if let Some(set) = set {
                all.insert(format!("{name} data"), set.sha256.clone());
                all.insert(format!("{name} tokens"), set.tokens_sha256());
            }
        }
        all
    }
}

impl TokenSet {
    /// Hash of all tokens, with their lengths.
    fn tokens_sha256(&self) -> String {
        let lists = self.pairs.iter().flat_map(|p| [&p.prompt, &p.chosen, &p.rejected]);
        let words = lists.flat_map(|l| std::iter::once(l.len() as u32).chain(l.iter().copied()));
        sha256(&words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
    }
}
