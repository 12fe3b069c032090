//! Through what this process's files a device could be writing to its memory.
//!
//! A page that was written after it was merged can't be put to the kernel's own test for pins (only
//! UFFDIO_MOVE has it, and it refuses such pages). What pins pages by reading and writing files past the
//! page cache is found out by another test ([`crate::pin_test`]), on machines that allow it. Of all else
//! that may pin, nothing is found out, and such pages are not touched. What is not known to be harmless
//! counts as able to pin.

use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

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

/// How pages of this process could be pinned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Pins {
    /// Not at all, for longer than a system call.
    None,
    /// By reading and writing files (O_DIRECT, io_uring): with the right to write, if for long.
    ByFiles,
    /// By a device of the process's own, or by what is not known.
    ByDevices,
}

/// Most files that are looked through: it takes about a microsecond a file.
const FILES: usize = 4096;

/// Looks through the files this process has open, if they are not too many. Allocates nothing.
#[must_use]
pub(crate) fn possible() -> Pins {
    // Not by opendir: the C library would ask the program's malloc, whose locks may be held by a
    // thread that waits for this one (it maps memory).
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(c"/proc/thread-self/fd", flags, Mode::empty()) else {
        return Pins::ByDevices;
    };
    let mut room = [MaybeUninit::uninit(); 4096];
    let mut files = RawDir::new(&directory, &mut room);
    let (mut worst, mut looked_at) = (Pins::None, 0);
    while worst != Pins::ByDevices
        && let Some(file) = files.next()
    {
        let Ok(file) = file else { return Pins::ByDevices };
        if file.file_name() == c"." || file.file_name() == c".." {
            continue;
        }
        looked_at += 1;
        let number = file.file_name().to_str().ok().and_then(|name| name.parse().ok());
        let Some(fd) = number.filter(|_| looked_at <= FILES) else { return Pins::ByDevices };
        // Of what has a longer name the beginning tells enough.
        let mut target = [MaybeUninit::uninit(); 128];
        let found = match rustix::fs::readlinkat_raw(&directory, file.file_name(), &mut target) {
            Ok((target, _)) => pins_of(fd, target),
            // Closed since it was listed.
            Err(Errno::NOENT) => Pins::None,
            Err(_) => Pins::ByDevices,
        };
        worst = worst.max(found);
    }
    worst
}

fn pins_of(fd: RawFd, target: &[u8]) -> Pins {
    let harmless = |is: bool| if is { Pins::None } else { Pins::ByDevices };
    if let Some(kind) = target.strip_prefix(b"anon_inode:") {
        return match kind {
            b"[io_uring]" => Pins::ByFiles,
            _ => harmless(HARMLESS_KINDS.iter().any(|known| known.as_bytes() == kind)),
        };
    }
    if target.starts_with(b"pipe:") {
        return Pins::None;
    }
    if target.starts_with(b"socket:") {
        return harmless(!socket_pins(fd));
    }
    if target.starts_with(b"/dev/") && !target.starts_with(b"/dev/shm/") && !is_block_device(fd) {
        let known = HARMLESS_DEVICES.iter().any(|known| known.as_bytes() == target);
        return harmless(known || target.starts_with(b"/dev/pts/"));
    }
    match direct(fd) {
        _ if !target.starts_with(b"/") => Pins::ByDevices,
        Some(true) => Pins::ByFiles,
        Some(false) => Pins::None,
        None => Pins::ByDevices,
    }
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

/// Whether a file was opened with O_DIRECT; None if it can't be asked.
fn direct(fd: RawFd) -> Option<bool> {
    // SAFETY: F_GETFL reads the descriptor's flags and touches no memory.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    (flags >= 0).then_some(flags & libc::O_DIRECT != 0)
}

/// Whether this is a disk, which is read and written as a file is.
fn is_block_device(fd: RawFd) -> bool {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the kernel fills in `stat`, which is valid as zeros too, or says that there is no such file.
    let stat = unsafe {
        let failed = libc::fstat(fd, stat.as_mut_ptr()) != 0;
        (!failed).then(|| stat.assume_init())
    };
    stat.is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFBLK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_counts_as_able_to_pin() {
        for harmless in ["pipe:[1]", "anon_inode:[eventfd]", "/dev/null", "/dev/pts/3"] {
            assert_eq!(pins_of(-1, harmless.as_bytes()), Pins::None, "{harmless}");
        }
        for unknown in [
            "anon_inode:[vfio-device]",
            "/dev/vfio/7",
            "/dev/infiniband/uverbs0",
            "anon_inode:[something new]",
            "/a/file/that/can't/be/asked",
        ] {
            assert_eq!(pins_of(-1, unknown.as_bytes()), Pins::ByDevices, "{unknown}");
        }
        assert_eq!(pins_of(-1, b"anon_inode:[io_uring]"), Pins::ByFiles);
    }
}
