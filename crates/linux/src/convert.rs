//! Gives pages of a file mapping back to anonymous memory, with their content.
//!
//! What is mapped to frames, or was and has been written to since, is part of a file mapping, and
//! the kernel moves (so lets us merge) only pages of anonymous mappings. So:
//!
//! 1. Writers wait: the run leaves the tracking context for one that write protects synchronously.
//!    Readers go on.
//! 2. The content is copied to the staging area, whose memory was made sure of first.
//! 3. An empty anonymous mapping, registered beforehand so that who finds a page missing waits, is
//!    put over the run by one mremap: at no moment is the run without an owner.
//! 4. The staged pages are moved in, and everybody is woken.
//!
//! Joining. The kernel joins two anonymous mappings only if they share an `anon_vma` (or one has
//! none yet), and a mapping takes over its neighbour's only if all flags are equal. So for the
//! moment of step 4 one page of anonymous neighbour memory is registered in the same way as the
//! run: the two become one mapping, with the neighbour's `anon_vma`, and when both are registered
//! for tracking again everything is one mapping as before.

use std::io;
use std::ops::Range;

use numerge_engine::machine::{PAGE_SIZE, Vpn};

use crate::area::Area;
use crate::maps::Attributes;
use crate::memory::{Bench, ProcessMemory, Tables, pages_of, span};
use crate::num::{address, count, pointer, size};
use crate::pagemap::category;
use crate::pin_test::PinTest;
use crate::ranges::Ranges;
use crate::uffd::Mode;
use crate::{nodes, sys};

/// Tries of a write protection that the kernel says to try again.
const TRIES: u32 = 100;

/// Why pages stay in the file mapping. They are as they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// A device may be writing to one of them.
    MaybePinned,
    /// The machine lacks memory or mappings.
    Exhausted,
}

impl ProcessMemory {
    /// Gives adjacent pages of one registered range, all in file mappings, back to anonymous memory.
    /// At most a staging area's worth. None, if there are such among them that the program wrote to and
    /// that may be pinned; [`Tables::pin_test`] knows which.
    pub(crate) fn convert(
        &self,
        bench: &mut Bench<'_>,
        pages: &Range<Vpn>,
        attributes: Attributes,
    ) -> Result<(), Refusal> {
        let tables = &mut *bench.tables;
        let empty = tables.empties.iter().find(|(of, _)| *of == attributes);
        let Some((_, empty)) = empty.filter(|_| !self.strict_overcommit) else {
            return Err(Refusal::Exhausted);
        };
        let neighbour = neighbour(tables, pages, attributes);
        // From here to wake(), nothing is allocated.
        if self.hold_writers(pages).is_err() {
            self.release_writers(pages);
            return Err(Refusal::Exhausted);
        }
        let Tables { pin_test, registered, .. } = tables;
        let copied = self.snapshot(pages, pin_test, registered);
        let swapped = copied.and_then(|()| {
            if put_over(pages, empty).is_ok() || self.refill(pages) {
                Ok(())
            } else {
                Err(Refusal::Exhausted)
            }
        });
        if let Err(refusal) = swapped {
            self.release_writers(pages);
            self.drop_staged(size(count(pages)));
            pin_test.put_back(|_| true);
            return Err(refusal);
        }
        // Only a loss of joining if it fails.
        let _ = self.tracking.register(span(&neighbour), Mode::MISSING_WP);
        self.put_back(pages, 0);
        // Both fail only if the range is no valid one, which it is.
        let _ = self.tracking.wake(span(pages));
        let _ = self.holding.wake(span(pages));
        let both = neighbour.start.min(pages.start)..neighbour.end.max(pages.end);
        self.track_again(&both);
        tables.islands += u64::from(neighbour.is_empty());
        tables.in_file.remove(pages);
        tables.left.remove(pages);
        Ok(())
    }

