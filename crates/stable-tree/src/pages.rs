//! Page numbers and the records behind them.
//!
//! A region's pages have adjacent numbers, so that a page's number says both whose it is and where
//! in its region it lies. Numbers are given out in blocks of [`BLOCK_PAGES`]; a region's records
//! lie in one piece of exactly the region's size.

use crate::PageId;
use crate::record::{Record, Records};

/// Pages in a block of numbers.
const BLOCK_PAGES: u64 = 512;
const FREE: u32 = u32::MAX;

/// Where a region stands in the tables of its engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
struct Tracked {
    first: PageId,
    records: Box<[Record]>,
}

/// The records of all tracked pages.
#[derive(Debug, Default)]
pub struct PageTable {
    /// Which slot a block of numbers belongs to.
    blocks: Vec<u32>,
    slots: Vec<Option<Tracked>>,
}

/// There are no page numbers left, or no memory for the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyPages;

impl PageTable {
    /// Starts to track `pages` pages. Gives their slot and the number of the first.
    ///
    /// # Errors
    /// [`TooManyPages`]; nothing is changed then.
    pub fn track(&mut self, pages: u64) -> Result<(Slot, PageId), TooManyPages> {
        let length = usize::try_from(pages).map_err(|_| TooManyPages)?;
        let needed = usize::try_from(pages.div_ceil(BLOCK_PAGES)).map_err(|_| TooManyPages)?;
        let block = self.free_blocks(needed);
        if (block + needed) as u64 > 1 << (PageId::BITS - BLOCK_PAGES.trailing_zeros()) {
            return Err(TooManyPages);
        }
        let records = Record::untouched(length).ok_or(TooManyPages)?;
        let index = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        let slot = u32::try_from(index).ok().filter(|slot| *slot != FREE).ok_or(TooManyPages)?;
        if index == self.slots.len() {
            self.slots.push(None);
        }
        if self.blocks.len() < block + needed {
            self.blocks.resize(block + needed, FREE);
        }
        self.blocks[block..block + needed].fill(slot);
        let first = PageId(block as u64 * BLOCK_PAGES);
        self.slots[index] = Some(Tracked { first, records });
        Ok((Slot(slot), first))
    }

    /// The first of `needed` adjacent free blocks, which may lie past the end.
    fn free_blocks(&self, needed: usize) -> usize {
        let mut first = 0;
        for (block, &slot) in self.blocks.iter().enumerate() {
            if slot != FREE {
                first = block + 1;
            } else if block + 1 - first >= needed {
                break;
            }
        }
        first
    }

    /// Forgets the pages of a slot. None of them may be in any structure any more.
    pub fn untrack(&mut self, slot: Slot) {
        self.slots[slot.index()] = None;
        for block in self.blocks.iter_mut().filter(|block| **block == slot.0) {
            *block = FREE;
        }
        let used = self.blocks.iter().rposition(|block| *block != FREE).map_or(0, |last| last + 1);
        self.blocks.truncate(used);
        self.blocks.shrink_to(used * 2);
    }

    /// Whose page it is, and which of its region's pages.
    ///
    /// # Panics
    /// If the page is not tracked.
    pub fn locate(&self, page: PageId) -> (Slot, u64) {
        let (slot, tracked) = self.tracked(page);
        (slot, page.0 - tracked.first.0)
    }

    fn tracked(&self, page: PageId) -> (Slot, &Tracked) {
        let block = usize::try_from(page.0 / BLOCK_PAGES).expect("a tracked page's block");
        let slot = Slot(self.blocks[block]);
        (slot, self.slots[slot.index()].as_ref().expect("a block in use has a slot in use"))
    }

    /// The records of a slot's pages, in order.
    ///
    /// # Panics
    /// If the slot is not in use.
    pub fn records(&self, slot: Slot) -> &[Record] {
        &self.slots[slot.index()].as_ref().expect("slot in use").records
    }

    /// Bytes of the records and tables.
    pub fn metadata_bytes(&self) -> u64 {
        let records: usize =
            self.slots.iter().flatten().map(|tracked| size_of_val(&*tracked.records)).sum();
        let tables = self.blocks.capacity() * size_of::<u32>()
            + self.slots.capacity() * size_of::<Option<Tracked>>();
        (records + tables) as u64
    }
}

impl Records for PageTable {
    fn record(&self, page: PageId) -> &Record {
        let (_, tracked) = self.tracked(page);
        tracked.records.record(PageId(page.0 - tracked.first.0))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::PageState;

    #[test]
    fn regions_come_and_go_and_numbers_are_used_again() {
        let mut table = PageTable::default();
        let (a, first_a) = table.track(1).unwrap();
        let (b, first_b) = table.track(1000).unwrap();
        let (c, first_c) = table.track(512).unwrap();
        table.record(PageId(first_b.0 + 999)).set(PageState::Zero);
        assert_eq!(table.locate(PageId(first_b.0 + 999)), (b, 999));
        assert_eq!(table.records(b)[999].state(), PageState::Zero);
        assert_eq!(table.locate(first_a), (a, 0));
        assert_eq!(table.locate(first_c), (c, 0));

        table.untrack(b);
        let (small, first_small) = table.track(5).unwrap();
        assert_eq!((small, first_small), (b, first_b), "both used again");
        let (_, first_large) = table.track(2000).unwrap();
        assert!(first_large > first_c, "does not fit in the gap");
        assert_eq!(table.record(PageId(first_large.0 + 1999)).state(), PageState::Untouched);
    }

    #[test]
    fn too_many_pages_are_an_error_that_changes_nothing() {
        let mut table = PageTable::default();
        assert_eq!(table.track(1 << 60), Err(TooManyPages));
        assert_eq!(table.track(u64::MAX), Err(TooManyPages));
        assert_eq!(table.metadata_bytes(), 0);
        assert!(table.track(3).is_ok());
    }

    #[test]
    fn pages_that_nobody_has_looked_at_take_no_memory() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        let mut table = PageTable::default();
        let (slot, _) = table.track(16 << 20).unwrap();
        assert!(table.records(slot).iter().all(|record| record.state() == PageState::Untouched));
        assert!(resident() < before + (32 << 20) / 4096, "of 256 MiB of records");
    }

    #[test]
    fn a_page_takes_16_bytes_and_little_more() {
        let mut table = PageTable::default();
        table.track(1 << 20).unwrap();
        assert!(table.metadata_bytes() < (16 << 20) + (16 << 10));
    }
}
