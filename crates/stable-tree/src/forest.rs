//! The stable trees of one security domain, and how frames enter them.
//!
//! All trees share the records of the frames, the epochs and the migrate queue; frames never pass
//! from one forest to another. Operations are by frame number or by [`EntryRef`], and nothing in
//! here waits for another thread.

use std::marker::PhantomData;
use std::ptr;

use crossbeam::utils::CachePadded;

use crate::dups::{Dup, Entry};
use crate::list::{Link, unmarked};
use crate::node::{DETACHED, FROZEN, IN_TREE, MOVING, StableNode};
use crate::range::ClosedRanges;
use crate::refs::{EntryRef, Refused, Siblings};
use crate::sync::epoch::{Collector, Guard, Handle};
use crate::sync::{Ordering, Queue};
use crate::table::Table;
use crate::tree::{MAX_SIBLINGS, Tree};
use crate::{Fingerprint, Kpfn, TreeId};

/// Up to this many dups of an entry, a dup that was marked is unlinked at once. In longer chains it
/// happens so much more rarely that the walk costs about as much for each removal as here.
const EAGER_DUPS: u32 = if cfg!(loom) { 1 } else { 64 };

/// The stable trees of one security domain.
#[derive(Debug)]
pub struct Forest {
    pub(crate) trees: Box<[CachePadded<Tree>]>,
    pub(crate) nodes: Table<StableNode>,
    pub(crate) queue: Queue<(Kpfn, Fingerprint)>,
    pub(crate) closed: ClosedRanges,
    pub(crate) collector: Collector,
}

impl Forest {
    /// A forest of `trees` empty trees, at least one.
    #[must_use]
    pub fn new(trees: u16) -> Self {
        Self {
            trees: (0..trees.max(1)).map(|_| CachePadded::new(Tree::new())).collect(),
            nodes: Table::new(),
            queue: Queue::new(),
            closed: ClosedRanges::new(),
            collector: Collector::new(),
        }
    }

    /// Lets the calling thread take part. Each thread needs its own handle, and keeps it.
    #[must_use]
    pub fn register(&self) -> Handle {
        self.collector.register()
    }

    /// Begins the life of a frame, outside of every tree, with `shares` sharers.
    ///
    /// # Panics
    /// If the frame is in use, its number too large, or `shares` zero or 2^31 or more.
    pub fn create(&self, kpfn: Kpfn, shares: u32) {
        assert!(shares > 0 && shares < FROZEN, "a frame begins with sharers");
        let node = self.nodes.get_or_make(kpfn.0).expect("frame numbers have Kpfn::BITS bits");
        assert!(node.create(shares), "frame {kpfn:?} is in use");
    }

