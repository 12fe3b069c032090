//! The tables that a batch works on, behind one lock.
//!
//! A batch holds it for reading from its first look to its last record, so that several shards work
//! at once, and everything that must not meet a batch half done (regions that come and go, knobs
//! that change only while nothing is shared, unmerging, tables that grow) holds it for writing, in
//! short pieces.

use std::ops::Range;
use std::sync::Arc;

use numerge_stable_tree::sync::AtomicU64;
use numerge_stable_tree::{
    Fingerprint, PageId, PageState, PageTable, Record, Records, Slot, TreeId, UnstableTree,
};

use crate::fingerprint::Fingerprinter;
use crate::machine::{Memory, MemoryError, PAGE_SIZE, Vpn};
use crate::program::Program;
use crate::region::Region;

/// Regions, records of pages, candidates.
pub(crate) struct World {
    pub(crate) pages: PageTable,
    /// By slot.
    regions: Vec<Option<Arc<Region>>>,
    /// By tree.
    unstable: Vec<UnstableTree>,
}

impl World {
    pub(crate) fn new(trees: usize) -> Self {
        Self {
            pages: PageTable::default(),
            regions: Vec::new(),
            unstable: (0..trees).map(|_| UnstableTree::default()).collect(),
        }
    }

    pub(crate) fn regions(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.regions.iter().flatten()
    }

    /// The region in a slot in use.
    pub(crate) fn region(&self, slot: Slot) -> &Arc<Region> {
        self.regions[slot.index()].as_ref().expect("the slot of a tracked page is in use")
    }

    /// Whether a region is still registered.
    pub(crate) fn holds(&self, region: &Arc<Region>) -> bool {
        let here = self.regions.get(region.slot.index()).and_then(Option::as_ref);
        here.is_some_and(|here| Arc::ptr_eq(here, region))
    }

    /// The region of a tracked page, and the page's place in it.
    pub(crate) fn locate(&self, page: PageId) -> (&Arc<Region>, u64) {
        let (slot, index) = self.pages.locate(page);
        (self.region(slot), index)
    }

    /// Whose a tracked page is.
    pub(crate) fn program(&self, page: PageId) -> &Program {
        &self.locate(page).0.program
    }

    /// Where a tracked page lies.
    pub(crate) fn vpn(&self, page: PageId) -> Vpn {
        let (region, index) = self.locate(page);
        region.vpn(index)
    }

    pub(crate) fn record(&self, page: PageId) -> &Record {
        self.pages.record(page)
    }

    /// Passes a copy of each page that can be read to `each`, with its place in `pages`.
    pub(crate) fn read(&self, pages: &[PageId], mut each: impl FnMut(usize, &[u8; PAGE_SIZE])) {
        self.read_by_region(pages, |memory, runs, at| {
            memory.read(runs, &mut |content| {
                each(*at, content);
                *at += 1;
            })
        });
    }

    /// The fingerprint of each page; None if it can't be read.
    pub(crate) fn fingerprints(
        &self,
        pages: &[PageId],
        prints: &Arc<Fingerprinter>,
    ) -> Vec<Option<Fingerprint>> {
        let mut found = vec![None; pages.len()];
        self.read_by_region(pages, |memory, runs, at| {
            memory.fingerprints(runs, prints, &mut |print| {
                found[*at] = Some(print);
                *at += 1;
            })
        });
        found
    }

    /// Has pages read, those of a region that follow each other together. `read` adds to its last argument, the
    /// place of the first page, how many it has read, up to the first that can't be.
    fn read_by_region(
        &self,
        pages: &[PageId],
        mut read: impl FnMut(&dyn Memory, &[Range<Vpn>], &mut usize) -> Result<(), MemoryError>,
    ) {
        let mut at = 0;
        while let Some(first) = pages.get(at) {
            let region = self.locate(*first).0;
            let located = pages[at..].iter().map(|page| self.locate(*page));
            let indices: Vec<u64> = located
                .take_while(|(other, _)| Arc::ptr_eq(region, other))
                .map(|(_, index)| index)
                .collect();
            let end = at + indices.len();
            at = match read(&*region.program.memory, &region.runs(&indices), &mut at) {
                Ok(()) => (at + 1).min(end),
                Err(_) => end,
            };
        }
    }

    /// A copy of a page; None if it can't be read.
    pub(crate) fn content(&self, page: PageId) -> Option<[u8; PAGE_SIZE]> {
        let mut copy = None;
        self.read(&[page], |_, content| copy = Some(*content));
        copy
    }

