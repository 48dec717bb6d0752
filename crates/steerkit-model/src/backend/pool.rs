//! Buffers of tensors that are gone, kept for the next ones: a training step in its steady state allocates nothing, so the
//! system has no pages to map.
//!
//! A buffer serves tensors of one width. One with too few rows is replaced by a larger one rather than kept beside it.
//! So there are never more buffers of a width than tensors of that width were alive at a time, none is larger than the
//! largest of those tensors, and once the largest batch has passed nothing is allocated any more, however batches
//! differ in size.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub(super) struct Pool(Mutex<Free>);

#[derive(Default)]
struct Free {
    /// Buffers that no tensor has, by width.
    buffers: HashMap<usize, Vec<Vec<f32>>>,
    #[cfg(test)]
    measured: Measured,
}

/// Numbers that tensors have now and had at most, and those of all buffers.
#[cfg(test)]
#[derive(Clone, Copy, Default)]
pub(super) struct Measured {
    live: usize,
    pub(super) peak: usize,
    pub(super) held: usize,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Free> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `rows × width` numbers that are whatever an earlier tensor left.
    pub(super) fn take(&self, rows: usize, width: usize) -> Vec<f32> {
        let len = rows * width;
        let mut free = self.lock();
        let buffers = free.buffers.entry(width).or_default();
        // The smallest that is large enough, else the smallest.
        let best = (0..buffers.len()).min_by_key(|&i| (buffers[i].capacity() < len, buffers[i].capacity()));
        let mut buffer = best.map_or_else(Vec::new, |i| buffers.swap_remove(i));
        #[cfg(test)]
        {
            let measured = &mut free.measured;
            measured.live += len;
            measured.peak = measured.peak.max(measured.live);
            measured.held += len.saturating_sub(buffer.capacity());
        }
        drop(free);
        if buffer.capacity() < len {
            // The old one goes before the new one comes.
            buffer = Vec::new();
            buffer.reserve_exact(len);
        }
        buffer.resize(len, 0.0);
        buffer
    }

    pub(super) fn give(&self, buffer: Vec<f32>, width: usize) {
        let mut free = self.lock();
        #[cfg(test)]
        {
            free.measured.live -= buffer.len();
        }
        free.buffers.entry(width).or_default().push(buffer);
    }

    #[cfg(test)]
    pub(super) fn measured(&self) -> Measured {
        self.lock().measured
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tensors of several widths, some alive together, in batches of every size: after the largest batch, no batch makes
    /// the pool grow.
    #[test]
    fn nothing_is_allocated_after_the_largest_batch() {
        let pool = Pool::default();
        let batch = |rows: usize| {
            let kept: Vec<_> = (0..5).map(|_| (pool.take(rows, 12), pool.take(rows / 2, 12))).collect();
            let wide = pool.take(rows / 3, 100);
            for (a, b) in kept {
                pool.give(a, 12);
                let c = pool.take(rows, 12);
                pool.give(b, 12);
                pool.give(c, 12);
            }
            pool.give(wide, 100);
        };
        batch(400);
        let Measured { peak, held, .. } = pool.measured();
        assert_eq!(held, peak);
        batch(400);
        let warm = pool.measured().held;
        (1..400).rev().chain(1..400).for_each(batch);
        assert_eq!(pool.measured().held, warm);
        assert_eq!(pool.measured().peak, peak);
    }
}
