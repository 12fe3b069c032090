//! The system calls that change mappings, made without the C library's functions of these names.
//!
//! In a client those are the agent's own, which see to what the *program* does to its memory. What is
//! done here must not come back to them.

use std::io;
use std::os::fd::RawFd;

use crate::num::size;

/// A system call that no function of the C library's makes, for the preload library stands in for syscall(3)
/// too. Gives what it returns, or an error's number; errno is left alone.
///
/// # Safety
/// That of the system call.
#[cfg(target_arch = "x86_64")]
pub unsafe fn system_call(number: libc::c_long, arguments: [usize; 6]) -> Result<usize, i32> {
    let result: isize;
    // SAFETY: needed for want of a function of the C library's that is not the agent's. The caller's promise;
    // the kernel changes no other registers.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    match i32::try_from(result) {
        Ok(error @ -4095..0) => Err(-error),
        _ => Ok(result.cast_unsigned()),
    }
}

/// The same where syscall(3) is the C library's.
///
/// # Safety
/// That of the system call.
#[cfg(not(target_arch = "x86_64"))]
pub unsafe fn system_call(number: libc::c_long, arguments: [usize; 6]) -> Result<usize, i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: each thread has an errno of its own, which lives as long as it.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { errno.read() };
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    // SAFETY: as above.
    let error = unsafe { errno.replace(before) };
    if result == -1 { Err(error) } else { Ok(usize::from_ne_bytes(result.to_ne_bytes())) }
}

/// What a system call gave.
fn checked(result: Result<usize, i32>) -> io::Result<*mut u8> {
    result.map(std::ptr::with_exposed_provenance_mut).map_err(io::Error::from_raw_os_error)
}

/// A flag or a descriptor, as the kernel takes it in a register.
fn register(argument: i32) -> usize {
    usize::from_ne_bytes(i64::from(argument).to_ne_bytes())
}

/// munlock(2). What it does not unlock stays locked.
pub(crate) fn unlock(at: *mut u8, len: usize) {
    // SAFETY: changes no content.
    let _ = unsafe { system_call(libc::SYS_munlock, [at.expose_provenance(), len, 0, 0, 0, 0]) };
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
    let [protection, flags, fd] = [protection, flags, fd].map(register);
    let arguments = [at.expose_provenance(), len, protection, flags, fd, size(offset)];
    // SAFETY: the caller's promise.
    checked(unsafe { system_call(libc::SYS_mmap, arguments) })
}

/// munmap(2).
///
/// # Safety
/// Nobody may use what is there any more.
pub(crate) unsafe fn unmap(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    checked(unsafe { system_call(libc::SYS_munmap, [at.expose_provenance(), len, 0, 0, 0, 0]) })
        .map(|_| ())
}

/// madvise(2).
///
/// # Safety
/// If the advice drops content, nobody may miss it.
pub(crate) unsafe fn advise(at: *mut u8, len: usize, advice: i32) -> io::Result<()> {
    let arguments = [at.expose_provenance(), len, register(advice), 0, 0, 0];
    // SAFETY: the caller's promise.
    checked(unsafe { system_call(libc::SYS_madvise, arguments) }).map(|_| ())
}

/// mremap(2), to a fixed place, with what is at `from` left behind empty (MREMAP_DONTUNMAP).
///
/// # Safety
/// What was at `to` is gone, and must be missed by nobody.
pub(crate) unsafe fn move_over(from: *mut u8, len: usize, to: *mut u8) -> io::Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let (from, to) = (from.expose_provenance(), to.expose_provenance());
    // SAFETY: the caller's promise.
    checked(unsafe { system_call(libc::SYS_mremap, [from, len, len, register(flags), to, 0]) })
        .map(|_| ())
}
