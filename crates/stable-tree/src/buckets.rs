//! Split order: a hash table that doubles without moving anything (Shalev and Shavit, JACM 2006).
//!
//! All entries are in one sorted list; buckets are only shortcuts into it, links without content
//! (sentinels). With 2^k buckets the k highest bits of a fingerprint, *in reverse*, number its
//! bucket. So bucket `i` stays the right place for half of its entries when the table doubles, and
//! the other half begins at bucket `i + 2^k`, whose parent `i` is its number without the highest
//! bit. Doubling is one compare-and-swap of the size. A new bucket's sentinel is linked when the
//! bucket is first used, starting from its parent; while one thread is doing that, others start
//! from the parent as well and wait for nobody.
//!
//! The list is in the order of the fingerprints, not of their reverse as in the paper, where the
//! bucket is the *lowest* bits of the hash: fingerprints are uniform at either end, and like this a
//! walk along the list can stop and resume by fingerprint.

use crate::list::{Key, Link, find};
use crate::sync::epoch::Guard;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::table::{CAPACITY, Indexed, Table};

/// Entries a bucket has on average before the table doubles.
const MAX_LOAD: u64 = if cfg!(loom) { 1 } else { 3 };

/// States of a bucket: nobody used it; one thread is linking its sentinel; linked.
const UNUSED: u32 = 0;
const CLAIMED: u32 = 1;
const READY: u32 = 2;

/// Aligned so that none lies across two cache lines.
#[derive(Debug)]
#[repr(align(32))]
struct Bucket {
    sentinel: Link,
    state: AtomicU32,
}

impl Indexed for Bucket {
    fn new(index: u64) -> Self {
        // Bucket 0 is where the list begins.
        let state = if index == 0 { READY } else { UNUSED };
        Self { sentinel: Link::new(Key::sentinel(index)), state: AtomicU32::new(state) }
    }
}

/// The buckets of one tree.
#[derive(Debug)]
pub(crate) struct Buckets {
    table: Table<Bucket>,
    /// How many are in use, a power of two.
    size: AtomicU64,
}

impl Buckets {
    pub(crate) fn new() -> Self {
        Self { table: Table::new(), size: AtomicU64::new(1) }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.table.bytes()
    }

    /// The first link of the list.
    pub(crate) fn first(&self) -> &Link {
        &self.bucket(0).sentinel
    }

    /// Doubles the table if so many entries are too many for it.
    pub(crate) fn grow(&self, entries: u64) {
        // Relaxed, both: the size is a hint which bucket to try; a bucket's state says if it is
        // there.
        let size = self.size.load(Ordering::Relaxed);
        if entries > size * MAX_LOAD && size < CAPACITY {
            // Losing means that someone else doubled it.
            let _ =
                self.size.compare_exchange(size, size * 2, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The nearest sentinel before `key`.
    pub(crate) fn start<'g>(&'g self, key: Key, guard: &'g Guard<'_>) -> &'g Link {
        let wanted = key.bucket(self.size.load(Ordering::Relaxed));
        let mut index = wanted;
        let mut bucket = self.bucket(index);
        // Acquire: pairs with the Release that made the bucket ready.
        while bucket.state.load(Ordering::Acquire) != READY {
            index = parent(index);
            bucket = self.bucket(index);
        }
        // Down again, a bit of the number at a time, linking what is missing.
        while index != wanted {
            index = child_towards(index, wanted);
            let child = self.bucket(index);
            if !link_sentinel(&bucket.sentinel, child, guard) {
                break;
            }
            bucket = child;
        }
        &bucket.sentinel
    }

    fn bucket(&self, index: u64) -> &Bucket {
        self.table.get_or_make(index).expect("the size is at most CAPACITY")
    }
}

/// `index` without its highest bit. `index` is not 0, for that bucket is always ready.
fn parent(index: u64) -> u64 {
    index ^ (1 << index.ilog2())
}

/// The bucket after `index` on the way from the ancestor `index` to `descendant`.
fn child_towards(index: u64, descendant: u64) -> u64 {
    let missing = descendant ^ index;
    index | (missing & missing.wrapping_neg())
}

/// Links a bucket's sentinel, starting from an ancestor's. False if another thread is at it.
fn link_sentinel(ancestor: &Link, bucket: &Bucket, guard: &Guard<'_>) -> bool {
    // Acquire: pairs with the Release below, in case the bucket is ready by now.
    match bucket.state.compare_exchange(UNUSED, CLAIMED, Ordering::Acquire, Ordering::Acquire) {
        Ok(_) => {}
        Err(state) => return state == READY,
    }
    let sentinel = (&raw const bucket.sentinel).cast_mut();
    loop {
        let gap = find(ancestor, bucket.sentinel.key, guard);
        // SAFETY: the claim made it ours to link; sentinels are never retired.
        if unsafe { gap.link(sentinel) } {
            break;
        }
    }
    // Release: who sees the bucket ready sees its sentinel in the list.
    bucket.state.store(READY, Ordering::Release);
    true
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing::look;
    use crate::{Forest, Kpfn};

    #[test]
    fn ancestors_of_a_bucket() {
        assert_eq!(parent(0b1011), 0b0011);
        assert_eq!(parent(1), 0);
        assert_eq!(child_towards(0, 0b1010), 0b0010);
        assert_eq!(child_towards(0b0010, 0b1010), 0b1010);
    }

    #[test]
    fn many_contents_are_found_again_while_the_table_doubles() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        for n in 0..20_000 {
            forest.create(Kpfn(n), 1);
            forest.insert(&guard, &look(&forest, &guard, n), Kpfn(n)).unwrap();
        }
        for n in 0..20_000 {
            let found: Vec<_> = look(&forest, &guard, n).iter().collect();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].kpfn(), Kpfn(n));
        }
        assert_eq!(forest.census(&guard).unwrap().entries, 20_000);
        for n in (0..20_000).step_by(2) {
            assert!(forest.give_up(&guard, Kpfn(n)));
        }
        assert!((0..20_000).all(|n| look(&forest, &guard, n).is_empty() == (n % 2 == 0)));
        assert_eq!(forest.census(&guard).unwrap().entries, 10_000);
    }
}
