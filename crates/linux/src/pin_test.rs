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

use crate::memory::STAGING_PAGES;
use crate::nodes::move_pages;
use crate::num::{address, size};
use crate::pins::{self, Pins};

/// What becomes of pages that the program wrote to after they were merged.
pub(crate) enum Written<'a> {
    /// They stay: a device may be writing to them.
    Stay,
    /// They go: no device can be.
    Go,
    /// The test says it of each.
    Tested(&'a mut PinTest),
}

/// What is known of pins in this process, for a short time.
pub(crate) enum Pinning {
    Impossible,
    Testable(PinTest),
    Possible,
}

impl Pinning {
    /// Looks through the files this process has open.
    pub(crate) fn now() -> Self {
        match pins::possible() {
            Pins::None => Self::Impossible,
            Pins::ByFiles => PinTest::new().map_or(Self::Possible, Self::Testable),
            Pins::ByDevices => Self::Possible,
        }
    }

    /// Pages written to are safe from being taken for what they are not.
    pub(crate) const fn is_possible(&self) -> bool {
        matches!(self, Self::Possible)
    }

    pub(crate) const fn written(&mut self) -> Written<'_> {
        match self {
            Self::Impossible => Written::Go,
            Self::Testable(test) => Written::Tested(test),
            Self::Possible => Written::Stay,
        }
    }
}

/// The test.
pub(crate) struct PinTest {
    /// Where pages may go; at least two.
    nodes: Vec<c_int>,
    /// The pages looked at, as addresses.
    addresses: Vec<usize>,
    /// Which of them are pinned.
    pinned: Vec<Vpn>,
}

impl PinTest {
    /// None where pages have nowhere else to go.
    fn new() -> Option<Self> {
        let nodes = allowed_memory_nodes().ok()?;
        let nodes: Vec<c_int> = nodes.iter().filter_map(|nid| nid.0.try_into().ok()).collect();
        let room = || Vec::with_capacity(STAGING_PAGES);
        (nodes.len() > 1).then(|| Self {
            nodes,
            addresses: room(),
            pinned: Vec::with_capacity(STAGING_PAGES),
        })
    }

    /// Begins with no pages.
    pub(crate) fn clear(&mut self) {
        self.addresses.clear();
        self.pinned.clear();
    }

    /// Has pages looked at, at most a staging area's worth in all. Nobody can write to them until the
    /// test is over. Allocates nothing.
    pub(crate) fn add(&mut self, pages: &Range<Vpn>) {
        let room = STAGING_PAGES - self.addresses.len();
        let pages = (pages.start.0..pages.end.0).map(Vpn).take(room);
        self.addresses.extend(pages.map(|page| size(address(page))));
    }

    /// Whether none of the pages is pinned. They may be on other nodes then, while those that have a pinned
    /// one among them are back where they were, if there is room. Allocates nothing.
    pub(crate) fn passes(&mut self) -> bool {
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
                self.pinned.push(Vpn((self.addresses[n] / PAGE_SIZE) as u64));
            }
        }
        if self.pinned.is_empty() {
            return true;
        }
        if known {
            // What can't be moved back is as well where it is.
            let _ = move_pages(&self.addresses, Some(before), after);
        }
        false
    }

    /// Which pages did not pass, in the order they were added.
    pub(crate) fn pinned(&self) -> &[Vpn] {
        &self.pinned
    }
}
