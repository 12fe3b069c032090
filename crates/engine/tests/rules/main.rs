//! The rules of SEMANTICS, one by one, on the in-memory machine. Each test bears its rule's number.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bed;
mod content;
mod control;
mod handover;
mod homes;
mod limit;
mod numa;
mod offline;
mod races;
mod scanning;
