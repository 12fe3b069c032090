//! What can go wrong at start, in words that say what to do about it.

use std::io;

use numerge_engine::machine::MemoryError;

/// Why this machine or this range of memory can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel lacks something that merging rests on.
    #[error("this kernel lacks {feature}, which came with Linux {since}; a newer kernel is needed")]
    KernelTooOld {
        /// The kernel's name for what is missing.
        feature: &'static str,
        /// First version that has it.
        since: &'static str,
    },
    /// Pages are not the 4096 bytes that everything here counts in.
    #[error("this machine has pages of {bytes} bytes; only 4096 are supported")]
    PageSize {
        /// What the machine has.
        bytes: i64,
    },
    /// This user may not have a userfaultfd that also serves system calls.
    #[error(
        "may not open a userfaultfd ({source}): give this user read and write permission on \
         /dev/userfaultfd, or give the program CAP_SYS_PTRACE, or set \
         vm.unprivileged_userfaultfd=1"
    )]
    NotPermitted {
        /// What the system said.
        source: io::Error,
    },
    /// What was lent as the device by which userfaultfds are made is something else.
    #[error("what was lent as /dev/userfaultfd can't be used: {source}")]
    OtherDevice {
        /// What it is, or why that can't be told.
        source: io::Error,
    },
    /// A range that has an attribute which its new mappings would lose.
    #[error(
        "memory at {start:#x} can't be merged: it has {attribute}, which merged pages could not \
         keep; undo that first"
    )]
    Attribute {
        /// Where the mapping begins.
        start: u64,
        /// The attribute, with its name in /proc/self/smaps.
        attribute: String,
    },
    /// A range that is not private anonymous memory, readable and writable, from end to end.
    #[error("memory at {start:#x} is not private anonymous memory: {reason}")]
    NotAnonymous {
        /// Where the trouble begins.
        start: u64,
        /// What is there instead.
        reason: String,
    },
    /// A system call failed that there is no rule for.
    #[error("{call}: {source}")]
    System {
        /// The system call or ioctl.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The failure of `call` that the C library has just reported.
    pub(crate) fn last(call: &'static str) -> Self {
        Self::System { call, source: io::Error::last_os_error() }
    }
}

/// The failure of `call`, for the engine.
pub(crate) fn system(call: &'static str, source: io::Error) -> MemoryError {
    if source.raw_os_error() == Some(libc::ENOMEM) {
        MemoryError::OutOfMemory
    } else {
        MemoryError::System { call, source }
    }
}

impl From<Error> for MemoryError {
    fn from(error: Error) -> Self {
        match error {
            Error::System { call, source } => system(call, source),
            other => Self::System {
                call: "numerge",
                source: io::Error::new(io::ErrorKind::InvalidInput, other),
            },
        }
    }
}
