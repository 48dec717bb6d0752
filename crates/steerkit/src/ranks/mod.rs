//! Processes that share a run: work is dealt out in turns and what came of it is put together in the order of the work,
//! so the bytes of a run do not depend on how many there are.
//!
//! Every rank goes through the same steps and holds the same state. With the feature `mpi`, [`join`] makes ranks of the
//! processes that `mpirun` or a cluster's scheduler started together.

#[cfg(feature = "mpi")]
mod mpi;

use crate::{Result, SteerError, train::observer::Halt};
use std::{fmt, sync::Arc};

/// One of several processes that share a run.
pub trait Ranks: fmt::Debug + Send + Sync {
    /// The number of this process, from 0. Rank 0 writes the run's files.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn count(&self) -> usize;

    /// What every rank brought, by rank. All ranks must come here equally often, in the same order; the first waits for
    /// the last.
    fn exchange(&self, own: Vec<u8>) -> Vec<Vec<u8>>;
}

/// The ranks of a run; none where one process does everything.
pub type Shared = Option<Arc<dyn Ranks>>;

/// Joins the processes that were started together; none where this one was started alone.
///
/// # Errors
/// A start by `mpirun` of a build without the feature `mpi`, whose processes would get in each other's way; an MPI
/// library that cannot be initialised.
pub fn join() -> Result<Shared> {
    let count = std::env::var("OMPI_COMM_WORLD_SIZE").or_else(|_| std::env::var("PMI_SIZE"));
    match count.ok().and_then(|n| n.parse::<usize>().ok()) {
        None | Some(0 | 1) => Ok(None),
        Some(count) => connect(count).map(Some),
    }
}

#[cfg(feature = "mpi")]
fn connect(_count: usize) -> Result<Arc<dyn Ranks>> {
    let world = mpi::World::join().ok_or_else(|| SteerError::Ranks {
        message: "MPI cannot be initialised".into(),
        hint: "start the command with the mpirun of the library that this build was linked with",
    })?;
    Ok(Arc::new(world))
}

#[cfg(not(feature = "mpi"))]
fn connect(count: usize) -> Result<Arc<dyn Ranks>> {
    Err(SteerError::Ranks {
        message: format!("{count} processes were started together, but this build is without MPI"),
        hint: "build with --features mpi, or start it without mpirun",
    })
}

/// Leaves the other processes in order; to be called once a run has succeeded. A process that failed just ends, and
/// the launcher ends the others.
pub fn leave() {
    #[cfg(feature = "mpi")]
    mpi::leave();
}

/// Whether this process writes the files.
pub(crate) fn writes(ranks: &Shared) -> bool {
    ranks.as_ref().is_none_or(|ranks| ranks.rank() == 0)
}

/// How a rank's part of the work ended: the first byte of what it brings.
const DONE: u8 = 0;
const CANCELLED: u8 = 1;
const FAILED: u8 = 2;

/// Does `work` for each of `items`, in turns over the ranks, and gives what came of it to `take` on every rank, in the
/// order of the items.
///
/// # Errors
/// Those of this rank's work; [`SteerError::Ranks`] where that of another failed, and [`Halt::Cancelled`] on all where one
/// was cancelled.
pub(crate) fn each<T>(
    ranks: &Shared,
    items: &[T],
    mut work: impl FnMut(&T) -> Result<Vec<u8>, Halt>,
    mut take: impl FnMut(&T, &[u8]) -> Result<(), Halt>,
) -> Result<(), Halt> {
    let Some(ranks) = ranks else {
        return items.iter().try_for_each(|item| work(item).and_then(|made| take(item, &made)));
    };
    for turn in items.chunks(ranks.count()) {
        let own = turn.get(ranks.rank()).map_or_else(|| Ok(Vec::new()), &mut work);
        let brought = match &own {
            Ok(made) => [&[DONE], &made[..]].concat(),
            Err(Halt::Cancelled) => vec![CANCELLED],
            Err(Halt::Failed(error)) => [&[FAILED], error.to_string().as_bytes()].concat(),
        };
        let all = ranks.exchange(brought);
        own?;
        for (rank, made) in all.iter().enumerate() {
            match made.split_first() {
                Some((&DONE, _)) => {}
                Some((&CANCELLED, _)) => return Err(Halt::Cancelled),
                Some((_, why)) => return Err(lost(rank, &String::from_utf8_lossy(why)).into()),
                None => return Err(lost(rank, "it brought nothing").into()),
            }
        }
        turn.iter().zip(&all).try_for_each(|(item, made)| take(item, &made[1..]))?;
    }
    Ok(())
}

fn lost(rank: usize, why: &str) -> SteerError {
    SteerError::Ranks { message: format!("rank {rank}: {why}"), hint: "the run can be resumed" }
}

/// Numbers as bytes, little-endian.
pub(crate) fn to_bytes(numbers: impl IntoIterator<Item = f64>) -> Vec<u8> {
    numbers.into_iter().flat_map(f64::to_le_bytes).collect()
}

/// The numbers of [`to_bytes`].
pub(crate) fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = f64> {
    bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b))
}
