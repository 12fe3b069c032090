//! Putting things back: staged pages into the program's view, ranges under tracking.
//!
//! What is here has to succeed, so it is tried until it does, or until it is certain that nobody
//! can miss it.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use numerge_engine::machine::Vpn;

use crate::memory::{ProcessMemory, span};
use crate::num::{PAGE_BYTES, PAGE_SHIFT, address, count, pointer, size};
use crate::sys;
use crate::uffd::Mode;

/// Tries to track a range again before that is given up: its content does not depend on it.
const TRIES: u32 = 100;
/// Rest between tries.
const REST: Duration = Duration::from_millis(1);

impl ProcessMemory {
    /// Moves staged pages from `at` on back to where they came from.
    ///
    /// There is no giving up short of that: the pages are the program's. What can stop the kernel
    /// is a lack of memory for page tables, which passes.
    pub(crate) fn put_back(&self, run: &Range<Vpn>, at: usize) {
        let mut at = at;
        let mut page = run.start;
        let mut longest = u64::MAX;
        while page < run.end {
            let src = self.staging.span().start + at as u64 * PAGE_BYTES;
            let len = (run.end.0 - page.0).min(longest);
            // SAFETY: the destination is missing (see `stage`, `convert`), and the staged pages are
            // the content that belongs there.
            let progress =
                unsafe { self.tracking.move_pages(address(page), src, len << PAGE_SHIFT) };
            let mut moved = progress.done >> PAGE_SHIFT;
            if moved > 0 {
                longest = u64::MAX;
            }
            match progress.stopped.as_ref().and_then(io::Error::raw_os_error) {
                None => {}
                Some(libc::EAGAIN) if moved > 0 => {}
                // It is back already, whatever the kernel says. What is copied from here would be zeros.
                Some(libc::EEXIST | libc::ENOENT) if moved == 0 && !self.is_there(src) => moved = 1,
                // The pages lie in more than one mapping: take fewer.
                Some(libc::ENOENT | libc::EINVAL) if moved == 0 && len > 1 => longest = len / 2,
                Some(libc::EEXIST) if moved == 0 => {
                    // In a hole that `refill` had to map first somebody has found a page of zeros.
                    // SAFETY: registered memory of the program, whose content this is; nobody but
                    // us knows the staged page.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            std::ptr::with_exposed_provenance::<u8>(size(src)),
                            pointer(page),
                            size(PAGE_BYTES),
                        );
                    }
                    moved = 1;
                }
                Some(libc::ENOENT | libc::EINVAL) if moved == 0 => {
                    // Against the rules the program has protected, locked or unmapped the page
                    // meanwhile. A copy can still be put there, unless it unmapped it, and then
                    // nobody misses it.
                    // SAFETY: nobody but us knows the staged page.
                    unsafe { self.tracking.copy_pages(address(page), src, PAGE_BYTES) };
                    moved = 1;
                }
                Some(_) => std::thread::sleep(REST),
            }
            page = page.plus(moved);
            at += size(moved);
        }
    }

    /// Whether there is a page at an address, in memory or swapped out.
    ///
    /// Whoever moves pages must ask. Linux 6.18 was seen to say EEXIST of a page that it had just
    /// moved, once in some 2000 CPU seconds of moving pages that are written to all the time: it seems
    /// to go on after an EAGAIN of its own without counting what it moves then, and to find that in
    /// its way when it tries once more. To believe it would be to lose the page.
    pub(crate) fn is_there(&self, address: u64) -> bool {
        let mut found = false;
        let bytes = address..address + PAGE_BYTES;
        // What becomes of the page depends on the answer, so there has to be one.
        while self.pagemap.find(bytes.clone(), 0, &mut |_| found = true).is_err() {
            std::thread::sleep(REST);
        }
        found
    }

    /// If nothing is mapped at `run`, maps missing anonymous memory there. Kernels before 6.12 may
    /// leave a hole where a MAP_FIXED mapping failed.
    pub(crate) fn refill(&self, run: &Range<Vpn>) -> bool {
        let all = span(run);
        // SAFETY: MAP_FIXED_NOREPLACE maps only where nothing is.
        let mapped = unsafe {
            sys::map(
                pointer(run.start),
                size(all.len),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_NORESERVE
                    | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        mapped.is_ok() && self.tracking.register(all, Mode::MISSING_WP).is_ok()
    }

    /// Begins to track a mapping just made.
    pub(crate) fn track_new(&self, pages: &Range<Vpn>) {
        let tracked = (0..TRIES).any(|_| {
            let registered = self.tracking.register(span(pages), Mode::WP).is_ok();
            if !registered {
                std::thread::sleep(REST);
            }
            registered
        });
        if !tracked {
            // Merged and right, but a write to it will not be seen.
            let counter = &self.counters.untracked;
            counter.fetch_add(count(pages), Ordering::Relaxed); // a counter
        }
    }

    /// Tracks writes in `pages`, and nothing else any more. The kernel ignores a registration that
    /// takes a mode away, so the old one has to end first; that also wakes who waits, and lets the
    /// kernel join the mappings.
    pub(crate) fn track_again(&self, pages: &Range<Vpn>) {
        // Fails only where nothing is mapped; then there is nothing to track either.
        let _ = self.tracking.unregister(span(pages));
        self.track_new(pages);
    }
}
