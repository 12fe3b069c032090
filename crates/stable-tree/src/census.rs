//! A count of everything, for tests: what must hold when nothing is going on.

use std::collections::{BTreeSet, HashSet};

use crate::dups::Word;
use crate::forest::Forest;
use crate::list::{is_marked, unmarked};
use crate::node::{IN_TREE, QUEUED};
use crate::sync::Ordering;
use crate::sync::epoch::Guard;
use crate::tree::{MAX_SIBLINGS, entry_of};
use crate::{Kpfn, TreeId};

/// What is in a forest.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Census {
    /// Regular nodes and chains.
    pub entries: u64,
    /// Chains.
    pub chains: u64,
    /// Dups under chains.
    pub dups: u64,
    /// Frames in trees, regular or dup.
    pub frames: u64,
    /// Frames on the migrate queue, or taken from it and not placed.
    pub queued: u64,
    /// Shares of the frames in trees.
    pub shares: u64,
}

macro_rules! ensure {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}

impl Forest {
    /// Counts and checks everything, while nobody changes anything.
    ///
    /// # Errors
    /// What does not hold: a list that is not sorted, a marked or dead link still in it, a frame
    /// that is linked twice or without sharers or whose record says otherwise, a counter that is
    /// off.
    pub fn census(&self, guard: &Guard<'_>) -> Result<Census, String> {
        self.check_guard(guard);
        let mut all = Census::default();
        let mut linked = HashSet::new();
        for id in (0..).map(TreeId).take(self.trees.len()) {
            let tree = self.census_of_tree(guard, id, &mut linked)?;
            let counted = self.counts(id);
            let walked = (tree.entries, tree.chains, tree.dups);
            ensure!(counted == walked, "{id:?}: counters {counted:?}, but found {walked:?}");
            all.entries += tree.entries;
            all.chains += tree.chains;
            all.dups += tree.dups;
            all.frames += tree.frames;
            all.shares += tree.shares;
        }
        for (index, node) in self.nodes.iter() {
            match node.place() {
                IN_TREE => ensure!(linked.contains(&Kpfn(index)), "frame {index} is lost"),
                QUEUED => all.queued += 1,
                _ => {}
            }
        }
        Ok(all)
    }

    fn census_of_tree(
        &self,
        guard: &Guard<'_>,
        id: TreeId,
        linked: &mut HashSet<Kpfn>,
    ) -> Result<Census, String> {
        let mut census = Census::default();
        let mut cur = (&raw const *self.tree(id).first()).cast_mut();
        let mut last_key = None;
        let mut siblings = 0;
        let mut sentinels = BTreeSet::new();
        while !cur.is_null() {
            // SAFETY: loaded from the list under `guard`.
            let link = unsafe { guard.deref(cur) };
            ensure!(last_key <= Some(link.key), "not sorted at {:?}", link.key);
            siblings = if last_key == Some(link.key) { siblings + 1 } else { 1 };
            last_key = Some(link.key);
            let next = link.next.load(Ordering::Acquire);
            ensure!(!is_marked(next), "a marked link at {:?}", link.key);
            if let Some(entry) = entry_of(cur, guard) {
                ensure!(siblings <= MAX_SIBLINGS, "too many siblings at {:?}", link.key);
                ensure!(!entry.is_dead(), "a dead entry at {:?}", link.key);
                let word = Word(entry.word.load(Ordering::Relaxed));
                let mut dups = 0;
                for dup in entry.dups(guard) {
                    ensure!(linked.insert(dup.kpfn), "{:?} is linked twice", dup.kpfn);
                    let node = self.node(dup.kpfn).ok_or("a dup without record")?;
                    let place = node.place();
                    ensure!(place == IN_TREE, "{:?} is linked, but in place {place}", dup.kpfn);
                    let back = node.dup.load(Ordering::Acquire);
                    ensure!(std::ptr::eq(back, dup), "{:?} does not know its link", dup.kpfn);
                    let tree = node.tree.load(Ordering::Relaxed);
                    ensure!(tree == id.0, "{:?} is in {id:?}, not {tree}", dup.kpfn);
                    ensure!(node.sharers() > 0, "{:?} has no sharers", dup.kpfn);
                    census.shares += u64::from(node.sharers());
                    dups += 1;
                }
                ensure!(dups > 0, "an entry without dups at {:?}", link.key);
                ensure!(dups == word.live(), "{dups} dups, but counted {}", word.live());
                ensure!(dups == 1 || word.is_chain(), "{dups} dups, but not a chain");
                census.entries += 1;
                census.frames += u64::from(dups);
                if word.is_chain() {
                    census.chains += 1;
                    census.dups += u64::from(dups);
                }
            } else {
                ensure!(sentinels.insert(link.key), "a sentinel twice at {:?}", link.key);
            }
            cur = unmarked(next);
        }
        Ok(census)
    }
}
