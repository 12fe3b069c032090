//! The one door to atomics and reclamation, so that a model can replace both.
//!
//! A lock-free structure is checked by running it in every interleaving, and that needs atomics
//! that a checker schedules. Everything of this workspace that is shared without a lock takes its
//! atomics, its queues and its epochs from here. Normally these are the standard library's and
//! crossbeam's. Under `--cfg loom` they are loom's, which explores interleavings and the weak
//! orderings C11 allows, and a mock epoch ([`epoch`]) that knows of every object whether it may
//! still be read.
//!
//! Statistics ([`Counter`]) are the exception: nothing is decided by them that would be wrong if
//! they lagged, so no checker needs to see them, and each atomic it sees multiplies its work.

mod counter;
mod mutex;
mod queue;

#[cfg(not(loom))]
pub mod epoch;
#[cfg(loom)]
#[path = "epoch_model.rs"]
pub mod epoch;

pub use std::sync::atomic::Ordering;

#[cfg(not(loom))]
pub use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence,
};

#[cfg(loom)]
pub use loom::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence,
};

pub use counter::{Counter, heap_bytes};
pub use mutex::{Mutex, MutexGuard};
pub use queue::Queue;
