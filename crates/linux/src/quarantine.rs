//! Frames taken back whose memory a process forked from this one may still map.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::time::{Duration, Instant};

use numerge_engine::Kpfn;

use crate::witness::{Withdrawn, Witness};

/// Most witnesses kept at once, a descriptor each.
const WITNESSES: usize = 32;
/// Least time between two looks at other processes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Frames that wait, and what tells when they need not any more.
#[derive(Debug)]
pub(crate) struct Quarantine {
    runs: Vec<Range<Kpfn>>,
    /// Frames taken out to look who maps them, which wait all the same.
    taken: u64,
    /// What a process forked now gets. None only for want of descriptors or mappings.
    current: Option<Witness>,
    /// What processes forked before, and still alive, got.
    older: Vec<Withdrawn>,
    /// A process may have been forked without a witness; then only /proc can tell.
    unwitnessed: bool,
    looked: Option<Instant>,
}

impl Quarantine {
    /// Nothing waits.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            runs: Vec::new(),
            taken: 0,
            current: Some(Witness::new()?),
            older: Vec::new(),
            unwitnessed: false,
            looked: None,
        })
    }

    /// Takes in frames that this process maps no more.
    pub(crate) fn add(&mut self, runs: Vec<Range<Kpfn>>) {
        self.runs.extend(runs);
    }

    /// Lets go of the runs that `keep` does not want to keep.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&Range<Kpfn>) -> bool) {
        self.runs.retain(keep);
    }

    /// Takes out all that waits, to look who maps it. It counts as waiting until that is done.
    pub(crate) fn take(&mut self) -> Vec<Range<Kpfn>> {
        self.taken += count(&self.runs);
        std::mem::take(&mut self.runs)
    }

    /// Takes back those that go on waiting, of so many frames taken out.
    pub(crate) fn put_back(&mut self, taken: u64, runs: Vec<Range<Kpfn>>) {
        self.taken -= taken;
        self.add(runs);
    }

    /// Whether nothing waits to be looked at.
    pub(crate) const fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many frames wait.
    pub(crate) fn frames(&self) -> u64 {
        self.taken + count(&self.runs)
    }

    /// Bytes of memory it takes.
    pub(crate) const fn bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Range<Kpfn>>()
            + self.older.capacity() * size_of::<Withdrawn>()
    }

    /// Whether no process is left that was forked before this call, so that nobody maps what waits.
    pub(crate) fn nobody_else_is_left(&mut self) -> bool {
        // What waits now is mapped here no more, so nothing forked from here on can have it.
        let renewed = self.older.len() < WITNESSES;
        if renewed {
            let next = Witness::new().ok();
            self.unwitnessed |= next.is_none();
            let last = std::mem::replace(&mut self.current, next);
            self.older.extend(last.map(Witness::withdraw));
        }
        self.older.retain(|witness| !witness.is_alone());
        renewed && self.older.is_empty() && !self.unwitnessed
    }

    /// Whether it is time to look in detail who maps what; if so, that counts as looked.
    pub(crate) fn look_is_due(&mut self) -> bool {
        let due = self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL);
        if due {
            self.looked = Some(Instant::now());
        }
        due
    }

    /// Makes the next look due.
    pub(crate) const fn look_at_once(&mut self) {
        self.looked = None;
    }

    /// In a fork's child: leaves the witness mapped for as long as the process lives, since it may
    /// map frames that long.
    pub(crate) fn leave_witness(&mut self) {
        let _left = ManuallyDrop::new(self.current.take());
    }
}

/// How many frames there are in runs.
pub(crate) fn count(runs: &[Range<Kpfn>]) -> u64 {
    runs.iter().map(|run| run.end.0 - run.start.0).sum()
}
