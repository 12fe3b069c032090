//! userfaultfd(2): a file descriptor through which faults on chosen ranges are ours to answer.
//!
//! Structures, numbers and flags are those of include/uapi/linux/userfaultfd.h (Linux 6.8), which
//! neither rustix nor libc has in full.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::device::{self, UffdDevice};
use crate::error::Error;

/// Features to ask for with [`Uffd::open`].
pub(crate) mod feature {
    /// Faults on write-protected pages are reported.
    pub(crate) const WP: u64 = 1 << 0;
    /// The kernel tells when a registered range is moved by mremap, and the range stays registered.
    pub(crate) const EVENT_REMAP: u64 = 1 << 2;
    /// Write protection of file mappings in memory.
    pub(crate) const WP_SHMEM: u64 = 1 << 12;
    /// Pages never touched can be write protected.
    pub(crate) const WP_UNPOPULATED: u64 = 1 << 13;
    /// The kernel resolves write-protection faults by itself; only PAGEMAP_SCAN tells.
    pub(crate) const WP_ASYNC: u64 = 1 << 15;
    /// UFFDIO_MOVE.
    pub(crate) const MOVE: u64 = 1 << 16;

    /// What each is called and which Linux brought it.
    pub(super) const NAMES: [(u64, &str, &str); 6] = [
        (WP, "UFFD_FEATURE_PAGEFAULT_FLAG_WP", "5.7"),
        (EVENT_REMAP, "UFFD_FEATURE_EVENT_REMAP", "4.11"),
        (WP_SHMEM, "UFFD_FEATURE_WP_HUGETLBFS_SHMEM", "5.19"),
        (WP_UNPOPULATED, "UFFD_FEATURE_WP_UNPOPULATED", "6.4"),
        (WP_ASYNC, "UFFD_FEATURE_WP_ASYNC", "6.7"),
        (MOVE, "UFFD_FEATURE_MOVE", "6.8"),
    ];
}

/// Which faults [`Uffd::register`] makes ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mode(u64);

impl Mode {
    /// Writes to protected pages.
    pub(crate) const WP: Self = Self(1 << 1);
    /// Those, and any access to a page that is not there.
    pub(crate) const MISSING_WP: Self = Self(1 << 0 | 1 << 1);
}

/// Size of `struct uffd_msg`, what a read gives for each event.
pub(crate) const MESSAGE_BYTES: usize = 32;

const UFFD_API: u64 = 0xAA;
const IOC_TYPE: u64 = 0xAA;
const IOC_READ: u64 = 2;
const IOC_READ_WRITE: u64 = 3;

/// `_IOC(direction, 0xAA, number, size)` of include/uapi/asm-generic/ioctl.h.
const fn request<T>(direction: u64, number: u64) -> u64 {
    direction << 30 | (size_of::<T>() as u64) << 16 | IOC_TYPE << 8 | number
}

