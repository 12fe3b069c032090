//! What this process's heap keeps of the memory that was freed.
//!
//! A merge of many pages needs memory for a moment. By default the C library learns from large blocks that
//! are freed to take later ones from its heaps too, where they stay when they are freed.

/// Larger blocks are mappings of their own, and go back to the machine when they are freed: bytes.
const LARGE: i32 = 128 << 10;

/// Has large blocks, now and later, be mappings of their own. For programs that are numerge's alone.
pub fn keep_heap_small() {
    // SAFETY: sets a number of the C library's.
    let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    debug_assert_eq!(set, 1, "M_MMAP_THRESHOLD {LARGE}");
}

/// Gives free memory of all heaps back to the machine. Who allocates at that time may wait for some
/// milliseconds.
pub fn trim_heap() {
    // SAFETY: touches free memory only, as any call of free() may.
    unsafe { libc::malloc_trim(0) };
}
