//! Asks the kernel whether a process forked from this one, at any distance, still has the memory it
//! was given then. Race-free, and in a few microseconds.
//!
//! A witness is an empty memfd with one page mapped shared and writable. Every process made while it
//! is mapped here has that mapping too, and so have the processes made by those, until they exit or
//! exec. The kernel seals a memfd against writing (F_SEAL_WRITE) only if nobody has a writable
//! shared mapping of it. So: take our own mapping away, try to seal. It works exactly when no such
//! process is left. On exit the kernel empties all page tables before it drops the first mapping,
//! so by then none of its pages maps anything of ours.
//!
//! Unlike a count kept by fork handlers this also sees a raw clone(2), and unlike /proc it can't be
//! too late for a process that comes and goes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use numerge_engine::machine::PAGE_SIZE;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::place::place_for;
use crate::sys;

/// A mapping that forks inherit.
#[derive(Debug)]
pub(crate) struct Witness {
    fd: OwnedFd,
    mapped: NonNull<u8>,
}

// SAFETY: the mapping is never accessed.
unsafe impl Send for Witness {}

impl Witness {
    /// Every process forked from now on has a copy.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(
            "numerge-witness",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL,
        )?;
        // SAFETY: asks for a mapping where nothing is; never accessed.
        let mapped = unsafe {
            sys::map(
                place_for(PAGE_SIZE),
                PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        }?;
        let mapped = NonNull::new(mapped).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { fd, mapped })
    }

    /// Processes forked from now on have no copy.
    pub(crate) fn withdraw(self) -> Withdrawn {
        // SAFETY: our own mapping, never accessed, and its last use.
        let _ = unsafe { sys::unmap(self.mapped.as_ptr(), PAGE_SIZE) };
        Withdrawn { fd: self.fd }
    }
}

/// A witness that only processes forked while it was mapped can still have.
#[derive(Debug)]
pub(crate) struct Withdrawn {
    fd: OwnedFd,
}

impl Withdrawn {
    /// Whether no process has it any more; once true, true for ever.
    pub(crate) fn is_alone(&self) -> bool {
        rustix::fs::fcntl_add_seals(&self.fd, SealFlags::WRITE).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_a_child_until_it_exits() {
        let nobody = Witness::new().expect("witness").withdraw();
        assert!(nobody.is_alone());
        let witness = Witness::new().expect("witness");
        // SAFETY: a fork by raw system call, behind the back of any handler; the child only waits
        // to be killed.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if child == 0 {
            loop {
                // SAFETY: waits; touches no memory.
                unsafe { libc::pause() };
            }
        }
        let child = libc::pid_t::try_from(child).expect("a pid");
        let later = Witness::new().expect("witness").withdraw();
        let withdrawn = witness.withdraw();
        assert!(!withdrawn.is_alone());
        assert!(later.is_alone(), "made after the fork");
        // SAFETY: ends and reaps the child made above.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        assert!(withdrawn.is_alone());
    }
}
