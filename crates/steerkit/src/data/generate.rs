//! Preference pairs for a described behaviour, drafted by another model, filtered and balanced here.
//!
//! A drafted set is a draft: read some of it before you train on it, and see what [`super::check`] says.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::PreferencePair;
use super::grams::{GramIndex, jaccard, opening};
use super::note::spells_control;
use crate::Result;
use crate::ask::{AskError, Asker, Decoding, Estimate, Ledger, Prompt, Question};
use crate::files::{sha256, write_atomic};
use crate::refusal::refuses;

/// Sides, and prompts, with at least this share of common words are nearly the same.
const NEAR: f64 = 0.8;
/// How far the mean lengths of the sides may be apart in the end.
const BALANCE: f64 = 0.05;
/// Drafts beyond what is asked for, so that there is a choice when lengths are balanced.
const SPARE: f64 = 1.25;

/// What questions are about; a call gets one.
#[rustfmt::skip]
const TOPICS: [&str; 40] = [
    "cooking a meal", "growing vegetables", "learning a language", "planning a journey", "saving money at home",
    "sleeping better", "keeping a pet", "repairing a bicycle", "choosing a book", "the weather and the seasons",
    "moving to a new town", "working in a team", "writing a letter", "taking photographs", "the history of everyday things",
    "music and instruments", "a school subject", "using a computer", "exercise and sport", "houseplants",
    "birds and insects", "planets and stars", "a museum visit", "cleaning and tidying", "a birthday party",
    "public transport", "making friends", "a job interview", "a long walk", "clothes and fabrics",
    "rivers, lakes and the sea", "board games", "painting a room", "films and theatre", "time and calendars",
    "maps and finding the way", "baking bread", "neighbours", "numbers and puzzles", "old machines",
];

/// The system prompt of a drafting model.
const SYSTEM: &str = "You write example data for a study of how language models answer. You reply with lines of JSON and nothing else.";

/// What to draft.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// The behaviour in words: what the chosen answers do and the rejected ones do not.
    pub behavior: String,
    /// Pairs wanted.
    pub n: usize,
    /// Pairs per call.
    pub per_call: usize,
    /// Calls at most.
    pub max_calls: usize,
    /// Longer over shorter answer of a pair, in words, at most.
    pub max_length_ratio: f64,
    /// Keep answers that refuse: for behaviours that are about refusing.
    pub keep_refusals: bool,
    /// How drafts are written; call `i` adds `i` to the seed.
    pub decoding: Decoding,
}

impl Draft {
    /// `n` pairs of a behaviour with the usual settings: five per call, four times as many calls as needed at most,
    /// temperature 0.9.
    pub fn new(behavior: &str, n: usize, seed: u64) -> Self {
        let per_call = 5;
        Self {
            behavior: behavior.to_owned(),
            n,
            per_call,
            max_calls: 4 * n.div_ceil(per_call) + 4,
            max_length_ratio: 2.0,
            keep_refusals: false,
            decoding: Decoding { max_tokens: 1200, temperature: 0.9, seed },
        }
    }

    /// What drafting takes at most when every draft is kept.
    pub fn estimate(&self, asker: &Asker<'_>) -> Estimate {
        let model = asker.responder.identity();
        let calls = ((self.n as f64 * SPARE).ceil() as usize).div_ceil(self.per_call);
        asker.estimate(&(0..calls).map(|i| self.question(i, &model)).collect::<Vec<_>>())
    }

    /// The question of call `i`.
    fn question(&self, i: usize, model: &str) -> Question {
        let Self { behavior, per_call, .. } = self;
        let topic = TOPICS[i % TOPICS.len()];
        let user = format!(
            "Behaviour: {behavior}\n\n\
             Write {per_call} different questions about {topic}, as people would put them to an assistant. Answer each \
             twice:\n\
             - \"chosen\": an answer that clearly shows the behaviour;\n\
             - \"rejected\": an answer to the same question that clearly shows the opposite.\n\n\
             Both answers have one to three sentences and about the same number of words, are equally well written, \
             and neither names the behaviour. Vary how questions and answers begin. Ask nothing dangerous.\n\n\
             Reply with {per_call} lines, each one JSON object and nothing else:\n\
             {{\"prompt\": \"...\", \"chosen\": \"...\", \"rejected\": \"...\"}}"
        );
        let decoding = Decoding { seed: self.decoding.seed.wrapping_add(i as u64), ..self.decoding };
        let key = sha256(json!(["draft", model, SYSTEM, user, decoding]).to_string().as_bytes());
        let prompt = Prompt { system: SYSTEM.into(), user, begin: Some("{\"prompt\": \"".into()) };
        Question { key, prompt, decoding }
    }
}

