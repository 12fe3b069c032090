//! Whom the files are about.

use numerge_engine::machine::MemoryError;
use numerge_engine::{Counters, Knob, KnobError, Nid, NodeReport, UnmergeError};

/// An engine, or many, to steer and to watch. Each call may be made by any number of threads at a time.
pub trait Source: Send + Sync + 'static {
    /// The value of a knob.
    fn knob(&self, knob: Knob) -> u64;

    /// Sets a knob. `run` = 2 returns when everything is unmerged.
    ///
    /// # Errors
    /// Why it was not done; the file gives [`errno`] of it.
    fn set(&self, knob: Knob, value: u64) -> Result<(), KnobError>;

    /// Has a `run` = 2 that is under way return soon, with what is still merged left so. `run` is 0 then, also
    /// where all was unmerged already; where it is not 2, does nothing.
    fn interrupt(&self);

    /// The counters now.
    fn counters(&self) -> Counters;

    /// The NUMA nodes; always the same.
    fn nids(&self) -> Vec<Nid>;

    /// All nodes in numbers, now.
    fn nodes(&self) -> Vec<NodeReport>;
}

/// The kernel's error number for what its own file would have refused.
#[must_use]
pub const fn errno(error: &KnobError) -> i32 {
    match error {
        KnobError::Invalid { .. } | KnobError::Advised => libc::EINVAL,
        KnobError::Busy { .. } => libc::EBUSY,
        KnobError::Unmerge(UnmergeError::Interrupted) => libc::ECANCELED,
        KnobError::Unmerge(UnmergeError::Memory(MemoryError::OutOfMemory)) => libc::ENOMEM,
        KnobError::Unmerge(UnmergeError::Memory(_)) => libc::EAGAIN,
    }
}
