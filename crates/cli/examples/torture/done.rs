//! What a run did successfully, counted: what was never done was not tried.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// What a run does, each in [`Done::NAMES`] by its place.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    New,
    Moved,
    DontNeed,
    PosixSpawn,
    ForkExec,
    VforkExec,
    OfferedFull,
    Fork,
    RawClone,
    ReadOnly,
    MappedAgain,
    DirectRead,
    FixedRead,
    Filled,
    Rewritten,
}

/// Seconds after which a kind that was never done is an error.
const LONG_ENOUGH: u64 = 5;

#[derive(Default)]
pub(crate) struct Done([AtomicU64; Self::NAMES.len()]);

impl Done {
    const NAMES: [&str; 15] = [
        "new",
        "moved",
        "MADV_DONTNEED",
        "posix_spawn",
        "fork and exec",
        "vfork and exec",
        "offered when full",
        "fork",
        "raw clone",
        "read only",
        "mapped again",
        "O_DIRECT",
        "io_uring",
        "filled",
        "rewritten",
    ];

    pub(crate) fn add(&self, kind: Kind) {
        self.0[kind as usize].fetch_add(1, SeqCst);
    }

    /// All of them, for people.
    pub(crate) fn text(&self) -> String {
        let each = Self::NAMES.iter().zip(&self.0);
        let each: Vec<_> =
            each.map(|(name, count)| format!("{name} {}", count.load(SeqCst))).collect();
        each.join(", ")
    }

    /// What a run of so many seconds should have done, and has not.
    pub(crate) fn missing(&self, seconds: u64) -> Vec<&'static str> {
        let each = Self::NAMES.into_iter().zip(&self.0);
        let never = each.filter(|(_, count)| seconds >= LONG_ENOUGH && count.load(SeqCst) == 0);
        never.map(|(name, _)| name).collect()
    }
}