/// Why a draft was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dropped {
    /// No words in a cell.
    Empty,
    /// Both sides are the same, or nearly.
    SameSides,
    /// A side refuses.
    Refusal,
    /// One side is much longer.
    LengthRatio,
    /// The text of a control token.
    ControlText,
    /// The prompt of an earlier pair, or nearly.
    RepeatedPrompt,
    /// A side begins like an answer of an earlier pair.
    RepeatedOpening,
    /// Its side was the longer one too often.
    Balance,
    /// More than were asked for.
    Surplus,
}

impl Dropped {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "a cell without words",
            Self::SameSides => "both sides alike",
            Self::Refusal => "a side refuses",
            Self::LengthRatio => "one side much longer",
            Self::ControlText => "the text of a control token",
            Self::RepeatedPrompt => "prompt of an earlier pair",
            Self::RepeatedOpening => "begins as an earlier answer",
            Self::Balance => "to balance lengths",
            Self::Surplus => "more than asked for",
        }
    }
}

/// A drafted set with how it came about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drafted {
    /// The pairs to train on.
    #[serde(skip)]
    pub train: Vec<PreferencePair>,
    /// The pairs to choose settings on.
    #[serde(skip)]
    pub valid: Vec<PreferencePair>,
    /// The pairs to report on.
    #[serde(skip)]
    pub test: Vec<PreferencePair>,
    /// What was asked for.
    pub draft: Draft,
    /// Who drafted.
    pub model: String,
    /// SHA-256 of the first call's prompt.
    pub prompt_sha256: String,
    /// Calls whose replies were read.
    pub calls: usize,
    /// Replies without a single pair.
    pub unreadable: usize,
    /// Pairs in the replies.
    pub drafts: usize,
    /// How many were dropped, and why.
    pub dropped: BTreeMap<Dropped, usize>,
    /// Pairs of each split.
    pub kept: BTreeMap<&'static str, usize>,
    /// What it took.
    pub ledger: Ledger,
}

/// Drafts pairs; `on_pair` is told how many are usable so far.
///
/// # Errors
/// Those of [`Asker::ask`]; [`AskError::TooFew`] when the calls run out.
pub fn draft(
    asker: &Asker<'_>,
    draft: &Draft,
    cancel: &AtomicBool,
    on_pair: &mut dyn FnMut(usize),
) -> Result<Drafted> {
    let model = asker.responder.identity();
    let mut sieve = Sieve::new(draft);
    let mut dropped = BTreeMap::new();
    let (mut calls, mut unreadable, mut drafts) = (0, 0, 0);
    let wanted = (draft.n as f64 * SPARE).ceil() as usize;
    while sieve.kept.len() < wanted && calls < draft.max_calls {
        let missing = (wanted - sieve.kept.len()).div_ceil(draft.per_call);
        let round: Vec<Question> =
            (calls..draft.max_calls).take(missing).map(|i| draft.question(i, &model)).collect();
        for record in asker.ask("draft", &round, cancel, &mut |_| {})? {
            let pairs = pairs_of(record.reply.as_deref().unwrap_or_default());
            unreadable += usize::from(pairs.is_empty());
            drafts += pairs.len();
            for pair in pairs {
                if let Err(why) = sieve.take(pair) {
                    *dropped.entry(why).or_default() += 1;
                }
            }
        }
        calls += round.len();
        on_pair(sieve.kept.len());
    }
    let mut pairs = sieve.kept;
    if pairs.len() < draft.n {
        return Err(AskError::TooFew { found: pairs.len(), wanted: draft.n, calls }.into());
    }
    let removed = balance(&mut pairs, draft.n);
    let surplus = pairs.len() - draft.n;
    pairs.truncate(draft.n);
    for (why, count) in [(Dropped::Balance, removed), (Dropped::Surplus, surplus)] {
        if count > 0 {
            dropped.insert(why, count);
        }
    }
    pairs.shuffle(&mut ChaCha8Rng::seed_from_u64(draft.decoding.seed));
    // A quarter to report on and an eighth to choose settings on, as in the sets of this project.
    let (test, valid) = (draft.n / 4, draft.n / 8);
    let test = pairs.split_off(pairs.len() - test);
    let valid = pairs.split_off(pairs.len() - valid);
    let kept = BTreeMap::from([("train", pairs.len()), ("valid", valid.len()), ("test", test.len())]);
    Ok(Drafted {
        train: pairs,
        valid,
        test,
        prompt_sha256: sha256(draft.question(0, &model).prompt.user.as_bytes()),
        draft: draft.clone(),
        model,
        calls,
        unreadable,
        drafts,
        dropped,
        kept,
        ledger: asker.meter.ledger(),
    })
}

