//! What passes through the decoder take in memory on the CPU, beside the weights: the sizes of the tensors that are
//! alive at the worst moment.

use crate::config::{Norms, QkNorm};
use crate::decoder::{KEPT_GATES, blocks_with_gates, head_rows_at_once};
use crate::{DecoderConfig, Precision};

/// Bytes of a number.
const F32: usize = 4;

impl DecoderConfig {
    /// Numbers of a row of `q | k | v`.
    fn qkv(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Bytes that [`crate::Model::score_from`] takes at its peak to read `rows` packed rows of which `scored` tokens are
    /// scored, keeping nothing; the rows it is given count too. [`crate::Model::residual`] takes no more.
    pub fn reading_bytes(&self, rows: usize, scored: usize) -> usize {
        F32 * (self.reading(rows, scored) + rows * self.d_model)
    }

    /// Bytes that [`crate::Model::score_pass`] and the VJP of its scores take at their peak for `rows` packed rows that
    /// go through the blocks from `first`, and of which `scored` tokens are scored; the rows it is given count too.
    /// `adapted` is how many numbers of a row the adapted projections of a block read.
    pub fn gradient_bytes(&self, first: usize, adapted: usize, rows: usize, scored: usize) -> usize {
        let [forward, back] = self.gradient(KEPT_GATES, first, adapted, rows, scored);
        F32 * (forward.max(back) + rows * self.d_model)
    }

    /// Bytes that a run with `scored` scored tokens takes beside its tensors: a tile of logits that was freed and is not
    /// given back to the system yet, and in bf16 its rounded copy in the product with the head.
    pub fn tile_bytes(&self, scored: usize, precision: Precision) -> usize {
        let copy = if precision == Precision::Bf16 { F32 / 2 } else { 0 };
        (F32 + copy) * head_rows_at_once(scored, self.vocab) * self.vocab
    }

    /// Numbers of the tensors of a pass that keeps nothing: those of the widest moment of a block, or of the head.
    fn reading(&self, rows: usize, scored: usize) -> usize {
        let (d, f, qkv, heads) = (self.d_model, self.d_ff, self.qkv(), self.n_heads * self.head_dim);
        let attention = (d + qkv).max(qkv + heads).max(heads + 2 * d);
        let mlp = (d + 2 * f).max(3 * f).max(f + 2 * d);
        (rows * (d + attention.max(mlp))).max(self.head(scored))
    }

    /// Numbers of the tensors at the widest moment of a pass that keeps what its VJP needs, and of that VJP.
    ///
    /// The forward pass is widest in the MLP of the last block that runs whole, in the attention of the last block of all
    /// (whose MLP has the rows of scored tokens only), or at the head; its VJP in the same places.
    fn gradient(
        &self,
        kept_gates: usize,
        first: usize,
        adapted: usize,
        rows: usize,
        scored: usize,
    ) -> [usize; 2] {
        let (d, f, qkv, heads) = (self.d_model, self.d_ff, self.qkv(), self.n_heads * self.head_dim);
        let (attention, mlp) = self.saved();
        let full = (self.n_layers - 1).saturating_sub(first);
        let with_gates = blocks_with_gates(kept_gates, rows, f).min(full);
        let saved = full * rows * (attention + mlp) + (full + 1) * rows * adapted + with_gates * rows * 2 * f;
        let head = self.head(scored) + scored * d;
        if first == self.n_layers {
            return [head, scored * d + rows * d];
        }
        let gates = if with_gates < full { 2 * f } else { 0 };
        let after = if self.features.norms == Norms::Before { 0 } else { d };
        let (whole_mlp, whole_back) = match full {
            0 => (0, 0),
            _ => (rows * (d + f + gates.max(d + after)), rows * (d + f + after + gates)),
        };
        let last_mlp = scored * (mlp + 2 * f);
        let last_attention = rows * (attention + d + d.max(heads));
        let last_back = rows * (attention + d + qkv + d.max(heads)) + scored * mlp;
        let forward = whole_mlp.max(last_attention).max(rows * attention + last_mlp + head);
        [saved + forward, saved + whole_back.max(last_back)]
    }

    /// Numbers of a row that a block keeps of its attention, and of its MLP without `gate | up`.
    fn saved(&self) -> (usize, usize) {
        let before = usize::from(self.features.norms != Norms::After);
        let after = usize::from(self.features.norms != Norms::Before);
        let sublayer = self.d_model + before + after * (self.d_model + 1);
        let raw = usize::from(self.features.qk_norm != QkNorm::None);
        (sublayer + (1 + raw) * self.qkv(), sublayer)
    }

    /// Numbers of the tensors of the head: its rows, and the logits that are there at a time.
    fn head(&self, scored: usize) -> usize {
        scored * self.d_model + head_rows_at_once(scored, self.vocab) * (self.vocab + 3 * self.d_model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pack;
    use crate::Pass;
    use crate::backend::cpu::Cpu;
    use crate::decoder::Decoder;
    use crate::engine::Engine;
    use crate::lora::{AdditionGradients, LoraSettings, TrainableLora};
    use std::path::Path;

    /// Of every family: what is kept and what is computed again give the same bits, and the estimate is within 15% of
    /// the memory that tensors really took. Buffers that wait for a tensor of their width take at most a share more, the
    /// largest in these small models: 1.26 times the peak with a gradient and 1.46 without, which is the smaller pass.
    #[test]
    fn estimates_are_near_the_peak_of_every_family() {
        let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/families");
        let mut files: Vec<_> =
            std::fs::read_dir(families).unwrap().map(|e| e.unwrap().path().join("model.gguf")).collect();
        files.sort();
        for file in files.iter().filter(|file| file.exists()) {
            let loaded = crate::load(file).unwrap();
            let mut pack = Pack::default();
            for pair in 0..40 {
                pack.push_pair(&[1, 5 + pair % 50, 9, 4, 30], &[7, 8, 3 + pair % 60, 2], &[11, 12, 2]);
            }
            let (rows, scored) = (pack.len(), pack.scored.len());
            let mut gradients = Vec::new();
            for kept_gates in [KEPT_GATES, 0] {
                let mut decoder =
                    Decoder::new(Cpu::new(Precision::F32), loaded.config.clone(), &loaded.weights).unwrap();
                decoder.kept_gates = kept_gates;
                let c = &loaded.config;
                let h_td = decoder.residual(&pack, 0).unwrap();
                decoder.backend = Cpu::new(Precision::F32);
                let pass = Pass::from_residual(0, &h_td, &pack);
                let reading = decoder.score(&pass).unwrap();
                let [measured, held] = decoder.backend.measured_bytes();
                assert!(held <= measured / 2 * 3, "{}: reading holds {held} of {measured}", file.display());
                let estimate = F32 * c.reading(rows, scored);
                near(estimate, measured, &format!("{}: reading", file.display()));
                decoder.backend = Cpu::new(Precision::F32);
                let (logps, vjp) = decoder.score_kept(&pass).unwrap();
                assert_eq!(logps, reading);
                gradients.push(vjp(&vec![0.25; scored], Vec::new()).unwrap().start_td);
                let [measured, held] = decoder.backend.measured_bytes();
                assert!(
                    held <= measured / 10 * 13,
                    "{}: gradient holds {held} of {measured}",
                    file.display()
                );
                let [forward, back] = c.gradient(kept_gates, 1, 0, rows, scored);
                let estimate = F32 * forward.max(back);
                near(estimate, measured, &format!("{}: gradient, {kept_gates} kept", file.display()));
            }
            assert_eq!(gradients[0], gradients[1], "{}", file.display());
            let [kept, again] = [KEPT_GATES, 0].map(|kept_gates| adapted(&loaded, &pack, kept_gates));
            assert_eq!(kept, again, "{}", file.display());
        }
    }

    /// Gradients of an adapter of gate and up, and of what it adds to.
    fn adapted(loaded: &crate::Loaded, pack: &Pack, kept_gates: usize) -> (Vec<f32>, AdditionGradients) {
        let c = &loaded.config;
        let lora = ["up_proj", "gate_up_proj"].map(|target| {
            let settings = LoraSettings { r: 2, alpha: 3.0, targets: vec![target.to_owned()] };
            TrainableLora::new(c, &settings)
        });
        let lora = lora.into_iter().find_map(Result::ok).unwrap();
        let params: Vec<f32> = (0..lora.len()).map(|i| (0.7 * i as f32).sin()).collect();
        let additions = lora.additions(&params, 1.0);
        let mut decoder = Decoder::new(Cpu::new(Precision::F32), c.clone(), &loaded.weights).unwrap();
        decoder.kept_gates = kept_gates;
        let pass = Pass { adapter: Some(&additions), ..Pass::plain(pack) };
        let logps = decoder.score(&pass).unwrap();
        assert_ne!(logps, decoder.score(&Pass::plain(pack)).unwrap());
        decoder.backend = Cpu::new(Precision::F32);
        let (kept, vjp) = decoder.score_kept(&pass).unwrap();
        assert_eq!(kept, logps);
        let gradients = vjp(&vec![0.25; logps.len()], Vec::new()).unwrap();
        let [forward, back] = c.gradient(kept_gates, 0, lora.kept_per_row(), pack.len(), logps.len());
        let [measured, _] = decoder.backend.measured_bytes();
        near(F32 * forward.max(back), measured, &format!("{}: adapter, {kept_gates} kept", c.architecture));
        (gradients.start_td, gradients.adapter)
    }

    fn near(estimate: usize, measured: usize, what: &str) {
        let ratio = estimate as f64 / measured as f64;
        assert!((1.0 / 1.15..1.15).contains(&ratio), "{what}: {estimate} estimated, {measured} measured");
    }
}
