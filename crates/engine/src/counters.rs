//! The counters of SEMANTICS S5.5, under the kernel's names, and a few of our own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One counter that many threads change.
///
/// Who reads several of them, one after the other, finds the later ones not older than the earlier ones:
/// that is what the orderings are for.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        // Release: pairs with `get`.
        self.0.fetch_add(n, Ordering::Release);
    }

    /// What ends may be counted before what began is, by another thread: for that moment the number is
    /// below zero.
    pub(crate) fn sub(&self, n: u64) {
        // Release: pairs with `get`.
        self.0.fetch_sub(n, Ordering::Release);
    }

    /// The number, where one below zero counts as zero.
    pub(crate) fn get(&self) -> u64 {
        // Acquire: pairs with `add` and `sub`. Who sees what they counted sees, in whatever counter is read
        // next, all that was counted before that.
        let n = self.0.load(Ordering::Acquire);
        if n > u64::MAX / 2 { 0 } else { n }
    }
}

/// How many pages are registered. Those that came and those that went are counted apart: who takes the
/// latter first, then what pages are, and then the former, has a number of registered pages that none of
/// the others is beyond, whatever came and went meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Registered {
    came: Counter,
    went: Counter,
}

impl Registered {
    pub(crate) fn add(&self, pages: u64) {
        self.came.add(pages);
    }

    pub(crate) fn sub(&self, pages: u64) {
        self.went.add(pages);
    }

    /// Those that went so far, for [`Self::since`].
    pub(crate) fn went(&self) -> u64 {
        self.went.get()
    }

    /// As many as are registered, and at least as many as ever were since only `went` had gone.
    pub(crate) fn since(&self, went: u64) -> u64 {
        self.came.get() - went
    }

    pub(crate) fn get(&self) -> u64 {
        self.since(self.went())
    }
}

/// What is counted while it happens; the rest of [`Counters`] is asked of the structures.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) registered: Registered,
    pub(crate) touched: Counter,
    pub(crate) shared: Counter,
    pub(crate) sharing: Counter,
    pub(crate) zero: Counter,
    pub(crate) held: Counter,
    pub(crate) over_budget: Counter,
    pub(crate) scanned: Counter,
    pub(crate) skipped: Counter,
    pub(crate) full_scans: Counter,
    pub(crate) broken: Counter,
    /// Pages that were merged, and those of them that were given memory of their own again, in all.
    pub(crate) merged: Counter,
    pub(crate) unmerged: Counter,
    /// Merges that were planned, and those of them that have to wait.
    pub(crate) attempted: Counter,
    /// Merges that left the page as it was, and would again.
    pub(crate) refused: Counter,
    pub(crate) deferred: Counter,
    pub(crate) collisions: Counter,
    pub(crate) frames_refused: Counter,
    pub(crate) read_nanos: Counter,
    pub(crate) merge_nanos: Counter,
    pub(crate) merge_cpu_nanos: Counter,
}

/// The state of an engine in numbers. At rest (no scan, no writers) they add up: registered pages
/// are shared, sharing, unshared, volatile, zero or untouched (S5.6). While that changes they are of
/// nearly one moment; no kind of pages is ever more than `pages_registered`, in which pages that came or
/// went at that moment are counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Frames in use.
    pub pages_shared: u64,
    /// Pages mapped to frames beyond the first of each: the pages saved.
    pub pages_sharing: u64,
    /// Candidates without a partner.
    pub pages_unshared: u64,
    /// Pages looked at whose content has not been seen unchanged twice, or that could not be
    /// merged (`pages_held`, `pages_over_budget`).
    pub pages_volatile: u64,
    /// Looks at pages; a page known unchanged by dirty tracking costs none.
    pub pages_scanned: u64,
    /// Looks that were not taken, at pages that were not merged for long (`smart_scan`).
    pub pages_skipped: u64,
    /// Times every registered page was visited.
    pub full_scans: u64,
    /// Contents with several frames.
    pub stable_node_chains: u64,
    /// Frames of such contents.
    pub stable_node_dups: u64,
    /// Pages merged with the machine's page of zeros.
    pub ksm_zero_pages: u64,
    /// Pages of all regions.
    pub pages_registered: u64,
    /// Pages that no scan has found memory at.
    pub pages_untouched: u64,
    /// Candidates the machine would not merge when last tried (pinned, mapped to a file).
    pub pages_held: u64,
    /// Candidates not merged because it would have taken too many mappings.
    pub pages_over_budget: u64,
    /// Merged pages found written to since, in all.
    pub pages_broken: u64,
    /// Times two pages had one fingerprint and different content.
    pub fingerprint_collisions: u64,
    /// Times a new frame could not be had.
    pub frames_refused: u64,
    /// Stable nodes waiting in the migrate queue.
    pub stable_nodes_queued: u64,
    /// Stable nodes put in another tree after their frame had moved, in all.
    pub stable_nodes_replaced: u64,
    /// Retired parts of the trees that no grace period has freed yet.
    pub epoch_lag: u64,
    /// Bytes that all tracking takes, frames not included.
    pub metadata_bytes: u64,
}

