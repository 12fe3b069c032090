//! What can be asked of a forest: places, counters, bytes.

use crossbeam::utils::CachePadded;

use crate::dups::Word;
use crate::forest::Forest;
use crate::node::{DETACHED, GONE, QUEUED, StableNode};
use crate::refs::Place;
use crate::sync::epoch::Guard;
use crate::sync::{AtomicU64, Counter, Ordering, heap_bytes};
use crate::tree::Tree;
use crate::{Fingerprint, Kpfn, TreeId};

impl Forest {
    /// Where a frame is.
    #[must_use]
    pub fn place(&self, guard: &Guard<'_>, kpfn: Kpfn) -> Place {
        self.check_guard(guard);
        let Some(node) = self.node(kpfn) else { return Place::Gone };
        match node.place() {
            GONE => Place::Gone,
            DETACHED => Place::Detached,
            QUEUED => Place::Queued,
            _ => match self.entry_of_node(guard, node) {
                Some(entry) => {
                    let tree = TreeId(node.tree.load(Ordering::Relaxed));
                    let chain = Word(entry.word.load(Ordering::Relaxed)).is_chain();
                    if chain { Place::Dup(tree) } else { Place::Regular(tree) }
                }
                None => Place::Moving,
            },
        }
    }

    /// How many pages are mapped to a frame.
    #[must_use]
    pub fn sharers(&self, kpfn: Kpfn) -> u32 {
        self.node(kpfn).map_or(0, StableNode::sharers)
    }

    /// The head of the list of the pages mapped to a frame. 0 in a frame never used; a frame's next
    /// life finds what its last one left.
    #[must_use]
    pub fn rmap_head(&self, kpfn: Kpfn) -> Option<&AtomicU64> {
        self.node(kpfn).map(|node| &node.rmap)
    }

    /// A frame that may be used again or given back: its grace period is over.
    #[must_use]
    pub fn freed(&self) -> Option<Kpfn> {
        self.collector.expired().pop().map(Kpfn)
    }

    /// Regular nodes and chains, of all trees.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.trees.iter().map(|tree| tree.entries.get()).sum()
    }

    /// The kernel's `stable_node_chains`, of all trees.
    #[must_use]
    pub fn stable_node_chains(&self) -> u64 {
        self.trees.iter().map(|tree| tree.chains.get()).sum()
    }

    /// The kernel's `stable_node_dups`, of all trees.
    #[must_use]
    pub fn stable_node_dups(&self) -> u64 {
        self.trees.iter().map(|tree| tree.chain_dups.get()).sum()
    }

    /// Prunes of chains, and chains that became regular nodes by that, in all.
    #[must_use]
    pub fn prunes(&self) -> (u64, u64) {
        let sum = |of: fn(&Tree) -> &Counter| self.trees.iter().map(|tree| of(tree).get()).sum();
        (sum(|tree| &tree.pruned), sum(|tree| &tree.made_regular))
    }

    /// Entries, chains and dups under chains of one tree.
    #[must_use]
    pub fn counts(&self, tree: TreeId) -> (u64, u64, u64) {
        let tree = self.tree(tree);
        (tree.entries.get(), tree.chains.get(), tree.chain_dups.get())
    }

    /// Links and frames that are retired and not yet freed.
    #[must_use]
    pub fn epoch_lag(&self) -> u64 {
        self.collector.lag()
    }

    /// Bytes of memory that the trees, the frames' records and the migrate queue take.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        let trees = size_of::<CachePadded<Tree>>() * self.trees.len();
        let queued = size_of::<(Kpfn, Fingerprint)>() * self.queue.len();
        heap_bytes(trees)
            + self.trees.iter().map(|tree| tree.bytes()).sum::<u64>()
            + self.nodes.bytes()
            + self.collector.allocated_bytes()
            + queued as u64
    }
}