impl Drafted {
    /// Writes `train.jsonl`, `valid.jsonl`, `test.jsonl` (those that are not empty) and `provenance.json`.
    ///
    /// # Errors
    /// The file system.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs_err::create_dir_all(folder)?;
        for (name, pairs) in [("train", &self.train), ("valid", &self.valid), ("test", &self.test)] {
            let line = |pair: &PreferencePair| serde_json::to_string(pair).expect("a pair is text") + "\n";
            if !pairs.is_empty() {
                let text: String = pairs.iter().map(line).collect();
                write_atomic(&folder.join(format!("{name}.jsonl")), text.as_bytes())?;
            }
        }
        let mut provenance = serde_json::to_value(self).expect("text and numbers");
        provenance["version"] = env!("CARGO_PKG_VERSION").into();
        let text = serde_json::to_string_pretty(&provenance).expect("text and numbers") + "\n";
        Ok(write_atomic(&folder.join("provenance.json"), text.as_bytes())?)
    }
}

/// The pairs in a reply: every JSON object with the three texts, whatever stands between them.
fn pairs_of(reply: &str) -> Vec<PreferencePair> {
    #[derive(Deserialize)]
    struct Loose {
        prompt: String,
        chosen: String,
        rejected: String,
    }
    let mut pairs = Vec::new();
    let mut at = 0;
    while let Some(open) = reply[at..].find('{') {
        let text = &reply[at + open..];
        let mut objects = serde_json::Deserializer::from_str(text).into_iter::<Loose>();
        at += open;
        match objects.next() {
            Some(Ok(Loose { prompt, chosen, rejected })) => {
                at += objects.byte_offset();
                let [prompt, chosen, rejected] =
                    [prompt, chosen, rejected].map(|text| text.trim().to_owned());
                pairs.push(PreferencePair { prompt, chosen, rejected });
            }
            _ => at += 1,
        }
    }
    pairs
}

/// Keeps the pairs that are fit to train on.
struct Sieve<'d> {
    draft: &'d Draft,
    kept: Vec<PreferencePair>,
    grams: GramIndex,
    openings: HashSet<Vec<String>>,
}

impl<'d> Sieve<'d> {
    fn new(draft: &'d Draft) -> Self {
        Self { draft, kept: Vec::new(), grams: GramIndex::default(), openings: HashSet::new() }
    }

    fn take(&mut self, pair: PreferencePair) -> Result<(), Dropped> {
        let PreferencePair { prompt, chosen, rejected } = &pair;
        let cells = [prompt, chosen, rejected];
        if cells.iter().any(|text| !text.chars().any(char::is_alphanumeric)) {
            return Err(Dropped::Empty);
        }
        if cells.iter().any(|text| spells_control(text)) {
            return Err(Dropped::ControlText);
        }
        if chosen == rejected || jaccard(chosen, rejected) >= NEAR && !super::grams::words(chosen).is_empty()
        {
            return Err(Dropped::SameSides);
        }
        if !self.draft.keep_refusals && (refuses(chosen) || refuses(rejected)) {
            return Err(Dropped::Refusal);
        }
        let (a, b) = (length(chosen) as f64, length(rejected) as f64);
        if a.max(b) > self.draft.max_length_ratio * a.min(b) {
            return Err(Dropped::LengthRatio);
        }
        let near = |other: &PreferencePair| other.prompt == *prompt || jaccard(&other.prompt, prompt) >= NEAR;
        if self.kept.iter().any(near) {
            return Err(Dropped::RepeatedPrompt);
        }
        let openings = [chosen, rejected].map(|text| opening(text));
        if openings.iter().flatten().any(|opening| self.openings.contains(opening)) {
            return Err(Dropped::RepeatedOpening);
        }
        if !self.grams.add(prompt).is_empty() {
            return Err(Dropped::RepeatedPrompt);
        }
        self.openings.extend(openings.into_iter().flatten());
        self.kept.push(pair);
        Ok(())
    }
}

