//! The second dimension: the frames that hold one content.
//!
//! An entry of the index is a content; its dups are the frames that hold it, a list of links of
//! their own. With one dup it is the kernel's regular stable node, from the second on its chain, so
//! that turning one into the other never touches the index.
//!
//! | field | changed by |
//! | --- | --- |
//! | `Entry::dups` | who adds a dup in front; who unlinks the first one; the last unlinking makes it [`dead`], for good |
//! | `Entry::word` | who added or removed a dup, after the fact; a prune that makes a chain regular |
//! | `Dup::next` | marked by the owner of its node's place; else as in `list` |
//!
//! **DEAD goes through the head only.** An entry without dups must be gone, and nothing may be
//! added to it. Both are one compare-and-swap, of the head from the last dup to DEAD, and only if
//! that dup is marked and has no successor. A dup that was last but is no longer first has got a
//! new one in front of it, and the entry lives on.
//!
//! **Links are used once.** A dup that left a list is never linked again, or a stalled reader would
//! follow it to where it is now. A frame that moves gets a new dup.

use std::ptr;

use crate::list::{Key, Link, is_marked, mark, marked, unmarked};
use crate::sync::epoch::Guard;
use crate::sync::{AtomicPtr, AtomicU32, Ordering};
use crate::{Fingerprint, Kpfn};

/// One content in the index. The link comes first: see [`Link`].
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) link: Link,
    dups: AtomicPtr<Dup>,
    /// When it was last pruned, on the engine's clock of milliseconds, which may wrap.
    pub(crate) pruned_at_ms: AtomicU32,
    /// How many dups, and flags: see [`Word`].
    pub(crate) word: AtomicU32,
}

/// A frame's link under its entry.
#[derive(Debug)]
pub(crate) struct Dup {
    pub(crate) kpfn: Kpfn,
    /// The entry outlives its dups.
    pub(crate) entry: *mut Entry,
    next: AtomicPtr<Dup>,
}

// SAFETY: `entry` is a plain address until it is read through a guard, which says why it may.
unsafe impl Send for Dup {}
// SAFETY: as above.
unsafe impl Sync for Dup {}

/// The head of an entry that lost its last dup.
fn dead() -> *mut Dup {
    marked(ptr::null_mut())
}

/// An entry's count of dups with two flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Word(pub(crate) u32);

impl Word {
    const CHAIN: u32 = 1;
    /// Every dup was seen full, and none has got room since.
    pub(crate) const FULL: u32 = 2;
    /// No sibling is behind this entry, nor ever will be: see `tree`. Never changes.
    const LAST_SIBLING: u32 = 4;
    const ONE: u32 = 8;

    pub(crate) const fn is_last_sibling(self) -> bool {
        self.0 & Self::LAST_SIBLING != 0
    }

    pub(crate) const fn live(self) -> u32 {
        self.0 / Self::ONE
    }

    pub(crate) const fn is_chain(self) -> bool {
        self.0 & Self::CHAIN != 0
    }

    pub(crate) const fn is_full(self) -> bool {
        self.0 & Self::FULL != 0
    }

    pub(crate) const fn regular(self) -> Self {
        Self(self.0 & !Self::CHAIN)
    }

    /// One dup more. A second one makes a chain.
    pub(crate) const fn plus_one(self) -> Self {
        let word = Self((self.0 + Self::ONE) & !Self::FULL);
        if word.live() > 1 { Self(word.0 | Self::CHAIN) } else { word }
    }

    /// One dup less. Without dups there is no chain.
    pub(crate) const fn minus_one(self) -> Self {
        let word = Self(self.0 - Self::ONE);
        if word.live() == 0 { word.regular() } else { word }
    }
}

impl Entry {
    /// An entry with one dup to be.
    fn new(fingerprint: Fingerprint, last_sibling: bool) -> Self {
        let flags = if last_sibling { Word::LAST_SIBLING } else { 0 };
        Self {
            link: Link::new(Key::entry(fingerprint)),
            dups: AtomicPtr::new(ptr::null_mut()),
            pruned_at_ms: AtomicU32::new(0),
            word: AtomicU32::new(Word::ONE | flags),
        }
    }

    /// Makes an entry whose one dup is `kpfn`. Nothing is shared yet.
    pub(crate) fn alloc(
        fingerprint: Fingerprint,
        last_sibling: bool,
        kpfn: Kpfn,
        guard: &Guard<'_>,
    ) -> (*mut Entry, *mut Dup) {
        let entry = guard.alloc(Self::new(fingerprint, last_sibling));
        let dup = guard.alloc(Dup::new(kpfn, entry));
        // SAFETY: just allocated. Relaxed: not shared yet.
        unsafe { (*entry).dups.store(dup, Ordering::Relaxed) };
        (entry, dup)
    }

