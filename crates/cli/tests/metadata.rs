//! What tracking costs, by the engine's own account and by the allocator's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use numerge::{Counters, Knob, Merger, Options, Region};

/// Counts what is allocated, with the allocator's own overhead.
struct Counting;

static HEAP_BYTES: AtomicI64 = AtomicI64::new(0);

/// As glibc rounds: 8 bytes of header, multiples of 16, 32 at least.
fn rounded(layout: Layout) -> i64 {
    i64::try_from((layout.size() + 8).next_multiple_of(16).max(32)).unwrap()
}

// SAFETY: passes on to the system's allocator, which keeps the contract; needed to count.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP_BYTES.fetch_add(rounded(layout), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HEAP_BYTES.fetch_sub(rounded(layout), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn write(region: &Region, page: usize, content: u64) {
    region.write(page * 4096, &(content + 1).to_le_bytes()).unwrap();
}

fn settle(merger: &Merger) -> Counters {
    let goal = merger.counters().full_scans + 4;
    while merger.counters().full_scans < goal {
        std::thread::sleep(Duration::from_millis(1));
    }
    merger.counters()
}

/// Bytes of metadata that `pages` pages add, and what the heap grew by meanwhile.
fn cost(merger: &Merger, pages: usize, content: impl Fn(usize) -> u64) -> (Counters, u64, i64) {
    merger.set(Knob::Run, 0).unwrap();
    let (metadata, heap) = (merger.counters().metadata_bytes, HEAP_BYTES.load(Ordering::Relaxed));
    let region = merger.allocate(pages * 4096).unwrap();
    (0..pages).for_each(|page| write(&region, page, content(page)));
    merger.set(Knob::Run, 1).unwrap();
    settle(merger);
    merger.set(Knob::Run, 0).unwrap();
    // A scan that was under way ends, and gives its own memory back.
    std::thread::sleep(Duration::from_millis(300));
    let counters = merger.counters();
    let metadata = counters.metadata_bytes - metadata;
    (counters, metadata, HEAP_BYTES.load(Ordering::Relaxed) - heap)
}

/// One test, for the counts are those of the whole process.
#[test]
fn metadata_is_counted_as_it_is_and_within_its_budget() {
    const PAGES: usize = 1 << 17;
    let pages = PAGES as u64;
    let merger = match Merger::new(Options::default()) {
        Ok(merger) => merger,
        Err(error) => return println!("SKIPPED: {error}"),
    };
    merger.set(Knob::PagesToScan, 1 << 16).unwrap();
    merger.set(Knob::SleepMillisecs, 0).unwrap();

    let (counters, unique, heap) = cost(&merger, PAGES, |page| page as u64);
    println!("{pages} unique pages: {unique} bytes counted, the heap grew by {heap}");
    assert_eq!(counters.pages_unshared, pages);
    assert!(unique <= 24 * pages, "{} bytes a page", unique as f64 / pages as f64);
    assert!(heap.unsigned_abs() <= unique + unique / 20, "more is allocated than is counted");

    // Each content four times, in runs: a frame for four merged pages.
    let (counters, merged, heap) = cost(&merger, PAGES, |page| (page % (PAGES / 4)) as u64);
    let frames = counters.pages_shared;
    println!("{pages} merged pages in {frames} frames: {merged} counted, the heap grew by {heap}");
    assert_eq!(counters.pages_sharing, pages - frames);
    assert!(merged <= 40 * pages + 160 * frames);
    // What a frame takes, if each page takes the 24 bytes that any may.
    assert!(merged <= 24 * pages + 160 * frames, "{} a frame", (merged - 16 * pages) / frames);
    assert!(heap.unsigned_abs() <= merged + merged / 20, "more is allocated than is counted");

    // One content and the least limit: a chain of full dups.
    merger.set(Knob::Run, 2).unwrap();
    merger.set(Knob::MaxPageSharing, 2).unwrap();
    let (counters, chained, heap) = cost(&merger, PAGES, |_| 1);
    let frames = counters.pages_shared;
    println!("{pages} pages in {frames} dups: {chained} counted, the heap grew by {heap}");
    assert_eq!((frames, counters.stable_node_chains), (pages / 2, 1));
    assert!(chained <= 24 * pages + 160 * frames);
    merger.shut_down().unwrap();
}
