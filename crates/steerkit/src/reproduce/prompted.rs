//! Prompts in place of a vector, or behind one: examples in the context, a sentence in the system prompt.

use std::collections::BTreeMap;

use super::measure::{Bench, MARGIN, Measured, logps};
use crate::baseline::{Baseline, IclSettings, Prompts};
use crate::data::{PreferencePair, ReadOptions, read};
use crate::eval::Watch;
use crate::eval::pairs;
use crate::eval::scoring::Prompted;
use crate::objective::Direction;
use crate::{Result, SteerError};

impl Bench<'_> {
    /// The margins of the test pairs' responses behind the line's prompts, over the plain prompt's. A multiplier counts
    /// examples; a sentence has one strength, which stands at every multiplier of its sign.
    pub(super) fn prompted(&self, watch: &mut Watch<'_>) -> Result<Measured> {
        let with_vector = self.line.method() == "icl+bipo";
        let plain = self.subject(&[0.0])?;
        let mut data = self.test(&plain)?;
        let texts = pairs::tokens(&plain, &data.pairs, false, &mut data.notes)?;
        let reference = logps(&plain, &texts, watch)?.remove(0);
        let train = match self.line.system_prompt {
            Some(_) => None,
            None => {
                Some(read(&self.setup.split_file(&self.line.behaviour, "train")?, &ReadOptions::default())?)
            }
        };
        let examples: Vec<&PreferencePair> = train.iter().flat_map(|train| &train.pairs).collect();
        let mut notes = std::mem::take(&mut data.notes);
        let mut known = BTreeMap::new();
        let mut values: Vec<Vec<Option<f64>>> = Vec::new();
        for &multiplier in &self.panel.multipliers {
            if multiplier == 0.0 {
                values.push(vec![Some(0.0); texts.len()]);
                continue;
            }
            let direction = if multiplier > 0.0 { Direction::Toward } else { Direction::Away };
            let shots = if with_vector { self.line.shots } else { multiplier.abs() as usize };
            let strength = match (&self.line.system_prompt, with_vector) {
                (Some(_), _) => multiplier.signum(),
                (None, true) => multiplier,
                (None, false) => multiplier.signum() * shots as f64,
            };
            if let Some(&same) = known.get(&strength.to_bits()) {
                let row: &Vec<_> = &values[same];
                values.push(row.clone());
                continue;
            }
            known.insert(strength.to_bits(), values.len());
            let prompted = match &self.line.system_prompt {
                Some(sentences) => {
                    self.behind(&data.pairs, &Baseline::SystemPrompt(sentences.clone()), direction, &[])?
                }
                None => self.behind_examples(&data.pairs, &examples, shots, direction, &mut notes)?,
            };
            let strengths = if with_vector { vec![0.0, multiplier] } else { vec![0.0] };
            let subject = self.subject(&strengths)?;
            let place = usize::from(with_vector && multiplier > 0.0);
            let own = &logps(&subject, &prompted, watch)?[place];
            values.push(own.iter().zip(&reference).map(|(a, &b)| Some(a.relative_to(b).margin())).collect());
        }
        let mut measured = self.measured(MARGIN, values, notes);
        measured.files.insert(data.path.display().to_string(), data.sha256);
        measured.files.extend(train.map(|train| (train.path.display().to_string(), train.sha256)));
        Ok(measured)
    }

    /// The pairs behind a baseline's prompts.
    fn behind(
        &self,
        asked: &[PreferencePair],
        baseline: &Baseline,
        direction: Direction,
        examples: &[&PreferencePair],
    ) -> Result<Vec<Prompted>> {
        let prompts = Prompts::new(self.model, self.recipe, baseline, direction, examples)?;
        let prompted = asked.iter().map(|pair| {
            let (tokens, shape) = prompts.pair(pair, false)?;
            let continuations = vec![tokens.chosen, tokens.rejected];
            Ok(Prompted { prompt: tokens.prompt, shape, continuations })
        });
        prompted.collect()
    }

    /// The pairs behind examples. A quick run takes as many as the model's context holds.
    fn behind_examples(
        &self,
        asked: &[PreferencePair],
        examples: &[&PreferencePair],
        shots: usize,
        direction: Direction,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Prompted>> {
        let mut fewer = shots;
        loop {
            let icl = Baseline::Icl(IclSettings { shots: fewer });
            match self.behind(asked, &icl, direction, examples) {
                Err(SteerError::Malformed { .. }) if self.setup.quick && fewer > 0 => fewer -= 1,
                Ok(prompted) if fewer < shots => {
                    notes.push(format!(
                        "{fewer} of {shots} examples were shown: the model's context holds no more"
                    ));
                    return Ok(prompted);
                }
                done => return done,
            }
        }
    }
}
