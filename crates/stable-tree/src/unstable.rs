//! The unstable tree: candidate pages without a partner, by fingerprint.
//!
//! Nothing here is write protected, so nothing here is trusted: a page that is found may have
//! changed since, and the merge that follows compares. Dirty tracking takes a page that changed out
//! of here when it is next scanned, so entries stay valid from scan to scan and nothing is rebuilt.
//!
//! It is a hash table whose chains run through the page records themselves: at 8 bytes a bucket and
//! at most two pages a bucket it takes at most 8 bytes a page beside the record. Each bucket has
//! its own lock (`head`).

use std::ops::Range;
use std::sync::Arc;

use crate::head::{self, EMPTY, Locked};
use crate::record::{Link, PageState, Records, ShortFingerprint};
use crate::sync::{AtomicU64, Ordering};
use crate::{Fingerprint, PageId};

/// Pages a bucket after growing, and when growing is due, in quarters.
const QUARTERS_AFTER: usize = 5;
const QUARTERS_DUE: usize = 8;
const LEAST_BUCKETS: usize = 8;

/// The unstable tree of one NUMA node, or of all.
#[derive(Debug)]
pub struct UnstableTree {
    buckets: Box<[AtomicU64]>,
    pages: Arc<AtomicU64>,
}

impl Default for UnstableTree {
    fn default() -> Self {
        Self::with_buckets(LEAST_BUCKETS)
    }
}

fn bucket_array(buckets: usize) -> Box<[AtomicU64]> {
    (0..buckets).map(|_| AtomicU64::new(EMPTY)).collect()
}

impl UnstableTree {
    fn with_buckets(buckets: usize) -> Self {
        Self { buckets: bucket_array(buckets), pages: Arc::new(AtomicU64::new(0)) }
    }

    /// Candidates without a partner (`pages_unshared`).
    pub fn pages(&self) -> u64 {
        // Relaxed: a counter.
        self.pages.load(Ordering::Relaxed)
    }

