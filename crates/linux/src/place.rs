//! Where mappings of our own lie in a program's address space: out of its way.
//!
//! The kernel would put them into the highest hole that is large enough, and that may be one that the
//! program has just made, to map something there again. It would find the place taken
//! (MAP_FIXED_NOREPLACE), or map over ours (MAP_FIXED).

use std::sync::atomic::{AtomicUsize, Ordering};

use numerge_engine::machine::PAGE_SIZE;

/// Between the program and its libraries, where addresses have 47 bits and more. Who asks for places there,
/// as the runtimes of some languages do, asks for few.
const FIRST: usize = 0x1100_0000_0000;
const ALL: usize = 0x3F00_0000_0000;
/// Distance of the next place from the first one; 0 before there was any.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Where to ask for so many bytes of new memory.
///
/// A wish only: what is there stays there, and where the kernel puts the memory then is as good. No place
/// is named twice, until all have been.
#[must_use]
pub fn place_for(bytes: usize) -> *mut u8 {
    // Relaxed, here and below: a number that is given once; nothing else goes by it.
    if NEXT.load(Ordering::Relaxed) == 0 {
        let _ = NEXT.compare_exchange(0, begin(), Ordering::Relaxed, Ordering::Relaxed);
    }
    // With a page in between, so that the kernel does not join neighbours.
    let length = bytes.next_multiple_of(PAGE_SIZE) + PAGE_SIZE;
    std::ptr::without_provenance_mut(FIRST + NEXT.fetch_add(length, Ordering::Relaxed) % ALL)
}

/// Somewhere, so that nobody can know where. Not 0.
fn begin() -> usize {
    let mut random = [0; size_of::<usize>()];
    // SAFETY: the kernel fills in as many bytes, or leaves them be. (Not by the C library's function, at
    // which a thread can be cancelled.)
    unsafe { libc::syscall(libc::SYS_getrandom, random.as_mut_ptr(), random.len(), 0) };
    usize::from_ne_bytes(random) % ALL / PAGE_SIZE * PAGE_SIZE + PAGE_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_place_is_named_twice() {
        let mut last = place_for(1).addr();
        for bytes in [1, PAGE_SIZE, PAGE_SIZE + 1, 1 << 30] {
            let next = place_for(bytes).addr();
            assert!(next.is_multiple_of(PAGE_SIZE));
            assert!((FIRST..FIRST + ALL).contains(&next));
            // Others ask meanwhile; and at the end it begins again.
            assert!(next > last || last - next > ALL / 2);
            last = next + bytes;
        }
    }
}
