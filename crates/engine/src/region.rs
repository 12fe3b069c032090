//! A region: a range of a program's memory registered as mergeable.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use numerge_stable_tree::{PageId, Slot};

use crate::machine::Vpn;
use crate::pending::Pending;
use crate::program::Program;

/// What the engine knows of a region beside its pages' records.
pub(crate) struct Region {
    pub(crate) program: Arc<Program>,
    pub(crate) pages: Range<Vpn>,
    pub(crate) slot: Slot,
    /// Number of the first page.
    pub(crate) first: PageId,
    /// Pages to be looked at again.
    pub(crate) pending: Pending,
    /// The shard that scans it.
    pub(crate) shard: usize,
    /// Being unregistered: no scan may begin to look at it.
    pub(crate) closing: AtomicBool,
}

impl Region {
    /// Pages in it.
    pub(crate) fn len(&self) -> u64 {
        self.pages.end.0 - self.pages.start.0
    }

    /// Where its page number `index` lies.
    pub(crate) fn vpn(&self, index: u64) -> Vpn {
        self.pages.start.plus(index)
    }

    pub(crate) fn index(&self, vpn: Vpn) -> u64 {
        vpn.0 - self.pages.start.0
    }

    pub(crate) fn page(&self, index: u64) -> PageId {
        PageId(self.first.0 + index)
    }

    pub(crate) fn set_closing(&self, closing: bool) {
        self.closing.store(closing, Ordering::SeqCst);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }
}