    /// Has a page read again by the next scan.
    pub(crate) fn look_again(&self, page: PageId) {
        let (region, index) = self.locate(page);
        self.record(page).set(PageState::Unread);
        region.pending.add(index);
    }

    /// Where the records of a segment are.
    pub(crate) fn record_bytes(&self, region: &Region, segment: usize) -> Range<*const u8> {
        let Range { start, end } = self.segment_records(region, segment).as_ptr_range();
        start.cast()..end.cast()
    }

    /// The records of a segment.
    pub(crate) fn segment_records(&self, region: &Region, segment: usize) -> &[Record] {
        let pages = region.segment(segment);
        let index = |page| usize::try_from(page).expect("a page of the region");
        &self.pages.records(region.slot)[index(pages.start)..index(pages.end)]
    }

    pub(crate) fn unstable(&self, tree: TreeId) -> &UnstableTree {
        &self.unstable[usize::from(tree.0)]
    }

    /// What the unstable trees count their pages with.
    pub(crate) fn unshared_counters(&self) -> Vec<Arc<AtomicU64>> {
        self.unstable.iter().map(UnstableTree::counter).collect()
    }

    /// Takes an unshared page out of the unstable tree it is in; it is unread then. False if a
    /// merge has claimed it. Which tree that is is not in the record: a page is on few nodes in
    /// its life, and this is asked only of pages that changed.
    pub(crate) fn remove_unshared(&self, page: PageId) -> bool {
        self.unstable.iter().any(|tree| tree.remove(&self.pages, page))
    }

    pub(crate) fn insert(&mut self, region: Arc<Region>) {
        let index = region.slot.index();
        if self.regions.len() <= index {
            self.regions.resize_with(index + 1, || None);
        }
        self.regions[index] = Some(region);
    }

    /// Forgets a region none of whose pages is in any structure.
    pub(crate) fn remove(&mut self, slot: Slot) {
        self.regions[slot.index()] = None;
        self.pages.untrack(slot);
    }

    /// Whether an unstable tree has to grow before `more` pages enter it.
    pub(crate) fn must_grow(&self, more: usize) -> bool {
        self.unstable.iter().any(|tree| tree.is_due(more))
    }

    /// Fits the unstable trees to their pages and `more` to come.
    pub(crate) fn resize(&mut self, more: usize) {
        for tree in &mut self.unstable {
            tree.resize(&self.pages, more);
        }
    }

    /// Fits the first unstable tree to as many pages as may ever enter it. To let it grow with its
    /// pages would cost several times the work, and in the end as much memory.
    pub(crate) fn fit_first(&mut self, candidates: usize) {
        let here = usize::try_from(self.unstable[0].pages()).unwrap_or(candidates);
        self.unstable[0].resize(&self.pages, candidates.saturating_sub(here));
    }

    /// Has the pages of a region that could not be merged, and are at home at `shard`, looked at
    /// again.
    pub(crate) fn retry(&self, region: &Region, shard: u16) {
        for segment in region.segments().filter(|segment| region.home(*segment) == shard) {
            let pages = region.segment(segment);
            let records = self.segment_records(region, segment);
            for (index, record) in pages.zip(records) {
                if matches!(record.state(), PageState::Held(_) | PageState::OverBudget(_)) {
                    region.pending.add(index);
                }
            }
        }
    }

    /// Makes every candidate a page to be read again, for the trees are about to mean something
    /// else.
    pub(crate) fn forget_candidates(&self) {
        for region in self.regions() {
            for (index, record) in (0..).zip(self.pages.records(region.slot)) {
                if matches!(record.state(), PageState::Unshared(_)) {
                    self.remove_unshared(region.page(index));
                    region.pending.add(index);
                }
            }
        }
    }

    pub(crate) fn metadata_bytes(&self) -> u64 {
        let unstable: u64 = self.unstable.iter().map(UnstableTree::metadata_bytes).sum();
        let regions: u64 = self.regions().map(|region| region.metadata_bytes()).sum();
        let mut programs: Vec<&Arc<Program>> = self.regions().map(|r| &r.program).collect();
        programs.sort_unstable_by_key(|program| Arc::as_ptr(program));
        programs.dedup_by_key(|program| Arc::as_ptr(program));
        let memories: u64 = programs.iter().map(|program| program.memory.metadata_bytes()).sum();
        self.pages.metadata_bytes()
            + unstable
            + regions
            + memories
            + (self.regions.capacity() * size_of::<Option<Arc<Region>>>()) as u64
    }
}
