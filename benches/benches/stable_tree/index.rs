//! The indexes that are compared, behind one face.
//!
//! Keys are numbered; each index makes of the number what it is keyed by. Whatever protects readers
//! is taken once for [`BATCH`] lookups, as the engine does.

use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::time::{Duration, Instant};

use crossbeam_skiplist::SkipMap;
use numerge_benches::scatter;
use numerge_engine::machine::PAGE_SIZE;
use numerge_stable_tree::{Fingerprint, Forest, Guard, Handle, Kpfn, TreeId};
use papaya::HashMap;

/// Keys under one guard.
const BATCH: u64 = 256;
const BATCH_KEYS: usize = 256;
/// Bytes that an index and the rest of the machine may need beside the pages.
const SPARE_BYTES: u64 = 2 << 30;

/// An index from keys to numbers.
pub(crate) trait Index: Default + Sync {
    /// Why an index of so many entries can't be had here.
    fn fits(_entries: u64) -> Result<(), String> {
        Ok(())
    }

    /// Inserts keys it does not have, and gives how long that took, the making of keys left out.
    fn insert(&mut self, keys: Range<u64>) -> Duration;

    /// Removes keys it has.
    fn remove(&mut self, keys: Range<u64>);

    /// Looks up `count` keys. Gives how many it has.
    fn hits(&self, count: u64, key: impl FnMut() -> u64) -> u64;
}

/// What a fingerprint of the page with this number would be.
fn fingerprint(key: u64) -> u128 {
    u128::from(scatter(key)) << 56 | u128::from(scatter(!key) >> 8)
}

/// Calls `batch` for `count` lookups in pieces, and adds what it gives.
fn in_batches(count: u64, mut batch: impl FnMut(u64) -> u64) -> u64 {
    let whole: u64 = (0..count / BATCH).map(|_| batch(BATCH)).sum();
    whole + batch(count % BATCH)
}

/// How many of `count` lookups find something.
fn count_found(count: u64, mut found: impl FnMut() -> bool) -> u64 {
    (0..count).map(|_| u64::from(found())).sum()
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// numerge's stable tree, with one frame a content.
pub(crate) struct StableTree {
    forest: Forest,
    free: Vec<Kpfn>,
    next: u64,
}

const TREE: TreeId = TreeId(0);

impl Default for StableTree {
    fn default() -> Self {
        Self { forest: Forest::new(1), free: Vec::new(), next: 0 }
    }
}

impl StableTree {
    /// A frame number that is not in use; small ones, as frame pools give them.
    fn kpfn(&mut self) -> Kpfn {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            Kpfn(self.next - 1)
        })
    }

    /// The frame of a content.
    fn find(&self, guard: &Guard<'_>, key: u64) -> Option<Kpfn> {
        let siblings = self.forest.siblings(TREE, Fingerprint::new(fingerprint(key)), guard);
        siblings.iter().next().map(|entry| entry.kpfn())
    }

    /// Ends grace periods until every frame has come back.
    fn collect(&mut self, handle: &Handle) {
        while self.forest.epoch_lag() > 0 {
            handle.flush();
        }
        self.free.extend(std::iter::from_fn(|| self.forest.freed()));
    }
}

impl Index for StableTree {
    fn insert(&mut self, keys: Range<u64>) -> Duration {
        let keys: Vec<_> = keys.map(|key| (fingerprint(key), self.kpfn())).collect();
        let handle = self.forest.register();
        timed(|| {
            for batch in keys.chunks(BATCH_KEYS) {
                let guard = handle.pin();
                for &(fingerprint, kpfn) in batch {
                    self.forest.create(kpfn, 1);
                    let seen = self.forest.siblings(TREE, Fingerprint::new(fingerprint), &guard);
                    let inserted = self.forest.insert(&guard, &seen, kpfn);
                    assert_eq!(inserted, Ok(()), "the key is new");
                }
            }
        })
    }

    fn remove(&mut self, keys: Range<u64>) {
        let handle = self.forest.register();
        for key in keys {
            let guard = handle.pin();
            let kpfn = self.find(&guard, key).expect("the key is there");
            assert!(self.forest.give_up(&guard, kpfn), "the frame has one sharer");
        }
        self.collect(&handle);
    }

