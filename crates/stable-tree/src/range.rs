//! Taking frames out by number, as when their memory goes offline.
//!
//! This is not one atomic step. The range is closed: no frame in it enters a tree any more, and
//! nobody takes another share of one through a lookup. Who looked before that may still be about
//! to; when every guard of that time is gone ([`Closing::is_settled`]), the range is quiet. Then
//! the trees are walked for what is in it, a piece at a time and resumable by fingerprint, while
//! everything else goes on; the frames found are unmerged by the caller, and leave their trees as
//! their last shares are given up. Frames on the migrate queue come out of that, and are refused.

use std::ops::Range;
use std::sync::Arc;

use crate::dups::Word;
use crate::forest::Forest;
use crate::sync::epoch::Guard;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, Ordering};
use crate::{Fingerprint, Kpfn, TreeId};

/// The ranges that are closed.
#[derive(Debug)]
pub(crate) struct ClosedRanges {
    /// How many there are, so that nobody takes the lock where there are none.
    count: AtomicUsize,
    ranges: Mutex<Vec<Range<Kpfn>>>,
}

/// A closed range, until [`Forest::open`].
#[derive(Debug)]
#[must_use = "the range stays closed until this is given to `open`"]
pub struct Closing {
    range: Range<Kpfn>,
    settled: Arc<AtomicBool>,
}

impl Closing {
    /// The frames.
    #[must_use]
    pub fn range(&self) -> Range<Kpfn> {
        self.range.clone()
    }

    /// Whether everyone knows that the range is closed. Threads that come by their guards, or
    /// [`Handle::flush`](crate::Handle::flush), make it so.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        // Acquire: pairs with the Release that raised the flag.
        self.settled.load(Ordering::Acquire)
    }
}

impl ClosedRanges {
    pub(crate) fn new() -> Self {
        Self { count: AtomicUsize::new(0), ranges: Mutex::new(Vec::new()) }
    }

    pub(crate) fn contains(&self, kpfn: Kpfn) -> bool {
        // Relaxed: who pinned itself after the closing settled sees it through its guard; who
        // pinned itself before is waited for.
        self.count.load(Ordering::Relaxed) > 0
            && self.ranges.lock().iter().any(|range| range.contains(&kpfn))
    }

