//! Freeze, verify, map: how a run of pages becomes frames.
//!
//! 1. Register the run for missing pages too, and move its pages to the staging area. The kernel
//!    refuses to move what must not be merged (pinned for DMA, shared by a fork). Whoever touches
//!    a page that is gone, from user space or inside a system call, sleeps in the kernel.
//! 2. Compare the staged pages with the frames. Nobody else has them in view, and frames never
//!    change, so what is equal stays equal.
//! 3. Map the frames where equal pages were; move different ones back.
//! 4. Wake who waits, and only then do the rest: register for tracking alone again, so that the
//!    kernel joins the mappings, and drop the staged copies.
//!
//! A page not write protected counts as written, so a write between 3 and 4 is not missed.

use std::io;
use std::ops::Range;

use numerge_engine::machine::{Outcome, PAGE_SIZE, Run, Target, Vpn};

use crate::again::Again;
use crate::frame_file::{FILE_FRAMES, FrameRun};
use crate::maps::Attributes;
use crate::memory::{Bench, ProcessMemory, STAGING_PAGES, span};
use crate::num::{PAGE_BYTES, PAGE_SHIFT, address, count, pointer, size};
use crate::sys;
use crate::uffd::{Mode, Span};
use crate::unmerge::populate;

/// Tries of what the kernel says to try again, before it counts as refused.
const TRIES: u32 = 100;

/// What adjacent pages are to be merged with.
#[derive(Clone, Debug)]
enum Goal {
    Frames(FrameRun),
    Zero,
}

/// Where a page of the run is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Staged, and not equal to its frame, or not compared yet.
    Staged,
    /// Staged, and equal.
    Equal,
    /// In the program's view, never moved or back again, with this outcome.
    Settled(Outcome),
}

impl Place {
    /// Out of the program's view.
    pub(crate) const fn is_staged(self) -> bool {
        matches!(self, Self::Staged | Self::Equal)
    }

    /// There never was a page.
    pub(crate) const fn is_gone(self) -> bool {
        matches!(self, Self::Settled(Outcome::Gone))
    }
}

impl ProcessMemory {
    /// Merges what of one run is anonymous memory, and appends an outcome for each page. The rest goes to
    /// `again`.
    pub(crate) fn merge_run(&self, run: &Run, again: &mut Vec<Again>, out: &mut Vec<Outcome>) {
        let mut done = 0;
        while done < count(&run.pages) {
            let first = run.pages.start.plus(done);
            let mut len = (count(&run.pages) - done).min(STAGING_PAGES as u64);
            let goal = match run.target {
                Target::Zero => Some(Goal::Zero),
                Target::Frames(kpfn) => {
                    let kpfn = kpfn.plus(done);
                    len = len.min(FILE_FRAMES - kpfn.0 % FILE_FRAMES);
                    self.frames.locate(kpfn, len).map(Goal::Frames)
                }
            };
            let mut outcomes = [Outcome::Gone; STAGING_PAGES];
            let outcomes = &mut outcomes[..size(len)];
            match goal {
                Some(goal) if !self.is_inherited() => {
                    let pages = first..first.plus(len);
                    let files = self.merge_chunk(&pages, &goal, outcomes);
                    if let Target::Frames(kpfn) = run.target {
                        again.extend(files.into_iter().map(|file| {
                            let offset = file.start.0 - first.0;
                            let kpfn = kpfn.plus(done + offset);
                            Again { pages: file, kpfn, place: out.len() + size(offset) }
                        }));
                    }
                }
                _ => outcomes.fill(Outcome::Refused),
            }
            out.extend_from_slice(outcomes);
            done += len;
        }
    }

    /// Merges what is registered of at most a staging area's worth of pages, and gives what of it is in
    /// file mappings.
    fn merge_chunk(
        &self,
        pages: &Range<Vpn>,
        goal: &Goal,
        outcomes: &mut [Outcome],
    ) -> Vec<Range<Vpn>> {
        let mut bench = self.bench();
        if matches!(goal, Goal::Zero) {
            // Which is no page of a file.
            self.make_mergeable(&mut bench, pages);
        }
        let mut files = Vec::new();
        let mut at = pages.start;
        while let Some((piece, attributes)) = bench.tables.registered.next_in(&(at..pages.end)) {
            at = piece.end;
            if bench.tables.leaving.next_in(&piece).is_some() {
                let place = |page: Vpn| size(page.0 - pages.start.0);
                outcomes[place(piece.start)..place(piece.end)].fill(Outcome::Refused);
                continue;
            }
            let mut from = piece.start;
            while from < piece.end {
                let file = bench.tables.in_file.next_in(&(from..piece.end));
                let file = file.map_or(piece.end..piece.end, |(file, _)| file);
                let offset = |page: Vpn| size(page.0 - pages.start.0);
                if from < file.start {
                    let outcomes = &mut outcomes[offset(from)..offset(file.start)];
                    let first = from.0 - pages.start.0;
                    let part = from..file.start;
                    self.merge_piece(&mut bench, &part, attributes, goal, first, outcomes);
                    self.merge_unshared(&mut bench, &part, attributes, goal, first, outcomes);
                }
                outcomes[offset(file.start)..offset(file.end)].fill(Outcome::Refused);
                from = file.end;
                if !file.is_empty() {
                    files.push(file);
                }
            }
        }
        files
    }