    fn hits(&self, count: u64, mut key: impl FnMut() -> u64) -> u64 {
        let handle = self.forest.register();
        in_batches(count, |count| {
            let guard = handle.pin();
            count_found(count, || self.find(&guard, key()).is_some())
        })
    }
}

type Page = [u8; PAGE_SIZE];

/// A tree of pages, ordered by content.
#[derive(Default)]
pub(crate) struct Pages(BTreeMap<Box<Page>, u64>);

/// Makes a page the one with this number; all but its first bytes are the same in every page.
fn make_page(page: &mut Page, key: u64) {
    page[..16].copy_from_slice(&fingerprint(key).to_ne_bytes());
}

impl Index for Pages {
    fn fits(entries: u64) -> Result<(), String> {
        let needed = entries * PAGE_SIZE as u64 + SPARE_BYTES;
        let available = numerge_linux::available_bytes().map_err(|error| error.to_string())?;
        if needed > available {
            return Err(format!(
                "the pages need {} MiB of memory and {} are available",
                needed >> 20,
                available >> 20
            ));
        }
        Ok(())
    }

    fn insert(&mut self, keys: Range<u64>) -> Duration {
        let make = |key| {
            let mut page = Box::new([0x5a; PAGE_SIZE]);
            make_page(&mut page, key);
            (page, key)
        };
        let pages: Vec<_> = keys.map(make).collect();
        timed(|| self.0.extend(pages))
    }

    fn remove(&mut self, keys: Range<u64>) {
        let mut page = [0x5a; PAGE_SIZE];
        for key in keys {
            make_page(&mut page, key);
            assert!(self.0.remove(&page).is_some(), "the key is there");
        }
    }

    fn hits(&self, count: u64, mut key: impl FnMut() -> u64) -> u64 {
        let mut page = [0x5a; PAGE_SIZE];
        count_found(count, || {
            make_page(&mut page, key());
            self.0.contains_key(&page)
        })
    }
}

/// crossbeam-skiplist.
#[derive(Default)]
pub(crate) struct SkipList(SkipMap<u128, u64>);

impl Index for SkipList {
    fn insert(&mut self, keys: Range<u64>) -> Duration {
        let keys: Vec<_> = keys.map(|key| (fingerprint(key), key)).collect();
        timed(|| {
            for batch in keys.chunks(BATCH_KEYS) {
                // The map pins for itself, which costs little inside of this.
                let _guard = crossbeam_epoch::pin();
                for &(fingerprint, key) in batch {
                    self.0.insert(fingerprint, key);
                }
            }
        })
    }

    fn remove(&mut self, keys: Range<u64>) {
        for key in keys {
            assert!(self.0.remove(&fingerprint(key)).is_some(), "the key is there");
        }
    }

    fn hits(&self, count: u64, mut key: impl FnMut() -> u64) -> u64 {
        in_batches(count, |count| {
            let _guard = crossbeam_epoch::pin();
            count_found(count, || self.0.get(&fingerprint(key())).is_some())
        })
    }
}

/// Takes a fingerprint for its own hash, which it is.
#[derive(Clone, Copy, Default)]
pub(crate) struct TakeAsIs(u64);

impl Hasher for TakeAsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are hashed")
    }

    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = u64::try_from(fingerprint & u128::from(u64::MAX)).unwrap_or(0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Hashes nothing.
pub(crate) type Uniform = BuildHasherDefault<TakeAsIs>;

impl Index for HashMap<u128, u64, Uniform> {
    fn insert(&mut self, keys: Range<u64>) -> Duration {
        let keys: Vec<_> = keys.map(|key| (fingerprint(key), key)).collect();
        timed(|| {
            for batch in keys.chunks(BATCH_KEYS) {
                let map = self.pin();
                for &(fingerprint, key) in batch {
                    map.insert(fingerprint, key);
                }
            }
        })
    }

    fn remove(&mut self, keys: Range<u64>) {
        let map = self.pin();
        for key in keys {
            assert!(map.remove(&fingerprint(key)).is_some(), "the key is there");
        }
    }

    fn hits(&self, count: u64, mut key: impl FnMut() -> u64) -> u64 {
        in_batches(count, |count| {
            let map = self.pin();
            count_found(count, || map.get(&fingerprint(key())).is_some())
        })
    }
}
