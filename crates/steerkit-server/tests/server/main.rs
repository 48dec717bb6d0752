//! A running server on the tiny model: what it answers, what it refuses, and what it survives.

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, reason = "a test")]

mod api;
mod faults;
mod guide;
mod load;
mod support;
