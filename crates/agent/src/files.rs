//! The agent's own table of open files.
//!
//! A program closes descriptors that it does not know, puts its own in their place (`exec 5>file` in a
//! shell), counts them, hands them down to its children. A page that is out of view at the moment when its
//! userfaultfd is closed would be lost. So the agent's threads leave the program's table for one of theirs.
//!
//! When the program's first thread ends and others live on, theirs gets the program's standard files: the
//! last of the program's threads leaves the end of the process to the agent
//! ([`crate::threads::end_with_program`]), and with it what standard output has not written yet.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{PidfdFlags, pidfd_open};

/// Whether the program's first thread has ended.
static FIRST_HAS_ENDED: AtomicBool = AtomicBool::new(false);

/// Leaves the table of files that the calling thread shares with the process for one of its own, which
/// threads that it starts from now on share with it. It is empty but for the standard files, which are
/// none of the program's as a rule.
///
/// # Errors
/// What the system said.
pub(crate) fn leave_table() -> io::Result<()> {
    // Pairs with the store below: who sees the first thread's end not is asked to keep them later.
    let keep = FIRST_HAS_ENDED.load(Ordering::SeqCst);
    let first = if keep { 3 } else { 0 };
    // SAFETY: takes no descriptor away from other threads, and this one has not opened any.
    let failed = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE)
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // What is meant for standard error, a panic's message say, must not go to a file of ours.
    for _ in first..3 {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        std::mem::forget(null);
    }
    Ok(())
}

/// Says that the calling thread, the program's first, is about to end.
pub(crate) fn first_ends() {
    FIRST_HAS_ENDED.store(true, Ordering::SeqCst); // see `leave_table`
}

/// Takes the program's standard files for this thread's, while its first thread is there. Those that it
/// does not have are none.
pub(crate) fn keep_standard_files() {
    for number in 0..3 {
        if let Ok(file) = programs_file(number) {
            // SAFETY: in this thread's table the number is a file that nobody uses.
            unsafe { libc::syscall(libc::SYS_dup3, file.as_raw_fd(), number, 0) };
        }
    }
}

/// Writes to the program's standard error. If that fails there is nobody else to tell.
pub(crate) fn complain(line: &str) {
    if let Ok(mut stderr) = programs_file(2) {
        let _ = stderr.write_all(line.as_bytes());
    }
}

/// A file of the program's, by the number that it has in its first thread's table.
fn programs_file(number: i32) -> io::Result<File> {
    let process = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    // SAFETY: gives a descriptor of our own for the program's file, and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    let Ok(fd @ 0..) = i32::try_from(fd) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has just made it for us.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}
