//! Passes of pairs through the steered part of the model.

use super::{
    cache::PairCache,
    observer::{Halt, check},
    trainee::Trainee,
};
use crate::{
    objective::{Direction, Objective, PairFacts, PairLogps, View},
    ranks::{self, Shared},
};
use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};
use steerkit_model::{Gradients, Keep, Model, Pack, Pass, Positions, lora::Additions, pack::PairSpan};

/// A preference pair as token ids; the responses end in the end-of-text token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenPair {
    /// The templated prompt, with the beginning-of-text token where the model wants one.
    pub prompt: Vec<u32>,
    /// The response with the target behaviour.
    pub chosen: Vec<u32>,
    /// The response with the opposite behaviour.
    pub rejected: Vec<u32>,
}

impl TokenPair {
    /// Rows of the pair in a pack.
    pub fn rows(&self) -> usize {
        (self.prompt.len() + self.chosen.len() + self.rejected.len()).saturating_sub(2)
    }

    /// Tokens of the prompt with the longer response.
    pub fn longest(&self) -> usize {
        self.prompt.len() + self.chosen.len().max(self.rejected.len())
    }
}

/// Pairs in one pack. Those that are steered alike are one text: they share what their prompts begin with.
pub(crate) struct Packed {
    pub(crate) pack: Pack,
    /// Where each pair lies, in the order given.
    pub(crate) spans: Vec<PairSpan>,
    texts: Vec<Text>,
}

/// Pairs that are steered alike.
struct Text {
    rows: Range<usize>,
    /// The first of its items.
    item: usize,
}

impl Packed {
    /// Packs pairs, each with how it is steered.
    pub(crate) fn new<'a, K: PartialEq>(items: impl IntoIterator<Item = (&'a TokenPair, K)>) -> Self {
        let items: Vec<_> = items.into_iter().collect();
        let (mut pack, mut texts) = (Pack::default(), Vec::new());
        let mut spans: Vec<Option<PairSpan>> = vec![None; items.len()];
        for first in 0..items.len() {
            if spans[first].is_some() {
                continue;
            }
            let same: Vec<usize> = (first..items.len()).filter(|&i| items[i].1 == items[first].1).collect();
            let sides = |i: &usize| {
                let pair = items[*i].0;
                [&pair.prompt[..], &pair.chosen, &pair.rejected]
            };
            let start = pack.len();
            let of_text = pack.push_pairs(&same.iter().map(sides).collect::<Vec<_>>());
            for (i, span) in same.into_iter().zip(of_text) {
                spans[i] = Some(span);
            }
            texts.push(Text { rows: start..pack.len(), item: first });
        }
        Self { pack, spans: spans.into_iter().flatten().collect(), texts }
    }

    /// Packs pairs of which none is steered.
    pub(crate) fn unsteered<'a>(pairs: impl IntoIterator<Item = &'a TokenPair>) -> Self {
        Self::new(pairs.into_iter().map(|pair| (pair, ())))
    }

    /// The rows of a pair, shared and own, from those of the pack.
    pub(crate) fn pair_rows(span: &PairSpan, rows_td: &[f32], d: usize) -> Vec<f32> {
        let rows = |range: &Range<usize>| &rows_td[range.start * d..range.end * d];
        [rows(&span.shared), rows(&span.rows)].concat()
    }
}

/// Rows of pairs that are steered alike, in one pack.
pub(crate) fn packed_rows<'a>(pairs: impl IntoIterator<Item = &'a TokenPair>) -> usize {
    Packed::unsteered(pairs).pack.len()
}

/// Splits items of the given rows into runs of at most `budget` rows, or of one item.
pub(crate) fn micro_batches(rows: impl IntoIterator<Item = usize>, budget: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (i, rows) in rows.into_iter().enumerate() {
        match runs.last_mut() {
            Some(run) if filled + rows <= budget => run.end = i + 1,
            _ => {
                runs.push(i..i + 1);
                filled = 0;
            }
        }
        filled += rows;
    }
    runs
}

