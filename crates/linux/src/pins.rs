//! Through what this process's files a device could be writing to its memory.
//!
//! A page that was written after it was merged can't be put to the kernel's own test for pins (only
//! UFFDIO_MOVE has it, and it refuses such pages). What pins pages by reading and writing files past the
//! page cache is found out by another test ([`crate::pin_test`]), on machines that allow it. Of all else
//! that may pin, nothing is found out, and such pages are not touched. What is not known to be harmless
//! counts as able to pin.
//!
//! Looked through is every table of files that a thread of this process has, but the calling thread's own:
//! a program's threads may have some of theirs, and an io_uring may be in none. What that has pinned for
//! long is counted by the kernel. And looked through is what is mapped: [`crate::mapped`].
//!
//! A program can hide from this what it does at this very moment: a file that another thread closes while a
//! read through it is under way is in no table any more, one that moves to another number may be passed by
//! where its number is used anew at once or the list is longer than one read of it, and so may a thread with a
//! table of its own where others end while threads are listed (`first_tid` in the kernel's fs/proc/base.c then
//! goes by how many there were). Not in any list are an io_uring without a
//! descriptor or mapping of its own (IORING_SETUP_NO_MMAP with IORING_SETUP_REGISTERED_FD_ONLY), until it has
//! pinned something for long, and files of processes that share this memory without being threads.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::mapped::mapped;
use crate::maps::Attributes;
use crate::ranges::Ranges;

