//! Statistics, and what an allocation costs.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that is exact at rest, and about right while others change it.
///
/// All orderings are relaxed: no other data is reached through a counter. It is the standard
/// library's atomic under a model checker too (see the module above).
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at `n`.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(AtomicU64::new(n))
    }

    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts `n` less. A reader may see the number wrapped below zero for a moment, never at rest.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// The number, where one that is below zero for a moment counts as zero.
    #[must_use]
    pub fn get(&self) -> u64 {
        let n = self.0.load(Ordering::Relaxed);
        if n > u64::MAX / 2 { 0 } else { n }
    }
}

/// Bytes that the allocator takes for an object of `size` bytes.
///
/// The rule is glibc's on 64 bits: 8 bytes in front of the object, rounded up to 16, at least 32;
/// from 128 KiB on, 16 bytes and whole pages.
#[must_use]
pub const fn heap_bytes(size: usize) -> u64 {
    const MMAP_THRESHOLD: usize = 128 << 10;
    let bytes = if size >= MMAP_THRESHOLD {
        (size + 16).next_multiple_of(4096)
    } else {
        let chunk = (size + 8).next_multiple_of(16);
        if chunk < 32 { 32 } else { chunk }
    };
    bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_below_zero_reads_as_zero() {
        let counter = Counter::new(1);
        counter.sub(2);
        assert_eq!(counter.get(), 0);
        counter.add(4);
        assert_eq!(counter.get(), 3);
    }

    #[test]
    fn heap_bytes_are_those_of_glibc() {
        assert_eq!([1, 24, 25, 40, 56].map(heap_bytes), [32, 32, 48, 48, 64]);
        assert_eq!(heap_bytes(128 << 10), (128 << 10) + 4096);
    }
}
