//! Through what this process's files a device could be writing to its memory.
//!
//! A page that was written after it was merged can't be put to the kernel's own test for pins (only
//! UFFDIO_MOVE has it, and it refuses such pages). What pins pages by reading and writing files past the
//! page cache is found out by another test ([`crate::pin_test`]), on machines that allow it. Of all else
//! that may pin, nothing is found out, and such pages are not touched. What is not known to be harmless
//! counts as able to pin.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

/// Devices that never pin a page.
const HARMLESS_DEVICES: [&str; 10] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
    "/dev/userfaultfd",
    "/dev/kvm",
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

/// Most files that are looked through: it takes some microseconds a file.
const FILES: usize = 4096;

/// Looks through the files this process has open, if they are not too many. Allocates nothing.
///
/// That is the table of files of its first thread, which is not always the calling thread's.
#[must_use]
pub(crate) fn possible() -> Pins {
    // Not by opendir: the C library would ask the program's malloc, whose locks may be held by a
    // thread that waits for this one (it maps memory).
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &CStr| rustix::fs::open(path, flags, Mode::empty());
    let (Ok(directory), Ok(infos)) = (open(c"/proc/self/fd"), open(c"/proc/self/fdinfo")) else {
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
        if looked_at > FILES {
            return Pins::ByDevices;
        }
        // Of what has a longer name the beginning tells enough.
        let mut target = [MaybeUninit::uninit(); 128];
        let file = ProcessFile {
            directory: directory.as_fd(),
            infos: infos.as_fd(),
            name: file.file_name(),
        };
        let found = match rustix::fs::readlinkat_raw(&directory, file.name, &mut target) {
            Ok((target, _)) => pins_of(&file, target),
            // Closed since it was listed.
            Err(Errno::NOENT) => Pins::None,
            Err(_) => Pins::ByDevices,
        };
        worst = worst.max(found);
    }
    // A process without any file there is; but so looks one whose first thread has ended, too.
    if looked_at == 0 { Pins::ByDevices } else { worst }
}

/// A file this process has open.
struct ProcessFile<'a> {
    /// /proc/self/fd.
    directory: BorrowedFd<'a>,
    /// /proc/self/fdinfo.
    infos: BorrowedFd<'a>,
    /// Its number.
    name: &'a CStr,
}

fn pins_of(file: &ProcessFile<'_>, target: &[u8]) -> Pins {
    let harmless = |is: bool| if is { Pins::None } else { Pins::ByDevices };
    if let Some(kind) = target.strip_prefix(b"anon_inode:") {
        return match kind {
            b"[io_uring]" => Pins::ByFiles,
            _ if kind == b"kvm-vm" || kind.starts_with(b"kvm-vcpu") => kvm(),
            _ => harmless(HARMLESS_KINDS.iter().any(|known| known.as_bytes() == kind)),
        };
    }
    if target.starts_with(b"pipe:") {
        return Pins::None;
    }
    if target.starts_with(b"socket:") {
        return harmless(!file.is_pinning_socket());
    }
    if target.starts_with(b"/dev/") && !target.starts_with(b"/dev/shm/") && !file.is_disk() {
        let known = HARMLESS_DEVICES.iter().any(|known| known.as_bytes() == target);
        return harmless(known || target.starts_with(b"/dev/pts/"));
    }
    match file.is_direct() {
        _ if !target.starts_with(b"/") => Pins::ByDevices,
        Some(true) => Pins::ByFiles,
        Some(false) => Pins::None,
        None => Pins::ByDevices,
    }
}

/// How KVM pins the memory of its guests: not at all, for it follows what becomes of mappings, but for
/// some pages of guests that have guests of their own, and those that the processor encrypts, which are
/// pinned from the beginning.
fn kvm() -> Pins {
    for module in
        [c"/sys/module/kvm_intel/parameters/nested", c"/sys/module/kvm_amd/parameters/nested"]
    {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::open(module, flags, Mode::empty()) else { continue };
        let mut text = [0; 1];
        let nested = rustix::io::read(&file, &mut text).is_err() || !b"N0".contains(&text[0]);
        return if nested { Pins::ByFiles } else { Pins::None };
    }
    Pins::ByFiles
}

impl ProcessFile<'_> {
    /// Whether a socket is of a kind that pins buffers (AF_XDP), or can't be asked.
    fn is_pinning_socket(&self) -> bool {
        let number = self.name.to_str().ok().and_then(|name| name.parse::<i32>().ok());
        let process = pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
        let (Some(number), Ok(process)) = (number, process) else { return true };
        // SAFETY: gives a descriptor of our own for the file, and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
        let Ok(fd @ 0..) = i32::try_from(fd) else { return true };
        // SAFETY: the kernel has just made it for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut domain: libc::c_int = 0;
        let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
        // SAFETY: `domain` has room for the `len` bytes the call may write.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_DOMAIN,
                std::ptr::from_mut(&mut domain).cast(),
                &raw mut len,
            )
        };
        result != 0 || domain == libc::AF_XDP
    }

    /// Whether a file was opened with O_DIRECT; None if that can't be told.
    fn is_direct(&self) -> Option<bool> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let info = rustix::fs::openat(self.infos, self.name, flags, Mode::empty()).ok()?;
        // Where it is, what it was opened with, and what else there is to say of it.
        let mut text = [0; 256];
        let read = rustix::io::read(&info, &mut text).ok()?;
        let text = std::str::from_utf8(text.get(..read)?).ok()?;
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        Some(flags & libc::O_DIRECT != 0)
    }

    /// Whether this is a disk, which is read and written as a file is.
    fn is_disk(&self) -> bool {
        rustix::fs::statat(self.directory, self.name, AtFlags::empty())
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_counts_as_able_to_pin() {
        let directory = std::fs::File::open("/proc/self/fd").expect("proc");
        let none =
            ProcessFile { directory: directory.as_fd(), infos: directory.as_fd(), name: c"none" };
        let pins_of = |target: &str| pins_of(&none, target.as_bytes());
        for harmless in ["pipe:[1]", "anon_inode:[eventfd]", "/dev/null", "/dev/pts/3"] {
            assert_eq!(pins_of(harmless), Pins::None, "{harmless}");
        }
        for unknown in [
            "anon_inode:[vfio-device]",
            "/dev/vfio/7",
            "/dev/infiniband/uverbs0",
            "anon_inode:[something new]",
            "/a/file/that/can't/be/asked",
            "socket:[1]",
        ] {
            assert_eq!(pins_of(unknown), Pins::ByDevices, "{unknown}");
        }
        assert_eq!(pins_of("anon_inode:[io_uring]"), Pins::ByFiles);
    }
}