    /// What [`Self::pages`] counts with, for who wants to know while the tree is being changed: it is
    /// changed by Release, after the tree.
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.pages)
    }

    /// Where the table is.
    pub fn bytes(&self) -> Range<*const u8> {
        let Range { start, end } = self.buckets.as_ptr_range();
        start.cast()..end.cast()
    }

    /// Bytes of the table itself.
    pub fn metadata_bytes(&self) -> u64 {
        size_of_val(&*self.buckets) as u64
    }

    /// Loads what entering pages will need, so that the cache misses of all of them overlap: a few
    /// dozen at a time, before the first of them is entered.
    pub fn prefetch(
        &self,
        records: &(impl Records + ?Sized),
        pages: impl Iterator<Item = (Fingerprint, PageId)> + Clone,
    ) {
        let bucket = |fingerprint: Fingerprint| {
            &self.buckets[ShortFingerprint::from(fingerprint).bucket(self.buckets.len())]
        };
        // Two rounds, for what the second looks at depends on what the first brings: a branch on
        // something that is not there yet would stop everything behind it.
        for (fingerprint, page) in pages.clone() {
            // Relaxed: pairs with nothing, nothing is concluded from it.
            std::hint::black_box(bucket(fingerprint).load(Ordering::Relaxed));
            records.record(page).touch();
        }
        for (fingerprint, _) in pages {
            let (first, marks) = head::peek(bucket(fingerprint));
            if let Some(first) =
                first.filter(|_| marks.has(ShortFingerprint::from(fingerprint).mark()))
            {
                records.record(first).touch();
            }
        }
    }

    /// Loads what taking pages out again will need, as [`Self::prefetch`] does: a few dozen at a time.
    pub fn prefetch_removal(
        &self,
        records: &(impl Records + ?Sized),
        pages: impl Iterator<Item = PageId> + Clone,
    ) {
        let bucket = |page: PageId| match records.record(page).state() {
            PageState::Unshared(short) => Some(&self.buckets[short.bucket(self.buckets.len())]),
            _ => None,
        };
        for page in pages.clone() {
            records.record(page).touch();
        }
        for bucket in pages.clone().filter_map(bucket) {
            // Relaxed: pairs with nothing, nothing is concluded from it.
            std::hint::black_box(bucket.load(Ordering::Relaxed));
        }
        for first in pages.filter_map(bucket).filter_map(|bucket| head::peek(bucket).0) {
            records.record(first).touch();
        }
    }

    /// Takes a page with this fingerprint, if there is one, out of the tree: it is busy then, and
    /// the caller's.
    pub fn take(&self, records: &(impl Records + ?Sized), fingerprint: Fingerprint) -> Link {
        self.search(records, fingerprint, None)
    }

    /// Like [`Self::take`], and where there is none enters `page`, which thereby is unshared.
    pub fn take_or_insert(
        &self,
        records: &(impl Records + ?Sized),
        fingerprint: Fingerprint,
        page: PageId,
    ) -> Link {
        self.search(records, fingerprint, Some(page))
    }

    fn search(
        &self,
        records: &(impl Records + ?Sized),
        fingerprint: Fingerprint,
        newcomer: Link,
    ) -> Link {
        let short = ShortFingerprint::from(fingerprint);
        let mut bucket = head::lock(&self.buckets[short.bucket(self.buckets.len())]);
        let found = if bucket.marks.has(short.mark()) {
            unlink_first(records, &mut bucket.first, |_, candidate| candidate == short)
        } else {
            None
        };
        match (found, newcomer) {
            (Some(page), _) => {
                records.record(page).set(PageState::Busy);
                // Release: pairs with who reads the counter beside others.
                self.pages.fetch_sub(1, Ordering::Release);
            }
            (None, Some(page)) => {
                enter(&mut bucket, records, page, short);
                // Release: pairs with who reads the counter beside others.
                self.pages.fetch_add(1, Ordering::Release);
            }
            (None, None) => {}
        }
        found
    }

    /// Whether an unshared page is in this tree.
    pub fn contains(&self, records: &(impl Records + ?Sized), page: PageId) -> bool {
        let PageState::Unshared(short) = records.record(page).state() else { return false };
        let bucket = head::lock(&self.buckets[short.bucket(self.buckets.len())]);
        let mut next = bucket.first;
        while let Some(candidate) = next.filter(|candidate| *candidate != page) {
            next = records.record(candidate).bucket_next();
        }
        next.is_some()
    }

    /// Takes an unshared page out again: it is unread then. False, and nothing done, if a merge was
    /// quicker: then the page is busy.
    pub fn remove(&self, records: &(impl Records + ?Sized), page: PageId) -> bool {
        self.unlink(records, page, PageState::Unread)
    }

    /// The same for a merge of this very page: it is busy then, and the caller's.
    pub fn take_page(&self, records: &(impl Records + ?Sized), page: PageId) -> bool {
        self.unlink(records, page, PageState::Busy)
    }

    fn unlink(&self, records: &(impl Records + ?Sized), page: PageId, left: PageState) -> bool {
        let record = records.record(page);
        let PageState::Unshared(short) = record.state() else { return false };
        let mut bucket = head::lock(&self.buckets[short.bucket(self.buckets.len())]);
        let found = unlink_first(records, &mut bucket.first, |candidate, _| candidate == page);
        if found.is_some() {
            record.set(left);
            // Release: pairs with who reads the counter beside others.
            self.pages.fetch_sub(1, Ordering::Release);
        }
        found.is_some()
    }

    /// Makes room for `more` pages if the table is too full for them, or shrinks it if it is much
    /// too large. Costs O(pages) then.
    pub fn resize(&mut self, records: &(impl Records + ?Sized), more: usize) {
        let wanted = (self.pages_and(more) * 4 / QUARTERS_AFTER).max(LEAST_BUCKETS);
        let is_too_large = wanted < self.buckets.len() / 4;
        if !self.is_due(more) && !is_too_large {
            return;
        }
        let old = std::mem::replace(&mut self.buckets, bucket_array(wanted));
        for word in &old {
            let mut next = head::lock(word).first;
            while let Some(page) = next {
                let record = records.record(page);
                next = record.bucket_next();
                let PageState::Unshared(short) = record.state() else {
                    unreachable!("only unshared pages are in a bucket")
                };
                let mut bucket = head::lock(&self.buckets[short.bucket(wanted)]);
                enter(&mut bucket, records, page, short);
            }
        }
    }

    /// Whether [`Self::resize`] for `more` pages would do anything but shrink.
    pub fn is_due(&self, more: usize) -> bool {
        self.pages_and(more) * 4 > self.buckets.len() * QUARTERS_DUE
    }

    fn pages_and(&self, more: usize) -> usize {
        usize::try_from(self.pages()).expect("pages are in memory") + more
    }
}

