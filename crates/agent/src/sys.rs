//! The program's own system calls, as the kernel takes them, and its errno.

use std::ops::Range;

use numerge_engine::machine::{PAGE_SIZE, Vpn};

/// What a system call of the program's gave: a number, or an error's.
pub type Answer = Result<usize, i32>;

/// Makes a system call with the program's own arguments.
///
/// # Safety
/// What the program asks for is the program's to answer for.
pub(crate) unsafe fn call(number: libc::c_long, arguments: &[usize]) -> Answer {
    let argument = |n: usize| arguments.get(n).copied().unwrap_or(0);
    // SAFETY: the caller's promise; arguments the call does not have are ignored by the kernel.
    unsafe { numerge_linux::system_call(number, std::array::from_fn(argument)) }
}

/// A flag or a small number of a C call, as the kernel takes it in a register.
pub(crate) fn register(argument: i32) -> usize {
    usize::from_ne_bytes(i64::from(argument).to_ne_bytes())
}

/// This thread's errno.
pub fn errno() -> i32 {
    // SAFETY: the C library gives each thread an errno of its own, always readable.
    unsafe { *libc::__errno_location() }
}

/// Sets this thread's errno.
pub fn set_errno(errno: i32) {
    // SAFETY: as above, and writable.
    unsafe { *libc::__errno_location() = errno };
}

/// The pages of a range of bytes, the last one whole; None if the kernel would refuse the range: it
/// begins within a page, or goes beyond the last address.
pub(crate) fn pages(start: usize, len: usize) -> Option<Range<Vpn>> {
    let end = start.checked_add(len)?.checked_next_multiple_of(PAGE_SIZE)?;
    let page = |address: usize| Vpn((address / PAGE_SIZE) as u64);
    start.is_multiple_of(PAGE_SIZE).then(|| page(start)..page(end))
}

/// Whether all of these pages are mapped.
pub(crate) fn are_mapped(pages: &Range<Vpn>) -> bool {
    let address = |page: Vpn| usize::try_from(page.0).unwrap_or(usize::MAX) * PAGE_SIZE;
    check_mapped(address(pages.start), address(pages.end) - address(pages.start)).is_ok()
}

/// Whether every byte of a range is mapped: ENOMEM and EINVAL as madvise gives them.
pub(crate) fn check_mapped(start: usize, len: usize) -> Answer {
    // SAFETY: MS_ASYNC does nothing but this check.
    unsafe { call(libc::SYS_msync, &[start, len, register(libc::MS_ASYNC)]) }
}

/// Whether a descriptor stands for this very process.
pub(crate) fn is_this_process(pidfd: i32) -> bool {
    /// Linux 6.14: the calling thread, and its process.
    const PIDFD_SELF: [i32; 2] = [-10000, -10001];
    if PIDFD_SELF.contains(&pidfd) {
        return true;
    }
    /// `_IOWR(0xFF, 11, struct pidfd_info)` of include/uapi/linux/pidfd.h (Linux 6.13), and the process's
    /// number among the structure's first 64 bytes.
    const PIDFD_GET_INFO: usize = 0xC040_FF0B;
    const TGID: usize = 5;
    // Where the kernel can't say it thus, it lets no advice be given by which content is dropped.
    let mut info = [0_u32; 16];
    let arguments = [register(pidfd), PIDFD_GET_INFO, info.as_mut_ptr().expose_provenance()];
    // SAFETY: the kernel writes no more than the 64 bytes that are there.
    if unsafe { call(libc::SYS_ioctl, &arguments) }.is_ok() {
        return info[TGID] == std::process::id();
    }
    let info = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{pidfd}"));
    let pid = format!("Pid:\t{}", std::process::id());
    info.is_ok_and(|info| info.lines().any(|line| line == pid))
}
