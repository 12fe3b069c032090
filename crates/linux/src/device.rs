//! The device /dev/userfaultfd: who has it open may make userfaultfds that serve system calls too, and can
//! lend that to others by passing them the descriptor.
//!
//! The kernel asks who may open it, and nothing of who makes userfaultfds by it; nor how it was opened, so
//! for reading only is enough.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::error::Error;

/// Where it is.
pub(crate) const PATH: &str = "/dev/userfaultfd";

/// `_IO(0xAA, 0x00)` of include/uapi/linux/userfaultfd.h.
const USERFAULTFD_IOC_NEW: u64 = 0xAA << 8;

/// The device, open for reading only.
#[derive(Debug)]
pub struct UffdDevice(File);

impl UffdDevice {
    /// Opens it, to lend it.
    ///
    /// # Errors
    /// What the system said, or that something else is there.
    pub fn open() -> io::Result<Self> {
        let file = File::open(PATH)?;
        if !file.metadata()?.file_type().is_char_device() {
            return Err(io::Error::other("not a device"));
        }
        Ok(Self(file))
    }

    /// Takes what somebody else has opened and says is the device: it is, if it is the one that is at
    /// `/dev/userfaultfd` here.
    ///
    /// # Errors
    /// [`Error::OtherDevice`], with what was given closed.
    pub fn lent(fd: OwnedFd) -> Result<Self, Error> {
        let file = File::from(fd);
        let refused = |source| Error::OtherDevice { source };
        let wanted = std::fs::metadata(PATH).map_err(refused)?;
        let found = file.metadata().map_err(refused)?;
        let is_device = |file: &std::fs::Metadata| file.file_type().is_char_device();
        if !is_device(&wanted) || !is_device(&found) || found.rdev() != wanted.rdev() {
            return Err(refused(io::Error::other("it is another file")));
        }
        Ok(Self(file))
    }

    /// Makes a userfaultfd that is not blocking.
    pub(crate) fn make(&self) -> io::Result<OwnedFd> {
        make(&self.0)
    }
}

impl AsFd for UffdDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes a userfaultfd by the device. Non-blocking, since the kernel lets only such a descriptor be polled.
pub(crate) fn make(device: &File) -> io::Result<OwnedFd> {
    let flags = libc::c_long::from(libc::O_CLOEXEC | libc::O_NONBLOCK);
    // SAFETY: the request takes the new descriptor's flags by value and touches no memory.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_device_is_taken_for_it() {
        let memory = tempfile::tempfile().expect("a file");
        let (end, _other) = std::os::unix::net::UnixStream::pair().expect("a socket");
        let others = ["/dev/null", "/dev/zero", "/", "/proc/self/pagemap"];
        let others = others.map(|path| File::open(path).expect(path).into());
        for other in others.into_iter().chain([memory.into(), end.into()]) {
            let error = UffdDevice::lent(other).expect_err("refused").to_string();
            assert!(error.contains(PATH) && error.contains("another file"), "{error}");
        }
    }

    #[test]
    fn the_device_makes_userfaultfds_for_who_has_it() {
        let device = match UffdDevice::open() {
            Ok(device) => device,
            Err(error) => return println!("SKIPPED: {PATH}: {error}"),
        };
        let passed = device.as_fd().try_clone_to_owned().expect("a descriptor");
        let lent = UffdDevice::lent(passed).expect("the device");
        let made = lent.make().expect("a userfaultfd");
        let link = std::fs::read_link(format!("/proc/self/fd/{}", made.as_raw_fd()));
        assert_eq!(link.expect("its name").to_string_lossy(), "anon_inode:[userfaultfd]");
    }
}