    fn add(&self, range: Range<Kpfn>) {
        self.ranges.lock().push(range);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, range: &Range<Kpfn>) {
        let mut ranges = self.ranges.lock();
        if let Some(index) = ranges.iter().position(|closed| closed == range) {
            ranges.swap_remove(index);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Forest {
    /// Closes a range of frames. Not before the result is settled does [`Forest::collect`] find all.
    pub fn close(&self, guard: &Guard<'_>, range: Range<Kpfn>) -> Closing {
        self.check_guard(guard);
        self.closed.add(range.clone());
        let settled = Arc::new(AtomicBool::new(false));
        guard.retire_flag(Arc::clone(&settled));
        Closing { range, settled }
    }

    /// Opens a range again.
    pub fn open(&self, closing: Closing) {
        self.closed.remove(&closing.range);
    }

    /// Appends to `out` the frames of `range` under the contents of one tree from fingerprint
    /// `from` on, and gives the fingerprint to go on from. None at the end of the tree.
    ///
    /// Stops after `max_entries` contents, at least one. A chain is walked whole.
    pub fn collect(
        &self,
        guard: &Guard<'_>,
        tree: TreeId,
        range: &Range<Kpfn>,
        from: Fingerprint,
        max_entries: usize,
        out: &mut Vec<Kpfn>,
    ) -> Option<Fingerprint> {
        self.each_content(guard, tree, from, max_entries, |frames, _| {
            out.extend(frames.filter(|kpfn| range.contains(kpfn)));
        })
    }

    /// Passes the frames of each content of one tree from fingerprint `from` on to `each`, with
    /// whether they are dups under a chain, and gives the fingerprint to go on from. None at the
    /// end of the tree.
    ///
    /// Stops after `max_entries` contents, at least one. A chain is walked whole.
    pub fn each_content(
        &self,
        guard: &Guard<'_>,
        tree: TreeId,
        from: Fingerprint,
        max_entries: usize,
        mut each: impl FnMut(&mut dyn Iterator<Item = Kpfn>, bool),
    ) -> Option<Fingerprint> {
        self.check_guard(guard);
        let mut last = None;
        for (seen, entry) in self.tree(tree).entries_from(from, guard).enumerate() {
            let fingerprint = entry.link.key.fingerprint();
            // Siblings are taken together, for a walk can't resume between them.
            if seen >= max_entries.max(1) && last != Some(fingerprint) {
                return Some(fingerprint);
            }
            last = Some(fingerprint);
            // Relaxed: what is changing may be seen before or after.
            let is_chain = Word(entry.word.load(Ordering::Relaxed)).is_chain();
            each(&mut entry.dups(guard).map(|dup| dup.kpfn), is_chain);
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::testing::{T0, chain_of, fp, look, terms};
    use crate::{Fingerprint, Forest, Kpfn, Place, Refused};

    #[test]
    fn s4_5_a_range_is_closed_and_emptied_while_the_rest_goes_on() {
        let forest = Forest::new(1);
        let handle = forest.register();
        for content in 0..100 {
            chain_of(&forest, &handle.pin(), content, &[2, 1, 1]);
        }
        let range = Kpfn(50)..Kpfn(250);
        let closing = forest.close(&handle.pin(), range.clone());
        while !closing.is_settled() {
            handle.flush();
        }
        assert_eq!(closing.range(), range);

        let (mut found, mut from) = (Vec::new(), Some(Fingerprint::new(0)));
        while let Some(next) = from {
            let guard = handle.pin();
            let before = found.len();
            from = forest.collect(&guard, T0, &range, next, 7, &mut found);
            assert!(found.len() - before <= 7 * 3);
            for &kpfn in &found[before..] {
                // As its pages are unmerged; nobody joins them any more.
                while !forest.give_up(&guard, kpfn) {}
            }
        }
        found.sort_unstable();
        assert_eq!(found, (50..250).map(Kpfn).collect::<Vec<_>>());
        let guard = handle.pin();
        assert_eq!(forest.census(&guard).unwrap().frames, 100);
        assert!((50..250).all(|kpfn| forest.place(&guard, Kpfn(kpfn)) == Place::Gone));
        forest.open(closing);
    }

    #[test]
    fn s4_5_frames_in_a_closed_range_are_refused() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        chain_of(&forest, &guard, 7, &[2, 2]);
        assert!(forest.to_queue(&guard, Kpfn(1)));
        forest.create(Kpfn(5), 1);
        let closing = forest.close(&guard, Kpfn(0)..Kpfn(10));
        assert!(!closing.is_settled());

        let seen = look(&forest, &guard, 8);
        let entry = look(&forest, &guard, 7).iter().next().unwrap();
        assert_eq!(forest.insert(&guard, &seen, Kpfn(5)), Err(Refused::Closed));
        assert_eq!(forest.add_dup(&guard, entry, Kpfn(5)), Err(Refused::Closed));
        assert_eq!(forest.reserve(&guard, entry, 1, terms(256, 0, 0), &mut Vec::new()), 0);
        let queued = forest.take_queued(&guard).unwrap();
        let (queued, why) = forest.place_new(&guard, &seen, queued).unwrap_err();
        assert_eq!(why, Refused::Closed);
        forest.requeue(queued);

        forest.open(closing);
        assert_eq!(forest.insert(&guard, &seen, Kpfn(5)), Ok(()));
        let queued = forest.take_queued(&guard).unwrap();
        assert!(forest.place_dup(&guard, entry, queued).is_ok());
        assert_eq!(forest.reserve(&guard, entry, 1, terms(256, 0, 0), &mut Vec::new()), 1);
        let mut out = Vec::new();
        assert_eq!(forest.collect(&guard, T0, &(Kpfn(1)..Kpfn(2)), fp(0), 99, &mut out), None);
        assert_eq!(out, [Kpfn(1)]);
        forest.census(&guard).unwrap();
    }
}
