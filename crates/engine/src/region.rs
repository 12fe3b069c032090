//! A region: a range of a program's memory registered as mergeable.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use numerge_stable_tree::{PageId, Slot};

use crate::ages::Ages;
use crate::machine::Vpn;
use crate::pending::Pending;
use crate::program::Program;

/// Pages of a segment: 1 GiB.
pub(crate) const SEGMENT_PAGES: u64 = 1 << 18;

/// What the engine knows of a region beside its pages' records.
pub(crate) struct Region {
    pub(crate) program: Arc<Program>,
    pub(crate) pages: Range<Vpn>,
    pub(crate) slot: Slot,
    /// Number of the first page.
    pub(crate) first: PageId,
    /// Pages to be looked at again.
    pub(crate) pending: Pending,
    pub(crate) ages: Ages,
    /// The shard that scans each segment, the last of which may be shorter: its *home*.
    homes: Box<[AtomicU16]>,
    /// Being unregistered: no scan may begin to look at it.
    pub(crate) closing: AtomicBool,
}

impl Region {
    /// A region whose segments are all at the home of the first shard.
    pub(crate) fn new(program: Arc<Program>, pages: Range<Vpn>, slot: Slot, first: PageId) -> Self {
        let count = pages.end.0 - pages.start.0;
        let segments = count.div_ceil(SEGMENT_PAGES);
        Self {
            program,
            pages,
            slot,
            first,
            pending: Pending::new(count),
            ages: Ages::new(count),
            homes: (0..segments).map(|_| AtomicU16::new(0)).collect(),
            closing: AtomicBool::new(false),
        }
    }

    /// Pages in it.
    pub(crate) fn len(&self) -> u64 {
        self.pages.end.0 - self.pages.start.0
    }

    /// Where its page number `index` lies.
    pub(crate) fn vpn(&self, index: u64) -> Vpn {
        self.pages.start.plus(index)
    }

    /// Where its pages with these numbers lie, those that follow each other together.
    pub(crate) fn runs(&self, indices: &[u64]) -> Vec<Range<Vpn>> {
        let runs = indices.chunk_by(|a, b| a + 1 == *b);
        runs.map(|run| self.vpn(run[0])..self.vpn(run[run.len() - 1] + 1)).collect()
    }

    pub(crate) fn index(&self, vpn: Vpn) -> u64 {
        vpn.0 - self.pages.start.0
    }

    pub(crate) fn page(&self, index: u64) -> PageId {
        PageId(self.first.0 + index)
    }

    /// Its segments, by number.
    pub(crate) fn segments(&self) -> Range<usize> {
        0..self.homes.len()
    }

    /// The pages of a segment.
    pub(crate) fn segment(&self, number: usize) -> Range<u64> {
        let start = number as u64 * SEGMENT_PAGES;
        start..(start + SEGMENT_PAGES).min(self.len())
    }

    /// The shard that scans a segment.
    pub(crate) fn home(&self, segment: usize) -> u16 {
        self.homes[segment].load(Ordering::SeqCst)
    }

    /// The shard that scans a page.
    pub(crate) fn home_of(&self, index: u64) -> u16 {
        self.home(usize::try_from(index / SEGMENT_PAGES).expect("a page of the region"))
    }

    /// Only the shard that is the home may give a segment away, and only while it has no batch.
    pub(crate) fn set_home(&self, segment: usize, shard: u16) {
        self.homes[segment].store(shard, Ordering::SeqCst);
    }

    pub(crate) fn set_closing(&self, closing: bool) {
        self.closing.store(closing, Ordering::SeqCst);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Bytes of what the engine knows of it.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        size_of::<Self>() as u64
            + size_of_val(&*self.homes) as u64
            + self.pending.metadata_bytes()
            + self.ages.metadata_bytes()
    }
}
