//! The rules of SEMANTICS, one by one, on the in-memory machine. Each test bears its rule's number.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod aside;
mod bed;
mod content;
mod control;
mod handover;
mod homes;
#[path = "../common/hooked.rs"]
mod hooked;
mod late;
mod limit;
mod nodes;
mod numa;
mod offline;
mod races;
mod scanning;
mod script;
#[path = "../common/sums.rs"]
mod sums;
mod two;
mod unknown;
