//! Merging again what was written to after it was merged.
//!
//! Such pages lie in the mapping of a file, and the kernel does not move them out of view. It need not:
//!
//! 1. Writers wait: the run leaves the tracking context for one that write protects synchronously.
//!    Readers go on.
//! 2. What may be pinned, so that a device could be writing to it all the same, is left alone.
//! 3. Each page is compared with its frame, where it is.
//! 4. The frames are mapped over equal pages, in one step, and everybody is woken.
//!
//! Done for several runs at a time, since to find out what may be pinned takes as long for one page as for
//! many. It can be found out only while writers wait: whoever pins a page before had a file open by then.

use std::ops::Range;
use std::sync::atomic::Ordering;

use numerge_engine::Kpfn;
use numerge_engine::machine::{Outcome, PAGE_SIZE, Vpn};

use crate::frame_file::FrameRun;
use crate::maps::Attributes;
use crate::memory::{Bench, ProcessMemory, STAGING_PAGES, Tables, span};
use crate::merge::map_frames;
use crate::num::{PAGE_BYTES, address, count, pointer, size};

/// Most runs whose writers wait at the same time.
const RUNS: usize = 32;

/// Pages in a file mapping, at most a staging area's worth, that are to be merged with frames.
pub(crate) struct Again {
    pub(crate) pages: Range<Vpn>,
    /// The first of the frames, which are all in one file.
    pub(crate) kpfn: Kpfn,
    /// Where the outcome of the first page goes.
    pub(crate) place: usize,
}

/// What of it there is still, and with one kind of attributes.
struct Part {
    pages: Range<Vpn>,
    attributes: Attributes,
    frames: FrameRun,
    place: usize,
    /// Whether its writers wait.
    held: bool,
}

impl ProcessMemory {
    /// Merges pages of file mappings, and sets an outcome for each. What is in no such mapping any more is
    /// refused, as it is before.
    pub(crate) fn merge_again(&self, again: &[Again], out: &mut [Outcome]) {
        let mut rest = again;
        while !rest.is_empty() {
            let mut pages = 0;
            let fits = rest.iter().take(RUNS).take_while(|next| {
                pages += count(&next.pages);
                pages <= STAGING_PAGES as u64
            });
            let (group, others) = rest.split_at(fits.count().max(1));
            rest = others;
            // Short, so that forks and writers get their turn.
            let mut bench = self.bench();
            let mut parts: Vec<Part> =
                group.iter().flat_map(|next| self.parts(&bench, next)).collect();
            self.merge_parts(&mut bench, &mut parts, out);
        }
    }

    fn parts(&self, bench: &Bench<'_>, again: &Again) -> Vec<Part> {
        let (tables, mut parts, mut at) = (&bench.tables, Vec::new(), again.pages.start);
        let end = again.pages.end;
        let Some(frames) = self.frames.locate(again.kpfn, count(&again.pages)) else {
            return parts;
        };
        while let Some(found) = tables.registered_file_in(&(at..end)) {
            let Some((pages, attributes)) = tables.in_file.next_in(&found) else { break };
            at = pages.end;
            if tables.leaving.next_in(&pages).is_none() {
                let offset = pages.start.0 - again.pages.start.0;
                let frames = FrameRun { first: frames.first + offset, ..frames.clone() };
                let place = again.place + size(offset);
                parts.push(Part { pages, attributes, frames, place, held: false });
            }
        }
        parts
    }

