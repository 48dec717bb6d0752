//! Edits of the residual stream: what steering comes down to inside the model.

use std::ops::Range;
use std::sync::Arc;

/// An edit of the residual stream after one block.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The block after which it acts, counted from 0 (`blocks.L.hook_resid_post`).
    pub layer: usize,
    /// What it does.
    pub op: EditOp,
    /// Where in a text it acts.
    pub positions: Positions,
}

impl Edit {
    /// An edit at every position.
    pub fn new(layer: usize, op: EditOp) -> Self {
        Self { layer, op, positions: Positions::All }
    }
}

/// Edits of the texts of a pack: one list per text, in the order of their first rows. Empty for the plain model.
pub type TextEdits = Vec<Vec<Edit>>;

/// What a pack's scored tokens get under one plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EditedScores {
    /// Log-probability of each scored token, in the pack's order, in nats.
    pub logps: Vec<f32>,
    /// KL(steered || plain) in nats of the prediction of each scored token; empty unless asked for.
    pub divergences: Vec<f64>,
}

/// What an edit does to a row `h` of the residual stream.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum EditOp {
    /// `h + v`; `v` is already scaled by the multiplier.
    Add(Arc<[f32]>),
    /// `h + shift(u·h) · u` along a unit vector `u` `[d]`.
    Along {
        /// The unit vector.
        unit_d: Arc<[f32]>,
        /// How far a row moves along it.
        shift: Shift,
    },
}

impl EditOp {
    /// The numbers of the edit `[d]`.
    pub fn direction(&self) -> &[f32] {
        match self {
            Self::Add(v) => v,
            Self::Along { unit_d, .. } => unit_d,
        }
    }
}

/// How far a row with projection `p = u·h` moves along `u`. Strength 0 moves nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shift {
    /// `-strength · p`: at 1 the direction is gone.
    Ablate {
        /// The multiplier.
        strength: f32,
    },
    /// `-strength · max(p + bias, 0)`: only what points along `u` is taken away.
    OneSided {
        /// The multiplier.
        strength: f32,
        /// Added to the projection.
        bias: f32,
    },
    /// `strength · (min(max(p, low), high) - p)`: the projection is brought into an interval.
    Clamp {
        /// The multiplier.
        strength: f32,
        /// The smallest projection.
        low: f32,
        /// The largest projection.
        high: f32,
    },
}

impl Shift {
    /// The distance for projection `p`.
    pub fn at(self, p: f32) -> f32 {
        match self {
            Self::Ablate { strength } => -strength * p,
            Self::OneSided { strength, bias } => -strength * (p + bias).max(0.0),
            Self::Clamp { strength, low, high } => strength * (p.max(low).min(high) - p),
        }
    }

    /// Moves one row along `unit_d`; the projection is summed in f64, in order.
    pub(crate) fn apply(self, row_d: &mut [f32], unit_d: &[f32]) {
        let p: f64 = row_d.iter().zip(unit_d).map(|(&h, &u)| f64::from(h) * f64::from(u)).sum();
        let distance = self.at(p as f32);
        for (h, u) in row_d.iter_mut().zip(unit_d) {
            *h += distance * u;
        }
    }
}

/// Positions of a text, counted from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Every one.
    #[default]
    All,
    /// Those of these ranges, ascending and apart; the last may end in `usize::MAX`.
    Ranges(Arc<[Range<usize>]>),
}

impl Positions {
    /// Whether position `at` is one of them.
    pub fn contains(&self, at: usize) -> bool {
        match self {
            Self::All => true,
            Self::Ranges(ranges) => ranges.iter().any(|r| r.contains(&at)),
        }
    }

    /// Where they begin and end.
    pub(crate) fn ends(&self) -> Vec<usize> {
        match self {
            Self::All => Vec::new(),
            Self::Ranges(ranges) => ranges.iter().flat_map(|r| [r.start, r.end]).collect(),
        }
    }

    /// The parts of `span` that they cover, ascending.
    pub(crate) fn within(&self, span: Range<usize>) -> Vec<Range<usize>> {
        let ranges = match self {
            Self::All => return vec![span],
            Self::Ranges(ranges) => ranges,
        };
        let common = |r: &Range<usize>| r.start.max(span.start)..r.end.min(span.end);
        ranges.iter().map(common).filter(|r| r.start < r.end).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_meet_a_span() {
        let some = Positions::Ranges([0..2, 5..7, 9..usize::MAX].into());
        assert_eq!(some.within(1..6), [1..2, 5..6]);
        assert!(some.within(7..9).is_empty());
        assert_eq!(some.within(8..20), [9..20]);
        assert_eq!(Positions::All.within(3..4), [3..4]);
        assert!(some.contains(5) && !some.contains(7) && some.contains(1 << 40));
    }

    /// Along u = (0.6, 0.8), h = (5, 0) has projection 3.
    #[test]
    fn shifts_by_hand() {
        let unit = [0.6, 0.8];
        let moved = |h: [f32; 2], shift: Shift| {
            let mut row = h;
            shift.apply(&mut row, &unit);
            row.map(|x| (x * 1e4).round() / 1e4)
        };
        let h = [5.0, 0.0];
        assert_eq!(moved(h, Shift::Ablate { strength: 1.0 }), [3.2, -2.4]);
        assert_eq!(moved(h, Shift::Ablate { strength: 0.5 }), [4.1, -1.2]);
        assert_eq!(moved(h, Shift::OneSided { strength: 1.0, bias: -1.0 }), [3.8, -1.6]);
        assert_eq!(moved([-5.0, 0.0], Shift::OneSided { strength: 1.0, bias: 0.0 }), [-5.0, 0.0]);
        let clamp = Shift::Clamp { strength: 1.0, low: -1.0, high: 2.0 };
        assert_eq!(moved(h, clamp), [4.4, -0.8]);
        assert_eq!(moved([-5.0, 0.0], clamp), [-3.8, 1.6]);
        assert_eq!(moved([1.0, 1.0], clamp), [1.0, 1.0]);
    }
}