/// Puts a page in front of a bucket's others.
fn enter(
    bucket: &mut Locked<'_>,
    records: &(impl Records + ?Sized),
    page: PageId,
    short: ShortFingerprint,
) {
    records.record(page).set_unshared(short, bucket.first);
    bucket.first = Some(page);
    bucket.marks = bucket.marks.and(short.mark());
}

/// Unlinks the first page of a bucket for which `is_it` holds.
fn unlink_first(
    records: &(impl Records + ?Sized),
    first: &mut Link,
    is_it: impl Fn(PageId, ShortFingerprint) -> bool,
) -> Link {
    let mut previous: Option<(PageId, ShortFingerprint)> = None;
    let mut next = *first;
    while let Some(page) = next {
        let record = records.record(page);
        let PageState::Unshared(short) = record.state() else {
            unreachable!("only unshared pages are in a bucket")
        };
        next = record.bucket_next();
        if is_it(page, short) {
            match previous {
                None => *first = next,
                Some((before, short)) => records.record(before).set_unshared(short, next),
            }
            return Some(page);
        }
        previous = Some((page, short));
    }
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Record;

    fn records(n: usize) -> Vec<Record> {
        (0..n).map(|_| Record::default()).collect()
    }

    fn fingerprint(n: u64) -> Fingerprint {
        Fingerprint::new(u128::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
    }

    #[test]
    fn a_partner_is_found_once() {
        let records = records(3);
        let tree = UnstableTree::default();
        let print = fingerprint(7);
        assert_eq!(tree.take_or_insert(&*records, print, PageId(0)), None);
        assert_eq!(records[0].state(), PageState::Unshared(print.into()));
        assert_eq!(tree.pages(), 1);
        assert_eq!(tree.take_or_insert(&*records, print, PageId(1)), Some(PageId(0)));
        assert_eq!(records[0].state(), PageState::Busy);
        assert_eq!(tree.pages(), 0);
        assert_eq!(tree.take(&*records, print), None);
    }

    #[test]
    fn a_page_that_changed_leaves_and_others_of_its_bucket_stay() {
        let records = records(64);
        let tree = UnstableTree::with_buckets(1);
        for n in 0..64 {
            assert_eq!(tree.take_or_insert(&*records, fingerprint(n), PageId(n)), None);
        }
        for n in (0..64).step_by(2) {
            assert!(tree.remove(&*records, PageId(n)));
            assert!(!tree.remove(&*records, PageId(n)), "it is out already");
        }
        assert_eq!(tree.pages(), 32);
        assert!((0..64).all(|n| tree.contains(&*records, PageId(n)) == (n % 2 == 1)));
        for n in 0..64 {
            let expected = (n % 2 == 1).then_some(PageId(n));
            assert_eq!(tree.take(&*records, fingerprint(n)), expected);
        }
    }

    #[test]
    fn growing_keeps_every_page_and_stays_within_8_bytes_a_page() {
        let records = records(10_000);
        let mut tree = UnstableTree::default();
        for n in 0..10_000 {
            tree.resize(&*records, 1);
            tree.take_or_insert(&*records, fingerprint(n), PageId(n));
            assert!(n < 64 || tree.metadata_bytes() <= 8 * tree.pages());
        }
        for n in 0..9_990 {
            assert_eq!(tree.take(&*records, fingerprint(n)), Some(PageId(n)));
        }
        tree.resize(&*records, 0);
        assert!(tree.metadata_bytes() < 100, "shrunk");
        assert_eq!(tree.take(&*records, fingerprint(9_995)), Some(PageId(9_995)));
    }
}