    /// Whether the entry is gone.
    pub(crate) fn is_dead(&self) -> bool {
        // Acquire: pairs with the Release that made it dead or linked the first dup.
        self.dups.load(Ordering::Acquire) == dead()
    }

    /// Links a dup in front. False if the entry is dead.
    ///
    /// # Safety
    /// `dup` is not in any list, is not shared yet, and may be retired only after it is unlinked.
    pub(crate) unsafe fn push(&self, dup: *mut Dup) -> bool {
        // Relaxed: the pointer is only compared and passed on; Release below hands on what the
        // load of who linked `first` needs, for it continues that one's release sequence.
        let mut first = self.dups.load(Ordering::Relaxed);
        while first != dead() {
            // SAFETY: passed on to the caller. Relaxed: not shared before the line below.
            unsafe { (*dup).next.store(first, Ordering::Relaxed) };
            // Release: pairs with the Acquire loads by which others reach the dup.
            match self.dups.compare_exchange(first, dup, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => first = now,
            }
        }
        false
    }

    /// The dups that are not marked, newest first.
    pub(crate) fn dups<'g>(&'g self, guard: &'g Guard<'_>) -> Dups<'g> {
        // Acquire: pairs with the Release that linked the first dup.
        Dups { next: self.dups.load(Ordering::Acquire), guard }
    }

    /// All dups, marked or not, when nobody else uses the entry.
    pub(crate) fn all_dups(&self, guard: &Guard<'_>) -> Vec<*mut Dup> {
        let mut all = Vec::new();
        // Relaxed: whoever has the entry alone has seen all that happened to it.
        let mut cur = unmarked(self.dups.load(Ordering::Relaxed));
        while !cur.is_null() {
            all.push(cur);
            // SAFETY: linked, and nobody unlinks it.
            cur = unmarked(unsafe { guard.deref(cur) }.next.load(Ordering::Relaxed));
        }
        all
    }

    /// Unlinks and retires every marked dup. True if that was the last and the entry is dead now;
    /// the caller is the one to take it out of the index.
    pub(crate) fn sweep(&self, guard: &Guard<'_>) -> bool {
        'again: loop {
            let mut prev = &self.dups;
            // Acquire, here and below: pairs with the Release that linked the dup.
            let mut cur = prev.load(Ordering::Acquire);
            if cur == dead() {
                return false;
            }
            while !cur.is_null() {
                // SAFETY: `cur` was loaded under `guard` from a link that was in the list then.
                let dup = unsafe { guard.deref(cur) };
                let next = dup.next.load(Ordering::Acquire);
                if !is_marked(next) {
                    prev = &dup.next;
                    cur = next;
                    continue;
                }
                let last = ptr::eq(prev, &raw const self.dups) && unmarked(next).is_null();
                let after = if last { dead() } else { unmarked(next) };
                // Release: hands on the dup behind. If this fails, `prev` got another successor or
                // is marked itself, and only a new start tells which.
                if prev.compare_exchange(cur, after, Ordering::Release, Ordering::Relaxed).is_err()
                {
                    continue 'again;
                }
                // SAFETY: one thread can unlink a dup, for a link is used once: we did.
                unsafe { guard.retire(cur) };
                if last {
                    return true;
                }
                cur = after;
            }
            return false;
        }
    }
}

impl Dup {
    pub(crate) fn new(kpfn: Kpfn, entry: *mut Entry) -> Self {
        Self { kpfn, entry, next: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Takes the dup out of its list, logically. Only the owner of its node's place may.
    pub(crate) fn mark(&self) {
        let first_time = mark(&self.next);
        debug_assert!(first_time, "a dup has one owner");
    }
}

/// Iterator over the dups of an entry.
#[derive(Debug)]
pub(crate) struct Dups<'g> {
    next: *mut Dup,
    guard: &'g Guard<'g>,
}

impl<'g> Iterator for Dups<'g> {
    type Item = &'g Dup;

    fn next(&mut self) -> Option<&'g Dup> {
        loop {
            let cur = unmarked(self.next);
            if cur.is_null() {
                return None;
            }
            // SAFETY: loaded under the guard from a link that was in the list under that guard.
            let dup = unsafe { self.guard.deref(cur) };
            // Acquire: pairs with the Release that linked the next dup.
            self.next = dup.next.load(Ordering::Acquire);
            if !is_marked(self.next) {
                return Some(dup);
            }
        }
    }
}
