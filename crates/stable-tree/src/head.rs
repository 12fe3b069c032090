//! The head of a list of page records: a page number and a lock in one word.
//!
//! Both lists that run through page records (a bucket of the unstable tree, the rmap list of a
//! frame) are short and are changed in their middle, so each has a lock of its own, one bit of the
//! word that points to its first page. It is held for a handful of loads and stores, never over a
//! system call or an allocation.
//!
//! The bits that are left say something of what is in the list, so that most look-ups in vain need
//! not look at a page's record: each page's *mark* is one of them.

use crate::PageId;
use crate::record::Link;
use crate::sync::{AtomicU64, Ordering};

const LOCKED: u64 = 1 << 63;
/// Page numbers are stored one up.
const PAGE_MASK: u64 = (1 << MARKS_SHIFT) - 1;
const MARKS_SHIFT: u32 = PageId::BITS + 1;
/// Bits of marks.
pub(crate) const MARKS: u32 = 63 - MARKS_SHIFT;
/// The word of an empty, unlocked list.
pub(crate) const EMPTY: u64 = 0;

/// A locked list. Dropping it unlocks.
pub(crate) struct Locked<'a> {
    word: &'a AtomicU64,
    /// The first page of the list, as it is to be when the lock is given back.
    pub(crate) first: Link,
    /// At least the marks of all pages in the list, as they are to be then.
    pub(crate) marks: Marks,
}

/// Which marks there are in a list.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Marks(u64);

impl Marks {
    /// One mark, below [`MARKS`].
    pub(crate) const fn of(mark: u32) -> Self {
        Self(1 << mark)
    }

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

fn unpack(word: u64) -> (Link, Marks) {
    let first = (word & PAGE_MASK).checked_sub(1).map(PageId);
    (first, Marks((word & !LOCKED) >> MARKS_SHIFT))
}

/// The first page and the marks of a list that may be changing.
pub(crate) fn peek(word: &AtomicU64) -> (Link, Marks) {
    // Relaxed: pairs with nothing, and nothing is concluded from it.
    unpack(word.load(Ordering::Relaxed))
}

/// Locks the list whose head is `word`.
pub(crate) fn lock(word: &AtomicU64) -> Locked<'_> {
    let backoff = crossbeam::utils::Backoff::new();
    loop {
        // Relaxed: only a guess, the exchange below decides.
        let seen = word.load(Ordering::Relaxed);
        if seen & LOCKED == 0
            && word
                // Acquire: pairs with the Release in `drop`, so that what the last holder wrote to
                // the records of this list is seen. Relaxed on failure: nothing is read then.
                .compare_exchange_weak(seen, seen | LOCKED, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        {
            let (first, marks) = unpack(seen);
            return Locked { word, first, marks };
        }
        wait(&backoff);
    }
}

/// Lets the holder of a lock go on. It may be waiting for this CPU, so after a while this one is
/// given up.
#[cfg(not(loom))]
fn wait(backoff: &crossbeam::utils::Backoff) {
    backoff.snooze();
}

#[cfg(loom)]
fn wait(_: &crossbeam::utils::Backoff) {
    loom::thread::yield_now();
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // An empty list has no marks, so that they don't gather for ever.
        let word = self.first.map_or(EMPTY, |page| (page.0 + 1) | (self.marks.0 << MARKS_SHIFT));
        // Release: pairs with the Acquire in `lock`.
        self.word.store(word, Ordering::Release);
    }
}
