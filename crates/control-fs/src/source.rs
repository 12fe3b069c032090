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

    /// The processes that `numerge/proc` tells of, by their numbers. None, always or never, if it is not to be
    /// there.
    fn processes(&self) -> Option<Vec<u32>> {
        None
    }

    /// One of these; None if it is none of them, or no more.
    fn process(&self, _pid: u32) -> Option<Process> {
        None
    }
}

/// What the kernel's files in `/proc/PID` tell of a process.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Process {
    /// Whose its files are, user and group.
    pub owner: (u32, u32),
    /// Its pages mapped to frames.
    pub merging_pages: u64,
    /// Its pages merged with the page of zeros.
    pub zero_pages: u64,
    /// Its pages that a record is kept of.
    pub rmap_items: u64,
    /// Bytes that a record takes.
    pub rmap_item_bytes: u64,
    /// Whether all that it maps is to be merged (PR_SET_MEMORY_MERGE).
    pub merges_any: bool,
    /// Whether there is anything that is to be merged.
    pub is_mergeable: bool,
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
