//! How much memory a run will take, before it takes it.

use super::pass::micro_batches;
use crate::{Result, SteerError};
use steerkit_model::DecoderConfig;

/// Bytes of a number.
const F32: usize = 4;

/// What decides the memory of a run, beside the model that is already loaded.
#[derive(Clone, Debug)]
pub(crate) struct Footprint<'a> {
    pub(crate) config: &'a DecoderConfig,
    /// The highest block without a gradient, if any.
    pub(crate) layer: Option<usize>,
    /// Inputs of adapted projections that a block keeps of a row.
    pub(crate) adapted: usize,
    /// Numbers of a row of what is added after further blocks, with their gradients.
    pub(crate) added: usize,
    /// Bytes of what stays beside the passes: cached rows kept in memory, and buffers that are no tensors.
    pub(crate) lasting: u64,
    /// Packed rows and scored tokens of each pair that is only read.
    pub(crate) read: Vec<(usize, usize)>,
    /// The same of each pair, by step, with all the ways in which it is steered at a time.
    pub(crate) steps: Vec<Vec<(usize, usize)>>,
}

impl Footprint<'_> {
    /// Bytes that training takes at its peak with micro-batches of `rows` rows: the cache and the largest pass.
    pub(crate) fn bytes(&self, rows: usize) -> u64 {
        let config = self.config;
        let first = self.layer.map_or(0, |layer| layer + 1);
        let gradient = |r, s| config.gradient_bytes(first, self.adapted, r, s) + r * self.added * F32;
        let steps = self.steps.iter().map(|pairs| largest(pairs, rows, gradient));
        let reading = largest(&self.read, rows, |r, s| config.reading_bytes(r, s) + r * self.added * F32);
        let passes = steps.max().unwrap_or(0).max(reading) as u64;
        // Buffers wait for the next tensor of their width while those of another width are in use.
        self.lasting + passes + passes / 8
    }

    /// Refuses a run that does not fit into `available` bytes.
    ///
    /// # Errors
    /// [`SteerError::Memory`] with the number of rows that would fit.
    pub(crate) fn check(&self, rows: usize, available: Option<u64>) -> Result<()> {
        let needed = self.bytes(rows);
        let Some(available) = available.filter(|&a| a < needed) else { return Ok(()) };
        let one_pair = self.steps.iter().flatten().chain(&self.read).map(|p| p.0).max().unwrap_or(1);
        let mut fitting = rows;
        while fitting > one_pair && self.bytes(fitting) > available {
            fitting = (fitting / 2).max(one_pair);
        }
        let fits = self.bytes(fitting) <= available;
        Err(SteerError::Memory {
            needed_mb: needed / 1_000_000,
            available_mb: available / 1_000_000,
            fitting_rows: fits.then_some(fitting),
        })
    }
}

/// Most of `bytes` of rows and scored tokens over the micro-batches of `pairs`.
fn largest(pairs: &[(usize, usize)], rows: usize, bytes: impl Fn(usize, usize) -> usize) -> usize {
    let runs = micro_batches(pairs.iter().map(|p| p.0), rows).into_iter();
    let sum = |pairs: &[(usize, usize)], f: fn(&(usize, usize)) -> usize| pairs.iter().map(f).sum::<usize>();
    runs.map(|run| bytes(sum(&pairs[run.clone()], |p| p.0), sum(&pairs[run], |p| p.1))).max().unwrap_or(0)
}

/// Memory that can be taken without swapping, where the system tells.
pub(crate) fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use steerkit_model::config::{Features, Rope, RopePairing, RopeScaling};

    /// Fault 37: a run that cannot fit is refused, with a number of rows where one would.
    #[test]
    fn a_run_that_does_not_fit_is_refused() {
        let rope = Rope { theta: 1e5, pairing: RopePairing::Adjacent, scaling: RopeScaling::None };
        let config = DecoderConfig {
            architecture: "llama".into(),
            n_layers: 30,
            d_model: 576,
            n_heads: 9,
            n_kv_heads: 3,
            head_dim: 64,
            d_ff: 1536,
            vocab: 49_152,
            context: 2048,
            norm_eps: 1e-5,
            rope,
            features: Features::default(),
        };
        let steps = vec![vec![(80, 40); 16], vec![(200, 100); 2]];
        let footprint = Footprint {
            config: &config,
            layer: Some(15),
            adapted: 0,
            added: 0,
            lasting: 100_000_000,
            read: Vec::new(),
            steps,
        };
        assert!(footprint.check(4096, None).is_ok());
        assert!(footprint.check(4096, Some(footprint.bytes(1280))).is_ok());
        let few = |available| match footprint.check(4096, Some(available)) {
            Err(SteerError::Memory { fitting_rows, .. }) => fitting_rows,
            other => panic!("{other:?}"),
        };
        assert_eq!(few(footprint.bytes(1280) - 1), Some(1024));
        assert_eq!(few(footprint.bytes(200)), Some(200));
        assert_eq!(few(footprint.bytes(200) - 1), None);
    }
}
