//! The library and the program on a real kernel with several NUMA nodes.
//!
//! These tests change settings of the machine and move all of the process's memory about, so that
//! they are ignored but in the guests of `tools/numa`, one test at a time. The module says in which
//! guests: `any` in all of them, `keys` in one with two nodes, the others in those of that name.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod any;
mod bed;
mod cpuless;
mod four;
mod hotplug;
mod kernel;
mod keys;
mod memoryless;
#[path = "../../../engine/tests/common/sums.rs"]
mod sums;
