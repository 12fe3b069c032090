//! The head of a list of page records: a page number and a lock in one word.
//!
//! Both lists that run through page records (a bucket of the unstable tree, the rmap list of a
//! frame) are short and are changed in their middle, so each has a lock of its own, one bit of the
//! word that points to its first page. It is held for a handful of loads and stores, never over a
//! system call or an allocation.

use crate::PageId;
use crate::record::Link;
use crate::sync::{AtomicU64, Ordering};

const LOCKED: u64 = 1 << 63;
/// The word of an empty, unlocked list: page numbers are stored one up.
pub(crate) const EMPTY: u64 = 0;

/// A locked list. Dropping it unlocks.
pub(crate) struct Locked<'a> {
    word: &'a AtomicU64,
    /// The first page of the list, as it is to be when the lock is given back.
    pub(crate) first: Link,
}

/// The first page of a list that may be changing.
pub(crate) fn peek(word: &AtomicU64) -> Link {
    // Relaxed: pairs with nothing, and nothing is concluded from it.
    let seen = word.load(Ordering::Relaxed);
    (seen & !LOCKED).checked_sub(1).map(PageId)
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
            return Locked { word, first: seen.checked_sub(1).map(PageId) };
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
        let word = self.first.map_or(EMPTY, |page| page.0 + 1);
        // Release: pairs with the Acquire in `lock`.
        self.word.store(word, Ordering::Release);
    }
}