/// Sums of the scored tokens of each pair, in order, in f64.
pub(crate) fn pair_logps(logps: &[f32], span: &PairSpan) -> PairLogps {
    let sum = |range: &Range<usize>| logps[range.clone()].iter().map(|&x| f64::from(x)).sum();
    PairLogps { chosen: sum(&span.chosen), rejected: sum(&span.rejected) }
}

/// A set of pairs that were run once through the blocks that never change.
pub(crate) struct Prepared<'a> {
    pub(crate) model: &'a Model,
    pub(crate) trainee: Trainee,
    pub(crate) pairs: Vec<TokenPair>,
    /// Where the vector acts on each pair.
    pub(crate) scopes: Vec<Positions>,
    pub(crate) cache: PairCache,
    pub(crate) micro_batch_rows: usize,
    /// Who shares the passes.
    pub(crate) ranks: Shared,
    spare: Spare,
}

/// Rows of the last pass, whose memory the next one takes: a step in the steady state asks the system for none.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Vec<f32>>>);

impl Spare {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `len` numbers, whatever they are.
    fn take(&self, len: usize) -> Vec<f32> {
        let mut rows = self.lock().pop().unwrap_or_default();
        rows.reserve_exact(len.saturating_sub(rows.len()));
        rows.resize(len, 0.0);
        rows
    }

    fn give(&self, rows: Vec<f32>) {
        self.lock().push(rows);
    }
}

/// Numbers that come before the gradient in the sums of a micro-batch.
const FACTS: usize = 3;

/// Mean loss and gradient of a batch.
#[derive(Clone, Debug)]
pub(crate) struct BatchGradient {
    /// Mean loss in nats.
    pub(crate) loss: f64,
    /// Mean of d times the relative margin.
    pub(crate) margin: f64,
    /// Share of pairs with a positive d times relative margin.
    pub(crate) accuracy: f64,
    /// d mean loss / d v, as many numbers as are trained.
    pub(crate) grad: Vec<f32>,
}

impl<'a> Prepared<'a> {
    /// Pairs that this process alone passes through the model.
    pub(crate) fn new(
        model: &'a Model,
        trainee: Trainee,
        pairs: Vec<TokenPair>,
        scopes: Vec<Positions>,
        cache: PairCache,
        micro_batch_rows: usize,
    ) -> Self {
        Self { model, trainee, pairs, scopes, cache, micro_batch_rows, ranks: None, spare: Spare::default() }
    }
}