    /// Makes who writes to `pages` wait.
    pub(crate) fn hold_writers(&self, pages: &Range<Vpn>) -> io::Result<()> {
        self.tracking.unregister(span(pages))?;
        self.holding.register(span(pages), Mode::WP)?;
        let mut tries = 0;
        loop {
            match self.holding.write_protect(span(pages)) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES => {
                    tries += 1;
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        // A debugger's write in flight (/proc/PID/mem, ptrace) holds the address space's lock for
        // reading from when it has its page to when it is done. Any call that takes that lock for
        // writing waits for it; this one changes nothing else.
        self.tracking.register(self.staging.span(), Mode::WP)
    }

    /// Ends that; tracks again.
    pub(crate) fn release_writers(&self, pages: &Range<Vpn>) {
        // Fails if the range is not there in that context; then there is nothing to end.
        let _ = self.holding.unregister(span(pages));
        let _ = self.holding.wake(span(pages));
        self.track_again(pages);
    }

    /// Has those of `pages` tested that the program wrote to. A page swapped out is not looked at: no device
    /// can be writing to it.
    pub(crate) fn add_own_pages(
        &self,
        pages: &Range<Vpn>,
        pin_test: &mut PinTest,
    ) -> io::Result<()> {
        let bytes = address(pages.start)..address(pages.end);
        self.pagemap.find(bytes, category::PRESENT, &mut |region| {
            if region.categories & (category::FILE | category::PFNZERO) == 0 {
                pin_test.add(&pages_of(&region));
            }
        })
    }

    /// Copies pages that nobody can write to now to the staging area.
    fn snapshot(
        &self,
        pages: &Range<Vpn>,
        pin_test: &mut PinTest,
        registered: &Ranges<Attributes>,
    ) -> Result<(), Refusal> {
        pin_test.clear();
        if self.add_own_pages(pages, pin_test).is_err() {
            return Err(Refusal::Exhausted);
        }
        if pin_test.has_several_nodes() {
            // Only a matter of speed: else they would come to be where this thread is, or the test moves
            // them.
            nodes::prefer_node_of(pages.start, self.staging.span());
        }
        if !pin_test.passes(registered) {
            return Err(Refusal::MaybePinned);
        }
        let len = size(count(pages)) * PAGE_SIZE;
        let staging = self.staging.as_ptr();
        // SAFETY: advice on memory that is ours, which holds nothing.
        let filled = unsafe { sys::advise(staging, len, libc::MADV_POPULATE_WRITE) };
        if filled.is_err() {
            return Err(Refusal::Exhausted);
        }
        // SAFETY: the run is registered memory of the program, readable, and writers to it wait;
        // the staging area is ours alone and as long.
        unsafe { std::ptr::copy_nonoverlapping(pointer(pages.start).cast_const(), staging, len) };
        Ok(())
    }
}

/// Replaces the mapping of `pages` by missing pages, in one step.
pub(crate) fn put_over(pages: &Range<Vpn>, empty: &Area) -> io::Result<()> {
    let len = size(count(pages)) * PAGE_SIZE;
    // SAFETY: the destination is registered memory that the caller has the right to take apart,
    // with its content staged; MREMAP_DONTUNMAP keeps the empty area for the next time.
    unsafe { sys::move_over(empty.as_ptr(), len, pointer(pages.start)) }
}

/// A page of anonymous memory beside `pages`, in the same kind of range; empty if there is none.
fn neighbour(tables: &Tables, pages: &Range<Vpn>, attributes: Attributes) -> Range<Vpn> {
    let before = Vpn(pages.start.0.saturating_sub(1))..pages.start;
    let after = pages.end..pages.end.plus(1);
    let fits = |page: &Range<Vpn>| {
        tables.registered.get(page.start) == Some(attributes)
            && tables.in_file.get(page.start).is_none()
    };
    [before, after].into_iter().find(fits).unwrap_or(pages.start..pages.start)
}