    fn merge_parts(&self, bench: &mut Bench<'_>, parts: &mut [Part], out: &mut [Outcome]) {
        let Tables { pin_test, registered, .. } = &mut *bench.tables;
        pin_test.clear();
        // From here on until all are released, nothing is allocated.
        for part in &mut *parts {
            part.held = self.hold_writers(&part.pages).is_ok()
                && self.add_own_pages(&part.pages, pin_test).is_ok();
            if !part.held {
                self.release_writers(&part.pages);
            }
        }
        pin_test.passes(registered);
        for part in &*parts {
            let out = &mut out[part.place..part.place + size(count(&part.pages))];
            if part.held {
                self.merge_part(part, pin_test.pinned(), out);
                self.release_writers(&part.pages);
            } else {
                out.fill(Outcome::Exhausted);
            }
        }
        pin_test.put_back(|page| {
            let of = parts.iter().find(|part| part.pages.contains(&page));
            of.is_none_or(|of| out[of.place + size(page.0 - of.pages.start.0)] != Outcome::Merged)
        });
        for Part { pages, place, .. } in parts {
            let mut start = pages.start;
            for same in out[*place..*place + size(count(pages))].chunk_by_mut(|a, b| a == b) {
                let run = start..start.plus(same.len() as u64);
                start = run.end;
                bench.tables.left.remove(&run);
                match same[0] {
                    Outcome::Merged => {
                        let counter = &self.counters.made_mergeable;
                        counter.fetch_add(count(&run), Ordering::Relaxed); // a counter
                    }
                    Outcome::Refused => bench.tables.left.insert(run, ()),
                    Outcome::Gone => {
                        // From its file mapping, that is.
                        bench.tables.in_file.remove(&run);
                        same.fill(Outcome::Exhausted);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Compares pages that nobody writes to with their frames, and maps those over the equal ones. Pages
    /// that are in no file mapping any more, though not merged, are said to be gone.
    fn merge_part(&self, part: &Part, pinned: &[Vpn], out: &mut [Outcome]) {
        for (n, outcome) in (0_u64..).zip(&mut *out) {
            let page = part.pages.start.plus(n);
            // SAFETY: the page is registered memory of the program, readable, and writers to it wait; the
            // frame is handed out, so it has memory and nobody writes to it; both are whole pages.
            let is_equal = || unsafe {
                libc::memcmp(pointer(page).cast(), part.frames.content(n).cast(), PAGE_SIZE) == 0
            };
            *outcome = if pinned.contains(&page) {
                Outcome::Refused
            } else if is_equal() {
                Outcome::Merged
            } else {
                Outcome::Differs
            };
        }
        let mut first = 0;
        for same in out.chunk_by_mut(|a, b| a == b) {
            let run =
                part.pages.start.plus(first)..part.pages.start.plus(first + same.len() as u64);
            if same[0] == Outcome::Merged
                && map_frames(&run, &part.frames, first, part.attributes).is_err()
            {
                let lost = self.refill(&run);
                if lost {
                    self.copy_frames(&run, &part.frames, first);
                }
                same.fill(if lost { Outcome::Gone } else { Outcome::Exhausted });
            }
            first += same.len() as u64;
        }
    }

    /// Fills memory that had to be mapped where frames were to be, with their content. Kernels before 6.12
    /// may leave a hole where a MAP_FIXED mapping failed.
    fn copy_frames(&self, run: &Range<Vpn>, frames: &FrameRun, first: u64) {
        let mut at = run.start;
        while at < run.end {
            let from = frames.content(first + (at.0 - run.start.0));
            // SAFETY: frames that are handed out have memory, and nobody writes to them.
            let copied =
                unsafe { self.tracking.copy_pages(address(at), from.addr() as u64, PAGE_BYTES) };
            match copied.stopped.and_then(|error| error.raw_os_error()) {
                // No memory: that passes.
                Some(libc::ENOMEM | libc::EAGAIN) => {
                    std::thread::yield_now();
                    continue;
                }
                Some(libc::EEXIST) => {
                    // Somebody has found a page of zeros before there was anybody to wait for.
                    // SAFETY: registered memory of the program, whose content this is.
                    unsafe { std::ptr::copy_nonoverlapping(from, pointer(at), PAGE_SIZE) };
                }
                // Or it is gone, and nobody misses it.
                _ => {}
            }
            at = at.plus(1);
        }
        // Fails only if the range is no valid one, which it is.
        let _ = self.tracking.wake(span(run));
    }
}
