//! Everything that the binary writes to a terminal, a pipe or a file.

mod printer;
mod progress;
mod table;

pub(crate) use printer::Printer;
pub(crate) use progress::Progress;
pub(crate) use table::{Table, number, side_by_side, signed};
