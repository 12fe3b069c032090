//! The system calls that change mappings, made without the C library's functions of these names.
//!
//! In a client those are the agent's own, which see to what the *program* does to its memory. What is
//! done here must not come back to them.

use std::io;
use std::os::fd::RawFd;

/// What a raw system call gave.
fn checked(result: libc::c_long) -> io::Result<*mut u8> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(std::ptr::with_exposed_provenance_mut(usize::from_ne_bytes(result.to_ne_bytes())))
}

/// mmap(2).
///
/// # Safety
/// That of mmap: with MAP_FIXED what was there is gone, and must be missed by nobody.
pub(crate) unsafe fn map(
    at: *mut u8,
    len: usize,
    protection: i32,
    flags: i32,
    fd: RawFd,
    offset: u64,
) -> io::Result<*mut u8> {
    // SAFETY: the caller's promise.
    checked(unsafe { libc::syscall(libc::SYS_mmap, at, len, protection, flags, fd, offset) })
}

/// munmap(2).
///
/// # Safety
/// Nobody may use what is there any more.
pub(crate) unsafe fn unmap(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    checked(unsafe { libc::syscall(libc::SYS_munmap, at, len) }).map(|_| ())
}

/// madvise(2).
///
/// # Safety
/// If the advice drops content, nobody may miss it.
pub(crate) unsafe fn advise(at: *mut u8, len: usize, advice: i32) -> io::Result<()> {
    // SAFETY: the caller's promise.
    checked(unsafe { libc::syscall(libc::SYS_madvise, at, len, advice) }).map(|_| ())
}

/// mremap(2), to a fixed place, with what is at `from` left behind empty (MREMAP_DONTUNMAP).
///
/// # Safety
/// What was at `to` is gone, and must be missed by nobody.
pub(crate) unsafe fn move_over(from: *mut u8, len: usize, to: *mut u8) -> io::Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: the caller's promise.
    checked(unsafe { libc::syscall(libc::SYS_mremap, from, len, len, flags, to) }).map(|_| ())
}