    /// Tries once more what could not be moved, after taking it back from forks: a page that a fork
    /// made common stays so, also after the child's end, until it is written to.
    ///
    /// Costs nothing where the child is gone. Where it lives the page is copied, and if it is merged
    /// then the copy goes again. A page pinned for DMA was copied by the fork itself, so what is
    /// pinned stays the same page.
    fn merge_unshared(
        &self,
        bench: &mut Bench<'_>,
        pages: &Range<Vpn>,
        attributes: Attributes,
        goal: &Goal,
        first: u64,
        outcomes: &mut [Outcome],
    ) {
        let mut at = 0;
        for same in outcomes.chunk_by_mut(|a, b| a == b) {
            let start = at;
            at += same.len() as u64;
            if same[0] != Outcome::Pinned {
                continue;
            }
            let part = pages.start.plus(start)..pages.start.plus(at);
            // Not while the pages are frozen: one dropped meanwhile would make this thread wait for
            // itself.
            if populate(&part).is_ok() {
                self.merge_piece(bench, &part, attributes, goal, first + start, same);
            }
        }
    }

    /// Merges adjacent pages of one anonymous mapping; `first` is the place of its first page in
    /// the goal.
    fn merge_piece(
        &self,
        bench: &mut Bench<'_>,
        pages: &Range<Vpn>,
        attributes: Attributes,
        goal: &Goal,
        first: u64,
        outcomes: &mut [Outcome],
    ) {
        let mut places = [Place::Staged; STAGING_PAGES];
        let places = &mut places[..outcomes.len()];
        if let Err(error) = self.tracking.register(span(pages), Mode::MISSING_WP) {
            self.track_again(pages);
            outcomes.fill(failure(&error));
            return;
        }
        // From here to wake(), nothing is allocated and nothing may fail half-way.
        self.stage(pages, places);
        self.verify(goal, first, places);
        self.settle(pages, attributes, goal, first, places);
        // Fails only if the range is no valid one, which it is.
        let _ = self.tracking.wake(span(pages));

        let merged = Place::Settled(Outcome::Merged);
        let to_frames = matches!(goal, Goal::Frames(_));
        if to_frames && places.iter().all(|place| *place == merged) {
            self.track_new(pages);
        } else {
            self.track_again(pages);
        }
        // Also what was put back by copying.
        self.drop_staged(places.len());
        let mut at = pages.start;
        for same in places.chunk_by(|a, b| a == b) {
            let end = at.plus(same.len() as u64);
            if to_frames && same[0] == merged {
                bench.tables.in_file.insert(at..end, attributes);
            }
            at = end;
        }
        for (place, outcome) in places.iter().zip(outcomes) {
            match *place {
                Place::Settled(settled) => *outcome = settled,
                _ => debug_assert!(false, "a page was left in the staging area"),
            }
        }
    }

    /// Moves pages out of the program's view, those that the machine lets go of.
    pub(crate) fn stage(&self, pages: &Range<Vpn>, places: &mut [Place]) {
        let mut at = 0;
        let mut tries = 0;
        let mut longest = places.len();
        while at < places.len() {
            let dst = self.staging.span().start + at as u64 * PAGE_BYTES;
            let src = address(pages.start.plus(at as u64));
            let len = (places.len() - at).min(longest);
            // SAFETY: the caller has the right to take these pages apart (`Bench`), no Rust
            // reference points to them, and settle() brings back or replaces what goes.
            let progress = unsafe { self.tracking.move_pages(dst, src, len as u64 * PAGE_BYTES) };
            at += size(progress.done) / PAGE_SIZE;
            if progress.done > 0 {
                (tries, longest) = (0, places.len());
            }
            let Some(error) = progress.stopped else {
                continue;
            };
            match error.raw_os_error() {
                Some(libc::EAGAIN) if tries < TRIES => {
                    tries += 1;
                    if progress.done == 0 {
                        std::thread::yield_now();
                    }
                }
                // The pages lie in more than one mapping: take fewer.
                Some(libc::EINVAL) if len > 1 => longest = len / 2,
                _ => {
                    (tries, longest) = (0, places.len());
                    if !self.is_moved(pages.start.plus(at as u64), at)
                        && let Some(place) = places.get_mut(at)
                    {
                        *place = Place::Settled(failure(&error));
                    }
                    at += 1;
                }
            }
        }
    }

    /// Whether a page was moved to the n-th place of the staging area, whatever the kernel said: see
    /// [`Self::is_there`].
    fn is_moved(&self, page: Vpn, n: usize) -> bool {
        let staged = self.staging.span().start + n as u64 * PAGE_BYTES;
        !self.is_there(address(page)) && self.is_there(staged)
    }

