//! Anonymous memory between guard pages, so that the kernel never joins it to a neighbour.

use std::io;
use std::ptr::NonNull;

use numerge_engine::machine::{PAGE_SIZE, Vpn};

use crate::maps::Attributes;
use crate::num::PAGE_SHIFT;
use crate::place::place_for;
use crate::sys;
use crate::uffd::Span;

/// Owned, readable, writable, private anonymous memory with an inaccessible page on both sides.
#[derive(Debug)]
pub(crate) struct Area {
    start: NonNull<u8>,
    pages: usize,
}

// SAFETY: an area is an address range; all access to its content is unsafe and for the user of the
// area to order.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Maps `pages` (at least 1) pages with these attributes.
    pub(crate) fn new(pages: usize, attributes: Attributes) -> io::Result<Self> {
        let pages = pages.max(1);
        let outer = pages
            .checked_add(2)
            .and_then(|n| n.checked_mul(PAGE_SIZE))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let none = libc::PROT_NONE;
        let lazily = anonymous | libc::MAP_NORESERVE;
        // SAFETY: asks for a mapping where nothing is; no memory is touched.
        let base = unsafe { sys::map(place_for(outer), outer, none, lazily, -1, 0) }?;
        let start = NonNull::new(base.wrapping_add(PAGE_SIZE)).ok_or(io::ErrorKind::OutOfMemory)?;
        // Unmaps all of it if anything fails from here on.
        let area = Self { start, pages };
        let reserve = if attributes.no_reserve { libc::MAP_NORESERVE } else { 0 };
        let usable = libc::PROT_READ | libc::PROT_WRITE;
        let flags = anonymous | libc::MAP_FIXED | reserve;
        // SAFETY: inside the mapping just made, which nobody else knows of.
        unsafe { sys::map(start.as_ptr(), pages * PAGE_SIZE, usable, flags, -1, 0) }?;
        if let Some(advice) = attributes.huge_pages {
            // SAFETY: advice on memory that is ours; changes no content.
            unsafe { sys::advise(start.as_ptr(), pages * PAGE_SIZE, advice) }?;
        }
        attributes.give_to(start.as_ptr(), pages * PAGE_SIZE)?;
        Ok(area)
    }

    /// First byte.
    pub(crate) const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Pages between the guards.
    pub(crate) const fn pages(&self) -> usize {
        self.pages
    }

    /// First page.
    pub(crate) fn first(&self) -> Vpn {
        Vpn((self.start.as_ptr().addr() >> PAGE_SHIFT) as u64)
    }

    /// All of it, in bytes.
    pub(crate) fn span(&self) -> Span {
        Span { start: self.start.as_ptr().addr() as u64, len: (self.pages * PAGE_SIZE) as u64 }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let outer = self.start.as_ptr().wrapping_sub(PAGE_SIZE);
        // SAFETY: the area with both guards is ours alone, and this is its last use.
        let _ = unsafe { sys::unmap(outer, (self.pages + 2) * PAGE_SIZE) };
    }
}