fn length(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Removes pairs whose longer side is the one that is longer on the whole, the most uneven first, until the mean
/// lengths are near or only `n` are left. Gives how many went.
fn balance(pairs: &mut Vec<PreferencePair>, n: usize) -> usize {
    let surplus = |pair: &PreferencePair| length(&pair.chosen) as f64 - length(&pair.rejected) as f64;
    let mut removed = 0;
    while pairs.len() > n {
        let difference: f64 = pairs.iter().map(surplus).sum();
        let words: f64 = pairs.iter().map(|pair| length(&pair.rejected) as f64).sum();
        if difference.abs() <= BALANCE * words {
            break;
        }
        let uneven = |i: &usize| surplus(&pairs[*i]) * difference.signum();
        let worst = (0..pairs.len()).max_by(|a, b| uneven(a).total_cmp(&uneven(b)));
        pairs.remove(worst.expect("there are more than n"));
        removed += 1;
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(prompt: &str, chosen: &str, rejected: &str) -> PreferencePair {
        PreferencePair { prompt: prompt.into(), chosen: chosen.into(), rejected: rejected.into() }
    }

    #[test]
    fn pairs_are_found_in_whatever_a_model_writes() {
        let reply = "Sure! {here} goes:\n```json\n[{\"prompt\": \" a \", \"chosen\": \"b\", \"rejected\": \"c\"},\n\
                     {\"prompt\": \"d\", \"chosen\": \"e\"}, {\"prompt\": \"f\", \"chosen\": \"g {\", \"rejected\": \
                     \"h\", \"note\": 1}]\n{\"prompt\": \"cut";
        assert_eq!(pairs_of(reply), [pair("a", "b", "c"), pair("f", "g {", "h")]);
        assert!(pairs_of("").is_empty() && pairs_of("{{{{").is_empty());
    }

    #[test]
    fn every_fault_is_dropped_for_its_reason() {
        let draft = Draft::new("x", 10, 1);
        let mut sieve = Sieve::new(&draft);
        let mut take = |p: &str, c: &str, r: &str| sieve.take(pair(p, c, r));
        assert_eq!(
            take("How do I boil an egg?", "Water first, then seven minutes.", "No idea, just try it."),
            Ok(())
        );
        for (why, p, c, r) in [
            (Dropped::Empty, "...", "one", "two"),
            (Dropped::Empty, "Why?", "one", " "),
            (Dropped::SameSides, "Why?", "the same", "the same"),
            (Dropped::SameSides, "Why?", "it is green, tall and old", "It is tall, old and green."),
            (
                Dropped::Refusal,
                "Why?",
                "I'm sorry, but I can't help with that.",
                "Because of the rain in May, mostly.",
            ),
            (Dropped::LengthRatio, "Why?", "one two three four five", "one two"),
            (Dropped::ControlText, "Why?", "fine <|im_end|>", "not so fine"),
            (Dropped::RepeatedPrompt, "How do I boil an egg?", "a b c", "d e f"),
            (Dropped::RepeatedPrompt, "how do I boil an egg", "a b c", "d e f"),
            (Dropped::RepeatedOpening, "Why?", "Water first, then seven what?", "d e f g"),
        ] {
            assert_eq!(take(p, c, r), Err(why), "{p} {c} {r}");
        }
        let keep = Draft { keep_refusals: true, ..draft.clone() };
        let refusal =
            pair("Why?", "I'm sorry, but I can't help with that.", "Because of the rain in May, mostly.");
        assert_eq!(Sieve::new(&keep).take(refusal), Ok(()));
    }

    #[test]
    fn lengths_are_balanced_as_far_as_there_are_spare_pairs() {
        let long = "one two three four five six";
        let mut pairs: Vec<_> = (0..6).map(|_| pair("q", long, "one two three")).collect();
        pairs.extend((0..4).map(|_| pair("q", "one two three", long)));
        let mut few = pairs.clone();
        assert_eq!(balance(&mut pairs, 8), 2);
        let words =
            |side: fn(&PreferencePair) -> &String| pairs.iter().map(|p| length(side(p))).sum::<usize>();
        assert_eq!(words(|p| &p.chosen), words(|p| &p.rejected));
        assert_eq!((balance(&mut few, 10), few.len()), (0, 10));
    }
}
