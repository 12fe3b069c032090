//! Which pages keep changing, and are looked at more rarely for it (`smart_scan`).
//!
//! A page that is merged, or waits for a partner unchanged, costs nothing until it is written to. What
//! costs is a page that changes between any two looks: it is read and hashed each time, for nothing. So
//! with each such look its *age* rises, and the next looks at it are left out, ever more of them, as the
//! kernel leaves out pages that it could not merge. One look that finds it unchanged, and it is young
//! again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

const LEFT_BITS: u32 = 4;
const LEFT: u8 = (1 << LEFT_BITS) - 1;
const OLDEST: u8 = u8::MAX >> LEFT_BITS;

/// How many looks at a page of an age are left out after one that found it changed: none until it was
/// looked at often enough to be merged.
const fn left_out(age: u8) -> u8 {
    match age {
        0..3 => 0,
        3 => 1,
        4..=5 => 2,
        6..=8 => 4,
        _ => 8,
    }
}

/// Pages that get room for their ages together, once one of them is found changed: in most regions there
/// are few such.
const CHUNK: u64 = 4096;

type Chunk = Box<[AtomicU8]>;

/// The ages of a region's pages, each with how many looks are still to be left out. A page's is changed
/// only by who looks at the page.
#[derive(Debug)]
pub(crate) struct Ages(Box<[OnceLock<Chunk>]>);

impl Ages {
    pub(crate) fn new(pages: u64) -> Self {
        Self((0..pages.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect())
    }

    pub(crate) fn metadata_bytes(&self) -> u64 {
        let chunks = self.0.iter().filter_map(OnceLock::get).map(|chunk| size_of_val(&**chunk));
        size_of_val(&*self.0) as u64 + chunks.sum::<usize>() as u64
    }

    fn chunk(&self, index: u64) -> &OnceLock<Chunk> {
        &self.0[usize::try_from(index / CHUNK).expect("a page of the region")]
    }

    /// None: it and those beside it were never found changed.
    fn page(&self, index: u64) -> Option<&AtomicU8> {
        self.chunk(index).get().map(|chunk| place(chunk, index))
    }

    /// Whether a look at the page is to be left out; counts it as left out then.
    pub(crate) fn leave_out(&self, index: u64) -> bool {
        let Some(page) = self.page(index) else { return false };
        // Relaxed, here and below: nothing is reached through it.
        let found = page.load(Ordering::Relaxed);
        if found & LEFT == 0 {
            return false;
        }
        page.store(found - 1, Ordering::Relaxed);
        true
    }

    /// A look found the page changed since the one before.
    pub(crate) fn changed(&self, index: u64) {
        let chunk =
            self.chunk(index).get_or_init(|| (0..CHUNK).map(|_| AtomicU8::new(0)).collect());
        let page = place(chunk, index);
        let age = (page.load(Ordering::Relaxed) >> LEFT_BITS).saturating_add(1).min(OLDEST);
        page.store(age << LEFT_BITS | left_out(age), Ordering::Relaxed);
    }

    /// A look found it unchanged.
    pub(crate) fn unchanged(&self, index: u64) {
        if let Some(page) = self.page(index)
            && page.load(Ordering::Relaxed) != 0
        {
            page.store(0, Ordering::Relaxed);
        }
    }
}

fn place(chunk: &Chunk, index: u64) -> &AtomicU8 {
    &chunk[usize::try_from(index % CHUNK).expect("a remainder")]
}
