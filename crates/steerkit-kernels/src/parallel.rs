//! Splitting work over threads.

/// Runs `f(0), …, f(n - 1)`, each exactly once, in any order and on any thread.
///
/// # Panics
/// When a call of `f` panics.
pub fn for_each(n: usize, f: impl Fn(usize) + Sync) {
    (0..n).for_each(f)
}
