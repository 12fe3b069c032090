//! The library and the program on this machine's real memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;
mod bed;
mod figures;
mod program;
mod stress;
