//! A server and clients that are processes of their own: this test binary, executed again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod bed;
#[path = "../../../engine/tests/common/bounds.rs"]
mod bounds;
mod deaf;
mod endings;
mod keepers;
mod liar;
mod lies;
mod merging;
mod random;
mod scans;
mod settings;
mod strangers;
mod torture;