    /// Compares staged pages with what they are to become.
    fn verify(&self, goal: &Goal, first: u64, places: &mut [Place]) {
        for (n, place) in places.iter_mut().enumerate() {
            if *place != Place::Staged {
                continue;
            }
            let staged = self.staged(n);
            let equal = match goal {
                // SAFETY: the staged page is ours alone now; the frame is handed out, so it has
                // memory and nobody writes to it; both are whole pages that live over the call.
                Goal::Frames(frames) => unsafe {
                    libc::memcmp(staged.cast(), frames.content(first + n as u64).cast(), PAGE_SIZE)
                        == 0
                },
                // SAFETY: the staged page is ours alone now, and is compared with itself shifted by
                // a byte: equal means that all bytes equal the first.
                Goal::Zero => unsafe {
                    staged.read() == 0
                        && libc::memcmp(staged.cast(), staged.wrapping_add(1).cast(), PAGE_SIZE - 1)
                            == 0
                },
            };
            if equal {
                *place = Place::Equal;
            }
        }
    }

    /// Puts something into the program's view for every staged page: what it is merged with, or
    /// itself.
    fn settle(
        &self,
        pages: &Range<Vpn>,
        attributes: Attributes,
        goal: &Goal,
        first: u64,
        places: &mut [Place],
    ) {
        let mut at = 0;
        while at < places.len() {
            let place = places[at];
            let mut len = places[at..].iter().take_while(|next| **next == place).count();
            let run = pages.start.plus(at as u64)..pages.start.plus((at + len) as u64);
            let outcome = match place {
                Place::Settled(outcome) => outcome,
                Place::Staged => {
                    self.put_back(&run, at);
                    Outcome::Differs
                }
                Place::Equal => {
                    let mapped = match goal {
                        Goal::Frames(frames) => {
                            let mapped = map_frames(&run, frames, first + at as u64, attributes);
                            if mapped.is_ok() { len } else { 0 }
                        }
                        Goal::Zero => self.map_zeros(&run),
                    };
                    if mapped > 0 {
                        // What could not be mapped gets its turn next.
                        len = mapped;
                        Outcome::Merged
                    } else {
                        self.refill(&run);
                        self.put_back(&run, at);
                        Outcome::Exhausted
                    }
                }
            };
            places[at..at + len].fill(Place::Settled(outcome));
            at += len;
        }
    }

    /// Maps the page of zeros to missing pages, and gives how many: what is mapped is in the
    /// program's view at once, and may be written to, so that it can't be taken back.
    fn map_zeros(&self, run: &Range<Vpn>) -> usize {
        let all = span(run);
        let (mut done, mut longest, mut tries) = (0, all.len, 0);
        while done < all.len {
            let part = Span { start: all.start + done, len: (all.len - done).min(longest) };
            let progress = self.tracking.zero_pages(part);
            done += progress.done;
            if progress.done > 0 {
                (tries, longest) = (0, all.len);
            }
            match progress.stopped.as_ref().and_then(io::Error::raw_os_error) {
                None => {}
                Some(libc::EAGAIN) if tries < TRIES => tries += 1,
                // The pages lie in more than one mapping: take fewer.
                Some(libc::ENOENT | libc::EINVAL) if part.len > PAGE_BYTES => {
                    longest = part.len / PAGE_BYTES / 2 * PAGE_BYTES;
                }
                Some(_) => break,
            }
        }
        size(done) / PAGE_SIZE
    }

    /// Where the n-th staged page is.
    pub(crate) fn staged(&self, n: usize) -> *mut u8 {
        self.staging.as_ptr().wrapping_add(n * PAGE_SIZE)
    }

    /// Forgets the first `pages` staged pages.
    pub(crate) fn drop_staged(&self, pages: usize) {
        // SAFETY: the staging area is ours, and what is left in it was replaced by equal content.
        let _ =
            unsafe { sys::advise(self.staging.as_ptr(), pages * PAGE_SIZE, libc::MADV_DONTNEED) };
    }
}

/// What the engine is to know of a page that could not be taken.
fn failure(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EFAULT) => Outcome::Gone,
        Some(libc::ENOMEM) => Outcome::Exhausted,
        Some(libc::EBUSY | libc::EAGAIN) => Outcome::Pinned,
        _ => Outcome::Refused,
    }
}

/// Maps frames over pages of the program that are equal to them.
pub(crate) fn map_frames(
    run: &Range<Vpn>,
    frames: &FrameRun,
    first: u64,
    attributes: Attributes,
) -> io::Result<()> {
    let reserve = if attributes.no_reserve { libc::MAP_NORESERVE } else { 0 };
    let len = size(span(run).len);
    // SAFETY: the range is registered memory that the caller has the right to take apart (`Bench`);
    // its content is equal to the frames, and nobody can write to it, so nobody can tell the difference.
    unsafe {
        sys::map(
            pointer(run.start),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | reserve,
            frames.fd(),
            (frames.first() + first) << PAGE_SHIFT,
        )
    }?;
    // Mapped it is. Should the machine have no memory for the advice, a child of a fork has the pages
    // too, or a core dump.
    let _ = attributes.give_to(pointer(run.start), len);
    Ok(())
}
