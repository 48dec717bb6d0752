//! A model on the machine it runs on: the one type that everything above the decoder uses.

use crate::chat::ChatTemplate;
use crate::edit::{Edit, EditedScores, TextEdits};
use crate::engine::{self, CachedRun, DeviceChoice, Engine, KvCache, Vjp};
use crate::load::{self, Loaded, ModelIdentity};
use crate::lora::{self, LoraChoice, LoraMode};
use crate::pass::{Gradients, Pass, Start};
use crate::source::hex;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::{DecoderConfig, ModelError, Pack, Result};
use sha2::{Digest, Sha256};
use std::path::Path;
use steerkit_kernels::{Matrix, Precision, parallel};

/// How a model is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Numeric mode of the large matrix products.
    pub precision: Precision,
    /// Where the decoder runs.
    pub device: DeviceChoice,
    /// Use a LongRoPE's divisors for texts beyond the original context, for texts of any length. The model is then
    /// another one: its identity says so.
    pub long_context: bool,
}

/// A frozen language model. Shared freely between threads; every method takes `&self`.
pub struct Model {
    decoder: Box<dyn Engine>,
    weights: Weights,
    tokenizer: Option<Tokenizer>,
    /// A template that cannot be read is an error of those who want to use it.
    chat_template: Option<Result<ChatTemplate>>,
    identity: ModelIdentity,
}

/// Whether a scoring pass keeps what its gradient needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Only the log-probabilities.
    Nothing,
    /// Everything [`Scores::vjp`] needs: at most about 20 kB a row and block for SmolLM2
    /// ([`DecoderConfig::gradient_bytes`]).
    ForVjp,
}

/// Log-probabilities of a pack's scored tokens.
pub struct Scores<'m> {
    logps: Vec<f32>,
    vjp: Option<Box<Vjp<'m>>>,
}

impl Scores<'_> {
    /// Log-probability of each scored token, in the pack's order, in nats.
    pub fn logps(&self) -> &[f32] {
        &self.logps
    }

    /// `Σ coef[i] · ∂ logps[i] / ∂ h_td`, with `h_td` the residual stream where the pass began.
    ///
    /// # Shapes
    /// `coef`: one per scored token. Returns `[t, d]`.
    ///
    /// # Panics
    /// When the pass kept nothing.
    pub fn vjp(self, coef: &[f32]) -> Result<Vec<f32>> {
        Ok(self.gradients(coef)?.start_td)
    }

    /// The gradients of `Σ coef[i] · logps[i]` with respect to all that the pass was given.
    ///
    /// # Shapes
    /// `coef`: one per scored token.
    ///
    /// # Panics
    /// When the pass kept nothing.
    pub fn gradients(self, coef: &[f32]) -> Result<Gradients> {
        self.gradients_in(Vec::new(), coef)
    }

    /// [`Self::gradients`], the first of them in memory that is there: that of the rows where the pass began, say.
    ///
    /// # Panics
    /// When the pass kept nothing.
    pub fn gradients_in(self, start_td: Vec<f32>, coef: &[f32]) -> Result<Gradients> {
        assert_eq!(coef.len(), self.logps.len());
        let vjp = self.vjp.expect("the pass was run with Keep::ForVjp");
        vjp(coef, start_td)
    }
}

/// One text being read and continued: its key/value cache and its edits.
pub struct Sequence {
    cache: KvCache,
    edits: Vec<Edit>,
}

impl Sequence {
    /// Tokens read so far.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Nothing read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens read so far.
    pub fn tokens(&self) -> &[u32] {
        &self.cache.tokens
    }

