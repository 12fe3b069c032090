//! A set of pages that any thread asks and changes without a lock, in a few instructions.
//!
//! A bit a page, in chunks of 1 GiB of addresses. A chunk of which all pages are in the set takes no memory,
//! nor does one of which none ever was: programs reserve more address space than a bit a page would fit in.
//! A chunk's bits, once there, stay as long as the process.
//!
//! Single pages are set and cleared by relaxed operations. Who concludes from the pages of one set
//! something about another puts a [`fence`](std::sync::atomic::fence) between; pages are asked for by sequentially
//! consistent loads, so that another such operation before will do there: see [`crate::known`].

use std::iter;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use numerge_engine::machine::Vpn;

use crate::sys::{self, register};

/// Pages of a chunk: 1 GiB.
const CHUNK_PAGES: u64 = 1 << 18;
/// Bits of a word.
const BITS: u64 = 64;
const WORDS: usize = (CHUNK_PAGES / BITS) as usize;
/// Chunks of 48 bits of address. Beyond are only mappings that were asked for there.
const CHUNKS: usize = 1 << 18;

type Chunk = [AtomicU64; WORDS];

/// Its address stands for a chunk that is in the set as a whole.
static WHOLE: u8 = 0;

fn whole() -> *mut Chunk {
    (&raw const WHOLE).cast_mut().cast()
}

/// There was no memory for a chunk's bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfMemory;

/// The set.
pub(crate) struct PageSet {
    /// Null if no page of the chunk is in the set, [`whole`] if all are, else its bits.
    chunks: [AtomicPtr<Chunk>; CHUNKS],
}

