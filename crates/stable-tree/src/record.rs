//! What is known of each tracked page, in 16 bytes.
//!
//! A page is in one state at a time, and what must be remembered of it depends on the state: a
//! fingerprint while it has no partner, a frame and its neighbours in the rmap list once it is
//! merged. So the fields of one state lie where those of another do:
//!
//! | state | bits 120..128 | below |
//! | --- | --- | --- |
//! | untouched, unread, busy, zero | state | nothing |
//! | seen, held, over budget | state | fingerprint, 120 bits |
//! | unshared | state | next in the bucket, 36; fingerprint's high 84 bits |
//! | merged | state | previous and next sharer, 36 each; kpfn, 36 |
//!
//! **Who may write a record.** The shard that scans the page's region, except that
//! - a record that is *unshared* is written only under the lock of its bucket in the unstable tree,
//!   by whoever holds it: that is how a merge claims a partner from a region it does not scan;
//! - a record that is *busy* is written only by the merge that claimed it;
//! - a record that is *merged* is written only under the lock of its frame's rmap list.
//!
//! So the two halves never have two writers. A reader that is none of these may see links that are
//! just being changed; the state and the frame of a merged page it may rely on.

#[cfg(not(loom))]
use std::alloc::{Layout, alloc_zeroed};

use crate::head::{MARKS, Marks};
use crate::sync::{AtomicU64, Ordering};
use crate::{Fingerprint, Kpfn, PageId};

const STATE_SHIFT: u32 = 120;
const LINK_MASK: u128 = (1 << PageId::BITS) - 1;
const KPFN_MASK: u128 = (1 << Kpfn::BITS) - 1;
const NEXT_SHIFT: u32 = 84;
const PREV_SHIFT: u32 = Kpfn::BITS + PageId::BITS;

/// Bits of the fingerprint that an unshared page keeps. A filter needs no more.
pub(crate) const SHORT_BITS: u32 = 84;
const SHORT_MASK: u128 = (1 << SHORT_BITS) - 1;

/// The part of a fingerprint that an unshared page keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShortFingerprint(u128);

impl From<Fingerprint> for ShortFingerprint {
    fn from(full: Fingerprint) -> Self {
        Self(full.get() >> (Fingerprint::BITS - SHORT_BITS))
    }
}

impl ShortFingerprint {
    /// Spreads fingerprints over `buckets` evenly, in their order: who goes through fingerprints in
    /// order goes through the table in order too.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a product shifted down is below `buckets`"
    )]
    pub(crate) fn bucket(self, buckets: usize) -> usize {
        (((self.0 >> (SHORT_BITS - 64)) * buckets as u128) >> 64) as usize
    }

    /// From low bits: the choice of a bucket depends on high ones.
    #[expect(clippy::cast_possible_truncation, reason = "a remainder is small")]
    pub(crate) fn mark(self) -> Marks {
        Marks::of((self.0 as u32) % MARKS)
    }
}

/// The state of a tracked page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageState {
    /// No scan has seen memory there yet.
    Untouched,
    /// Its content is unknown: it must be read at the next look.
    Unread,
    /// Looked at once with this content, or changed since the look before: volatile.
    Seen(Fingerprint),
    /// In the unstable tree: a candidate without a partner.
    Unshared(ShortFingerprint),
    /// Taken from the unstable tree by a merge that is under way.
    Busy,
    /// An rmap item of this frame.
    Merged(Kpfn),
    /// Mapped to the machine's page of zeros by a merge.
    Zero,
    /// A candidate that the machine would not let be merged although a partner was there.
    Held(Fingerprint),
    /// A candidate that was not merged because it would have taken too many mappings.
    OverBudget(Fingerprint),
}

/// The record of one page.
#[derive(Debug)]
pub struct Record {
    high: AtomicU64,
    low: AtomicU64,
}

impl Default for Record {
    fn default() -> Self {
        Self { high: AtomicU64::new(0), low: AtomicU64::new(0) }
    }
}

impl Record {
    /// Records of as many untouched pages; None if there is no memory for them. Large ones get it only when they
    /// are written to, for most programs never use all of what they register.
    #[cfg(not(loom))]
    pub(crate) fn untouched(length: usize) -> Option<Box<[Self]>> {
        let layout = Layout::array::<Self>(length).ok()?;
        if layout.size() == 0 {
            return Some(Box::default());
        }
        // SAFETY: needed because a Vec is filled by writing to it. There is more than nothing to allocate.
        let memory = unsafe { alloc_zeroed(layout) }.cast::<Self>();
        if memory.is_null() {
            return None;
        }
        // SAFETY: the global allocator gave this memory, for this layout, and it is nobody else's. Zeros are two
        // atomics that are 0, as `default` makes them.
        Some(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(memory, length)) })
    }

    /// The same of loom's atomics, which are more than numbers.
    #[cfg(loom)]
    pub(crate) fn untouched(length: usize) -> Option<Box<[Self]>> {
        Some((0..length).map(|_| Self::default()).collect())
    }
}

/// A link to another page's record, or to none.
pub(crate) type Link = Option<PageId>;

fn pack_link(link: Link) -> u128 {
    link.map_or(LINK_MASK, |page| u128::from(page.0))
}

fn unpack_link(bits: u128) -> Link {
    let link = bits & LINK_MASK;
    (link != LINK_MASK).then_some(PageId(link as u64))
}

