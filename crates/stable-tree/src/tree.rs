//! One stable tree: the first dimension of the index, and its counters.
//!
//! # Contents of equal fingerprint
//!
//! Entries are unique by content, but the list knows only fingerprints, and several contents may
//! share one (siblings, adjacent in the list, at most [`MAX_SIBLINGS`]). So the caller looks at the
//! siblings, compares contents, and asks for its own to be inserted if *nothing joined them since*.
//! New siblings are only linked in front of the others, so that is one compare-and-swap: of the
//! pointer to the front, which must still lead to the sibling that was in front then. Siblings that
//! left in the meantime do no harm. A front that left and came back can't be: it was pinned. An
//! entry that was linked where there was no sibling never gets one behind it, and says so in its
//! word, which spares most lookups the look at the link behind.
//!
//! A sibling whose frames are all gone must not be passed over as different: someone who compared
//! before may still add a frame to it. Whoever meets one helps to remove it first. So each sibling
//! comes with a frame to compare with, whose content stays while the caller is pinned, whatever
//! becomes of the sibling.

use std::ptr;

use crate::buckets::Buckets;
use crate::dups::{Entry, Word};
use crate::list::{Key, Link, find, mark, unmarked};
use crate::sync::epoch::Guard;
use crate::sync::{Counter, Ordering};
use crate::{Fingerprint, Kpfn};

/// Contents that may have the same fingerprint in one tree. Crafted collisions cost no more.
pub const MAX_SIBLINGS: usize = 4;

#[derive(Debug)]
pub(crate) struct Tree {
    buckets: Buckets,
    pub(crate) entries: Counter,
    pub(crate) chains: Counter,
    /// Dups under chains.
    pub(crate) chain_dups: Counter,
    /// Prunes of chains, and chains that became regular nodes by that, in all.
    pub(crate) pruned: Counter,
    pub(crate) made_regular: Counter,
}

/// The live entries of one fingerprint at some moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// The first of them, or null.
    pub(crate) front: *mut Link,
    /// Each with a frame that holds its content.
    pub(crate) entries: [(*mut Entry, Kpfn); MAX_SIBLINGS],
    pub(crate) len: usize,
}