/// Devices that never pin a page.
pub(crate) const HARMLESS_DEVICES: [&str; 10] = [
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

/// File systems that are read and written by way of the page cache, unless O_DIRECT is asked for. Others
/// (FUSE, 9p, network file systems, whatever lies below an overlay) may have the pages of any read's or
/// write's buffer pinned until somebody answers.
const CACHED: [&str; 22] = [
    "autofs",
    "btrfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "devtmpfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hugetlbfs",
    "iso9660",
    "proc",
    "ramfs",
    "rootfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "vfat",
    "xfs",
];

/// Most files that are looked through: it takes some microseconds a file. Most threads, too.
pub(crate) const FILES: usize = 4096;

/// Looks through the files this process has open, if they are not too many, and through what it has mapped
/// but for registered memory, where nothing with MAP_SHARED is. Allocates nothing.
#[must_use]
pub(crate) fn possible(registered: &Ranges<Attributes>) -> Pins {
    let mut look = Look::default();
    let found = look.through(registered).unwrap_or(Pins::ByDevices);
    if found == Pins::ByDevices || !look.missed {
        return found;
    }
    // What was closed may have another number now, one that was passed already.
    found.max(Look::default().through(registered).unwrap_or(Pins::ByDevices))
}

/// A look at all that this process has open.
#[derive(Default)]
struct Look {
    /// How many files there were.
    files: usize,
    /// One of them was closed before it was known what it is.
    missed: bool,
}

impl Look {
    /// The worst of all. None if that can't be told.
    fn through(&mut self, registered: &Ranges<Attributes>) -> Option<Pins> {
        // A thread's, for of a process whose first thread has ended nothing is told.
        let pinned = if pinned_kilobytes()? == 0 { Pins::None } else { Pins::ByFiles };
        let first = self.files_of(open(c"/proc/self")?.as_fd(), true)?;
        if self.files == 0 {
            // A process without any file there is; but so looks one whose first thread has ended, too.
            return None;
        }
        let others = self.other_tables()?;
        Some(pinned.max(first).max(others).max(mapped(registered)?))
    }

    /// The worst of what is in tables that are neither the first thread's nor this one's. None if that can't be
    /// told.
    fn other_tables(&mut self) -> Option<Pins> {
        let tasks = open(c"/proc/self/task")?;
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut threads = RawDir::new(&tasks, &mut room);
        let this = rustix::thread::gettid().as_raw_nonzero().get();
        let first = rustix::process::getpid().as_raw_nonzero().get();
        let (mut worst, mut seen) = (Pins::None, 0);
        while worst != Pins::ByDevices
            && let Some(thread) = threads.next()
        {
            let thread = thread.ok()?;
            let Some(number) = thread.file_name().to_str().ok().and_then(|name| name.parse().ok())
            else {
                continue; // this directory, and that above
            };
            seen += 1;
            if seen > FILES {
                return None;
            }
            if share_files(number, first) || share_files(number, this) {
                continue;
            }
            // One that has ended since has none.
            match open_at(tasks.as_fd(), thread.file_name()) {
                Ok(thread) => worst = worst.max(self.files_of(thread.as_fd(), false)?),
                Err(Errno::NOENT) => {}
                Err(_) => return None,
            }
        }
        Some(worst)
    }

    /// The worst of a thread's files, or of all threads of a process's. None if that can't be told.
    fn files_of(&mut self, process: BorrowedFd<'_>, is_first: bool) -> Option<Pins> {
        let (directory, infos) = match (open_at(process, c"fd"), open_at(process, c"fdinfo")) {
            (Ok(directory), Ok(infos)) => (directory, infos),
            // The thread has ended.
            (Err(Errno::NOENT | Errno::SRCH), _) | (_, Err(Errno::NOENT | Errno::SRCH))
                if !is_first =>
            {
                return Some(Pins::None);
            }
            _ => return None,
        };
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut files = RawDir::new(&directory, &mut room);
        let mut worst = Pins::None;
        while worst != Pins::ByDevices
            && let Some(file) = files.next()
        {
            let file = match file {
                Ok(file) => file,
                // The thread has ended.
                Err(Errno::NOENT | Errno::SRCH) if !is_first => break,
                Err(_) => return None,
            };
            if file.file_name() == c"." || file.file_name() == c".." {
                continue;
            }
            self.files += 1;
            if self.files > FILES {
                return None;
            }
            // Of what has a longer name the beginning tells enough.
            let mut target = [MaybeUninit::uninit(); 128];
            let file = ProcessFile {
                directory: directory.as_fd(),
                infos: infos.as_fd(),
                name: file.file_name(),
                is_first,
            };
            let found = match rustix::fs::readlinkat_raw(&directory, file.name, &mut target) {
                Ok((target, _)) => pins_of(&file, target),
                // Closed since it was listed.
                Err(Errno::NOENT) => None,
                // Of a thread that has ended the kernel says EACCES.
                Err(_) if !is_first && has_ended(process) => break,
                Err(_) => Some(Pins::ByDevices),
            };
            self.missed |= found.is_none();
            worst = worst.max(found.unwrap_or(Pins::None));
        }
        Some(worst)
    }
}

pub(crate) fn pins_of_kind(kind: &[u8]) -> Pins {
    match kind {
        b"[io_uring]" => Pins::ByFiles,
        _ if kind == b"kvm-vm" || kind.starts_with(b"kvm-vcpu") => kvm(),
        _ if HARMLESS_KINDS.iter().any(|known| known.as_bytes() == kind) => Pins::None,
        _ => Pins::ByDevices,
    }
}

pub(crate) fn open(path: &CStr) -> Option<OwnedFd> {
    open_at(rustix::fs::CWD, path).ok()
}

/// Directories too, and not by opendir: the C library would ask the program's malloc, whose locks may be
/// held by a thread that waits for this one (it maps memory).
fn open_at(directory: BorrowedFd<'_>, path: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// What the kernel has counted as pinned for long, an io_uring's buffers say.
fn pinned_kilobytes() -> Option<u64> {
    let status = open(c"/proc/thread-self/status")?;
    let mut text = [0; 4096];
    let read = rustix::io::read(&status, &mut text).ok()?;
    let text = std::str::from_utf8(text.get(..read)?).ok()?;
    let pinned = text.lines().find_map(|line| line.strip_prefix("VmPin:"))?;
    pinned.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Whether two threads certainly have one table of files.
fn share_files(one: i32, other: i32) -> bool {
    const KCMP_FILES: libc::c_long = 2;
    // SAFETY: compares two threads, and touches no memory.
    one == other || unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) == 0 }
}

/// Whether a thread has ended, by its directory in /proc.
fn has_ended(thread: BorrowedFd<'_>) -> bool {
    matches!(open_at(thread, c"fd"), Err(Errno::NOENT | Errno::SRCH))
}

/// A file this process has open.
struct ProcessFile<'a> {
    /// A directory like /proc/self/fd.
    directory: BorrowedFd<'a>,
    /// One like /proc/self/fdinfo.
    infos: BorrowedFd<'a>,
    /// Its number.
    name: &'a CStr,
    /// Whether it is one of the first thread's.
    is_first: bool,
}

