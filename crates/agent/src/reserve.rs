//! Mappings kept in reserve, for the moment when the program has used up all that it may have.

use std::io;

use numerge_engine::machine::PAGE_SIZE;

use crate::sys::{self, register};

/// How many there are. The kernel refuses mremap when less than four are left.
const MAPPINGS: usize = 32;

/// Pages that can't be accessed, each a mapping. Given up when dropped.
#[derive(Debug)]
pub(crate) struct Reserve {
    start: usize,
}

impl Reserve {
    /// Takes them.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let place = numerge_linux::place_for(MAPPINGS * PAGE_SIZE).addr();
        let arguments = [
            place,
            MAPPINGS * PAGE_SIZE,
            register(libc::PROT_NONE),
            register(flags),
            usize::MAX,
            0,
        ];
        // SAFETY: asks for new memory where nothing is.
        let start = unsafe { sys::call(libc::SYS_mmap, &arguments) };
        let made = Self { start: start.map_err(io::Error::from_raw_os_error)? };
        for page in (0..MAPPINGS).step_by(2) {
            let read = register(libc::PROT_READ);
            let arguments = [made.start + page * PAGE_SIZE, PAGE_SIZE, read];
            // SAFETY: a page of that memory, which nobody knows.
            unsafe { sys::call(libc::SYS_mprotect, &arguments) }
                .map_err(io::Error::from_raw_os_error)?;
        }
        Ok(made)
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // SAFETY: memory of our own that nobody uses. Can't fail: it takes no mapping.
        let _ = unsafe { sys::call(libc::SYS_munmap, &[self.start, MAPPINGS * PAGE_SIZE]) };
    }
}
