//! From data files to tokens.

use super::{
    Event, Observer, Order, Prefix, TokenPair,
    order::{Stream, generator},
};
use crate::{
    Result,
    data::{self, Dataset, ReadOptions, Splits},
    error::malformed,
    extract,
    files::sha256,
    ranks::Shared,
    recipe::{self, Method, Recipe},
    scope::PromptShape,
};
use rand::seq::SliceRandom;
use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};
use steerkit_model::{LeadingSpace, Model, Prompting};

/// The pairs of one split as tokens.
#[derive(Clone, Debug, Default)]
pub struct TokenSet {
    /// The pairs.
    pub pairs: Vec<TokenPair>,
    /// The row of the data file that each pair came from, from 0.
    pub rows: Vec<usize>,
    /// The tokens of each prompt that are the user's, where the token scope asks for them; else empty.
    pub last_user: Vec<Range<usize>>,
    /// SHA-256 of the data file.
    pub sha256: String,
}

impl TokenSet {
    /// What a scope must know of the prompt of pair `i`.
    pub(crate) fn shape(&self, i: usize) -> PromptShape {
        PromptShape {
            len: self.pairs[i].prompt.len(),
            last_user: self.last_user.get(i).cloned().unwrap_or_default(),
        }
    }
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
    /// What several runs have in common, made once; looked at before any cache of the run's own.
    pub prefix: Option<Arc<Prefix>>,
    /// The processes that share the run.
    pub ranks: Shared,
}

impl RunData {
    /// Reads and encodes the pairs of `recipe`, and holds some out where it asks for that.
    ///
    /// # Errors
    /// As [`data::read`] and [`Prompting::pair`]; a pair that does not fit the length at all, or with
    /// `data.strict` one that has to be cut.
    pub fn read(model: &Model, recipe: &Recipe, observer: &mut dyn Observer) -> Result<Self> {
        Self::of_splits(model, recipe, &read_splits(recipe, true)?, observer)
    }

    /// As [`Self::read`], of splits that were read before.
    pub(crate) fn of_splits(
        model: &Model,
        recipe: &Recipe,
        splits: &Splits,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        for (_, set) in splits.named() {
            let few = if set.path == splits.train.path { set.batch_note(recipe.batch) } else { None };
            for note in set.notes.iter().chain(&few) {
                observer.event(Event::Note(format!("{}: {note}", set.path.display())));
            }
        }
        let prompting = prompting(model, recipe)?;
        let encode = |set: &Dataset, observer: &mut dyn Observer| encode(&prompting, set, recipe, observer);
        let mut train = match recipe.data.limit {
            Some(limit) => {
                let (rows, sampled) = data::sample(&splits.train, limit, recipe.seed);
                TokenSet { rows, ..encode(&sampled, observer)? }
            }
            None => encode(&splits.train, observer)?,
        };
        let limited = |mut set: TokenSet| {
            let limit = recipe.eval.limit.unwrap_or(usize::MAX);
            set.pairs.truncate(limit);
            set.rows.truncate(limit);
            set.last_user.truncate(limit);
            set
        };
        let valid = match &splits.valid {
            Some(set) => Some(limited(encode(set, observer)?)),
            None => hold_out(&mut train, recipe, observer),
        };
        if recipe.method == Method::Caa {
            train = letters(&prompting, &splits.train, &train.rows, recipe, observer)?;
        }
        let test = splits.test.as_ref().map(|set| encode(set, observer)).transpose()?.map(limited);
        Ok(Self { train, valid, test, ..Self::default() })
    }

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

/// How the texts of `recipe` become prompts and responses of `model`.
pub(crate) fn prompting<'m>(model: &'m Model, recipe: &Recipe) -> Result<Prompting<'m>> {
    let context = model.config().context;
    Ok(Prompting {
        tokenizer: model.tokenizer()?,
        template: model.chat_template()?,
        system: Some(recipe.prompt.system.clone()).filter(|s| !s.is_empty()),
        leading_space: match recipe.prompt.leading_space {
            recipe::LeadingSpace::Auto => LeadingSpace::Template,
            recipe::LeadingSpace::Always => LeadingSpace::Always,
            recipe::LeadingSpace::Never => LeadingSpace::Never,
        },
        max_length: Some(recipe.prompt.max_length.map_or(context, |n| n.min(context))),
    })
}

/// The recipe's files; `data.train` may be a folder with one file per split. Without `test`, the file of the test split
/// is not opened.
pub(crate) fn read_splits(recipe: &Recipe, test: bool) -> Result<Splits> {
    let settings = &recipe.data;
    let options = ReadOptions {
        columns: settings.columns.clone(),
        strict: settings.strict,
        dedup: settings.dedup,
        ..ReadOptions::default()
    };
    let read = |path: &Path| data::read(path, &options);
    let mut splits = Splits::open_some(&settings.train, &options, test)?;
    if let Some(path) = &settings.valid {
        splits.valid = Some(read(path)?);
    }
    if let Some(path) = settings.test.as_ref().filter(|_| test) {
        splits.test = Some(read(path)?);
    }
    if settings.valid.is_some() || settings.test.is_some() {
        splits.note_overlap(settings.strict)?;
    }
    Ok(splits)
}

