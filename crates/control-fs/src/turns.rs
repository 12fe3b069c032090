//! When the threads that answer have their turns.
//!
//! While something is unmerged, before those of all others, for then files are to answer soon on machines that
//! have nothing but that to do (S5.2): an answer passes several threads, each of which would wait for its turn.
//! Else as any, or whoever reads files all the time would take the CPUs from others.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    static IS_FIRST: Cell<bool> = const { Cell::new(false) };
}

/// What all of them go by.
#[derive(Default)]
pub(crate) struct Turns {
    unmergings: AtomicUsize,
}

impl Turns {
    /// Something is unmerged until the result is dropped.
    pub(crate) fn unmerging(&self) -> Unmerging<'_> {
        self.unmergings.fetch_add(1, Ordering::Relaxed); // a hint, by which nothing is ordered
        Unmerging(self)
    }

    /// Has the calling thread do as is right now. To be called with each request and each answer.
    pub(crate) fn follow(&self) {
        let is_first = self.unmergings.load(Ordering::Relaxed) > 0; // a hint, as in unmerging()
        if IS_FIRST.replace(is_first) == is_first {
            return;
        }
        if is_first {
            numerge_topology::take_first_turns();
        } else {
            numerge_topology::take_ordinary_turns();
            numerge_topology::take_short_turns();
        }
    }
}

/// See [`Turns::unmerging`].
pub(crate) struct Unmerging<'a>(&'a Turns);

impl Drop for Unmerging<'_> {
    fn drop(&mut self) {
        self.0.unmergings.fetch_sub(1, Ordering::Relaxed); // a hint, as in unmerging()
    }
}
