//! The control files, mounted: what is in them, and what reading and writing them does.

// Clippy knows `#[test]` functions as tests, but not the functions that they call.
#![allow(clippy::unwrap_used)]

mod bed;
mod facts;
mod files;
mod processes;
mod unmerging;