    /// The contents with this fingerprint in a tree. What they are is for the caller to compare.
    #[must_use]
    pub fn siblings<'g>(
        &self,
        tree: TreeId,
        fingerprint: Fingerprint,
        guard: &'g Guard<'_>,
    ) -> Siblings<'g> {
        self.check_guard(guard);
        let group = self.tree(tree).group(fingerprint, guard);
        Siblings { group, tree, fingerprint, owner: guard.id(), guard: PhantomData }
    }

    /// Inserts a new content with one detached frame, unless the siblings got company since.
    ///
    /// The caller holds a share of the frame.
    ///
    /// # Errors
    /// [`Refused`]; the frame is as detached as before.
    pub fn insert<'g>(
        &self,
        guard: &'g Guard<'_>,
        seen: &Siblings<'g>,
        kpfn: Kpfn,
    ) -> Result<(), Refused> {
        self.move_in(guard, kpfn, |node| self.link_entry(guard, seen, kpfn, node))
    }

    /// Adds a detached frame to those of a content, which makes it a chain if it is not one yet.
    ///
    /// The caller holds a share of the frame.
    ///
    /// # Errors
    /// [`Refused`]; the frame is as detached as before.
    pub fn add_dup<'g>(
        &self,
        guard: &'g Guard<'_>,
        entry: EntryRef<'g>,
        kpfn: Kpfn,
    ) -> Result<(), Refused> {
        self.move_in(guard, kpfn, |node| self.link_dup(guard, entry, kpfn, node))
    }

    fn move_in(
        &self,
        guard: &Guard<'_>,
        kpfn: Kpfn,
        link: impl FnOnce(&StableNode) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let node = self.node(kpfn).filter(|node| node.claim(DETACHED, MOVING));
        let node = node.ok_or(Refused::NotDetached)?;
        let linked = link(node);
        let place = if linked.is_ok() { IN_TREE } else { DETACHED };
        self.settle(guard, kpfn, node, MOVING, place);
        linked
    }

    /// Links a frame as a new entry. The caller owns the node's place and settles it after this.
    pub(crate) fn link_entry<'g>(
        &self,
        guard: &'g Guard<'_>,
        seen: &Siblings<'g>,
        kpfn: Kpfn,
        node: &StableNode,
    ) -> Result<(), Refused> {
        self.check_guard(guard);
        assert!(seen.owner == guard.id(), "siblings of another forest");
        if seen.len() == MAX_SIBLINGS {
            return Err(Refused::TooManySiblings);
        }
        if self.closed.contains(kpfn) {
            return Err(Refused::Closed);
        }
        let first = seen.group.front.is_null();
        let (entry, dup) = Entry::alloc(seen.fingerprint, first, kpfn, guard);
        // SAFETY: just allocated; only an unlinked link is retired.
        if !unsafe { self.tree(seen.tree).insert(entry, seen.group.front, guard) } {
            // SAFETY: both were never shared.
            unsafe {
                self.collector.free(dup);
                self.collector.free(entry);
            }
            return Err(Refused::Changed);
        }
        set_link(node, seen.tree, dup);
        Ok(())
    }

    /// Links a frame under an entry. The caller owns the node's place and settles it after this.
    pub(crate) fn link_dup<'g>(
        &self,
        guard: &'g Guard<'_>,
        entry_ref: EntryRef<'g>,
        kpfn: Kpfn,
        node: &StableNode,
    ) -> Result<(), Refused> {
        let entry = self.entry(guard, entry_ref);
        if self.closed.contains(kpfn) {
            return Err(Refused::Closed);
        }
        let dup = guard.alloc(Dup::new(kpfn, entry_ref.entry));
        // SAFETY: just allocated; only an unlinked dup is retired.
        if !unsafe { entry.push(dup) } {
            // SAFETY: never shared.
            unsafe { self.collector.free(dup) };
            return Err(Refused::Changed);
        }
        set_link(node, entry_ref.tree, dup);
        // Before the place is settled, so that no dup is counted off before it is counted.
        self.tree(entry_ref.tree).count_up(entry);
        Ok(())
    }

    /// Ends a move that the caller owns, and the frame with it if its last sharer has gone.
    pub(crate) fn settle(
        &self,
        guard: &Guard<'_>,
        kpfn: Kpfn,
        node: &StableNode,
        from: u8,
        to: u8,
    ) {
        if !node.settle(from, to) {
            self.bury(guard, kpfn, node);
        }
    }

    /// Removes a frame without sharers whose place the caller owns, and retires it.
    pub(crate) fn bury(&self, guard: &Guard<'_>, kpfn: Kpfn, node: &StableNode) {
        self.unlink_dup(guard, kpfn, node);
        node.bury();
        guard.retire_number(kpfn.0);
    }

    /// Takes a frame's link out of its tree, if it has one. The caller owns the node's place.
    pub(crate) fn unlink_dup(&self, guard: &Guard<'_>, kpfn: Kpfn, node: &StableNode) {
        // AcqRel: pairs with `set_link`. Null before the dup is marked: see `node`.
        let dup = node.dup.swap(ptr::null_mut(), Ordering::AcqRel);
        if dup.is_null() {
            return;
        }
        // SAFETY: a dup in `node.dup` is not marked, so it was not retired; nor was its entry.
        let dup = unsafe { guard.deref(dup) };
        // SAFETY: as above.
        let entry = unsafe { guard.deref(dup.entry) };
        let tree = self.tree(TreeId(node.tree.load(Ordering::Relaxed)));
        // The mark comes before the count: who counts the last one off finds all marked.
        dup.mark();
        let left = tree.count_down(entry);
        if left <= EAGER_DUPS || is_one_in(left / EAGER_DUPS, kpfn) {
            tree.sweep(entry, guard);
        }
    }

    pub(crate) fn tree(&self, id: TreeId) -> &Tree {
        self.trees.get(usize::from(id.0)).expect("the forest has this tree")
    }

    pub(crate) fn node(&self, kpfn: Kpfn) -> Option<&StableNode> {
        self.nodes.get(kpfn.0)
    }

    /// The entry behind a reference.
    pub(crate) fn entry<'g>(&self, guard: &'g Guard<'_>, entry: EntryRef<'g>) -> &'g Entry {
        self.check_guard(guard);
        assert!(entry.owner == guard.id(), "an entry of another forest");
        // SAFETY: the entry was found under a guard that still lives, and belongs to this forest.
        unsafe { guard.deref(entry.entry) }
    }

    /// The entry a node is linked under.
    pub(crate) fn entry_of_node<'g>(
        &self,
        guard: &'g Guard<'_>,
        node: &StableNode,
    ) -> Option<&'g Entry> {
        // Acquire: pairs with the Release of `set_link`.
        let dup = node.dup.load(Ordering::Acquire);
        // SAFETY: a dup found in `node.dup` was not retired then, and the guard is older.
        let dup = (!dup.is_null()).then(|| unsafe { guard.deref(dup) })?;
        // SAFETY: an entry is retired after its dups.
        Some(unsafe { guard.deref(dup.entry) })
    }

    /// What is shared in a forest is protected by guards of this forest only.
    pub(crate) fn check_guard(&self, guard: &Guard<'_>) {
        assert!(guard.id() == self.collector.id(), "a guard of another forest");
    }
}

/// Records where a node is linked; its owner does, after linking it.
fn set_link(node: &StableNode, tree: TreeId, dup: *mut Dup) {
    node.tree.store(tree.0, Ordering::Relaxed);
    // Release: pairs with the Acquire of those who reach the dup through its node.
    node.dup.store(dup, Ordering::Release);
}

