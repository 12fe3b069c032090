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
use rustix::net::AddressFamily;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

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
///
/// Its files are those of its first thread: the thread that asks may have some of its own (the agent's
/// threads do). So they are known by /proc, and what that does not tell by a copy.
#[must_use]
pub fn possible() -> bool {
    // Not by opendir: the C library would ask the program's malloc, whose locks may be held by a
    // thread that waits for this one (it maps memory).
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open("/proc/self/fd", flags, Mode::empty()) else {
        return true;
    };
    let mut room = [MaybeUninit::uninit(); 4096];
    let mut files = RawDir::new(&directory, &mut room);
    // A first thread that has ended shows none.
    let mut any = false;
    while let Some(file) = files.next() {
        let Ok(file) = file else { return true };
        if file.file_name() == c"." || file.file_name() == c".." {
            continue;
        }
        any = true;
        let Some(fd) = file.file_name().to_str().ok().and_then(|name| name.parse().ok()) else {
            return true;
        };
        let possible = match fs::read_link(format!("/proc/self/fd/{fd}")) {
            Ok(target) => !harmless(fd, &target.to_string_lossy()),
            // Closed since it was listed.
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if possible {
            return true;
        }
    }
    !any
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
    let domain = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
        .and_then(|process| rustix::process::pidfd_getfd(process, fd, PidfdGetfdFlags::empty()))
        .and_then(rustix::net::sockopt::socket_domain);
    domain.map_or(true, |domain| domain == AddressFamily::XDP)
}

/// Whether a file was opened with O_DIRECT, or can't be asked.
fn direct(fd: RawFd) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| libc::c_int::from_str_radix(flags.trim(), 8).ok());
    flags.is_none_or(|flags| flags & libc::O_DIRECT != 0)
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

    #[test]
    fn files_are_those_of_the_program_whoever_asks() {
        // In a process of its own: the files of this one are other tests' too.
        // SAFETY: the child makes system calls and allocates, which the C library allows after fork().
        let child = unsafe { libc::fork() };
        if child == 0 {
            let open = |flags: libc::c_int| {
                // SAFETY: opens this program's own file.
                unsafe { libc::open(c"/proc/self/exe".as_ptr(), libc::O_RDONLY | flags) }
            };
            // SAFETY: closes what was open; nothing of it is used in this process any more.
            unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
            let plain = open(0);
            let harmless = !possible();
            let direct = open(libc::O_DIRECT);
            let elsewhere = std::thread::spawn(|| {
                let unshare = libc::CLOSE_RANGE_UNSHARE;
                // SAFETY: closes this thread's copies only.
                unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, unshare) };
                possible()
            });
            let seen = elsewhere.join().is_ok_and(|seen| seen) && possible();
            // A file system without O_DIRECT shows nothing.
            let fine = plain >= 0 && harmless && (direct < 0 || seen);
            // SAFETY: ends this process.
            unsafe { libc::_exit(i32::from(!fine)) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
