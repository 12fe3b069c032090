//! The library and the program on this machine's real memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;
mod bed;
#[path = "../../../engine/tests/common/bounds.rs"]
mod bounds;
mod figures;
mod program;
#[path = "../../../engine/tests/model/reference.rs"]
#[expect(dead_code, reason = "only the scans and the counts of the model are needed here")]
mod reference;
mod stress;
