//! Whether this process holds a file through which a device could be writing to its memory.
//!
//! A page that was written after it was merged can't be put to the kernel's own test for pins (only
//! UFFDIO_MOVE has it, and it refuses such pages). So such pages are touched only in a process with
//! nothing that pins memory for long: no O_DIRECT file, no io_uring, no device of the kind that
//! does DMA. What is not known to be harmless counts as able to pin.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use rustix::fs::{Mode, OFlags, RawDir};

/// Devices that never pin a page.
const HARMLESS_DEVICES: [&str; 9] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
    "/dev/userfaultfd",
];

/// Kinds of anonymous files that never pin a page.
const HARMLESS_KINDS: [&str; 9] = [
    "[eventfd]",
    "[eventpoll]",
    "[timerfd]",
    "[signalfd]",
    "[userfaultfd]",
    "[pidfd]",
    "[fanotify]",
    "inotify",
    "[perf_event]",
];

/// Whether any file this process has open could hold pins on its pages; true if in doubt.
#[must_use]
pub fn possible() -> bool {
    // Not by opendir: the C library would ask the program's malloc, whose locks may be held by a
    // thread that waits for this one (it maps memory).
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open("/proc/thread-self/fd", flags, Mode::empty()) else {
        return true;
    };
    let mut room = [MaybeUninit::uninit(); 4096];
    let mut files = RawDir::new(&directory, &mut room);
    while let Some(file) = files.next() {
        let Ok(file) = file else { return true };
        if file.file_name() == c"." || file.file_name() == c".." {
            continue;
        }
        let Some(fd) = file.file_name().to_str().ok().and_then(|name| name.parse().ok()) else {
            return true;
        };
        let possible = match fs::read_link(format!("/proc/thread-self/fd/{fd}")) {
            Ok(target) => !harmless(fd, &target.to_string_lossy()),
            // Closed since it was listed.
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if possible {
            return true;
        }
    }
    false
}

fn harmless(fd: RawFd, target: &str) -> bool {
    if let Some(kind) = target.strip_prefix("anon_inode:") {
        return HARMLESS_KINDS.contains(&kind);
    }
    if target.starts_with("pipe:") {
        return true;
    }
    if target.starts_with("socket:") {
        return !socket_pins(fd);
    }
    if target.starts_with("/dev/") && !target.starts_with("/dev/shm/") {
        return HARMLESS_DEVICES.contains(&target) || target.starts_with("/dev/pts/");
    }
    target.starts_with('/') && !direct(fd)
}

/// Whether a socket is of a kind that pins buffers (AF_XDP), or can't be asked.
fn socket_pins(fd: RawFd) -> bool {
    let mut domain: libc::c_int = 0;
    let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: `domain` has room for the `len` bytes the call may write.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            std::ptr::from_mut(&mut domain).cast(),
            &raw mut len,
        )
    };
    result != 0 || domain == libc::AF_XDP
}

/// Whether a file was opened with O_DIRECT, or can't be asked.
fn direct(fd: RawFd) -> bool {
    // SAFETY: F_GETFL reads the descriptor's flags and touches no memory.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags < 0 || flags & libc::O_DIRECT != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_counts_as_able_to_pin() {
        assert!(harmless(0, "pipe:[1]"));
        assert!(harmless(0, "anon_inode:[eventfd]"));
        assert!(harmless(0, "/dev/null"));
        assert!(harmless(0, "/dev/pts/3"));
        assert!(!harmless(0, "anon_inode:[io_uring]"));
        assert!(!harmless(0, "anon_inode:[vfio-device]"));
        assert!(!harmless(0, "/dev/vfio/7"));
        assert!(!harmless(0, "/dev/infiniband/uverbs0"));
        assert!(!harmless(0, "anon_inode:[something new]"));
    }
}