impl PageSet {
    pub(crate) const fn new() -> Self {
        Self { chunks: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS] }
    }

    /// Adds pages. On an error some may be in the set and others not.
    pub(crate) fn insert(&self, pages: &Range<Vpn>) -> Result<(), OutOfMemory> {
        for part in parts(pages) {
            let chunk = self.chunks.get(part.chunk).ok_or(OutOfMemory)?;
            if let Some(bits) = part.of(chunk, ptr::null_mut(), whole())? {
                for (word, mask) in part.words() {
                    if mask == u64::MAX {
                        bits[word].store(mask, Ordering::Relaxed); // see the module
                    } else {
                        bits[word].fetch_or(mask, Ordering::Relaxed); // see the module
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes pages out. On an error some may be in the set still.
    pub(crate) fn remove(&self, pages: &Range<Vpn>) -> Result<(), OutOfMemory> {
        for part in parts(pages) {
            // What is beyond was never in.
            let Some(chunk) = self.chunks.get(part.chunk) else { break };
            if let Some(bits) = part.of(chunk, whole(), ptr::null_mut())? {
                for (word, mask) in part.words() {
                    if mask == u64::MAX {
                        bits[word].store(0, Ordering::Relaxed); // see the module
                    } else {
                        bits[word].fetch_and(!mask, Ordering::Relaxed); // see the module
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes pages out, and others of their chunks where there is no memory to tell them apart.
    pub(crate) fn remove_at_least(&self, pages: &Range<Vpn>) {
        if self.remove(pages).is_err() {
            for chunk in parts(pages).filter_map(|part| self.chunks.get(part.chunk)) {
                chunk.swap_if(whole(), ptr::null_mut());
            }
            // No chunk there is whole now, so this needs no memory.
            let _ = self.remove(pages);
        }
    }

    /// The first pages in `pages` that are in the set.
    pub(crate) fn next_in(&self, pages: &Range<Vpn>) -> Option<Range<Vpn>> {
        let start = self.first(pages, 0)?;
        let end = self.first(&(start..pages.end), u64::MAX).unwrap_or(pages.end);
        Some(start..end)
    }

    /// Whether any of these pages is in the set.
    pub(crate) fn has_any(&self, pages: &Range<Vpn>) -> bool {
        self.first(pages, 0).is_some()
    }

    /// Whether all of these pages are.
    pub(crate) fn has_all(&self, pages: &Range<Vpn>) -> bool {
        self.first(pages, u64::MAX).is_none()
    }

    /// The first page whose bit is not as in `all`, which is all of one kind.
    fn first(&self, pages: &Range<Vpn>, all: u64) -> Option<Vpn> {
        for part in parts(pages) {
            let beyond = AtomicPtr::default();
            let chunk = self.chunks.get(part.chunk).unwrap_or(&beyond);
            // SeqCst: also with the release in `of`, that the bits are there.
            let found = chunk.load(Ordering::SeqCst);
            let same = if found.is_null() { Some(0) } else { None };
            let same = if found == whole() { Some(u64::MAX) } else { same };
            match same {
                Some(same) if same == all => {}
                Some(_) => return Some(part.pages.start),
                None => {
                    // SAFETY: neither null nor the mark, so a chunk's bits, which stay.
                    let bits = unsafe { &*found };
                    for (word, mask) in part.words() {
                        let other = (bits[word].load(Ordering::SeqCst) ^ all) & mask;
                        if other != 0 {
                            let first = part.chunk as u64 * CHUNK_PAGES + word as u64 * BITS;
                            return Some(Vpn(first + u64::from(other.trailing_zeros())));
                        }
                    }
                }
            }
        }
        None
    }
}

/// Pages of one chunk.
struct Part {
    chunk: usize,
    pages: Range<Vpn>,
}

fn parts(pages: &Range<Vpn>) -> impl Iterator<Item = Part> {
    let (mut at, end) = (pages.start.0, pages.end.0);
    iter::from_fn(move || {
        let chunk = at / CHUNK_PAGES;
        let pages = Vpn(at)..Vpn(end.min((chunk + 1) * CHUNK_PAGES));
        at = pages.end.0;
        let chunk = usize::try_from(chunk).unwrap_or(usize::MAX);
        (pages.start < pages.end).then_some(Part { chunk, pages })
    })
}

impl Part {
    fn is_whole(&self) -> bool {
        self.pages.end.0 - self.pages.start.0 == CHUNK_PAGES
    }

    /// The bits of `chunk`, to be changed; None if nothing is left to do. All its pages are one of the two
    /// `before` if it has none, and are to be the other one afterwards.
    fn of<'a>(
        &self,
        chunk: &'a AtomicPtr<Chunk>,
        before: *mut Chunk,
        after: *mut Chunk,
    ) -> Result<Option<&'a Chunk>, OutOfMemory> {
        // Acquire: with the release below, that the bits are there.
        let mut found = chunk.load(Ordering::Acquire);
        while found == before {
            if self.is_whole() {
                found = chunk.swap_if(before, after);
                if found == before {
                    return Ok(None);
                }
                continue;
            }
            let bits = new_bits(before)?;
            found = chunk.swap_if(before, bits);
            if found == before {
                found = bits;
            } else {
                free_bits(bits);
            }
        }
        if found == after {
            return Ok(None);
        }
        // SAFETY: neither null nor the mark, so a chunk's bits, which stay.
        Ok(Some(unsafe { &*found }))
    }

    /// Words of the chunk's bits, and which bits of them.
    fn words(&self) -> impl Iterator<Item = (usize, u64)> {
        let (mut at, end) = (self.pages.start.0, self.pages.end.0);
        iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let first = at / BITS * BITS;
            let up_to = end.min(first + BITS);
            let mask = (u64::MAX << (at - first)) & (u64::MAX >> (first + BITS - up_to));
            at = up_to;
            let word = usize::try_from(first % CHUNK_PAGES / BITS).ok()?;
            Some((word, mask))
        })
    }
}

/// A compare-and-swap that gives what was there.
trait SwapIf {
    fn swap_if(&self, is: *mut Chunk, to: *mut Chunk) -> *mut Chunk;
}

impl SwapIf for AtomicPtr<Chunk> {
    fn swap_if(&self, is: *mut Chunk, to: *mut Chunk) -> *mut Chunk {
        // Release: what was written to new bits before; with the acquire of who finds them, this too.
        self.compare_exchange(is, to, Ordering::AcqRel, Ordering::Acquire)
            .unwrap_or_else(|found| found)
    }
}

/// Bits all alike: set if `before` stands for a whole chunk.
fn new_bits(before: *mut Chunk) -> Result<*mut Chunk, OutOfMemory> {
    let usable = register(libc::PROT_READ | libc::PROT_WRITE);
    let flags = register(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    let place = numerge_linux::place_for(size_of::<Chunk>()).addr();
    let arguments = [place, size_of::<Chunk>(), usable, flags, usize::MAX, 0];
    // SAFETY: asks for new memory where nothing is. (Not from the heap, for the program's
    // threads come here with nothing held back.)
    let made = unsafe { sys::call(libc::SYS_mmap, &arguments) }.map_err(|_| OutOfMemory)?;
    let bits = ptr::with_exposed_provenance_mut::<Chunk>(made);
    if before == whole() {
        // SAFETY: new memory of that size, aligned to a page, zeros, which are valid; nobody else knows it.
        for word in unsafe { &*bits } {
            word.store(u64::MAX, Ordering::Relaxed); // nobody else knows it
        }
    }
    Ok(bits)
}

fn free_bits(bits: *mut Chunk) {
    // SAFETY: made above, and known to nobody. Can't fail but for want of mappings: then it stays.
    let _ = unsafe { sys::call(libc::SYS_munmap, &[bits.expose_provenance(), size_of::<Chunk>()]) };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The first page of an odd chunk.
    const BASE: u64 = 5 * CHUNK_PAGES;

    fn range() -> impl Strategy<Value = Range<Vpn>> {
        // Around the edges of words and chunks, some of them over more than a whole chunk.
        let edges = [0, 64, 128, CHUNK_PAGES, CHUNK_PAGES + 64, 2 * CHUNK_PAGES, 3 * CHUNK_PAGES];
        let near = (prop::sample::select(edges.to_vec()), 0_u64..4);
        (near.clone(), near).prop_map(|((a, x), (b, y))| {
            let (a, b) = (BASE + a + x, BASE + b + y);
            Vpn(a.min(b))..Vpn(a.max(b))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_is_a_set(changes in prop::collection::vec((any::<bool>(), range()), 1..12)) {
            static SET: PageSet = PageSet::new();
            let set = &SET;
            let all = Vpn(BASE)..Vpn(BASE + 4 * CHUNK_PAGES);
            prop_assert_eq!(set.remove(&all), Ok(()));
            // Only pages where anything can begin or end: between them all are alike.
            let mut known = BTreeSet::new();
            let edges = [0, 64, 128, CHUNK_PAGES, CHUNK_PAGES + 64, 2 * CHUNK_PAGES, 3 * CHUNK_PAGES];
            let pages = || edges.into_iter().flat_map(|edge| (0..5).map(move |n| BASE + edge + n));
            for (adds, range) in changes {
                let inside = pages().filter(|page| range.contains(&Vpn(*page)));
                if adds {
                    prop_assert_eq!(set.insert(&range), Ok(()));
                    known.extend(inside);
                } else {
                    prop_assert_eq!(set.remove(&range), Ok(()));
                    inside.for_each(|page| {
                        known.remove(&page);
                    });
                }
                for page in pages() {
                    let one = Vpn(page)..Vpn(page + 1);
                    prop_assert_eq!(set.has_any(&one), known.contains(&page));
                    prop_assert_eq!(set.has_all(&one), known.contains(&page));
                }
                let first = set.next_in(&all).map(|found| found.start.0);
                prop_assert_eq!(first, known.first().copied());
                if let Some(found) = set.next_in(&all) {
                    prop_assert!(set.has_all(&found));
                    prop_assert!(!set.has_any(&(found.end..found.end.plus(1))));
                }
            }
        }
    }

    #[test]
    fn what_is_beyond_all_addresses_is_never_in() {
        static SET: PageSet = PageSet::new();
        let last = CHUNKS as u64 * CHUNK_PAGES;
        let across = Vpn(last - 2)..Vpn(last + 2);
        assert_eq!(SET.insert(&across), Err(OutOfMemory));
        assert!(!SET.has_any(&(Vpn(last)..Vpn(last + 2))));
        assert_eq!(SET.next_in(&across), Some(Vpn(last - 2)..Vpn(last)));
        assert_eq!(SET.remove(&across), Ok(()));
        assert!(!SET.has_any(&across));
    }

    #[test]
    fn threads_that_change_different_pages_do_not_disturb_each_other() {
        static SET: PageSet = PageSet::new();
        // Neighbours in words, and in chunks that are whole at times.
        const THREADS: u64 = 4;
        let whole = Vpn(BASE)..Vpn(BASE + CHUNK_PAGES);
        SET.insert(&whole).expect("memory");
        std::thread::scope(|scope| {
            for n in 0..THREADS {
                scope.spawn(move || {
                    let mine = |round: u64| {
                        let at = BASE + round * THREADS * 8 + n * 8;
                        Vpn(at)..Vpn(at + 8)
                    };
                    for round in 0..2000 {
                        assert!(SET.has_all(&mine(round)));
                        SET.remove(&mine(round)).expect("memory");
                        assert!(!SET.has_any(&mine(round)));
                        if round % 2 == 0 {
                            SET.insert(&mine(round)).expect("memory");
                        }
                    }
                    for round in 0..2000 {
                        assert_eq!(SET.has_all(&mine(round)), round % 2 == 0);
                    }
                });
            }
        });
    }
}
