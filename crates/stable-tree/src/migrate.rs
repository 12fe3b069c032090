//! The migrate queue: frames on their way from the tree they were in to the one they belong to.
//!
//! One compare-and-swap of the place, from IN_TREE to QUEUED, gives the node an owner: first the
//! thread that takes it out of its tree, then the queue, then the [`Queued`] that its consumer
//! holds. A last sharer that goes meanwhile only leaves word (see `node`); the owner retires the
//! frame. A lookup that misses a content while its frame is on the way is legal: not merging always
//! is.

use crate::forest::Forest;
use crate::node::{DETACHED, IN_TREE, QUEUED, StableNode};
use crate::refs::{EntryRef, Refused, Siblings};
use crate::sync::epoch::Guard;
use crate::{Fingerprint, Kpfn};

/// A frame taken from the migrate queue. Its holder alone decides where it goes: into a tree, back
/// on the queue, or out of both. Dropping it leaves the frame queued forever.
#[derive(Debug)]
#[must_use = "a frame that is not placed stays out of every tree"]
pub struct Queued {
    kpfn: Kpfn,
    fingerprint: Fingerprint,
}

impl Queued {
    /// The frame.
    #[must_use]
    pub fn kpfn(&self) -> Kpfn {
        self.kpfn
    }

    /// The fingerprint of its content.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl Forest {
    /// Takes a frame out of its tree and puts it on the migrate queue. False if it is in no tree,
    /// or someone else is moving it.
    pub fn to_queue(&self, guard: &Guard<'_>, kpfn: Kpfn) -> bool {
        self.check_guard(guard);
        let Some(node) = self.node(kpfn).filter(|node| node.claim(IN_TREE, QUEUED)) else {
            return false;
        };
        let entry = self.entry_of_node(guard, node).expect("a node in a tree has a link");
        let fingerprint = entry.link.key.fingerprint();
        self.unlink_dup(guard, kpfn, node);
        self.queue.push((kpfn, fingerprint));
        true
    }

    /// The frame that has been queued longest. Frames whose last sharer went are retired on the way.
    pub fn take_queued(&self, guard: &Guard<'_>) -> Option<Queued> {
        self.check_guard(guard);
        loop {
            let (kpfn, fingerprint) = self.queue.pop()?;
            let node = self.queued_node(kpfn);
            if !node.is_left() {
                return Some(Queued { kpfn, fingerprint });
            }
            self.bury(guard, kpfn, node);
        }
    }