    /// The edits under which it is read.
    pub(crate) fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// How many of `tokens` the sequence has read from its beginning on, steered there as `edits` would.
    pub fn shared_with(&self, tokens: &[u32], edits: &[Edit]) -> usize {
        let alike = self.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
        if alike == 0 || self.edits == edits {
            return alike;
        }
        // Edits with positions may agree on a beginning of the text only.
        let acting = |edits: &[Edit], len: usize| -> Vec<_> {
            let within = |e: &Edit| (e.layer, e.op.clone(), e.positions.within(0..len));
            edits.iter().map(within).filter(|(_, _, positions)| !positions.is_empty()).collect()
        };
        let agree = |len: usize| acting(&self.edits, len) == acting(edits, len);
        let ends = self.edits.iter().chain(edits).flat_map(|e| e.positions.ends());
        let lengths = ends.filter(|&end| end < alike).chain([alike]);
        lengths.filter(|&len| agree(len)).max().unwrap_or(0)
    }
}

/// New tokens of one sequence.
pub struct Run<'a> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// Its next tokens, at least one.
    pub tokens: &'a [u32],
}

impl Model {
    /// Opens a GGUF file or a Hugging Face folder.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        Self::new(load::load(path)?, options)
    }

    /// Opens a model with LoRA adapters on it.
    ///
    /// # Errors
    /// As [`Model::open`] and [`lora::apply`].
    pub fn open_with_lora(
        path: &Path,
        adapters: &[LoraChoice],
        mode: LoraMode,
        options: &OpenOptions,
    ) -> Result<Self> {
        let mut loaded = load::load(path)?;
        lora::apply(&mut loaded, adapters, mode)?;
        Self::new(loaded, options)
    }

    /// A model from loaded parts.
    ///
    /// # Errors
    /// [`ModelError::NoLongContext`] where the options ask for one; a device that cannot be opened.
    pub fn new(loaded: Loaded, options: &OpenOptions) -> Result<Self> {
        let Loaded { mut config, weights, tokenizer, chat_template, mut identity } = loaded;
        if options.long_context {
            if !config.use_long_context() {
                return Err(ModelError::NoLongContext { model: identity.name });
            }
            identity.name.push_str(" (long context)");
            identity.file_sha256 = hex(&Sha256::digest(format!("{}\nlong context", identity.file_sha256)));
        }
        let text = |id: Option<u32>| tokenizer.as_ref().zip(id).and_then(|(t, id)| t.token_text(id));
        let [bos, eos] = tokenizer.as_ref().map_or([None; 2], |t| [t.bos(), t.eos()]).map(text);
        let chat_template = chat_template.map(|s| ChatTemplate::new(s, bos.as_deref(), eos.as_deref()));
        let decoder = engine::open(options, config, &weights)?;
        Ok(Self { decoder, weights, tokenizer, chat_template, identity })
    }

    /// Shapes and switches of the decoder.
    pub fn config(&self) -> &DecoderConfig {
        self.decoder.config()
    }

    /// Stored bytes of the weights that every pass reads: the blocks and the output head.
    pub fn bytes_per_pass(&self) -> usize {
        let w = &self.weights;
        let block = |l: &crate::weights::LayerWeights| -> usize {
            [&l.qkv, &l.attn_out, &l.gate_up, &l.down].iter().map(|p| p.matrix.stored_bytes()).sum()
        };
        w.layers.iter().map(block).sum::<usize>() + w.head.stored_bytes()
    }

    /// Numbers in the matrices: blocks, embedding, and the head where it is not the embedding again.
    pub fn parameters(&self) -> usize {
        let c = self.config();
        let heads = c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads);
        let Weights { embed, head, .. } = &self.weights;
        let row = |matrix: &Matrix, at: usize| {
            let mut numbers = vec![0.0; c.d_model];
            matrix.expand_row(at, &mut numbers);
            numbers
        };
        let tied = [0, c.vocab / 2, c.vocab - 1].iter().all(|&at| row(embed, at) == row(head, at));
        let ends = if tied { 1 } else { 2 };
        c.n_layers * c.d_model * (heads + 3 * c.d_ff) + ends * c.vocab * c.d_model
    }

    /// Which model this is.
    pub fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    /// The tokeniser.
    ///
    /// # Errors
    /// When the file came without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| ModelError::NoTokenizer { model: self.identity.name.clone() })
    }

    /// The chat template, where the file has one.
    ///
    /// # Errors
    /// When the file has one that cannot be used.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        match &self.chat_template {
            None => Ok(None),
            Some(Ok(template)) => Ok(Some(template)),
            Some(Err(ModelError::Template { found, hint })) => {
                Err(ModelError::Template { found: found.clone(), hint: hint.clone() })
            }
            Some(Err(error)) => Err(ModelError::Template { found: error.to_string(), hint: None }),
        }
    }

    /// The unsteered residual stream after block `layer`, `[t, d]`.
    pub fn residual(&self, pack: &Pack, layer: usize) -> Result<Vec<f32>> {
        self.check_layer(layer)?;
        self.check_pack(pack)?;
        let h = self.decoder.residual(pack, layer)?;
        self.check_finite("residual stream", &h)?;
        Ok(h)
    }

    /// The unsteered residual streams after each of `layers` from one pass, `[t, d]` each.
    ///
    /// # Panics
    /// When `layers` are not ascending.
    pub fn residuals(&self, pack: &Pack, layers: &[usize]) -> Result<Vec<Vec<f32>>> {
        assert!(layers.is_sorted_by(|a, b| a < b), "layers ascend");
        layers.iter().try_for_each(|&layer| self.check_layer(layer))?;
        self.check_pack(pack)?;
        let all = self.decoder.residuals(pack, layers)?;
        all.iter().try_for_each(|h| self.check_finite("residual stream", h))?;
        Ok(all)
    }

    /// Log-probabilities of the pack's scored tokens under the plain model.
    pub fn score(&self, pack: &Pack) -> Result<Vec<f32>> {
        Ok(self.score_pass(&Pass::plain(pack), Keep::Nothing)?.logps)
    }

    /// Log-probabilities of the pack's scored tokens when the residual stream after block `layer` is `h_td`.
    ///
    /// # Shapes
    /// `h_td`: `[t, d]`, a row per token of the pack.
    pub fn score_from(&self, layer: usize, h_td: &[f32], pack: &Pack, keep: Keep) -> Result<Scores<'_>> {
        self.score_pass(&Pass::from_residual(layer, h_td, pack), keep)
    }

    /// Log-probabilities of the scored tokens of a pass.
    ///
    /// # Panics
    /// When rows of the pass are not `[t, d]`, the blocks of `added` do not ascend from above the start, or the adapter
    /// was made for another model.
    pub fn score_pass(&self, pass: &Pass<'_>, keep: Keep) -> Result<Scores<'_>> {
        self.check_pack(pass.pack)?;
        let numbers = pass.pack.len() * self.config().d_model;
        if let Start::Residual { layer, h_td } = pass.start {
            self.check_layer(layer)?;
            assert_eq!(h_td.len(), numbers);
        }
        let mut free = pass.first_block();
        for (layer, rows) in pass.added {
            self.check_layer(*layer)?;
            assert!(*layer >= free && rows.len() == numbers);
            free = layer + 1;
        }
        assert!(pass.adapter.is_none_or(|a| a.0.len() == 4 * self.config().n_layers));
        let scores = match keep {
            Keep::Nothing => Scores { logps: self.decoder.score(pass)?, vjp: None },
            Keep::ForVjp => {
                let (logps, vjp) = self.decoder.score_kept(pass)?;
                Scores { logps, vjp: Some(vjp) }
            }
        };
        self.check_finite("log-probabilities", &scores.logps)?;
        Ok(scores)
    }

    /// Log-probabilities of the pack's scored tokens under each of `plans`, and with `divergences` how far each
    /// prediction is from the plain model's. Blocks below the first edit run once for all plans. A plan without edits
    /// gives the bits of [`Self::score`].
    ///
    /// # Errors
    /// Tokens, layers, widths or numbers that the model cannot take; log-probabilities that are not finite.
    ///
    /// # Panics
    /// When a plan with edits has not one list for each text of the pack.
    pub fn score_edited(
        &self,
        pack: &Pack,
        plans: &[TextEdits],
        divergences: bool,
    ) -> Result<Vec<EditedScores>> {
        self.check_pack(pack)?;
        let texts = pack.texts().last().map_or(0, |last| last + 1);
        for plan in plans {
            assert!(plan.is_empty() || plan.len() == texts, "one list of edits per text");
            plan.iter().flatten().try_for_each(|edit| self.check_edit(edit))?;
        }
        let scores = self.decoder.score_edited(pack, plans, divergences)?;
        for (plan, scores) in plans.iter().zip(&scores) {
            match plan.iter().all(Vec::is_empty) {
                true => self.check_finite("log-probabilities", &scores.logps)?,
                false => check_numbers("log-probabilities under steering", &scores.logps)?,
            }
        }
        Ok(scores)
    }

    fn check_edit(&self, edit: &Edit) -> Result<()> {
        self.check_layer(edit.layer)?;
        let (v, d_model) = (edit.op.direction(), self.config().d_model);
        if v.len() != d_model {
            return Err(ModelError::Width { found: v.len(), d_model });
        }
        check_numbers("steering vector", v)
    }

    /// An empty sequence that will be read under `edits`.
    pub fn new_sequence(&self, edits: Vec<Edit>) -> Result<Sequence> {
        edits.iter().try_for_each(|edit| self.check_edit(edit))?;
        Ok(Sequence { cache: self.decoder.new_cache(), edits })
    }

    /// A sequence under `edits` that has read the first `len` tokens of `sequence`; see [`Sequence::shared_with`] for
    /// how many that may be.
    ///
    /// # Errors
    /// As [`Model::new_sequence`].
    ///
    /// # Panics
    /// When `sequence` has read fewer.
    pub fn continue_sequence(&self, sequence: &Sequence, len: usize, edits: Vec<Edit>) -> Result<Sequence> {
        assert!(len <= sequence.len(), "{len} of {} tokens", sequence.len());
        let fresh = self.new_sequence(edits)?;
        Ok(Sequence { cache: self.decoder.cache_prefix(&sequence.cache, len)?, ..fresh })
    }

    /// Reads new tokens of several sequences in one batch and gives, for each, the logits after its last token, or
    /// what is wrong with them: one sequence whose numbers overflow does not spoil the others. On the CPU
    /// a sequence's logits do not depend on the others, nor on how its tokens are split over calls; on a device of
    /// the tensor library only up to rounding.
    ///
    /// # Shapes
    /// Returns `[v]` for each run.
    ///
    /// # Errors
    /// Tokens outside the vocabulary or beyond the context, before anything is read.
    ///
    /// # Panics
    /// When a run has no tokens, or its sequence was made by a model on another kind of device.
    pub fn advance(&self, runs: &mut [Run<'_>]) -> Result<Vec<Result<Vec<f32>>>> {
        self.advance_with(runs, &vec![1; runs.len()])
    }

    /// [`Model::advance`] with the logits after as many of each run's last tokens as `wanted` says, none to all.
    ///
    /// # Shapes
    /// Returns `[wanted, v]` for each run.
    ///
    /// # Errors
    /// As [`Model::advance`].
    ///
    /// # Panics
    /// As [`Model::advance`]; when more are wanted of a run than it has tokens.
    pub fn advance_with(&self, runs: &mut [Run<'_>], wanted: &[usize]) -> Result<Vec<Result<Vec<f32>>>> {
        assert_eq!(runs.len(), wanted.len());
        for (run, &wanted) in runs.iter().zip(wanted) {
            assert!(!run.tokens.is_empty(), "a run has at least one token");
            assert!(wanted <= run.tokens.len(), "logits of {wanted} of {} tokens", run.tokens.len());
            self.check_tokens(run.tokens, run.sequence.len() + run.tokens.len())?;
        }
        let mut cached: Vec<_> = runs
            .iter_mut()
            .zip(wanted)
            .map(|(r, &wanted)| {
                let Run { sequence, tokens } = r;
                CachedRun { edits: &sequence.edits, cache: &mut sequence.cache, tokens, wanted }
            })
            .collect();
        let logits = self.decoder.advance(&mut cached)?;
        let mut rest = logits.as_slice();
        let rows: Vec<&[f32]> = wanted
            .iter()
            .map(|n| {
                let (rows, after) = rest.split_at(n * self.config().vocab);
                rest = after;
                rows
            })
            .collect();
        let checked = parallel::map(rows.len(), |i| {
            // Looking through all weights takes long; a steered text most likely went wrong by its vectors.
            match runs[i].sequence.edits.is_empty() {
                true => self.check_finite("logits", rows[i])?,
                false => check_numbers("logits under steering", rows[i])?,
            }
            Ok(rows[i].to_vec())
        });
        Ok(checked)
    }

    fn check_layer(&self, layer: usize) -> Result<()> {
        let n_layers = self.config().n_layers;
        if layer < n_layers { Ok(()) } else { Err(ModelError::UnknownLayer { layer, n_layers }) }
    }

    fn check_pack(&self, pack: &Pack) -> Result<()> {
        let longest = pack.segments.iter().map(|s| s.position + s.len).max().unwrap_or(0);
        self.check_tokens(&pack.tokens, longest)?;
        let targets: Vec<u32> = pack.scored.iter().map(|s| s.target).collect();
        self.check_tokens(&targets, 0)
    }

    /// Whether every token is in the vocabulary, and a text of `length` in the context.
    pub(crate) fn check_tokens(&self, tokens: &[u32], length: usize) -> Result<()> {
        let DecoderConfig { vocab, context, .. } = *self.config();
        match tokens.iter().find(|&&id| id as usize >= vocab) {
            Some(&id) => Err(ModelError::UnknownToken { id, vocab }),
            None if length > context => Err(ModelError::TooLong { tokens: length, context }),
            None => Ok(()),
        }
    }

    /// Refuses numbers that are not finite, naming the weight they come from when one is to blame.
    fn check_finite(&self, place: &str, values: &[f32]) -> Result<()> {
        check_numbers(place, values).or_else(|e| self.weights.check_finite().and(Err(e)))
    }
}

/// Refuses numbers that are not finite.
pub(crate) fn check_numbers(place: &str, values: &[f32]) -> Result<()> {
    // A product with zero is NaN exactly for what is not finite, and this loop vectorises.
    if values.iter().map(|x| x * 0.0).sum::<f32>() == 0.0 {
        return Ok(());
    }
    let found = values.iter().filter(|x| !x.is_finite()).count();
    Err(ModelError::NonFinite { place: place.to_owned(), found, total: values.len() })
}

impl Weights {
    /// Finds a weight that is not a finite number.
    fn check_finite(&self) -> Result<()> {
        check_matrix("token embedding", &self.embed)?;
        for (l, layer) in self.layers.iter().enumerate() {
            let name = |role: &str| format!("block {l} {role}");
            // Norms and biases were checked when they were read.
            check_matrix(&name("q|k|v projection"), &layer.qkv.matrix)?;
            check_matrix(&name("attention output projection"), &layer.attn_out.matrix)?;
            check_matrix(&name("gate|up projection"), &layer.gate_up.matrix)?;
            check_matrix(&name("down projection"), &layer.down.matrix)?;
        }
        check_numbers("last norm", &self.final_norm)?;
        check_matrix("output head", &self.head)
    }
}

fn check_matrix(place: &str, matrix: &Matrix) -> Result<()> {
    let mut row = vec![0.0; matrix.cols()];
    for r in 0..matrix.rows() {
        matrix.expand_row(r, &mut row);
        check_numbers(&format!("{place}, row {r}"), &row)?;
    }
    Ok(())
}
