//! Stable nodes: one record for each frame, reached by the frame's number.
//!
//! A node is in one place at a time, and who changes the place owns the node's link:
//!
//! ```text
//!   GONE -- create --> DETACHED <-- insert, add_dup --> MOVING --> IN_TREE
//!   IN_TREE -- to_queue --> QUEUED -- place_new, place_dup --> IN_TREE
//!   QUEUED -- detach --> DETACHED
//!   any of them -- the last share is given up --> GONE
//! ```
//!
//! - `sharers` counts the pages mapped to the frame. The last one to go changes it from 1 to FROZEN
//!   in one compare-and-swap, and it stays so until the frame is used again: nobody can join a
//!   frame that is on its way out. (To subtract first and freeze then would leave a gap at zero
//!   through which a page could join a frame that is about to be freed.)
//! - Then it sets LAST in `place`, in the same word as the place, so that who buries the node is
//!   decided by one atomic: the last sharer if the node is in a tree or detached; else the owner of
//!   the move, who finds LAST when it tries to end the move.
//! - `dup` is written by the owner of the place only, and is null where the node has no link. It is
//!   made null before the dup is marked, so that nobody finds a dup here that was retired before.

use std::ptr;

use crate::dups::Dup;
use crate::sync::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::table::Indexed;

/// The frame's last sharer is gone.
pub(crate) const FROZEN: u32 = 1 << 31;

/// The states of [`StableNode::place`].
pub(crate) const GONE: u8 = 0;
pub(crate) const DETACHED: u8 = 1;
pub(crate) const MOVING: u8 = 2;
pub(crate) const IN_TREE: u8 = 3;
pub(crate) const QUEUED: u8 = 4;
/// Flag beside the state: the last sharer is gone and has said so.
const LAST: u8 = 0x80;

/// The record of a frame.
#[derive(Debug)]
pub(crate) struct StableNode {
    /// Head of the list of the pages mapped to the frame. The lists' own module sees to it.
    pub(crate) rmap: AtomicU64,
    pub(crate) dup: AtomicPtr<Dup>,
    sharers: AtomicU32,
    pub(crate) tree: AtomicU16,
    place: AtomicU8,
}

impl Indexed for StableNode {
    fn new(_: u64) -> Self {
        Self {
            rmap: AtomicU64::new(0),
            dup: AtomicPtr::new(ptr::null_mut()),
            sharers: AtomicU32::new(FROZEN),
            tree: AtomicU16::new(0),
            place: AtomicU8::new(GONE),
        }
    }
}

/// What became of one share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Given {
    /// Others are left.
    Shared,
    /// It was the last one: the frame is frozen now.
    Last,
    /// There was none.
    Nothing,
}

impl StableNode {
    /// Begins a new life of the frame. False if the old one is not over.
    pub(crate) fn create(&self, shares: u32) -> bool {
        // Acquire: pairs with the Release of `bury`.
        let begun = self.place.compare_exchange(GONE, MOVING, Ordering::Acquire, Ordering::Relaxed);
        if begun.is_err() {
            return false;
        }
        // Relaxed: the Release below hands it on.
        self.sharers.store(shares, Ordering::Relaxed);
        // Release: who finds the node detached finds it made.
        self.place.store(DETACHED, Ordering::Release);
        true
    }

    /// How many pages are mapped to the frame. 0 if it is frozen.
    pub(crate) fn sharers(&self) -> u32 {
        // Acquire: pairs with the Release of who gave up a share, whose mapping is gone then.
        let sharers = self.sharers.load(Ordering::Acquire);
        if sharers & FROZEN == 0 { sharers } else { 0 }
    }

    /// Takes up to `wanted` shares, as far as there is room below `limit`. Gives how many.
    pub(crate) fn take(&self, wanted: u32, limit: u32) -> u32 {
        // Relaxed: the value is only proposed to the compare-and-swap.
        let mut seen = self.sharers.load(Ordering::Relaxed);
        // FROZEN is above every limit, and there is no sharing without sharers.
        while seen < limit.min(FROZEN) {
            let taken = wanted.min(limit.min(FROZEN) - seen);
            // AcqRel: a read-modify-write of the count that carries on what givers released.
            let result = self.sharers.compare_exchange(
                seen,
                seen + taken,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            match result {
                Ok(_) => return taken,
                Err(now) => seen = now,
            }
        }
        0
    }

    /// Gives one share up.
    pub(crate) fn give(&self) -> Given {
        // Relaxed: as in `take`.
        let mut seen = self.sharers.load(Ordering::Relaxed);
        loop {
            if seen & FROZEN != 0 {
                return Given::Nothing;
            }
            let left = if seen == 1 { FROZEN } else { seen - 1 };
            // AcqRel: who takes the last share away has seen all the others go.
            match self.sharers.compare_exchange(seen, left, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if left == FROZEN => return Given::Last,
                Ok(_) => return Given::Shared,
                Err(now) => seen = now,
            }
        }
    }

    /// Takes ownership of the node's link, if it is in the place `from`. Fails for good after LAST.
    pub(crate) fn claim(&self, from: u8, to: u8) -> bool {
        // Acquire: pairs with the Release by which the previous owner let go.
        // Release: who finds LAST unset in `to` finds the claim.
        self.place.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends the ownership of a move. False if the last sharer went meanwhile: the owner must bury
    /// the node, which it still owns.
    #[must_use]
    pub(crate) fn settle(&self, from: u8, to: u8) -> bool {
        // Release: hands `dup` and `tree` on to the next owner. Acquire: the last sharer's doings.
        let settled = self.place.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        debug_assert!(
            settled.is_ok() || settled == Err(from | LAST),
            "the place of a moving node has one owner"
        );
        settled.is_ok()
    }

    /// Says that the last sharer is gone. True if that makes the caller the owner of the place.
    pub(crate) fn leave(&self) -> bool {
        // AcqRel: the caller becomes the owner, or hands on to who is.
        matches!(self.place.fetch_or(LAST, Ordering::AcqRel), IN_TREE | DETACHED)
    }

    /// Whether the last sharer has said that it is gone.
    pub(crate) fn is_left(&self) -> bool {
        // Acquire: pairs with the Release of `leave`.
        self.place.load(Ordering::Acquire) & LAST != 0
    }

    /// Ends this life of the frame. Its owner calls this once, before retiring the frame.
    pub(crate) fn bury(&self) {
        // Release: pairs with the Acquire of `create`.
        self.place.store(GONE, Ordering::Release);
    }

    /// The state, [`GONE`] for who waits to be buried.
    pub(crate) fn place(&self) -> u8 {
        // Acquire: pairs with the Release of who put it there.
        let place = self.place.load(Ordering::Acquire);
        if place & LAST == 0 { place } else { GONE }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn s2_1_shares_are_taken_up_to_the_limit_and_never_beyond() {
        let node = StableNode::new(0);
        assert!(node.create(1) && !node.create(1));
        assert_eq!((node.take(100, 3), node.take(1, 3), node.sharers()), (2, 0, 3));
        assert_eq!(node.take(1, u32::MAX), 1);
    }

    #[test]
    fn s2_6_a_frozen_frame_is_joined_by_nobody() {
        let node = StableNode::new(0);
        assert!(node.create(2));
        assert_eq!(
            (node.give(), node.give(), node.give()),
            (Given::Shared, Given::Last, Given::Nothing)
        );
        assert_eq!((node.take(1, u32::MAX), node.sharers()), (0, 0));
        assert!(node.leave() && !node.leave());
        node.bury();
        assert!(node.create(1));
    }
}
