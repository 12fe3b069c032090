//! Memory to be merged.

use std::io;

/// Two pages of equal content that may be merged. What reads or writes them has no part in it.
pub(crate) struct Pair(*mut libc::c_void);

impl Pair {
    const BYTES: usize = 2 * 4096;

    pub(crate) fn new() -> io::Result<Self> {
        let (read_write, private) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // By the C library, which is what merges in user space take calls from.
        // SAFETY: a new mapping, wherever there is room.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), Self::BYTES, read_write, private, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is this long and writable, and nobody else knows of it.
        unsafe { std::ptr::write_bytes(start.cast::<u8>(), b'm', Self::BYTES) };
        // That it is refused shows in what is merged then.
        // SAFETY: the mapping is this long, and merging changes no content.
        unsafe { libc::madvise(start, Self::BYTES, libc::MADV_MERGEABLE) };
        Ok(Self(start))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing refers to it.
        unsafe { libc::munmap(self.0, Self::BYTES) };
    }
}
