//! Sharing frames: taking shares, giving them up, and keeping chains in order.
//!
//! A lookup looks at all dups of a chain and takes those with room, the fullest first (rule S2.4):
//! whole groups of equal pages are looked up at once, so that they share the walk. A prune unlinks
//! what is gone and turns a chain of one back into a regular node. What it would keep first, the
//! fullest dup with room, is what every lookup finds.
//!
//! # Chains without room
//!
//! A content that millions of pages have (zeros) gets a chain of thousands of full dups, and
//! walking them all only to find no room would cost more than all the rest. A walk that finds none
//! sets FULL in the entry's word; a dup that is added, or a share that is given up, clears it. That
//! races as Dekker's algorithm does: the walker sets FULL, fences, and looks at the sharers *again*;
//! the giver lowers them, fences, and looks at FULL. If the walker's fence comes first, the giver
//! sees FULL and clears it; if the giver's comes first, the walker sees the room and clears it. A
//! FULL that stays wrongly would cost sharing, not correctness, and only until the next prune.

use std::cmp::Reverse;

use crate::Kpfn;
use crate::dups::{Dup, Entry, Word};
use crate::forest::Forest;
use crate::node::Given;
use crate::refs::EntryRef;
use crate::sync::epoch::Guard;
use crate::sync::{Ordering, fence};

/// How shares are to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The most sharers a frame may have (`max_page_sharing`).
    pub limit: u32,
    /// The time, in milliseconds. It may wrap.
    pub now_ms: u32,
    /// How long a chain is left alone after a prune (`stable_node_chains_prune_millisecs`).
    pub prune_ms: u32,
}

impl Terms {
    /// The same, but chains are left as they are.
    #[must_use]
    pub const fn without_pruning(self) -> Self {
        Self { prune_ms: u32::MAX, ..self }
    }
}

impl Forest {
    /// Takes up to `wanted` shares of frames with the entry's content, and appends to `out` how
    /// many of which frame. Gives how many in all.
    pub fn reserve<'g>(
        &self,
        guard: &'g Guard<'_>,
        entry_ref: EntryRef<'g>,
        wanted: u64,
        terms: Terms,
        out: &mut Vec<(Kpfn, u32)>,
    ) -> u64 {
        let entry = self.entry(guard, entry_ref);
        if prune_is_due(entry, terms) {
            self.prune(guard, entry_ref, terms.limit);
        } else if word(entry).is_full() {
            return 0;
        }
        let mut left = wanted;
        if word(entry).is_chain() {
            let with_room =
                |dup: &Dup| Some((self.sharers_with_room(dup.kpfn, terms.limit)?, dup.kpfn));
            let mut dups: Vec<(u32, Kpfn)> = entry.dups(guard).filter_map(with_room).collect();
            dups.sort_unstable_by_key(|&(sharers, _)| Reverse(sharers));
            for (_, kpfn) in dups {
                left -= self.take_into(kpfn, left, terms.limit, out);
            }
        } else {
            for dup in entry.dups(guard) {
                left -= self.take_into(dup.kpfn, left, terms.limit, out);
            }
        }
        if left > 0 && word(entry).is_chain() {
            self.note_full(guard, entry, terms.limit);
        }
        wanted - left
    }

    /// Takes one share of a frame, if it has sharers, and fewer than `limit`.
    pub fn take_share(&self, kpfn: Kpfn, limit: u32) -> bool {
        self.take(kpfn, 1, limit) == 1
    }

    /// Gives up one share, whose page is no longer mapped to the frame. True if it was the last:
    /// then the frame leaves the tree, and comes out of [`Forest::freed`] when nobody can be
    /// reading it any more.
    pub fn give_up(&self, guard: &Guard<'_>, kpfn: Kpfn) -> bool {
        self.check_guard(guard);
        let Some(node) = self.node(kpfn) else { return false };
        match node.give() {
            Given::Nothing => false,
            Given::Shared => {
                // See above, the giver's side.
                fence(Ordering::SeqCst);
                let entry = self.entry_of_node(guard, node);
                if let Some(entry) = entry.filter(|entry| word(entry).is_full()) {
                    clear_full(entry);
                }
                false
            }
            Given::Last => {
                // In a move, the owner of the move finds out and does this.
                if node.leave() {
                    self.bury(guard, kpfn, node);
                }
                true
            }
        }
    }

    /// Takes up to `wanted` shares of a frame and notes them in `out`. Gives how many.
    fn take_into(&self, kpfn: Kpfn, wanted: u64, limit: u32, out: &mut Vec<(Kpfn, u32)>) -> u64 {
        if wanted == 0 || self.closed.contains(kpfn) {
            return 0;
        }
        let taken = self.take(kpfn, wanted, limit);
        if taken > 0 {
            out.push((kpfn, taken));
        }
        u64::from(taken)
    }

    fn take(&self, kpfn: Kpfn, wanted: u64, limit: u32) -> u32 {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        self.node(kpfn).map_or(0, |node| node.take(wanted, limit))
    }

    fn sharers_with_room(&self, kpfn: Kpfn, limit: u32) -> Option<u32> {
        let sharers = self.sharers(kpfn);
        (sharers > 0 && sharers < limit && !self.closed.contains(kpfn)).then_some(sharers)
    }

    /// See above, the walker's side.
    fn note_full(&self, guard: &Guard<'_>, entry: &Entry, limit: u32) {
        // AcqRel: a change of the word like the others (`tree::update`): it sees every dup that was
        // counted before.
        entry.word.fetch_or(Word::FULL, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if entry.dups(guard).any(|dup| self.sharers_with_room(dup.kpfn, limit).is_some()) {
            clear_full(entry);
        }
    }

    fn prune(&self, guard: &Guard<'_>, entry_ref: EntryRef<'_>, limit: u32) {
        let entry = self.entry(guard, entry_ref);
        let tree = self.tree(entry_ref.tree);
        tree.pruned.add(1);
        tree.sweep(entry, guard);
        if entry.dups(guard).all(|dup| self.sharers_with_room(dup.kpfn, limit).is_none()) {
            return;
        }
        clear_full(entry);
        if word(entry).live() == 1 {
            tree.make_regular(entry);
        }
    }
}

