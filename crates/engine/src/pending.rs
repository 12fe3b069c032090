//! Which pages of a region must be looked at by the next scan although nobody writes to them: a bit
//! a page.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

const BITS: u64 = u64::BITS as u64;

/// The set, by the page's place in its region.
#[derive(Debug)]
pub(crate) struct Pending(Box<[AtomicU64]>);

impl Pending {
    /// None of `pages` pages.
    pub(crate) fn new(pages: u64) -> Self {
        Self((0..pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn metadata_bytes(&self) -> u64 {
        size_of_val(&*self.0) as u64
    }

    fn word(&self, page: u64) -> &AtomicU64 {
        &self.0[usize::try_from(page / BITS).expect("a page of the region")]
    }

    pub(crate) fn add(&self, page: u64) {
        // Relaxed: a bit set late is one the scan after next sees; nothing is reached through it.
        self.word(page).fetch_or(1 << (page % BITS), Ordering::Relaxed);
    }

    /// Takes out the pages of `range` and gives them as runs, in order.
    pub(crate) fn take(&self, range: Range<u64>, mut each: impl FnMut(Range<u64>)) {
        let mut run = range.start..range.start;
        let mut at = range.start;
        while at < range.end {
            let first = at % BITS;
            let count = (BITS - first).min(range.end - at);
            let mask = (u64::MAX >> (BITS - count)) << first;
            let word = self.word(at);
            // Relaxed: as in `add`. The load spares the exchange where nothing is set, which is
            // nearly everywhere at rest.
            if word.load(Ordering::Relaxed) & mask != 0 {
                let mut bits = (word.fetch_and(!mask, Ordering::Relaxed) & mask) >> first;
                let mut page = at;
                while bits != 0 {
                    page += u64::from(bits.trailing_zeros());
                    bits >>= bits.trailing_zeros();
                    let ones = u64::from(bits.trailing_ones());
                    if run.end == page {
                        run.end += ones;
                    } else {
                        if !run.is_empty() {
                            each(run);
                        }
                        run = page..page + ones;
                    }
                    page += ones;
                    bits = bits.checked_shr(bits.trailing_ones()).unwrap_or(0);
                }
            }
            at += count;
        }
        if !run.is_empty() {
            each(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(pending: &Pending, range: Range<u64>) -> Vec<u64> {
        let mut pages = Vec::new();
        let mut last = None;
        pending.take(range, |run| {
            assert!(last.is_none_or(|last| last < run.start), "runs are apart");
            last = Some(run.end);
            pages.extend(run);
        });
        pages
    }

    proptest! {
        #[test]
        fn what_was_added_is_taken_once(
            mut added in prop::collection::vec(0u64..300, 0..200), from in 0u64..300, len in 0u64..300,
        ) {
            let pending = Pending::new(300);
            for &page in &added {
                pending.add(page);
            }
            added.sort_unstable();
            added.dedup();
            let range = from..(from + len).min(300);
            let (inside, outside): (Vec<u64>, Vec<u64>) =
                added.iter().partition(|page| range.contains(page));
            prop_assert_eq!(take(&pending, range.clone()), inside);
            prop_assert_eq!(take(&pending, range), Vec::<u64>::new());
            prop_assert_eq!(take(&pending, 0..300), outside);
        }
    }

    #[test]
    fn whole_words_are_one_run() {
        let pending = Pending::new(256);
        for page in 0..256 {
            pending.add(page);
        }
        let mut runs = Vec::new();
        pending.take(0..256, |run| runs.push(run));
        assert!(runs.len() == 1 && runs[0] == (0..256), "{runs:?}");
    }
}
