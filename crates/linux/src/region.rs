//! Memory for programs that use the library: anonymous, page aligned, alone between guards.

use std::io;
use std::ops::Range;

use numerge_engine::machine::{PAGE_SIZE, Vpn};

use crate::area::Area;
use crate::maps::Attributes;

/// Anonymous memory of the program, fit to be registered.
///
/// It is read and written by copying only: threads may write to it at once, and the machine changes
/// what is mapped there, so no Rust reference to its content may exist. Concurrent copies of the
/// same bytes see and leave either or a mix of both, as in any shared memory.
///
/// Dropping it unmaps the memory: unregister it first.
#[derive(Debug)]
pub struct AnonymousRegion {
    area: Area,
}

impl AnonymousRegion {
    /// Maps at least `bytes` bytes, rounded up to whole pages; no memory is used until written to.
    ///
    /// # Errors
    /// What mmap said.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let lazily = Attributes { no_reserve: true, ..Attributes::default() };
        Ok(Self { area: Area::new(bytes.div_ceil(PAGE_SIZE), lazily)? })
    }

    /// First byte, page aligned. The address stays the same for ever.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.area.as_ptr()
    }

    /// Length in bytes, a multiple of the page size.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.area.pages() * PAGE_SIZE
    }

    /// Never: a region has at least one page.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The pages, as the engine counts them.
    #[must_use]
    pub fn pages(&self) -> Range<Vpn> {
        let first = self.area.first();
        first..first.plus(self.area.pages() as u64)
    }

    /// Copies `buf.len()` bytes out, from `offset` on.
    ///
    /// # Errors
    /// `InvalidInput` if that leaves the region; then nothing is copied.
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> io::Result<()> {
        let from = self.checked(offset, buf.len())?;
        // SAFETY: in bounds by the check; `buf` is exclusive, so the two do not overlap. The source
        // is memory outside of Rust's allocations that is only ever copied.
        unsafe { std::ptr::copy_nonoverlapping(from, buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    /// Copies `buf` in, from `offset` on.
    ///
    /// # Errors
    /// `InvalidInput` if that leaves the region; then nothing is copied.
    pub fn write(&self, offset: usize, buf: &[u8]) -> io::Result<()> {
        let to = self.checked(offset, buf.len())?;
        // SAFETY: in bounds by the check; no Rust reference points into the region, so `buf` does
        // not overlap with it.
        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), to, buf.len()) };
        Ok(())
    }

    fn checked(&self, offset: usize, len: usize) -> io::Result<*mut u8> {
        if offset.checked_add(len).is_none_or(|end| end > AnonymousRegion::len(self)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "outside of the region"));
        }
        Ok(self.area.as_ptr().wrapping_add(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_up_and_keeps_to_its_bounds() {
        let region = AnonymousRegion::new(5000).expect("map");
        assert_eq!(region.len(), 2 * PAGE_SIZE);
        assert_eq!(region.pages().end.0 - region.pages().start.0, 2);
        region.write(4090, b"across a page").expect("write");
        let mut back = [0; 13];
        region.read(4090, &mut back).expect("read");
        assert_eq!(&back, b"across a page");
        assert!(region.write(2 * PAGE_SIZE - 1, b"ab").is_err());
        assert!(region.read(usize::MAX, &mut back).is_err());
    }

    #[test]
    fn nothing_asked_for_is_one_page() {
        assert_eq!(AnonymousRegion::new(0).expect("map").len(), PAGE_SIZE);
    }
}