fn word(entry: &Entry) -> Word {
    // Relaxed: flags and count only; no data is reached through them.
    Word(entry.word.load(Ordering::Relaxed))
}

fn clear_full(entry: &Entry) {
    // AcqRel: as in `note_full`.
    entry.word.fetch_and(!Word::FULL, Ordering::AcqRel);
}

/// Whether the caller is the one to prune a chain now.
fn prune_is_due(entry: &Entry, terms: Terms) -> bool {
    if !word(entry).is_chain() {
        return false;
    }
    // Relaxed, both: one of several gets the turn, and nothing else depends on it.
    let last = entry.pruned_at_ms.load(Ordering::Relaxed);
    terms.now_ms.wrapping_sub(last) >= terms.prune_ms
        && entry
            .pruned_at_ms
            .compare_exchange(last, terms.now_ms, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::testing::{T0, chain_of, look, terms};
    use crate::{Forest, Guard, Kpfn, Place, Terms};

    const NEVER: u32 = u32::MAX;

    fn reserve(forest: &Forest, guard: &Guard<'_>, wanted: u64, terms: Terms) -> Vec<(u64, u32)> {
        let entry = look(forest, guard, 7).iter().next().expect("it was inserted");
        let mut out = Vec::new();
        let reserved = forest.reserve(guard, entry, wanted, terms, &mut out);
        assert_eq!(reserved, out.iter().map(|&(_, n)| u64::from(n)).sum::<u64>());
        out.into_iter().map(|(kpfn, n)| (kpfn.0, n)).collect()
    }

    #[test]
    fn s2_2_a_second_frame_makes_a_chain_in_place() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        chain_of(&forest, &guard, 7, &[256]);
        assert_eq!(forest.place(&guard, Kpfn(0)), Place::Regular(T0));
        assert_eq!(reserve(&forest, &guard, 1, terms(256, 0, NEVER)), []);
        let before = look(&forest, &guard, 7).iter().next().unwrap();
        forest.create(Kpfn(1), 2);
        forest.add_dup(&guard, before, Kpfn(1)).unwrap();
        // The figures of 258 equal pages: 2 frames, 1 chain, 2 dups. The entry is the same.
        let census = forest.census(&guard).unwrap();
        assert_eq!((census.entries, census.chains, census.dups, census.shares), (1, 1, 2, 258));
        assert_eq!(forest.place(&guard, Kpfn(0)), Place::Dup(T0));
        assert_eq!(reserve(&forest, &guard, 1, terms(256, 0, NEVER)), [(1, 1)]);
    }

    #[test]
    fn s2_3_the_first_dimension_does_not_grow_with_dups() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        chain_of(&forest, &guard, 7, &[1]);
        assert_eq!((forest.stable_node_chains(), forest.stable_node_dups()), (0, 0));
        chain_of(&forest, &guard, 8, &[2; 1000]);
        assert_eq!(forest.counts(T0), (2, 1, 1000));
        assert_eq!(look(&forest, &guard, 8).len(), 1);
    }

    #[test]
    fn s2_4_the_fullest_dup_with_room_is_taken_first() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        chain_of(&forest, &guard, 7, &[2, 9, 10, 5]);
        assert_eq!(reserve(&forest, &guard, 3, terms(10, 0, NEVER)), [(1, 1), (3, 2)]);
        // All there is, and no more.
        assert_eq!(reserve(&forest, &guard, 100, terms(10, 0, NEVER)), [(3, 3), (0, 8)]);
        assert_eq!(reserve(&forest, &guard, 1, terms(10, 0, NEVER)), []);
        // Room that comes back is found.
        assert!(!forest.give_up(&guard, Kpfn(2)));
        assert_eq!(reserve(&forest, &guard, 2, terms(10, 0, NEVER)), [(2, 1)]);
        forest.census(&guard).unwrap();
    }

    #[test]
    fn s2_4_the_best_dup_is_kept_while_it_has_room_for_one_more() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        let mut shares = vec![2; 100];
        shares[3] = 7;
        chain_of(&forest, &guard, 7, &shares);
        for now_ms in [0, 5000, 5001] {
            assert_eq!(reserve(&forest, &guard, 1, terms(10, now_ms, 2000)), [(3, 1)]);
        }
        assert_ne!(reserve(&forest, &guard, 1, terms(10, 5002, 2000)), [(3, 1)]);
        assert_eq!(forest.census(&guard).unwrap().dups, 100);
    }

    #[test]
    fn s2_5_a_chain_of_one_with_room_becomes_regular_at_a_prune() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        chain_of(&forest, &guard, 7, &[1, 4]);
        assert!(forest.give_up(&guard, Kpfn(0)));
        assert_eq!(forest.counts(T0), (1, 1, 1));
        // Not due; then due, but without room; then due and with room.
        reserve(&forest, &guard, 0, terms(5, 1000, 2000));
        assert_eq!(forest.counts(T0), (1, 1, 1));
        reserve(&forest, &guard, 0, terms(4, 3000, 2000));
        assert_eq!(forest.counts(T0), (1, 1, 1));
        reserve(&forest, &guard, 0, terms(5, 4999, 2000));
        assert_eq!(forest.counts(T0), (1, 1, 1));
        reserve(&forest, &guard, 0, terms(5, 5000, 2000));
        assert_eq!(forest.counts(T0), (1, 0, 0));
        assert_eq!(forest.place(&guard, Kpfn(1)), Place::Regular(T0));
        forest.census(&guard).unwrap();
    }

    #[test]
    fn s2_5_an_empty_chain_is_freed_at_once() {
        let forest = Forest::new(1);
        let handle = forest.register();
        {
            let guard = handle.pin();
            chain_of(&forest, &guard, 7, &[1; 500]);
            for kpfn in (0..500).rev().step_by(2).chain((0..500).step_by(2)) {
                assert!(forest.give_up(&guard, Kpfn(kpfn)));
            }
            assert_eq!(forest.counts(T0), (0, 0, 0));
            assert!(look(&forest, &guard, 7).is_empty());
            forest.census(&guard).unwrap();
        }
        while forest.epoch_lag() > 0 {
            handle.flush();
        }
        assert_eq!(std::iter::from_fn(|| forest.freed()).count(), 500);
        assert_eq!(forest.collector.allocated_bytes(), 0);
    }

    #[test]
    fn s2_6_a_frame_comes_back_after_its_last_share_and_the_grace_period() {
        let forest = Forest::new(1);
        let (reader, writer) = (forest.register(), forest.register());
        let read = reader.pin();
        {
            let guard = writer.pin();
            chain_of(&forest, &guard, 7, &[2]);
            let entry = look(&forest, &read, 7).iter().next().unwrap();
            assert!(!forest.give_up(&guard, Kpfn(0)) && forest.give_up(&guard, Kpfn(0)));
            // The entry is gone; the reader can still compare the content it found.
            assert!(look(&forest, &read, 7).is_empty());
            assert_eq!(entry.kpfn(), Kpfn(0));
            assert_eq!(forest.add_dup(&read, entry, Kpfn(0)), Err(crate::Refused::NotDetached));
        }
        (0..10).for_each(|_| writer.flush());
        assert_eq!(forest.freed(), None);
        drop(read);
        (0..10).for_each(|_| writer.flush());
        assert_eq!(forest.freed(), Some(Kpfn(0)));
        forest.create(Kpfn(0), 1);
        assert_eq!(forest.place(&writer.pin(), Kpfn(0)), Place::Detached);
    }

    #[test]
    fn s2_7_a_lookup_in_a_chain_without_room_does_not_walk_it() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        chain_of(&forest, &guard, 7, &[2; 50_000]);
        let start = std::time::Instant::now();
        for _ in 0..100_000 {
            assert_eq!(reserve(&forest, &guard, 1, terms(2, 0, NEVER)), []);
        }
        // Walking it each time takes minutes.
        assert!(start.elapsed().as_secs() < 10);
    }
}