/// None if it was closed before that was known.
fn pins_of(file: &ProcessFile<'_>, target: &[u8]) -> Option<Pins> {
    let harmless = |is: bool| Some(if is { Pins::None } else { Pins::ByDevices });
    if let Some(kind) = target.strip_prefix(b"anon_inode:") {
        return Some(pins_of_kind(kind));
    }
    if target.starts_with(b"pipe:") {
        return Some(Pins::None);
    }
    if target.starts_with(b"socket:") {
        return harmless(!file.is_pinning_socket());
    }
    if target.starts_with(b"/dev/")
        && !target.starts_with(b"/dev/shm/")
        && file.kind() != Some(FileType::BlockDevice)
    {
        let known = HARMLESS_DEVICES.iter().any(|known| known.as_bytes() == target);
        return harmless(known || target.starts_with(b"/dev/pts/"));
    }
    if !target.starts_with(b"/") {
        return Some(Pins::ByDevices);
    }
    match file.info() {
        None if file.is_closed() => None,
        None => Some(Pins::ByDevices),
        Some(info) if info.is_direct => Some(Pins::ByFiles),
        // Memory without a name, in a file system that is mounted nowhere.
        Some(_) if target.starts_with(b"/memfd:") => Some(Pins::None),
        Some(info) if !is_cached(info.mount) => Some(Pins::ByFiles),
        // Now that it is known that asking does not wait for anybody.
        Some(_) => match file.kind() {
            None if file.is_closed() => None,
            kind => harmless(kind.is_some_and(|kind| kind != FileType::CharacterDevice)),
        },
    }
}

/// Whether a mount is of a file system that has its files in the page cache. By number, since asking a file
/// may wait for who serves it. Files that were opened before this process got mounts of its own are
/// on the host's, whose numbers are no others'.
fn is_cached(mount: u64) -> bool {
    [c"/proc/thread-self/mountinfo", c"/proc/1/mountinfo"]
        .into_iter()
        .any(|mounts| is_cached_there(mounts, mount))
}

/// The same, of mounts that a file of /proc lists.
fn is_cached_there(mounts: &CStr, mount: u64) -> bool {
    let Some(mounts) = open(mounts) else { return false };
    // A line has the number first, and what matters after a dash that stands alone; names of files have no
    // blanks in them here. What is too long for the room is not known.
    let mut room = [0_u8; 4096];
    let mut filled = 0;
    loop {
        match rustix::io::read(&mounts, &mut room[filled..]) {
            Ok(0) | Err(_) => return false,
            Ok(read) => filled += read,
        }
        let mut rest = &room[..filled];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            let mut fields = line.split(|byte| *byte == b' ');
            let number = fields.next().and_then(|number| std::str::from_utf8(number).ok());
            if number.and_then(|number| number.parse().ok()) == Some(mount) {
                let kind = fields.skip_while(|field| *field != b"-").nth(1);
                return kind.is_some_and(|kind| CACHED.iter().any(|one| one.as_bytes() == kind));
            }
        }
        let left = rest.len();
        room.copy_within(filled - left..filled, 0);
        filled = left;
        if filled == room.len() {
            return false;
        }
    }
}

