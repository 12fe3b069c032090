//! A server and clients that are processes of their own: this test binary, executed again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod bed;
mod endings;
mod merging;
mod strangers;
mod torture;
