//! What this process's heap keeps of the memory that was freed.
//!
//! A merge of many pages needs memory for a moment. By default the C library learns from large blocks that
//! are freed to take later ones from its heaps too, where they stay when they are freed. And it makes heaps (arenas)
//! for up to eight threads a CPU, each with some memory to spare, while most of an engine's threads only wait for a
//! client each.

use std::num::NonZero;

/// Larger blocks are mappings of their own, and go back to the machine when they are freed: bytes.
const LARGE: i32 = 128 << 10;

/// Has large blocks, now and later, be mappings of their own, and threads share as many heaps as there are CPUs. For
/// programs that are numerge's alone.
pub fn keep_heap_small() {
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    let heaps = i32::try_from(cpus).unwrap_or(i32::MAX);
    for (name, number) in [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_ARENA_MAX, heaps)] {
        // SAFETY: sets a number of the C library's.
        let set = unsafe { libc::mallopt(name, number) };
        debug_assert_eq!(set, 1, "mallopt {name} {number}");
    }
}

/// Gives free memory of all heaps back to the machine. Who allocates at that time may wait for some
/// milliseconds.
pub fn trim_heap() {
    // SAFETY: touches free memory only, as any call of free() may.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use std::fs;

    use numerge_engine::machine::PAGE_SIZE;

    use super::*;

    fn anonymous_bytes() -> u64 {
        let status = fs::read_to_string("/proc/thread-self/status").expect("status");
        let found = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes =
            found.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kilobytes.expect("RssAnon in kB") << 10
    }

    #[test]
    fn large_blocks_are_mappings_after_one_was_freed() {
        keep_heap_small();
        for _ in 0..2 {
            let block = vec![1_u8; 16 << 20];
            // The C library has 16 bytes of its own before it.
            assert_eq!(block.as_ptr().addr() % PAGE_SIZE, 16);
        }
    }

    #[test]
    fn free_memory_between_blocks_goes_back() {
        const BYTES: usize = 64 << 10;
        let blocks: Vec<_> = (0..2048).map(|_| vec![1_u8; BYTES]).collect();
        // Every other one, so that nothing is free at the end of a heap.
        let kept: Vec<_> = blocks.into_iter().step_by(2).collect();
        let before = anonymous_bytes();
        trim_heap();
        let after = anonymous_bytes();
        assert!(after + (32 << 20) < before, "{before} {after}: 64 MiB are free");
        assert!(kept.iter().all(|block| block.iter().all(|byte| *byte == 1)));
    }
}
