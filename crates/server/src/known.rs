//! The engine's regions of a client.

use std::collections::BTreeMap;
use std::ops::Range;

use numerge_engine::RegionHandle;
use numerge_engine::machine::Vpn;
use numerge_linux::Ranges;

use crate::pages::{count, overlap};

/// Regions by their first pages. They do not overlap.
#[derive(Default)]
pub(crate) struct Known {
    regions: BTreeMap<Vpn, RegionHandle>,
    pages: u64,
}

impl Known {
    /// Pages of all of them.
    pub(crate) const fn pages(&self) -> u64 {
        self.pages
    }

    pub(crate) fn insert(&mut self, handle: RegionHandle) {
        let pages = handle.pages();
        self.pages += count(&pages);
        self.regions.insert(pages.start, handle);
    }

    pub(crate) fn remove(&mut self, start: Vpn) -> Option<RegionHandle> {
        let handle = self.regions.remove(&start)?;
        self.pages -= count(&handle.pages());
        Some(handle)
    }

    pub(crate) fn get(&self, start: Vpn) -> Option<&RegionHandle> {
        self.regions.get(&start)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &RegionHandle> {
        self.regions.values()
    }

    /// Those with any of these pages, in order.
    pub(crate) fn with_any(&self, pages: &Range<Vpn>) -> Vec<Range<Vpn>> {
        let before = self.regions.range(..pages.end).rev().map(|(_, known)| known.pages());
        let mut found: Vec<_> = before.take_while(|known| overlap(known, pages)).collect();
        found.reverse();
        found
    }

    /// The same, to look for gaps.
    pub(crate) fn ranges(&self, pages: &Range<Vpn>) -> Ranges<()> {
        let mut known = Ranges::new();
        self.with_any(pages).into_iter().for_each(|pages| known.insert(pages, ()));
        known
    }
}
