//! Engine and reference model, side by side on the in-memory machine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod figures;
mod histories;
mod reference;
#[path = "../common/sums.rs"]
mod sums;
