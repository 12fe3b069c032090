//! What counters must be whenever they are read, whatever goes on.

use numerge_engine::Counters;

/// More than there is of anything in these tests, and less than anything below zero is, wrapped around.
const MOST: u64 = 1 << 40;

/// Looks at counters, one look after the other.
#[derive(Default)]
pub(crate) struct Bounds {
    last: Counters,
}

impl Bounds {
    /// No kind of pages is more than are registered, what only rises has not fallen, and nothing is below
    /// zero (S5.6).
    pub(crate) fn check(&mut self, now: Counters) {
        let c = &now;
        for (name, pages) in [
            ("pages_shared", c.pages_shared),
            ("pages_sharing", c.pages_sharing),
            ("pages_unshared", c.pages_unshared),
            ("pages_volatile", c.pages_volatile),
            ("ksm_zero_pages", c.ksm_zero_pages),
            ("pages_untouched", c.pages_untouched),
            ("pages_held", c.pages_held),
            ("pages_over_budget", c.pages_over_budget),
        ] {
            assert!(pages <= c.pages_registered, "{name}: {c:?}");
        }
        for (name, count) in [
            ("pages_registered", c.pages_registered),
            ("stable_node_chains", c.stable_node_chains),
            ("stable_node_dups", c.stable_node_dups),
            ("stable_nodes_queued", c.stable_nodes_queued),
            ("epoch_lag", c.epoch_lag),
            ("metadata_bytes", c.metadata_bytes),
        ] {
            assert!(count < MOST, "{name}: {c:?}");
        }
        let last = &self.last;
        for (name, before, count) in [
            ("pages_scanned", last.pages_scanned, c.pages_scanned),
            ("pages_skipped", last.pages_skipped, c.pages_skipped),
            ("full_scans", last.full_scans, c.full_scans),
            ("pages_broken", last.pages_broken, c.pages_broken),
            ("frames_refused", last.frames_refused, c.frames_refused),
            ("fingerprint_collisions", last.fingerprint_collisions, c.fingerprint_collisions),
            ("stable_nodes_replaced", last.stable_nodes_replaced, c.stable_nodes_replaced),
        ] {
            assert!((before..before + MOST).contains(&count), "{name} was {before}: {c:?}");
        }
        let profit = i128::from(c.general_profit());
        let most = 2 * 4096 * i128::from(c.pages_registered);
        assert!((-i128::from(c.metadata_bytes)..=most).contains(&profit), "{profit}: {c:?}");
        self.last = now;
    }
}
