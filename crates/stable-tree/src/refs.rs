//! What lookups give, and what moves of frames are answered with.
//!
//! A reference is valid as long as the guard it was found under. It can only be used through the
//! forest it came from, which checks that: a guard of one forest protects nothing in another.

use std::marker::PhantomData;

use crate::dups::Entry;
use crate::tree::Group;
use crate::{Fingerprint, Kpfn, TreeId};

/// An entry that was in a tree when it was found, valid as long as the guard.
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'g> {
    pub(crate) entry: *mut Entry,
    kpfn: Kpfn,
    pub(crate) tree: TreeId,
    pub(crate) owner: usize,
    pub(crate) guard: PhantomData<&'g ()>,
}

/// The contents of one fingerprint, as they were at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Siblings<'g> {
    pub(crate) group: Group,
    pub(crate) tree: TreeId,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) owner: usize,
    pub(crate) guard: PhantomData<&'g ()>,
}

/// Where a frame is. The kinds are exclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In no tree: just created, refused, or taken out of the queue for good.
    Detached,
    /// On its way from one place to another at this moment.
    Moving,
    /// The only frame of its content in this tree.
    Regular(TreeId),
    /// One of the frames of a chain in this tree.
    Dup(TreeId),
    /// On the migrate queue, or taken from it and not placed yet.
    Queued,
    /// Without sharers, or never created.
    Gone,
}

/// Why a frame could not enter a tree. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// A content joined the siblings, or the entry is gone: look again.
    Changed,
    /// There are [`MAX_SIBLINGS`](crate::MAX_SIBLINGS) contents of this fingerprint already: do not merge this one.
    TooManySiblings,
    /// The frame lies in a closed range: do not use it.
    Closed,
    /// The frame is in a tree, queued or gone, or was never created: a mistake of the caller.
    NotDetached,
}

impl<'g> Siblings<'g> {
    /// The entries, in no order that matters.
    pub fn iter(&self) -> impl Iterator<Item = EntryRef<'g>> + use<'g> {
        let (tree, owner) = (self.tree, self.owner);
        let entries = self.group.entries.into_iter().take(self.group.len);
        entries.map(move |(entry, kpfn)| EntryRef { entry, kpfn, tree, owner, guard: PhantomData })
    }

    /// How many contents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.group.len
    }

    /// Whether nothing with this fingerprint is in the tree.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.group.len == 0
    }
}

impl EntryRef<'_> {
    /// A frame that held the entry's content when it was found. It is not reused while the guard
    /// lives, so the content can be compared whatever became of the entry.
    #[must_use]
    pub fn kpfn(&self) -> Kpfn {
        self.kpfn
    }

    /// The tree it is in.
    #[must_use]
    pub fn tree(&self) -> TreeId {
        self.tree
    }
}
