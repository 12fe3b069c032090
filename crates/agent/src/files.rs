//! The agent's own table of open files.
//!
//! A program closes descriptors that it does not know, puts its own in their place (`exec 5>file` in a
//! shell), counts them, hands them down to its children. A page that is out of view at the moment when its
//! userfaultfd is closed would be lost. So the agent's threads leave the program's table for one of theirs.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::process::{PidfdFlags, pidfd_open};

/// Leaves the table of files that the calling thread shares with the process for an empty one, which threads
/// that it starts from now on share with it.
///
/// # Errors
/// What the system said.
pub(crate) fn leave_table() -> io::Result<()> {
    // SAFETY: takes no descriptor away from other threads, and this one has not opened any.
    let failed = unsafe {
        libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE)
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // What is meant for standard error, a panic's message say, must not go to a file of ours.
    for _ in 0..3 {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        std::mem::forget(null);
    }
    Ok(())
}

/// Writes to the program's standard error. If that fails there is nobody else to tell.
pub(crate) fn complain(line: &str) {
    let stderr = || {
        let process = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        // SAFETY: gives a descriptor of our own for the program's file, and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), 2, 0) };
        let Ok(fd @ 0..) = i32::try_from(fd) else { return Err(io::Error::last_os_error()) };
        // SAFETY: the kernel has just made it for us.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    };
    if let Ok(mut stderr) = stderr() {
        let _ = stderr.write_all(line.as_bytes());
    }
}
