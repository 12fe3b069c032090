//! What the trees cost, counted by the allocator.
#![cfg(not(loom))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use numerge_stable_tree::sync::heap_bytes;
use numerge_stable_tree::{Fingerprint, Forest, Kpfn, TreeId};

/// Adds up what is allocated, as the C library rounds it.
struct Counting;

static BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(heap_bytes(layout.size()), Ordering::Relaxed);
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(heap_bytes(layout.size()), Ordering::Relaxed);
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn s5_5_metadata_is_measured_and_all_of_it_is_freed() {
    const FRAMES: u64 = 1_000_000;
    let before = BYTES.load(Ordering::Relaxed);
    {
        let forest = Forest::new(1);
        let handle = forest.register();
        for n in 0..FRAMES {
            // Multiplying by an odd number scatters the fingerprints.
            let hash = u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
            let guard = handle.pin();
            forest.create(Kpfn(n), 2);
            let seen = forest.siblings(TreeId(0), Fingerprint::new(hash >> 8), &guard);
            assert!(seen.is_empty());
            assert_eq!(forest.insert(&guard, &seen, Kpfn(n)), Ok(()));
        }
        let allocated = BYTES.load(Ordering::Relaxed) - before;
        let told = forest.metadata_bytes();
        println!("{} bytes a frame, {} by the allocator", told / FRAMES, allocated / FRAMES);
        assert!(told / FRAMES <= 130);
        assert!(told.abs_diff(allocated) < allocated / 100, "told {told}, allocated {allocated}");

        let guard = handle.pin();
        assert!((0..FRAMES / 2).all(|n| !forest.give_up(&guard, Kpfn(n))));
        assert!((0..FRAMES / 2).all(|n| forest.give_up(&guard, Kpfn(n))));
    }
    // A thread's first panic or print leaves a little behind; a leak here would be megabytes.
    assert!(BYTES.load(Ordering::Relaxed) - before < 10_000);
}
