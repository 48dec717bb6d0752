//! Scoring packed texts under edits of the residual stream. Blocks below the first edit run once for all plans.

use super::{Changes, Context, Decoder, head_rows_at_once};
use crate::backend::Backend;
use crate::edit::{Edit, EditOp, EditedScores, TextEdits};
use crate::{Pack, Result};
use std::ops::Range;
use steerkit_kernels::logprob::log_sum_exp;
use steerkit_kernels::parallel;

impl<B: Backend> Decoder<B> {
    /// Scores of the pack under each plan; with `divergences` the plain model is read too.
    pub(super) fn score_plans(
        &self,
        pack: &Pack,
        plans: &[TextEdits],
        divergences: bool,
    ) -> Result<Vec<EditedScores>> {
        let context = self.context(pack)?;
        let read = self.read_plans(pack, &context, plans, divergences)?;
        let mut scores = vec![EditedScores::default(); plans.len()];
        let part = head_rows_at_once(context.scored.len(), self.config.vocab);
        for (rows, targets) in context.scored.chunks(part).zip(context.targets.chunks(part)) {
            let logits =
                |x: &B::Tensor| -> Result<B::Tensor> { Ok(self.logits(&self.backend.select(x, rows)?)?.0) };
            let plain_rv = match divergences {
                true => Some(self.backend.download(&logits(&read[plans.len()])?)?),
                false => None,
            };
            for (own, x) in scores.iter_mut().zip(&read) {
                let steered = logits(x)?;
                own.logps.extend(self.backend.log_probs(&steered, targets)?);
                if let Some(plain_rv) = &plain_rv {
                    let steered_rv = self.backend.download(&steered)?;
                    own.divergences.extend(row_divergences(&steered_rv, plain_rv, self.config.vocab));
                }
            }
        }
        Ok(scores)
    }

    /// The head's rows of the last block's output under each plan, and of the plain model with `and_plain`. The trunk
    /// climbs from one plan's lowest edit to the next one's.
    fn read_plans(
        &self,
        pack: &Pack,
        context: &Context<B>,
        plans: &[TextEdits],
        and_plain: bool,
    ) -> Result<Vec<B::Tensor>> {
        let plain = Vec::new();
        let plans: Vec<&TextEdits> = plans.iter().chain(and_plain.then_some(&plain)).collect();
        let lowest = |plan: &TextEdits| plan.iter().flatten().map(|e| e.layer).min();
        let mut order: Vec<usize> = (0..plans.len()).collect();
        order.sort_by_key(|&p| lowest(plans[p]).unwrap_or(self.layers.len()));
        let mut read: Vec<Option<B::Tensor>> = plans.iter().map(|_| None).collect();
        let mut trunk = self.embed(&pack.tokens)?;
        let mut done = 0;
        for p in order {
            let first = lowest(plans[p]).map_or(done, |layer| layer + 1);
            self.blocks(done..first, &mut trunk, context)?;
            done = first;
            let mut x = self.backend.copy(&trunk)?;
            let last = plans[p].iter().flatten().map(|e| e.layer).max();
            if let Some(last) = last {
                self.edit_pack(&mut x, pack, plans[p], done - 1)?;
                for layer in done..last + 1 {
                    self.blocks(layer..layer + 1, &mut x, context)?;
                    self.edit_pack(&mut x, pack, plans[p], layer)?;
                }
            }
            let first = last.map_or(done, |last| last + 1);
            self.head_rows(first, &mut x, context, &Changes::none(), None)?;
            read[p] = Some(x);
        }
        Ok(read.into_iter().map(|x| x.expect("every plan was read")).collect())
    }

    /// Edits the rows of a pack after block `layer`, each text by its own list.
    fn edit_pack(&self, x: &mut B::Tensor, pack: &Pack, plan: &TextEdits, layer: usize) -> Result<()> {
        for (segment, text) in pack.segments.iter().zip(pack.texts()) {
            for edit in plan[text].iter().filter(|e| e.layer == layer) {
                for at in edit.positions.within(segment.position..segment.position + segment.len) {
                    let row = |position: usize| segment.start + position - segment.position;
                    self.edit_rows(x, row(at.start)..row(at.end), edit)?;
                }
            }
        }
        Ok(())
    }

    /// Applies one edit to some rows.
    pub(super) fn edit_rows(&self, x: &mut B::Tensor, rows: Range<usize>, edit: &Edit) -> Result<()> {
        match &edit.op {
            EditOp::Add(v) => self.backend.add_to_rows(x, rows, v),
            EditOp::Along { unit_d, shift } => self.backend.shift_rows(x, rows, unit_d, *shift),
        }
    }
}

/// `Σ p (ln p - ln q)` of each row, `p` from `p_rv` and `q` from `q_rv`; at least 0.
fn row_divergences(p_rv: &[f32], q_rv: &[f32], v: usize) -> Vec<f64> {
    parallel::map(p_rv.len() / v, |row| {
        let (p_v, q_v) = (&p_rv[row * v..(row + 1) * v], &q_rv[row * v..(row + 1) * v]);
        let (of_p, of_q) = (log_sum_exp(p_v), log_sum_exp(q_v));
        let terms = p_v.iter().zip(q_v).map(|(&p, &q)| {
            let log_p = p - of_p;
            f64::from(log_p.exp() * (log_p - (q - of_q)))
        });
        terms.sum::<f64>().max(0.0)
    })
}