/// True for one in `n` frames, scattered.
fn is_one_in(n: u32, kpfn: Kpfn) -> bool {
    // Fibonacci hashing: any odd number near 2^64 / φ.
    let scattered = kpfn.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    n == 0 || scattered.is_multiple_of(u64::from(n))
}

impl Drop for Forest {
    fn drop(&mut self) {
        // What is still linked is freed here; what was retired, by the collector.
        let handle = self.collector.register();
        let guard = handle.pin();
        let mut dups = Vec::new();
        let mut entries = Vec::<*mut Entry>::new();
        for tree in &self.trees {
            let mut link: *mut Link = (&raw const *tree.first()).cast_mut();
            while !link.is_null() {
                // SAFETY: nobody else uses the forest, so what is in its lists stays there.
                let this = unsafe { guard.deref(link) };
                if !this.key.is_sentinel() {
                    entries.push(link.cast());
                    // SAFETY: as above; a link that is not a sentinel is an entry.
                    dups.extend(unsafe { guard.deref(link.cast::<Entry>()) }.all_dups(&guard));
                }
                // Relaxed: whoever drops the forest has seen all that happened to it.
                link = unmarked(this.next.load(Ordering::Relaxed));
            }
        }
        // SAFETY: linked, so not retired; each is in one list, once; nobody else uses the forest.
        unsafe {
            dups.into_iter().for_each(|dup| self.collector.free(dup));
            entries.into_iter().for_each(|entry| self.collector.free(entry));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::testing::{T0, fp, look};
    use crate::{Forest, Kpfn, MAX_SIBLINGS, Place, Refused};

    #[test]
    fn s1_2_of_two_that_saw_no_such_content_one_inserts_it() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        forest.create(Kpfn(1), 2);
        forest.create(Kpfn(2), 2);
        let (mine, yours) = (look(&forest, &guard, 7), look(&forest, &guard, 7));
        assert_eq!(forest.insert(&guard, &mine, Kpfn(1)), Ok(()));
        assert_eq!(forest.insert(&guard, &yours, Kpfn(2)), Err(Refused::Changed));
        assert_eq!(forest.place(&guard, Kpfn(2)), Place::Detached);
        let entry = look(&forest, &guard, 7).iter().next().unwrap();
        assert_eq!(entry.kpfn(), Kpfn(1));
        assert_eq!(forest.place(&guard, Kpfn(1)), Place::Regular(T0));
        forest.census(&guard).unwrap();
    }

    #[test]
    fn s1_2_a_sibling_that_left_does_not_hide_one_that_came() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        for kpfn in 1..=3 {
            forest.create(Kpfn(kpfn), 1);
        }
        forest.insert(&guard, &look(&forest, &guard, 7), Kpfn(1)).unwrap();
        // Two want to insert one content; the second looks when the first sibling has left.
        let early = look(&forest, &guard, 7);
        assert!(forest.give_up(&guard, Kpfn(1)));
        let late = look(&forest, &guard, 7);
        assert_eq!((early.len(), late.len()), (1, 0));
        assert_eq!(forest.insert(&guard, &late, Kpfn(2)), Ok(()));
        assert_eq!(forest.insert(&guard, &early, Kpfn(3)), Err(Refused::Changed));
        forest.census(&guard).unwrap();
    }

    #[test]
    fn s1_3_crafted_collisions_end_at_four_siblings() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        let last = MAX_SIBLINGS as u64;
        for kpfn in 0..=last {
            forest.create(Kpfn(kpfn), 1);
            let result = forest.insert(&guard, &look(&forest, &guard, 7), Kpfn(kpfn));
            assert_eq!(result, if kpfn < last { Ok(()) } else { Err(Refused::TooManySiblings) });
        }
        // One goes, and there is room again.
        forest.give_up(&guard, Kpfn(2));
        assert_eq!(forest.insert(&guard, &look(&forest, &guard, 7), Kpfn(last)), Ok(()));
        assert_eq!(forest.census(&guard).unwrap().entries, last);
    }

    #[test]
    fn mistakes_of_the_caller_are_refused() {
        let forest = Forest::new(1);
        let handle = forest.register();
        let guard = handle.pin();
        forest.create(Kpfn(1), 1);
        forest.insert(&guard, &look(&forest, &guard, 7), Kpfn(1)).unwrap();
        let seen = look(&forest, &guard, 8);
        for kpfn in [Kpfn(1), Kpfn(2), Kpfn(u64::MAX)] {
            assert_eq!(forest.insert(&guard, &seen, kpfn), Err(Refused::NotDetached));
        }
        assert!(!forest.give_up(&guard, Kpfn(2)) && !forest.to_queue(&guard, Kpfn(u64::MAX)));
        assert!(!forest.take_share(Kpfn(2), 256));
    }

    #[test]
    #[should_panic = "of another forest"]
    fn a_guard_of_another_forest_is_no_use() {
        let (forest, other) = (Forest::new(1), Forest::new(1));
        let handle = other.register();
        let _ = forest.siblings(T0, fp(1), &handle.pin());
    }
}