impl Counters {
    /// Bytes that merging saves, metadata not subtracted.
    #[must_use]
    pub const fn bytes_saved(&self) -> u64 {
        (self.pages_sharing + self.ksm_zero_pages) * crate::machine::PAGE_SIZE as u64
    }

    /// Bytes saved less the bytes of metadata.
    #[must_use]
    pub const fn general_profit(&self) -> i64 {
        self.bytes_saved().cast_signed() - self.metadata_bytes.cast_signed()
    }
}

/// Where an engine's time went since it was built.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StageTimes {
    /// Finding what changed, reading, fingerprints, looking up; all shards' clocks added.
    pub scan: Duration,
    /// Freezing, verifying, mapping; all shards' clocks added.
    pub merge: Duration,
    /// CPU time of the same.
    pub merge_cpu: Duration,
}

/// How far an engine is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    /// [`Counters::full_scans`].
    pub full_scans: u64,
    /// Merges that were tried, in all. Where a full scan tries none, nothing is left to merge.
    pub attempted: u64,
    /// Of these, those that are known to have left their pages as they were, and would again as long as
    /// nothing else changes (pinned, without mappings), in all.
    pub refused: u64,
    /// Merges put off to the next look since their programs had too much to answer, in all.
    pub deferred: u64,
    /// [`Counters::pages_over_budget`].
    pub over_budget: u64,
    /// Merges whose programs have not answered yet.
    pub late: u64,
    /// [`Counters::pages_registered`].
    pub pages_registered: u64,
}

/// What an engine has done since it was built.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Work {
    /// Pages merged.
    pub merged: u64,
    /// [`Counters::pages_broken`].
    pub broken: u64,
    /// Pages that the engine gave memory of their own again.
    pub unmerged: u64,
    /// Prunes of chains.
    pub pruned: u64,
    /// Chains that became regular nodes by that.
    pub made_regular: u64,
    /// Stable nodes taken to the migrate queue, since their frame had moved.
    pub queued: u64,
    /// [`Counters::stable_nodes_replaced`].
    pub replaced: u64,
    /// [`Counters::frames_refused`].
    pub frames_refused: u64,
}

impl Work {
    /// What was done between then and now.
    #[must_use]
    pub const fn since(&self, then: &Self) -> Self {
        Self {
            merged: self.merged.saturating_sub(then.merged),
            broken: self.broken.saturating_sub(then.broken),
            unmerged: self.unmerged.saturating_sub(then.unmerged),
            pruned: self.pruned.saturating_sub(then.pruned),
            made_regular: self.made_regular.saturating_sub(then.made_regular),
            queued: self.queued.saturating_sub(then.queued),
            replaced: self.replaced.saturating_sub(then.replaced),
            frames_refused: self.frames_refused.saturating_sub(then.frames_refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_6_what_ends_before_it_was_counted_is_none() {
        let counter = Counter::default();
        counter.sub(1);
        assert_eq!(counter.get(), 0);
        counter.add(3);
        assert_eq!(counter.get(), 2);
    }

    #[test]
    fn s5_6_pages_that_come_and_go_while_counters_are_read_are_among_those_registered() {
        let registered = Registered::default();
        registered.add(100);
        let went = registered.went();
        // Here somebody counts 100 pages of some kind, or, after this, 50.
        registered.sub(100);
        registered.add(50);
        assert_eq!((registered.since(went), registered.get()), (150, 50));
    }
}
