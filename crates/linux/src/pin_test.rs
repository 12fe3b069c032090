//! Which pages are pinned, found out by moving them to another NUMA node: the kernel does not move what
//! somebody holds on to.
//!
//! Done while nobody can write to the pages, so that nobody can begin to hold on to one with the right to
//! write (which takes a write fault first). So it tells all pins of which a device could make use to
//! write, as long as those for reading only are not for long: see [`Pins::ByFiles`].

use std::ffi::c_int;
use std::ops::Range;

use numerge_engine::machine::{PAGE_SIZE, Vpn};
use numerge_topology::allowed_memory_nodes;

use crate::maps::Attributes;
use crate::memory::STAGING_PAGES;
use crate::nodes::move_pages;
use crate::num::{address, size};
use crate::pins::{self, Pins};
use crate::ranges::Ranges;

/// Which of the pages that nobody can write to now may be pinned. Reused: asking allocates nothing.
#[derive(Debug)]
pub(crate) struct PinTest {
    /// Where pages may go.
    nodes: Vec<c_int>,
    /// The pages looked at, as addresses.
    addresses: Vec<usize>,
    /// Where they were before they were moved; none if they were not.
    before: Vec<c_int>,
    /// Which of them may be pinned.
    pinned: Vec<Vpn>,
}

impl PinTest {
    pub(crate) fn new() -> Self {
        let nodes = allowed_memory_nodes().unwrap_or_default();
        let nodes = nodes.iter().filter_map(|nid| nid.0.try_into().ok()).collect();
        Self {
            nodes,
            addresses: Vec::with_capacity(STAGING_PAGES),
            before: Vec::with_capacity(STAGING_PAGES),
            pinned: Vec::with_capacity(STAGING_PAGES),
        }
    }

    /// Whether it can be told of single pages that they are not pinned, as things stand.
    pub(crate) fn can_tell(&self, registered: &Ranges<Attributes>) -> bool {
        match pins::possible(registered) {
            Pins::None => true,
            Pins::ByFiles => self.has_several_nodes(),
            Pins::ByDevices => false,
        }
    }

    /// Whether there is more than one node that memory can be on.
    pub(crate) const fn has_several_nodes(&self) -> bool {
        self.nodes.len() > 1
    }

    /// Begins with no pages.
    pub(crate) fn clear(&mut self) {
        self.addresses.clear();
        self.before.clear();
        self.pinned.clear();
    }

    /// Has pages looked at, as many as there is room for. Nobody can write to them until the test is over.
    pub(crate) fn add(&mut self, pages: &Range<Vpn>) {
        let pages = (pages.start.0..pages.end.0).map(Vpn).take(self.room());
        self.addresses.extend(pages.map(|page| size(address(page))));
    }

    /// Pages that there is room for still.
    pub(crate) fn room(&self) -> usize {
        STAGING_PAGES - self.addresses.len()
    }

    /// Whether none of the pages may be pinned. Allocates nothing. Those that are not may be on other nodes
    /// afterwards: see [`PinTest::put_back`].
    ///
    /// The files this process has open are looked at now and not earlier: nobody has pinned one of the
    /// pages since they can't be written to, and who did before, did so by a file.
    pub(crate) fn passes(&mut self, registered: &Ranges<Attributes>) -> bool {
        if self.addresses.is_empty() {
            return true;
        }
        match pins::possible(registered) {
            // Also without a file: a process_vm_writev(2) may be under way.
            Pins::None | Pins::ByFiles if self.has_several_nodes() => self.try_to_move(),
            Pins::None => {}
            Pins::ByFiles | Pins::ByDevices => self.pinned.extend(self.addresses.iter().map(page)),
        }
        self.pinned.is_empty()
    }

    /// Finds pages that don't move.
    fn try_to_move(&mut self) {
        let count = self.addresses.len();
        let (mut before, mut wanted, mut after) =
            ([-1; STAGING_PAGES], [-1; STAGING_PAGES], [-1; STAGING_PAGES]);
        let (before, wanted, after) =
            (&mut before[..count], &mut wanted[..count], &mut after[..count]);
        let asked = move_pages(&self.addresses, None, before);
        for (wanted, before) in wanted.iter_mut().zip(&*before) {
            // One that is nowhere is not said to be where it was wanted afterwards.
            *wanted = self.nodes.iter().copied().find(|node| node != before).unwrap_or(-1);
        }
        let known = asked.is_ok() && before.iter().all(|node| *node >= 0);
        // The kernel gives up at the first that it can't move: those after it get their turn alone.
        let moved = known
            && move_pages(&self.addresses, Some(wanted), after).is_ok()
            && move_pages(&self.addresses, None, after).is_ok();
        let retry = |n: usize| {
            let (address, wanted) = (&self.addresses[n..=n], &wanted[n..=n]);
            let mut now = [-1];
            move_pages(address, Some(wanted), &mut now).is_ok()
                && move_pages(address, None, &mut now).is_ok()
                && now == *wanted
        };
        for n in 0..count {
            if !moved || (after[n] != wanted[n] && !retry(n)) {
                self.pinned.push(page(&self.addresses[n]));
            }
        }
        if known {
            self.before.extend_from_slice(before);
        }
    }

    /// Moves those pages that stay the program's own back to the nodes they were on, as far as there is room.
    /// Once, and nothing is allocated.
    pub(crate) fn put_back(&mut self, stays: impl Fn(Vpn) -> bool) {
        let mut kept = 0;
        for n in 0..self.before.len() {
            if stays(page(&self.addresses[n])) {
                self.addresses.swap(kept, n);
                self.before.swap(kept, n);
                kept += 1;
            }
        }
        if kept > 0 {
            let mut status = [-1; STAGING_PAGES];
            let (addresses, before) = (&self.addresses[..kept], &self.before[..kept]);
            // What can't be moved is as well where it is.
            let _ = move_pages(addresses, Some(before), &mut status[..kept]);
        }
        self.before.clear();
    }

    /// Which pages did not pass, in the order they were added. Of a test that was passed, none.
    pub(crate) fn pinned(&self) -> &[Vpn] {
        &self.pinned
    }
}

fn page(address: &usize) -> Vpn {
    Vpn((address / PAGE_SIZE) as u64)
}