/// How KVM pins the memory of its guests: not at all, for it follows what becomes of mappings, but for
/// some pages of guests that have guests of their own, and those that the processor encrypts, which are
/// pinned from the beginning.
fn kvm() -> Pins {
    for module in
        [c"/sys/module/kvm_intel/parameters/nested", c"/sys/module/kvm_amd/parameters/nested"]
    {
        let Some(file) = open(module) else { continue };
        let mut text = [0; 1];
        let nested = rustix::io::read(&file, &mut text).is_err() || !b"N0".contains(&text[0]);
        return if nested { Pins::ByFiles } else { Pins::None };
    }
    Pins::ByFiles
}

impl ProcessFile<'_> {
    /// Whether there is none of that number any more.
    fn is_closed(&self) -> bool {
        let mut target = [MaybeUninit::uninit(); 1];
        let found = rustix::fs::readlinkat_raw(self.directory, self.name, &mut target);
        found.is_err_and(|error| error == Errno::NOENT)
    }

    /// Whether a socket is not of a kind that is known to pin no buffers to write to (as AF_XDP and RDS do
    /// for long, and AF_ALG for the time of a call), or can't be asked.
    fn is_pinning_socket(&self) -> bool {
        if !self.is_first {
            return true;
        }
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
        let harmless = [
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_NETLINK,
            libc::AF_PACKET,
            libc::AF_VSOCK,
        ];
        result != 0 || !harmless.contains(&domain)
    }

    /// What the kernel says of it; None if that can't be told.
    fn info(&self) -> Option<Info> {
        let info = open_at(self.infos, self.name).ok()?;
        // Where it is, what it was opened with, and what else there is to say of it.
        let mut text = [0; 256];
        let read = rustix::io::read(&info, &mut text).ok()?;
        let text = std::str::from_utf8(text.get(..read)?).ok()?;
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let flags = i32::from_str_radix(field("flags:")?, 8).ok()?;
        let mount = field("mnt_id:")?.parse().ok()?;
        Some(Info { is_direct: flags & libc::O_DIRECT != 0, mount })
    }

    /// Of what type it is: a disk, say, is read and written as a file is. None if that can't be told.
    fn kind(&self) -> Option<FileType> {
        let stat = rustix::fs::statat(self.directory, self.name, AtFlags::empty());
        stat.ok().map(|stat| FileType::from_raw_mode(stat.st_mode))
    }
}

/// Of an open file.
struct Info {
    /// Whether it was opened with O_DIRECT.
    is_direct: bool,
    /// The number of the mount it is in.
    mount: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_counts_as_able_to_pin() {
        let directory = std::fs::File::open("/proc/self/fd").expect("proc");
        let none = ProcessFile {
            directory: directory.as_fd(),
            infos: directory.as_fd(),
            name: c".",
            is_first: true,
        };
        let pins_of = |target: &str| pins_of(&none, target.as_bytes());
        for harmless in ["pipe:[1]", "anon_inode:[eventfd]", "/dev/null", "/dev/pts/3"] {
            assert_eq!(pins_of(harmless), Some(Pins::None), "{harmless}");
        }
        for unknown in [
            "anon_inode:[vfio-device]",
            "/dev/vfio/7",
            "/dev/infiniband/uverbs0",
            "anon_inode:[something new]",
            "/a/file/that/can't/be/asked",
            "socket:[1]",
        ] {
            assert_eq!(pins_of(unknown), Some(Pins::ByDevices), "{unknown}");
        }
        assert_eq!(pins_of("anon_inode:[io_uring]"), Some(Pins::ByFiles));
    }

    /// It may have another number now: who looks looks again.
    #[test]
    fn a_file_that_was_closed_before_it_was_asked_is_missed() {
        let open = |path| std::fs::File::open(path).expect("proc");
        let (directory, infos) = (open("/proc/self/fd"), open("/proc/self/fdinfo"));
        let closed = ProcessFile {
            directory: directory.as_fd(),
            infos: infos.as_fd(),
            name: c"1999999999",
            is_first: true,
        };
        assert_eq!(pins_of(&closed, b"/usr/lib/some"), None);
        for unknown in [&b"/dev/vfio/7"[..], b"socket:[1]"] {
            assert_eq!(pins_of(&closed, unknown), Some(Pins::ByDevices));
        }
    }
}
