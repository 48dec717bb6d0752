//! Writing disjoint parts of one slice from several threads.

use std::marker::PhantomData;

/// A mutable slice handed to tasks that each write their own part of it.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _life: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `part`, whose callers promise that parts taken at the same time are disjoint.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _life: PhantomData }
    }

    /// `slice[start..start + len]`.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    ///
    /// # Panics
    /// When the part leaves the slice.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Calls `f(i, row_i)` for every row of `width` numbers, over all threads in runs of `per_task` rows.
pub(crate) fn for_rows<T: Send>(
    data: &mut [T],
    width: usize,
    per_task: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let rows = data.len() / width;
    let shared = Shared::new(data);
    crate::parallel::for_each(rows.div_ceil(per_task), |task| {
        for i in task * per_task..((task + 1) * per_task).min(rows) {
            // SAFETY: every row belongs to exactly one task.
            f(i, unsafe { shared.part(i * width, width) });
        }
    });
}