    /// Inserts a queued frame as a new content, unless the siblings got company since.
    ///
    /// # Errors
    /// The frame, still queued, and why.
    pub fn place_new<'g>(
        &self,
        guard: &'g Guard<'_>,
        seen: &Siblings<'g>,
        queued: Queued,
    ) -> Result<(), (Queued, Refused)> {
        let node = self.queued_node(queued.kpfn);
        let linked = self.link_entry(guard, seen, queued.kpfn, node);
        self.finish(guard, queued, node, linked)
    }

    /// Adds a queued frame to those of a content.
    ///
    /// # Errors
    /// The frame, still queued, and why.
    pub fn place_dup<'g>(
        &self,
        guard: &'g Guard<'_>,
        entry: EntryRef<'g>,
        queued: Queued,
    ) -> Result<(), (Queued, Refused)> {
        let node = self.queued_node(queued.kpfn);
        let linked = self.link_dup(guard, entry, queued.kpfn, node);
        self.finish(guard, queued, node, linked)
    }

    /// Puts a frame back at the end of the queue.
    pub fn requeue(&self, queued: Queued) {
        self.queue.push((queued.kpfn, queued.fingerprint));
    }

    /// Leaves a frame outside of every tree, where it is until its last share is given up or it is
    /// inserted again.
    pub fn detach(&self, guard: &Guard<'_>, queued: Queued) {
        self.check_guard(guard);
        let node = self.queued_node(queued.kpfn);
        self.settle(guard, queued.kpfn, node, QUEUED, DETACHED);
    }

    /// How many frames are on the queue.
    #[must_use]
    pub fn queued_len(&self) -> usize {
        self.queue.len()
    }

    fn finish(
        &self,
        guard: &Guard<'_>,
        queued: Queued,
        node: &StableNode,
        linked: Result<(), Refused>,
    ) -> Result<(), (Queued, Refused)> {
        match linked {
            Ok(()) => {
                self.settle(guard, queued.kpfn, node, QUEUED, IN_TREE);
                Ok(())
            }
            Err(refused) => Err((queued, refused)),
        }
    }

    fn queued_node(&self, kpfn: Kpfn) -> &StableNode {
        self.node(kpfn).expect("queued by this forest")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::testing::{T0, T1, chain_of, fp, look};
    use crate::{Forest, Kpfn, Place, Refused};

    #[test]
    fn s4_3_a_frame_is_in_a_tree_or_in_a_chain_or_queued() {
        let forest = Forest::new(2);
        let handle = forest.register();
        let guard = handle.pin();
        chain_of(&forest, &guard, 7, &[3, 3]);
        assert_eq!(forest.place(&guard, Kpfn(0)), Place::Dup(T0));
        assert!(forest.to_queue(&guard, Kpfn(0)) && !forest.to_queue(&guard, Kpfn(0)));
        assert_eq!((forest.place(&guard, Kpfn(0)), forest.queued_len()), (Place::Queued, 1));
        assert_eq!(forest.census(&guard).unwrap().queued, 1);

        let queued = forest.take_queued(&guard).unwrap();
        assert_eq!((queued.kpfn(), queued.fingerprint()), (Kpfn(0), fp(7)));
        let seen = forest.siblings(T1, fp(7), &guard);
        assert!(forest.place_new(&guard, &seen, queued).is_ok());
        assert_eq!(forest.place(&guard, Kpfn(0)), Place::Regular(T1));
        assert_eq!((forest.counts(T0), forest.counts(T1)), ((1, 1, 1), (1, 0, 0)));
        assert_eq!(forest.sharers(Kpfn(0)), 3);
        forest.census(&guard).unwrap();
    }

    #[test]
    fn s4_4_a_frame_joins_the_chain_of_its_content_at_the_destination() {
        let forest = Forest::new(2);
        let handle = forest.register();
        let guard = handle.pin();
        chain_of(&forest, &guard, 7, &[3]);
        forest.create(Kpfn(1), 1);
        let seen = forest.siblings(T1, fp(7), &guard);
        assert!(forest.to_queue(&guard, Kpfn(0)));
        assert_eq!(forest.insert(&guard, &seen, Kpfn(1)), Ok(()));

        let queued = forest.take_queued(&guard).unwrap();
        let (queued, why) = forest.place_new(&guard, &seen, queued).unwrap_err();
        assert_eq!(why, Refused::Changed);
        let entry = forest.siblings(T1, fp(7), &guard).iter().next().unwrap();
        assert!(forest.place_dup(&guard, entry, queued).is_ok());
        assert_eq!((forest.counts(T0), forest.counts(T1)), ((0, 0, 0), (1, 1, 2)));
        forest.census(&guard).unwrap();
    }

    #[test]
    fn s4_3_a_queued_frame_whose_last_sharer_goes_is_retired_by_the_queue() {
        let forest = Forest::new(1);
        let handle = forest.register();
        {
            let guard = handle.pin();
            chain_of(&forest, &guard, 7, &[1, 1, 1]);
            assert!((0..3).all(|kpfn| forest.to_queue(&guard, Kpfn(kpfn))));
            assert!(look(&forest, &guard, 7).is_empty());
            // On the queue; in its consumer's hands, to be placed; the same, to be detached.
            assert!(forest.give_up(&guard, Kpfn(0)));
            let queued = forest.take_queued(&guard).unwrap();
            assert_eq!(queued.kpfn(), Kpfn(1));
            assert!(forest.give_up(&guard, Kpfn(1)));
            assert!(forest.place_new(&guard, &look(&forest, &guard, 7), queued).is_ok());
            let queued = forest.take_queued(&guard).unwrap();
            assert!(forest.give_up(&guard, Kpfn(2)));
            forest.detach(&guard, queued);
            assert!((0..3).all(|kpfn| forest.place(&guard, Kpfn(kpfn)) == Place::Gone));
            assert_eq!(forest.census(&guard).unwrap().entries, 0);
        }
        while forest.epoch_lag() > 0 {
            handle.flush();
        }
        assert_eq!(std::iter::from_fn(|| forest.freed()).count(), 3);
    }
}