const UFFDIO_REGISTER: u64 = request::<Register>(IOC_READ_WRITE, 0x00);
const UFFDIO_UNREGISTER: u64 = request::<Span>(IOC_READ, 0x01);
const UFFDIO_WAKE: u64 = request::<Span>(IOC_READ, 0x02);
const UFFDIO_COPY: u64 = request::<Transfer>(IOC_READ_WRITE, 0x03);
const UFFDIO_ZEROPAGE: u64 = request::<ZeroPage>(IOC_READ_WRITE, 0x04);
const UFFDIO_MOVE: u64 = request::<Transfer>(IOC_READ_WRITE, 0x05);
const UFFDIO_WRITEPROTECT: u64 = request::<WriteProtect>(IOC_READ_WRITE, 0x06);
const UFFDIO_API: u64 = request::<Api>(IOC_READ_WRITE, 0x3F);

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`: a range of memory in bytes, page aligned.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// First byte.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: Span,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct ZeroPage {
    range: Span,
    mode: u64,
    zeropage: i64,
}

/// `struct uffdio_move`, and `struct uffdio_copy`, which has the same fields.
#[repr(C)]
struct Transfer {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    range: Span,
    mode: u64,
}

/// How far an operation on adjacent pages got, and what stopped it.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Bytes done.
    pub(crate) done: u64,
    /// Why no more, if not all.
    pub(crate) stopped: Option<io::Error>,
}

/// A userfaultfd, ready for use.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Opens one that also serves faults of system calls, with exactly these features; by the device
    /// that was lent where this user may not otherwise.
    ///
    /// # Errors
    /// [`Error::NotPermitted`]; [`Error::KernelTooOld`] for the first feature that is missing.
    pub(crate) fn open(features: u64, lent: Option<&UffdDevice>) -> Result<Self, Error> {
        let available = Self::handshake(&Self::open_fd(lent)?, 0)?;
        for (bit, feature, since) in feature::NAMES {
            if features & bit != 0 && available & bit == 0 {
                return Err(Error::KernelTooOld { feature, since });
            }
        }
        // The handshake is final for a descriptor, so asking what there is took one of its own.
        let fd = Self::open_fd(lent)?;
        Self::handshake(&fd, features)?;
        Ok(Self { fd })
    }

    fn open_fd(lent: Option<&UffdDevice>) -> Result<OwnedFd, Error> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(device::PATH);
        let own = match device {
            Ok(device) => device::make(&device),
            Err(_) => userfaultfd(libc::O_CLOEXEC | libc::O_NONBLOCK),
        };
        let made = match (own, lent) {
            (Err(source), Some(lent)) if is_forbidden(&source) => lent.make(),
            (own, _) => own,
        };
        made.map_err(|source| match source.raw_os_error() {
            _ if is_forbidden(&source) => Error::NotPermitted { source },
            Some(libc::ENOSYS) => {
                Error::KernelTooOld { feature: "userfaultfd (CONFIG_USERFAULTFD)", since: "4.3" }
            }
            _ => Error::System { call: "userfaultfd", source },
        })
    }

    /// Gives the features the kernel has.
    fn handshake(fd: &OwnedFd, features: u64) -> Result<u64, Error> {
        let mut api = Api { api: UFFD_API, features, ioctls: 0 };
        // SAFETY: `api` is the structure UFFDIO_API reads and writes, alive over the call.
        if unsafe { ioctl(fd, UFFDIO_API, &mut api) }.is_err() {
            return Err(Error::last("UFFDIO_API"));
        }
        Ok(api.features)
    }

    /// Makes faults of `mode` in `span` ours. Adding modes works; taking one away needs
    /// [`unregister`](Self::unregister) first, since the kernel silently ignores it here.
    pub(crate) fn register(&self, span: Span, mode: Mode) -> io::Result<()> {
        let mut register = Register { range: span, mode: mode.0, ioctls: 0 };
        // SAFETY: `register` is the structure UFFDIO_REGISTER reads and writes.
        unsafe { ioctl(&self.fd, UFFDIO_REGISTER, &mut register) }
    }

    /// Ends what [`register`](Self::register) began, and wakes who waits for a page.
    ///
    /// The kernel wakes them too, but before it ends the registration: who faults in between, under the
    /// lock of the mapping alone, would sleep for ever (seen on 6.18, once in ten minutes of torture).
    pub(crate) fn unregister(&self, mut span: Span) -> io::Result<()> {
        // SAFETY: `span` is the structure UFFDIO_UNREGISTER reads.
        let ended = unsafe { ioctl(&self.fd, UFFDIO_UNREGISTER, &mut span) };
        // Fails only if the range is no valid one.
        let _ = self.wake(span);
        ended
    }

    /// Wakes who waits for a fault in `span`; the access is tried again.
    pub(crate) fn wake(&self, mut span: Span) -> io::Result<()> {
        // SAFETY: `span` is the structure UFFDIO_WAKE reads.
        unsafe { ioctl(&self.fd, UFFDIO_WAKE, &mut span) }
    }

    /// Write protects the pages of `span`.
    pub(crate) fn write_protect(&self, span: Span) -> io::Result<()> {
        let mut protect = WriteProtect { range: span, mode: 1 };
        // SAFETY: `protect` is the structure UFFDIO_WRITEPROTECT reads.
        unsafe { ioctl(&self.fd, UFFDIO_WRITEPROTECT, &mut protect) }
    }

    /// Moves the pages at `src` to the missing pages of `dst`, whose waiters stay asleep. Each range
    /// must lie in one mapping (EINVAL).
    ///
    /// # Safety
    /// Both are private anonymous memory of this process, and losing the content at `src` (which
    /// reads as missing or zero afterwards) must break no rule of Rust or of the program.
    pub(crate) unsafe fn move_pages(&self, dst: u64, src: u64, len: u64) -> Progress {
        // SAFETY: the caller's promise.
        unsafe { self.transfer(UFFDIO_MOVE, dst, src, len) }
    }

    /// Copies the pages at `src` to the missing pages of `dst`, whose waiters stay asleep.
    ///
    /// # Safety
    /// `src` is memory of this process that nobody writes to.
    pub(crate) unsafe fn copy_pages(&self, dst: u64, src: u64, len: u64) -> Progress {
        // SAFETY: the caller's promise; missing pages have no content to lose.
        unsafe { self.transfer(UFFDIO_COPY, dst, src, len) }
    }

    /// # Safety
    /// That of [`move_pages`](Self::move_pages) or [`copy_pages`](Self::copy_pages).
    unsafe fn transfer(&self, request: u64, dst: u64, src: u64, len: u64) -> Progress {
        let mut transfer = Transfer {
            dst,
            src,
            len,
            mode: 1, // UFFDIO_MOVE_MODE_DONTWAKE, UFFDIO_COPY_MODE_DONTWAKE
            done: 0,
        };
        // SAFETY: `transfer` is the structure both requests read and write; the caller answers for
        // the memory.
        let result = unsafe { ioctl(&self.fd, request, &mut transfer) };
        Progress { done: u64::try_from(transfer.done).unwrap_or(0), stopped: result.err() }
    }

    /// Maps the machine's page of zeros to the missing pages of `span`, whose waiters stay asleep.
    pub(crate) fn zero_pages(&self, span: Span) -> Progress {
        let mut zero = ZeroPage {
            range: span,
            mode: 1, // UFFDIO_ZEROPAGE_MODE_DONTWAKE
            zeropage: 0,
        };
        // SAFETY: `zero` is the structure UFFDIO_ZEROPAGE reads and writes; it fills missing pages
        // only, which nobody has seen content of.
        let result = unsafe { ioctl(&self.fd, UFFDIO_ZEROPAGE, &mut zero) };
        Progress { done: u64::try_from(zero.zeropage).unwrap_or(0), stopped: result.err() }
    }

    /// The descriptor, to poll and read events from.
    pub(crate) const fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// userfaultfd(2), which the C library does not wrap.
fn userfaultfd(flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: passes flags by value, touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::c_long::from(flags)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `argument` is the structure that `request` reads and writes, and what the request does to the
/// process's memory is for the caller to answer for.
unsafe fn ioctl<T>(fd: &OwnedFd, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: the caller's promise; the structure lives over the call.
    let result = unsafe {
        libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), request, std::ptr::from_mut(argument))
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_the_headers() {
        // linux-raw-sys 0.12, src/x86_64/ioctl.rs.
        assert_eq!(UFFDIO_REGISTER, 3_223_366_144);
        assert_eq!(UFFDIO_UNREGISTER, 2_148_575_745);
        assert_eq!(UFFDIO_WAKE, 2_148_575_746);
        assert_eq!(UFFDIO_COPY, 3_223_890_435);
        assert_eq!(UFFDIO_ZEROPAGE, 3_223_366_148);
        assert_eq!(UFFDIO_WRITEPROTECT, 3_222_841_862);
        assert_eq!(UFFDIO_API, 3_222_841_919);
        assert_eq!(size_of::<Transfer>(), 40);
    }

    #[test]
    fn a_missing_feature_is_named() {
        let error = Error::KernelTooOld { feature: "UFFD_FEATURE_MOVE", since: "6.8" };
        assert!(error.to_string().contains("UFFD_FEATURE_MOVE"));
        assert!(error.to_string().contains("6.8"));
    }
}
