//! What a program and its regions are for who registered them.

use std::ops::Range;
use std::sync::Arc;

use crate::machine::{MemoryError, Vpn};
use crate::nodes::{self, PagesByNode};
use crate::program::{Program, ProgramCounters};
use crate::region::Region;
use crate::run::Inner;
use crate::unmerge::{unregister, vanish};

/// A program, for statistics: what is counted of it is kept for as long as this is.
#[derive(Clone)]
pub struct ProgramHandle {
    pub(crate) inner: Arc<Inner>,
    pub(crate) program: Arc<Program>,
}

/// A registered range. Dropping it unregisters the range, and the memory is private then.
pub struct RegionHandle {
    pub(crate) inner: Arc<Inner>,
    pub(crate) region: Arc<Region>,
}

impl ProgramHandle {
    /// What merging did to it. Takes no lock, and the same time whatever it has registered.
    #[must_use]
    pub fn counters(&self) -> ProgramCounters {
        let tally = &self.inner.core.tally;
        self.program.counters(tally.shared.get(), tally.sharing.get())
    }

    /// Mappings that it may have, its own included, before merging adds no more to them, where a program
    /// may have `limit` (`vm.max_map_count`).
    #[must_use]
    pub fn mappings_budget(&self, limit: u64) -> u64 {
        self.program.budget(limit)
    }
}

impl RegionHandle {
    /// The pages of the region.
    #[must_use]
    pub fn pages(&self) -> Range<Vpn> {
        self.region.pages.clone()
    }

    /// Where the region's pages are now, merged ones where their frames are. Pages without memory,
    /// and the machine's page of zeros, are nowhere.
    ///
    /// # Errors
    /// If the machine can't be asked.
    pub fn pages_by_node(&self) -> Result<PagesByNode, MemoryError> {
        nodes::pages_of(&self.inner.core, &self.region)
    }

    /// Takes note that the program has unmapped or replaced pages: none of them is mapped to a frame any
    /// more. They stay registered, and what comes to lie there counts as written.
    ///
    /// To be called after that came about, and before anything else of these pages is merged.
    ///
    /// # Panics
    /// If the pages are not all the region's.
    pub fn vanished(&self, pages: Range<Vpn>) {
        let all = &self.region.pages;
        assert!(all.start <= pages.start && pages.end <= all.end, "pages of another region");
        let reader = self.inner.core.forest.register();
        let pages = self.region.index(pages.start)..self.region.index(pages.end);
        vanish(&self.inner.core, &reader, &self.region, pages);
    }

    /// Unmerges the region's pages and forgets it, as dropping does.
    ///
    /// # Errors
    /// If memory for private copies runs out, or the program does not answer; the region is registered
    /// still.
    pub fn unregister(&self) -> Result<(), MemoryError> {
        let reader = self.inner.core.forest.register();
        let done = unregister(&self.inner.core, &reader, &self.region);
        self.inner.core.return_freed(&reader);
        done
    }
}

impl Drop for RegionHandle {
    fn drop(&mut self) {
        if self.unregister().is_err() {
            // The region still stands in the engine, which must then outlive every page of it.
            std::mem::forget(Arc::clone(&self.inner));
        }
    }
}