/// A link that is not a sentinel is an entry's first field.
pub(crate) fn entry_of<'g>(link: *mut Link, guard: &'g Guard<'_>) -> Option<&'g Entry> {
    // SAFETY: the caller loaded `link` from the list under `guard`, or it is null.
    let key = (!link.is_null()).then(|| unsafe { guard.deref(link) }.key)?;
    // SAFETY: as above; and only links of entries have such keys.
    (!key.is_sentinel()).then(|| unsafe { guard.deref(link.cast::<Entry>()) })
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self {
            buckets: Buckets::new(),
            entries: Counter::new(0),
            chains: Counter::new(0),
            chain_dups: Counter::new(0),
            pruned: Counter::new(0),
            made_regular: Counter::new(0),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.buckets.bytes()
    }

    /// The first link of the list.
    pub(crate) fn first(&self) -> &Link {
        self.buckets.first()
    }

    /// The live entries of a fingerprint.
    pub(crate) fn group(&self, fingerprint: Fingerprint, guard: &Guard<'_>) -> Group {
        let key = Key::entry(fingerprint);
        'again: loop {
            let front = find(self.buckets.start(key, guard), key, guard).next;
            let mut group = Group {
                front: ptr::null_mut(),
                entries: [(ptr::null_mut(), Kpfn(0)); MAX_SIBLINGS],
                len: 0,
            };
            let mut cur = front;
            while let Some(entry) = entry_of(cur, guard) {
                if entry.link.key != key {
                    break;
                }
                let Some(dup) = entry.dups(guard).next() else {
                    // Dead, or about to be. Help, for whoever is to remove it may take its time.
                    self.sweep(entry, guard);
                    if entry.is_dead() {
                        self.unlink(entry, guard);
                    }
                    continue 'again;
                };
                if let Some(slot) = group.entries.get_mut(group.len) {
                    *slot = (cur.cast(), dup.kpfn);
                    group.len += 1;
                }
                group.front = front;
                // Relaxed: the flag was there when the entry was linked.
                if Word(entry.word.load(Ordering::Relaxed)).is_last_sibling() {
                    break;
                }
                // Acquire: pairs with the Release that linked the next sibling.
                cur = unmarked(entry.link.next.load(Ordering::Acquire));
            }
            return group;
        }
    }

    /// Links an entry if no sibling joined those of which `front` was the first. The entry then
    /// counts as this tree's, with one dup.
    ///
    /// # Safety
    /// `entry` is not shared yet, and not retired before it is unlinked.
    pub(crate) unsafe fn insert(
        &self,
        entry: *mut Entry,
        front: *mut Link,
        guard: &Guard<'_>,
    ) -> bool {
        // SAFETY: the caller's own.
        let key = unsafe { &*entry }.link.key;
        loop {
            let gap = find(self.buckets.start(key, guard), key, guard);
            let first = entry_of(gap.next, guard).filter(|first| first.link.key == key);
            let unchanged = if front.is_null() { first.is_none() } else { gap.next == front };
            if !unchanged {
                return false;
            }
            // SAFETY: passed on to the caller.
            if unsafe { gap.link(entry.cast()) } {
                self.entries.add(1);
                self.buckets.grow(self.entries.get());
                return true;
            }
        }
    }

    /// Counts a dup that was linked.
    pub(crate) fn count_up(&self, entry: &Entry) {
        let (before, after) = update(entry, Word::plus_one);
        if before.is_chain() {
            self.chain_dups.add(1);
        } else if after.is_chain() {
            self.chains.add(1);
            self.chain_dups.add(u64::from(after.live()));
        }
    }

    /// Counts off a dup that was marked. Gives how many are left.
    pub(crate) fn count_down(&self, entry: &Entry) -> u32 {
        let (before, after) = update(entry, Word::minus_one);
        if before.is_chain() {
            self.chain_dups.sub(1);
            if !after.is_chain() {
                self.chains.sub(1);
            }
        }
        after.live()
    }

    /// Turns a chain with one dup into a regular node again.
    pub(crate) fn make_regular(&self, entry: &Entry) {
        // Relaxed, both: flags and count only; no data is reached through them.
        let word = Word(entry.word.load(Ordering::Relaxed));
        if word.is_chain() && word.live() == 1 {
            let regular = word.regular().0;
            // AcqRel: every change of the word carries on what the others released (`update`).
            let result =
                entry.word.compare_exchange(word.0, regular, Ordering::AcqRel, Ordering::Relaxed);
            if result.is_ok() {
                self.chains.sub(1);
                self.chain_dups.sub(1);
                self.made_regular.add(1);
            }
        }
    }

    /// Unlinks the marked dups of an entry, and the entry itself if it has no other.
    pub(crate) fn sweep(&self, entry: &Entry, guard: &Guard<'_>) {
        if entry.sweep(guard) {
            self.entries.sub(1);
            self.unlink(entry, guard);
        }
    }

    /// Takes a dead entry out of the list. Any number of threads may help.
    fn unlink(&self, entry: &Entry, guard: &Guard<'_>) {
        mark(&entry.link.next);
        // Past all siblings, for the walk unlinks only what is in front of its goal.
        let past = Key::past(entry.link.key.fingerprint());
        find(self.buckets.start(past, guard), past, guard);
    }

    /// The live entries from `from` on, to be taken while pinned.
    pub(crate) fn entries_from<'g>(
        &'g self,
        from: Fingerprint,
        guard: &'g Guard<'_>,
    ) -> impl Iterator<Item = &'g Entry> {
        let key = Key::entry(from);
        let mut cur = find(self.buckets.start(key, guard), key, guard).next;
        std::iter::from_fn(move || {
            while !cur.is_null() {
                let link = cur;
                // SAFETY: loaded from the list under `guard`. Acquire: pairs with the Release that
                // linked what follows.
                cur = unmarked(unsafe { guard.deref(link) }.next.load(Ordering::Acquire));
                match entry_of(link, guard) {
                    Some(entry) if !entry.is_dead() => return Some(entry),
                    _ => {}
                }
            }
            None
        })
    }
}

/// Changes an entry's word; gives the old and the new one.
///
/// AcqRel: who counts the last dup off must see the marks that were set before the other dups were
/// counted off. All changes are read-modify-writes of one word, so it does.
fn update(entry: &Entry, change: impl Fn(Word) -> Word) -> (Word, Word) {
    let mut seen = entry.word.load(Ordering::Relaxed);
    loop {
        let after = change(Word(seen));
        match entry.word.compare_exchange(seen, after.0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return (Word(seen), after),
            Err(now) => seen = now,
        }
    }
}