impl Prepared<'_> {
    /// Log-probabilities of `items` (pairs, and what scales `v` there), in their order.
    pub(crate) fn score(
        &self,
        items: &[(usize, f32)],
        v: &[f32],
        cancel: &AtomicBool,
    ) -> Result<Vec<PairLogps>, Halt> {
        let runs = micro_batches(items.iter().map(|i| self.pairs[i.0].rows()), self.micro_batch_rows);
        let pass = |run: &Range<usize>| {
            check(cancel)?;
            let items: Vec<_> =
                items[run.clone()].iter().map(|&(i, scale)| (i, View::Added(scale))).collect();
            let steered = self.steered(&items, v)?;
            let scores = self.model.score_pass(&steered.pass(), Keep::Nothing)?;
            let of_pair = |span| pair_logps(scores.logps(), span).to_numbers();
            let logps = ranks::to_bytes(steered.packed.spans.iter().flat_map(of_pair));
            self.spare.give(steered.into_parts().1);
            Ok(logps)
        };
        let mut all = Vec::with_capacity(items.len());
        ranks::each(&self.ranks, &runs, pass, |_, made| {
            all.extend(PairLogps::from_numbers(ranks::from_bytes(made)));
            Ok(())
        })?;
        Ok(all)
    }

    /// Mean loss of `batch` and its gradient with respect to `v`; `factors` are those of the batch's pairs.
    ///
    /// Rows are summed in order, in f64, and micro-batches in theirs, whoever computed them. How the batch is cut into
    /// micro-batches decides which pairs share the rows of what their prompts begin with, and so the last bits of the
    /// gradient; the recipe fixes it.
    pub(crate) fn gradient(
        &self,
        batch: &[(usize, Direction)],
        factors: &[f32],
        v: &[f32],
        objective: &Objective,
        cancel: &AtomicBool,
    ) -> Result<BatchGradient, Halt> {
        let views: Vec<Vec<View>> =
            batch.iter().zip(factors).map(|(item, &factor)| objective.views(item.1, factor)).collect();
        let rows = batch.iter().zip(&views).map(|(item, views)| self.pairs[item.0].rows() * views.len());
        let runs = micro_batches(rows, self.micro_batch_rows);
        let pass = |run: &Range<usize>| {
            check(cancel)?;
            let sums = self.sums(&batch[run.clone()], &views[run.clone()], v, objective)?;
            Ok(ranks::to_bytes(sums))
        };
        let mut total = vec![0f64; FACTS + v.len()];
        ranks::each(&self.ranks, &runs, pass, |_, made| {
            total.iter_mut().zip(ranks::from_bytes(made)).for_each(|(sum, part)| *sum += part);
            Ok(())
        })?;
        total.iter_mut().for_each(|sum| *sum /= batch.len() as f64);
        let grad = total[FACTS..].iter().map(|&g| g as f32).collect();
        Ok(BatchGradient { loss: total[0], margin: total[1], accuracy: total[2], grad })
    }

    /// Sums over the pairs of one micro-batch: loss, margin towards the direction, pairs whose margin is positive, and the
    /// gradient of the loss.
    fn sums(
        &self,
        batch: &[(usize, Direction)],
        views: &[Vec<View>],
        v: &[f32],
        objective: &Objective,
    ) -> Result<Vec<f64>, Halt> {
        let items: Vec<_> =
            batch.iter().zip(views).flat_map(|(item, views)| views.iter().map(|&v| (item.0, v))).collect();
        let steered = self.steered(&items, v)?;
        let scores = self.model.score_pass(&steered.pass(), Keep::ForVjp)?;
        // The edited rows are not needed any more; their gradient takes their memory.
        let (packed, rows) = steered.into_parts();
        let mut sums = vec![0f64; FACTS + v.len()];
        let (facts, grad) = sums.split_at_mut(FACTS);
        let mut coef = vec![0f32; scores.logps().len()];
        let mut of_pair = packed.spans.as_slice();
        for (&(i, direction), views) in batch.iter().zip(views) {
            let (spans, rest) = of_pair.split_at(views.len());
            of_pair = rest;
            let seen: Vec<PairLogps> = spans.iter().map(|span| pair_logps(scores.logps(), span)).collect();
            let losses = objective.losses(&seen, &self.facts(i), direction);
            for (span, own) in spans.iter().zip(&losses) {
                coef[span.chosen.clone()].fill(own.d_chosen as f32);
                coef[span.rejected.clone()].fill(own.d_rejected as f32);
                facts[0] += own.loss;
            }
            let relative = seen[0].relative_to(self.cache.reference(i));
            let toward = f64::from(direction.sign()) * relative.margin();
            facts[1] += toward;
            facts[2] += f64::from(toward > 0.0);
        }
        let gradients = scores.gradients_in(rows, &coef)?;
        self.add_gradient(&packed, &items, v, &gradients, grad)?;
        self.spare.give(gradients.start_td);
        Ok(sums)
    }

    /// What an objective knows of pair `i` before it is steered.
    fn facts(&self, i: usize) -> PairFacts {
        let pair = &self.pairs[i];
        PairFacts {
            reference: self.cache.reference(i),
            prompt_tokens: pair.prompt.len(),
            chosen_tokens: pair.chosen.len(),
            rejected_tokens: pair.rejected.len(),
        }
    }

    /// The packed runs, with what the numbers `v` change in them.
    fn steered(&self, items: &[(usize, View)], v: &[f32]) -> Result<Steered, Halt> {
        let packed = Packed::new(items.iter().map(|&(i, view)| (&self.pairs[i], (view, &self.scopes[i]))));
        match &self.trainee {
            Trainee::Adapter(lora) => {
                let adapter = Some(lora.additions(v, weight(items)));
                Ok(Steered { packed, stream: None, added: Vec::new(), adapter })
            }
            Trainee::Vectors { layers, d } => {
                let mut h_td = self.residual(&packed, items, *d)?;
                self.edit(&packed, items, &v[..*d], &mut h_td);
                let added = layers.iter().zip(v.chunks_exact(*d)).skip(1).map(|(&layer, v)| {
                    let mut rows_td = vec![0.0; packed.pack.len() * d];
                    self.edit(&packed, items, v, &mut rows_td);
                    (layer, rows_td)
                });
                let added = added.collect();
                Ok(Steered { packed, stream: Some((layers[0], h_td)), added, adapter: None })
            }
        }
    }

    /// Edits the rows of a stream where the scope lets them be.
    fn edit(&self, packed: &Packed, items: &[(usize, View)], v: &[f32], h_td: &mut [f32]) {
        let d = v.len();
        for text in &packed.texts {
            let edited = self.edited(packed, text, items);
            match items[text.item].1 {
                View::Added(scale) => {
                    let edit: Vec<f32> = v.iter().map(|x| scale * x).collect();
                    for row in edited {
                        let row = &mut h_td[row * d..(row + 1) * d];
                        row.iter_mut().zip(&edit).for_each(|(h, e)| *h += e);
                    }
                }
                View::Nulled => {
                    let square = dot(v, v).max(f64::MIN_POSITIVE);
                    for row in edited {
                        let row = &mut h_td[row * d..(row + 1) * d];
                        let share = (dot(v, row).max(0.0) / square) as f32;
                        row.iter_mut().zip(v).for_each(|(h, v)| *h -= share * v);
                    }
                }
            }
        }
    }

    /// The residual stream of a pack without steering, from the cache.
    fn residual(&self, packed: &Packed, items: &[(usize, View)], d: usize) -> Result<Vec<f32>, Halt> {
        let mut h_td = self.spare.take(packed.pack.len() * d);
        let most = items.iter().map(|item| self.pairs[item.0].rows()).max().unwrap_or(0);
        let mut pair_td = self.spare.take(most * d);
        for (&(i, _), span) in items.iter().zip(&packed.spans) {
            let shared = span.shared.len() * d;
            let pair_td = &mut pair_td[..shared + span.rows.len() * d];
            self.cache.read(i, pair_td)?;
            h_td[span.shared.start * d..span.shared.end * d].copy_from_slice(&pair_td[..shared]);
            h_td[span.rows.start * d..span.rows.end * d].copy_from_slice(&pair_td[shared..]);
        }
        self.spare.give(pair_td);
        Ok(h_td)
    }

    /// The rows of a text that its scope covers.
    fn edited(&self, packed: &Packed, text: &Text, items: &[(usize, View)]) -> Vec<usize> {
        let scope = &self.scopes[items[text.item].0];
        let positions = packed.pack.positions();
        text.rows.clone().filter(|&row| scope.contains(positions[row])).collect()
    }

    /// Adds d loss / d v to `grad`.
    fn add_gradient(
        &self,
        packed: &Packed,
        items: &[(usize, View)],
        v: &[f32],
        of: &Gradients,
        grad: &mut [f64],
    ) -> Result<(), Halt> {
        match &self.trainee {
            Trainee::Adapter(lora) => lora.add_gradient(&of.adapter, weight(items), grad),
            Trainee::Vectors { d, .. } => {
                let streams = std::iter::once(&of.start_td).chain(&of.added_td);
                for ((dh_td, v), grad) in streams.zip(v.chunks_exact(*d)).zip(grad.chunks_exact_mut(*d)) {
                    self.add_layer_gradient(packed, items, v, dh_td, grad)?;
                }
            }
        }
        Ok(())
    }

    /// Adds d loss / d v of one layer to `grad`, from the gradient `g` of each edited row.
    ///
    /// `h + s·v` gives `s·Σ g`. With `p = v·h`, `h - max(p, 0)/|v|²·v` gives, where `p > 0`,
    /// `-(g·v/|v|²)·h - (p/|v|²)·g + 2p(g·v)/|v|⁴·v`.
    fn add_layer_gradient(
        &self,
        packed: &Packed,
        items: &[(usize, View)],
        v: &[f32],
        dh_td: &[f32],
        grad: &mut [f64],
    ) -> Result<(), Halt> {
        let d = v.len();
        let mut plain_td = None;
        for text in &packed.texts {
            let mut sum = vec![0f64; d];
            let edited = self.edited(packed, text, items).into_iter();
            let edited = edited.map(|row| row * d..(row + 1) * d);
            match items[text.item].1 {
                View::Added(scale) => {
                    for row in edited {
                        sum.iter_mut().zip(&dh_td[row]).for_each(|(s, &x)| *s += f64::from(x));
                    }
                    sum.iter_mut().for_each(|s| *s *= f64::from(scale));
                }
                View::Nulled => {
                    let square = dot(v, v);
                    if square == 0.0 {
                        continue;
                    }
                    let h_td = match &mut plain_td {
                        Some(h_td) => h_td,
                        none => none.insert(self.residual(packed, items, d)?),
                    };
                    edited.for_each(|row| add_nulled(&h_td[row.clone()], &dh_td[row], v, square, &mut sum));
                }
            }
            grad.iter_mut().zip(&sum).for_each(|(g, s)| *g += s);
        }
        plain_td.into_iter().for_each(|h_td| self.spare.give(h_td));
        Ok(())
    }
}

