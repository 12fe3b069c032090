//! Anonymous memory between guard pages, so that the kernel never joins it to a neighbour.

use std::io;
use std::ptr::NonNull;

use numerge_engine::machine::{PAGE_SIZE, Vpn};

use crate::num::PAGE_SHIFT;
use crate::uffd::Span;

/// How an [`Area`] is to be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Style {
    /// Not counted against the commit limit (MAP_NORESERVE).
    pub(crate) no_reserve: bool,
    /// Advice on huge pages (MADV_HUGEPAGE or MADV_NOHUGEPAGE), if any.
    pub(crate) huge_pages: Option<i32>,
}

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
    /// Maps `pages` (at least 1) pages.
    pub(crate) fn new(pages: usize, style: Style) -> io::Result<Self> {
        let pages = pages.max(1);
        let outer = pages
            .checked_add(2)
            .and_then(|n| n.checked_mul(PAGE_SIZE))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: asks for a mapping at an address of the kernel's choice; no memory is touched.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                outer,
                libc::PROT_NONE,
                anonymous | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let reserve = if style.no_reserve { libc::MAP_NORESERVE } else { 0 };
        // SAFETY: inside the mapping just made, which nobody else knows of.
        let inner = unsafe {
            libc::mmap(
                base.cast::<u8>().wrapping_add(PAGE_SIZE).cast(),
                pages * PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                anonymous | libc::MAP_FIXED | reserve,
                -1,
                0,
            )
        };
        let Some(start) = NonNull::new(inner.cast::<u8>()).filter(|_| inner != libc::MAP_FAILED)
        else {
            let error = io::Error::last_os_error();
            // SAFETY: the mapping made above, unused.
            unsafe { libc::munmap(base, outer) };
            return Err(error);
        };
        inner.expose_provenance();
        let area = Self { start, pages };
        if let Some(advice) = style.huge_pages {
            // SAFETY: advice on memory that is ours; changes no content.
            if unsafe { libc::madvise(inner, pages * PAGE_SIZE, advice) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
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
        // SAFETY: the area with both guards is ours alone, and this is its last use.
        unsafe {
            libc::munmap(
                self.start.as_ptr().wrapping_sub(PAGE_SIZE).cast(),
                (self.pages + 2) * PAGE_SIZE,
            );
        }
    }
}
