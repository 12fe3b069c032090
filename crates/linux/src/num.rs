//! Conversions between the kernel's 64-bit numbers and Rust's sizes, in one place.
//!
//! This crate runs on 64-bit Linux only, where they lose nothing.

use std::ops::Range;

use numerge_engine::machine::{PAGE_SIZE, Vpn};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("numerge runs on 64-bit Linux only");

/// log2 of [`PAGE_SIZE`].
pub(crate) const PAGE_SHIFT: u32 = PAGE_SIZE.trailing_zeros();
/// [`PAGE_SIZE`] as the kernel's structures want it.
pub(crate) const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// A 64-bit number as a size.
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, checked above")]
pub(crate) const fn size(n: u64) -> usize {
    n as usize
}

/// First byte of a page.
pub(crate) const fn address(page: Vpn) -> u64 {
    page.0 << PAGE_SHIFT
}

/// Length of a page range in bytes.
pub(crate) const fn bytes(pages: &Range<Vpn>) -> u64 {
    count(pages) << PAGE_SHIFT
}

/// Length of a page range in pages.
pub(crate) const fn count(pages: &Range<Vpn>) -> u64 {
    pages.end.0.saturating_sub(pages.start.0)
}

/// First byte of a page, as a pointer of the program's address space.
pub(crate) fn pointer(page: Vpn) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(size(address(page)))
}