/// Packed runs as the model is to see them.
struct Steered {
    packed: Packed,
    /// The edited residual stream and the block after which it stands; none where the pass begins at the tokens.
    stream: Option<(usize, Vec<f32>)>,
    /// What is added after further blocks.
    added: Vec<(usize, Vec<f32>)>,
    adapter: Option<Additions>,
}

impl Steered {
    fn pass(&self) -> Pass<'_> {
        let pack = &self.packed.pack;
        let plain = match &self.stream {
            Some((layer, h_td)) => Pass::from_residual(*layer, h_td, pack),
            None => Pass::plain(pack),
        };
        Pass { added: &self.added, adapter: self.adapter.as_ref(), ..plain }
    }

    /// The packed runs, and the memory of the edited stream.
    fn into_parts(self) -> (Packed, Vec<f32>) {
        (self.packed, self.stream.map_or_else(Vec::new, |stream| stream.1))
    }
}

/// How much of an adapter acts on runs, which is the same for all of a pass.
fn weight(items: &[(usize, View)]) -> f32 {
    debug_assert!(items.iter().all(|item| item.1 == items[0].1));
    match items[0].1 {
        View::Added(scale) => scale,
        View::Nulled => 0.0,
    }
}

/// Adds the gradient of `h - max(v·h, 0)/|v|²·v` with respect to `v`, given that of the row.
fn add_nulled(h: &[f32], g: &[f32], v: &[f32], square: f64, sum: &mut [f64]) {
    let (p, along) = (dot(v, h), dot(g, v));
    if p > 0.0 {
        for (((s, &h), &g), &v) in sum.iter_mut().zip(h).zip(g).zip(v) {
            let (h, g, v) = (f64::from(h), f64::from(g), f64::from(v));
            *s += (2.0 * p * along / square * v - along * h - p * g) / square;
        }
    }
}

/// The product, summed in f64, in order.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_fill_up_and_keep_large_items_alone() {
        assert_eq!(micro_batches([3, 4, 5, 20, 1, 1], 8), [0..2, 2..3, 3..4, 4..6]);
        assert!(micro_batches([], 8).is_empty());
    }
}