impl Record {
    /// What is known of the page.
    pub fn state(&self) -> PageState {
        let bits = self.load();
        match (bits >> STATE_SHIFT) as u8 {
            0 => PageState::Untouched,
            1 => PageState::Unread,
            2 => PageState::Seen(Fingerprint::new(bits)),
            3 => PageState::Unshared(ShortFingerprint(bits & SHORT_MASK)),
            4 => PageState::Busy,
            5 => PageState::Merged(Kpfn((bits & KPFN_MASK) as u64)),
            6 => PageState::Zero,
            7 => PageState::Held(Fingerprint::new(bits)),
            _ => PageState::OverBudget(Fingerprint::new(bits)),
        }
    }

    /// Changes the state to one without links. Unshared and merged come about by
    /// [`crate::UnstableTree`] and [`crate::rmap`] only.
    ///
    /// # Panics
    /// If `state` is unshared or merged.
    pub fn set(&self, state: PageState) {
        let (tag, below) = match state {
            PageState::Untouched => (0, 0),
            PageState::Unread => (1, 0),
            PageState::Seen(fingerprint) => (2, fingerprint.get()),
            PageState::Busy => (4, 0),
            PageState::Zero => (6, 0),
            PageState::Held(fingerprint) => (7, fingerprint.get()),
            PageState::OverBudget(fingerprint) => (8, fingerprint.get()),
            PageState::Unshared(_) | PageState::Merged(_) => {
                panic!("{state:?} has links: only the structure it is in may set it")
            }
        };
        self.store(tag << STATE_SHIFT | below);
    }

    pub(crate) fn set_unshared(&self, fingerprint: ShortFingerprint, next: Link) {
        self.store(3 << STATE_SHIFT | pack_link(next) << NEXT_SHIFT | fingerprint.0);
    }

    /// Next page in the same bucket of the unstable tree.
    pub(crate) fn bucket_next(&self) -> Link {
        unpack_link(self.load() >> NEXT_SHIFT)
    }

    pub(crate) fn set_merged(&self, kpfn: Kpfn, previous: Link, next: Link) {
        debug_assert!(kpfn.0 >> Kpfn::BITS == 0, "frame number out of range");
        self.store(
            5 << STATE_SHIFT
                | pack_link(previous) << PREV_SHIFT
                | pack_link(next) << Kpfn::BITS
                | u128::from(kpfn.0),
        );
    }

    /// Previous and next sharer of the same frame.
    pub(crate) fn sharers(&self) -> (Link, Link) {
        let bits = self.load();
        (unpack_link(bits >> PREV_SHIFT), unpack_link(bits >> Kpfn::BITS))
    }

    /// Loads the record, for the cache's sake.
    pub(crate) fn touch(&self) {
        std::hint::black_box(self.load());
    }

    fn load(&self) -> u128 {
        // Acquire: pairs with the Release in `store`. Who sees a state sees at least the low half
        // that came with it, so that "merged" never stands beside another frame's number.
        let high = self.high.load(Ordering::Acquire);
        // Relaxed: a later low half is of the same frame, or the reader holds the lock.
        let low = self.low.load(Ordering::Relaxed);
        u128::from(high) << 64 | u128::from(low)
    }

    #[expect(clippy::cast_possible_truncation, reason = "takes the two halves apart")]
    fn store(&self, bits: u128) {
        // Relaxed: published by the store of the high half.
        self.low.store(bits as u64, Ordering::Relaxed);
        // Release: pairs with the Acquire in `load`.
        self.high.store((bits >> 64) as u64, Ordering::Release);
    }
}

/// Records by page number.
pub trait Records {
    /// The record of a tracked page.
    ///
    /// # Panics
    /// If the page is not tracked: links only ever lead to tracked pages.
    fn record(&self, page: PageId) -> &Record;
}

impl Records for [Record] {
    fn record(&self, page: PageId) -> &Record {
        &self[usize::try_from(page.0).expect("a page number indexes memory")]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_record_takes_16_bytes() {
        assert_eq!(size_of::<Record>(), 16);
    }

    #[test]
    fn every_state_is_read_as_it_was_written() {
        let record = Record::default();
        assert_eq!(record.state(), PageState::Untouched);
        let fingerprint = Fingerprint::new(u128::MAX - 5);
        for state in [
            PageState::Unread,
            PageState::Seen(fingerprint),
            PageState::Busy,
            PageState::Zero,
            PageState::Held(fingerprint),
            PageState::OverBudget(fingerprint),
            PageState::Untouched,
        ] {
            record.set(state);
            assert_eq!(record.state(), state);
        }
    }

    #[test]
    fn links_keep_their_full_width_and_do_not_touch_each_other() {
        let record = Record::default();
        let (largest, kpfn) = (PageId((1 << PageId::BITS) - 2), Kpfn((1 << Kpfn::BITS) - 1));
        record.set_merged(kpfn, Some(largest), None);
        assert_eq!(record.state(), PageState::Merged(kpfn));
        assert_eq!(record.sharers(), (Some(largest), None));
        record.set_merged(Kpfn(0), None, Some(largest));
        assert_eq!(record.state(), PageState::Merged(Kpfn(0)));
        assert_eq!(record.sharers(), (None, Some(largest)));
        let short = ShortFingerprint::from(Fingerprint::new(u128::MAX));
        record.set_unshared(short, Some(largest));
        assert_eq!(record.state(), PageState::Unshared(short));
        assert_eq!(record.bucket_next(), Some(largest));
        record.set_unshared(short, None);
        assert_eq!(record.bucket_next(), None);
    }
}