/// The tokens of `set`. What is cut to keep the longest length is counted in a note.
fn encode(
    prompting: &Prompting<'_>,
    set: &Dataset,
    recipe: &Recipe,
    observer: &mut dyn Observer,
) -> Result<TokenSet> {
    let longest = prompting.max_length.unwrap_or(usize::MAX);
    let (mut pairs, mut cut) = (Vec::with_capacity(set.pairs.len()), Vec::new());
    let mut last_user = Vec::new();
    for (row, pair) in set.pairs.iter().enumerate() {
        let tokens = prompting.pair(&pair.prompt, &pair.chosen, &pair.rejected)?;
        let shortened = tokens.cut_from_prompt + tokens.cut_from_responses;
        let empty = tokens.prompt.is_empty() || tokens.chosen.is_empty() || tokens.rejected.is_empty();
        if empty || (shortened > 0 && recipe.data.strict) {
            let found = format!("{shortened} tokens too many");
            let expected = format!("prompt and response of at most {longest} tokens");
            let hint = "shorten the texts, or raise prompt.max_length where the model allows it";
            return Err(malformed(&set.path, format!("pair {}", row + 1), found, expected, hint));
        }
        if shortened > 0 {
            cut.push(row + 1);
        }
        if recipe.scope.needs_user() {
            let (len, cut) = (tokens.prompt.len(), tokens.cut_from_prompt);
            last_user.push(PromptShape::of_question(prompting, &pair.prompt, len, cut)?.last_user);
        }
        pairs.push(TokenPair { prompt: tokens.prompt, chosen: tokens.chosen, rejected: tokens.rejected });
    }
    if let Some(first) = cut.first() {
        observer.event(Event::Note(format!(
            "{}: {} of {} pairs have more than {longest} tokens (the first is pair {first}): the beginnings of \
             their prompts, then the ends of their responses, are cut off",
            set.path.display(),
            cut.len(),
            pairs.len()
        )));
    }
    Ok(TokenSet { rows: (0..pairs.len()).collect(), pairs, last_user, sha256: set.sha256.clone() })
}

/// The rows of `set` as multiple choices that are answered by a letter.
fn letters(
    prompting: &Prompting<'_>,
    set: &Dataset,
    rows: &[usize],
    recipe: &Recipe,
    observer: &mut dyn Observer,
) -> Result<TokenSet> {
    let pairs: Vec<_> =
        rows.iter().enumerate().map(|(i, &row)| extract::letter_pair(&set.pairs[row], i)).collect();
    let built = rows.iter().zip(&pairs).filter(|(row, pair)| set.pairs[**row].prompt != pair.prompt).count();
    if built > 0 {
        let n = pairs.len();
        observer
            .event(Event::Note(format!("{built} of {n} pairs were made into multiple choices (A) and (B)")));
    }
    let set = Dataset { pairs, ..set.clone() };
    Ok(TokenSet { rows: rows.to_vec(), ..encode(prompting, &set, recipe, observer)? })
}

/// Takes held-out pairs from `train`: as many as the recipe asks for, at most a fifth.
fn hold_out(train: &mut TokenSet, recipe: &Recipe, observer: &mut dyn Observer) -> Option<TokenSet> {
    let n = train.pairs.len();
    let count = recipe.data.holdout.min(n / 5);
    if count == 0 {
        return None;
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut generator(recipe.seed, Stream::Holdout));
    let (held, kept) = order.split_at_mut(count);
    let take = |places: &mut [usize]| {
        places.sort_unstable();
        TokenSet {
            pairs: places.iter().map(|&i| train.pairs[i].clone()).collect(),
            rows: places.iter().map(|&i| train.rows[i]).collect(),
            last_user: places.iter().filter_map(|&i| train.last_user.get(i).cloned()).collect(),
            sha256: train.sha256.clone(),
        }
    };
    let (held, kept) = (take(held), take(kept));
    *train = kept;
    observer.event(Event::Note(format!("{count} of {n} training pairs are held out for validation")));
    Some(held)
}

impl TokenSet {
    /// Hash of all tokens, with their lengths.
    fn tokens_sha256(&self) -> String {
        let lists = self.pairs.iter().flat_map(|p| [&p.prompt, &p.chosen, &p.rejected]);
        let words = lists.flat_map(|l| std::iter::once(l.len() as u32).chain(l.iter().copied()));
        sha256(&words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
    }
}
