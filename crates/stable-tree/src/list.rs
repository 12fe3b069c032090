//! A sorted list without locks (Harris, DISC 2001; Michael, SPAA 2002).
//!
//! A link is removed in two steps. A mark in its `next` decides that it is gone, and makes every
//! compare-and-swap on that pointer fail, so that nothing is linked behind it any more. Then it is
//! unlinked from its predecessor, by whoever comes by first; that one retires it. What has been
//! unlinked keeps its `next`, so readers that stand on it find their way back.
//!
//! The list holds the tree's entries in the order of their fingerprints, and among them the
//! buckets' sentinels (see `buckets`), which are never removed.

use std::ptr;

use crate::Fingerprint;
use crate::dups::Entry;
use crate::sync::epoch::Guard;
use crate::sync::{AtomicPtr, Ordering};

/// Place in the list: the fingerprint, then room for what stands before and after its entries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Key {
    high: u64,
    low: u64,
}

impl Key {
    const ENTRY: u128 = 1;
    const PAST: u128 = 2;
    const SHIFT: u32 = u128::BITS - Fingerprint::BITS;

    #[allow(clippy::cast_possible_truncation, reason = "split into its two halves")]
    const fn new(key: u128) -> Self {
        Self { high: (key >> 64) as u64, low: key as u64 }
    }

    const fn get(self) -> u128 {
        (self.high as u128) << 64 | self.low as u128
    }

    /// Of every entry with this fingerprint.
    pub(crate) const fn entry(fingerprint: Fingerprint) -> Self {
        Self::new(fingerprint.get() << Self::SHIFT | Self::ENTRY)
    }

    /// After every entry with this fingerprint and before all that follows.
    pub(crate) const fn past(fingerprint: Fingerprint) -> Self {
        Self::new(fingerprint.get() << Self::SHIFT | Self::PAST)
    }

    /// Of the sentinel of a bucket: the smallest key whose highest bits are those of the bucket's
    /// number in reverse.
    pub(crate) const fn sentinel(bucket: u64) -> Self {
        Self { high: bucket.reverse_bits(), low: 0 }
    }

    /// The bucket of this key among `buckets` (a power of two) of them.
    pub(crate) const fn bucket(self, buckets: u64) -> u64 {
        self.high.reverse_bits() & (buckets - 1)
    }

    pub(crate) const fn is_sentinel(self) -> bool {
        self.low as u128 & (Self::ENTRY | Self::PAST) == 0
    }

    pub(crate) const fn fingerprint(self) -> Fingerprint {
        Fingerprint::new(self.get() >> Self::SHIFT)
    }
}

/// What a list consists of. It is the first field of an entry, so a link that is not a sentinel is
/// an entry as well.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) key: Key,
    pub(crate) next: AtomicPtr<Link>,
}

const MARK: usize = 1;

/// Whether who owns the pointer is gone from its list.
pub(crate) fn is_marked<T>(pointer: *mut T) -> bool {
    pointer.addr() & MARK != 0
}

/// The pointer with the mark.
pub(crate) fn marked<T>(pointer: *mut T) -> *mut T {
    pointer.map_addr(|address| address | MARK)
}

/// The pointer without the mark.
pub(crate) fn unmarked<T>(pointer: *mut T) -> *mut T {
    pointer.map_addr(|address| address & !MARK)
}

/// Marks a `next`; false if it was marked already.
pub(crate) fn mark<T>(next: &AtomicPtr<T>) -> bool {
    // Acquire: pairs with the Release of who linked the successor, for the mark republishes it.
    let mut seen = next.load(Ordering::Acquire);
    while !is_marked(seen) {
        // AcqRel: as the load; and who sees the mark sees what was decided before it.
        match next.compare_exchange(seen, marked(seen), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
    false
}

impl Link {
    pub(crate) fn new(key: Key) -> Self {
        Self { key, next: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// A gap in the list: the pointer in front of it, and what that pointed to.
#[derive(Debug)]
pub(crate) struct Gap<'g> {
    prev: &'g AtomicPtr<Link>,
    /// The first link at or after the gap's key; null at the end.
    pub(crate) next: *mut Link,
}

impl Gap<'_> {
    /// Links `link` here, if nothing was linked or unlinked here since the gap was found.
    ///
    /// # Safety
    /// `link` is not in any list, is not shared yet, and may be retired only after it is unlinked.
    pub(crate) unsafe fn link(&self, link: *mut Link) -> bool {
        // SAFETY: passed on to the caller.
        let next = unsafe { &(*link).next };
        // Relaxed: not shared before the line below.
        next.store(self.next, Ordering::Relaxed);
        // Release: pairs with the Acquire loads by which others reach the link.
        self.prev.compare_exchange(self.next, link, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

/// Finds the gap in front of the first link whose key is `key` or more, and unlinks and retires
/// every marked entry on the way there. `start` must be before `key`.
pub(crate) fn find<'g>(start: &'g Link, key: Key, guard: &'g Guard<'_>) -> Gap<'g> {
    'again: loop {
        let mut prev = &start.next;
        // Acquire, here and below: pairs with the Release by which a link was linked.
        let mut cur = prev.load(Ordering::Acquire);
        while !cur.is_null() {
            // SAFETY: `cur` was loaded under `guard` from a link that was in the list then.
            let link = unsafe { guard.deref(cur) };
            let next = link.next.load(Ordering::Acquire);
            if is_marked(next) {
                // Release: hands on the link behind. If this fails, `prev` got another successor
                // or is marked itself, and only a new start tells which.
                let after = unmarked(next);
                if prev.compare_exchange(cur, after, Ordering::Release, Ordering::Relaxed).is_err()
                {
                    continue 'again;
                }
                // SAFETY: only entries are marked, and only one thread can unlink a link, for a
                // link is used once: we did.
                unsafe { guard.retire(cur.cast::<Entry>()) };
                cur = after;
            } else if link.key >= key {
                return Gap { prev, next: cur };
            } else {
                prev = &link.next;
                cur = next;
            }
        }
        return Gap { prev, next: cur };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_fingerprints_with_sentinels_before_their_range() {
        let fingerprints = [0, 1, 1 << 56, 1 << 119, (1 << 119) + 5, (1 << 120) - 1];
        for fingerprint in fingerprints.map(Fingerprint::new) {
            let key = Key::entry(fingerprint);
            assert_eq!(key.fingerprint(), fingerprint);
            assert!(key < Key::past(fingerprint) && !key.is_sentinel());
            for buckets in [1, 2, 8, 1 << 36] {
                let sentinel = Key::sentinel(key.bucket(buckets));
                assert!(sentinel < key && sentinel.is_sentinel());
                assert_eq!(sentinel.bucket(buckets), key.bucket(buckets));
            }
        }
        assert!(Key::past(Fingerprint::new(7)) < Key::entry(Fingerprint::new(8)));
        assert!(Key::sentinel(1) > Key::sentinel(2));
    }
}
