//! Ranks over MPI.

use super::Ranks;
use mpi::{
    environment::Universe,
    topology::SimpleCommunicator,
    traits::{Communicator, Root},
};
use std::{cell::RefCell, mem::ManuallyDrop};

/// Bytes of one message; MPI counts in `i32`.
const MESSAGE: usize = 1 << 30;

thread_local! {
    /// Dropping it waits for the other ranks: a rank that fails must end without that.
    static UNIVERSE: RefCell<Option<ManuallyDrop<Universe>>> = const { RefCell::new(None) };
}

/// All processes of an `mpirun`.
#[derive(Debug)]
pub(super) struct World {
    rank: usize,
    count: usize,
}

impl World {
    /// None where the library cannot be initialised.
    pub(super) fn join() -> Option<Self> {
        let universe = mpi::initialize()?;
        let world = universe.world();
        let joined = Self { rank: world.rank() as usize, count: world.size() as usize };
        UNIVERSE.with(|u| u.replace(Some(ManuallyDrop::new(universe))));
        Some(joined)
    }
}

/// Ends the part in MPI of this process.
pub(super) fn leave() {
    UNIVERSE.with(|u| drop(u.take().map(ManuallyDrop::into_inner)));
}

impl Ranks for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn exchange(&self, own: Vec<u8>) -> Vec<Vec<u8>> {
        let world = SimpleCommunicator::world();
        let from = |rank: usize| {
            let root = world.process_at_rank(rank as i32);
            let mut bytes = if rank == self.rank { own.clone() } else { Vec::new() };
            let mut length = bytes.len() as u64;
            root.broadcast_into(&mut length);
            bytes.resize(length as usize, 0);
            bytes.chunks_mut(MESSAGE).for_each(|part| root.broadcast_into(part));
            bytes
        };
        (0..self.count).map(from).collect()
    }
}
