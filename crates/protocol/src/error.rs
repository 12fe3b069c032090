//! What can go wrong with sockets, and what to do about it.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::codec::{DecodeError, EncodeError};

/// Why a socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A descriptor that is something else.
    #[error("descriptor {fd} is not {wanted}: pass one that is")]
    WrongSocket {
        /// Its number.
        fd: i32,
        /// What it must be.
        wanted: &'static str,
    },
    /// A path that no socket can have.
    #[error("{path:?} can't be a socket's path: 1 to 108 bytes are allowed, none of them 0")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// More permissions than there are.
    #[error("mode {found:o} of a socket: 0 to 777 are allowed")]
    Mode {
        /// The mode.
        found: u32,
    },
    /// No engine is there.
    #[error("nobody listens on {path:?}: start `numerge daemon`, or wait for it")]
    Nobody {
        /// The path.
        path: PathBuf,
    },
    /// The engine does not get round to accepting clients.
    #[error("{path:?} has as many clients waiting as it may have: try again later")]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// Something else than an engine is there.
    #[error("who listens on {path:?} does not speak SOCK_SEQPACKET: is it the right path?")]
    OtherType {
        /// The path.
        path: PathBuf,
    },
    /// Another engine is there.
    #[error("somebody listens on {path:?} already: stop that engine, or use another path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there, which is not ours to remove.
    #[error("{path:?} is there and not a socket: remove it, or use another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Somebody holds the lock of the socket's directory.
    #[error("the directory of {path:?} is locked by another process: see who holds it (lslocks)")]
    Locked {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed that there is no rule for.
    #[error("{call} for {path:?}: {source}")]
    AtPath {
        /// The system call.
        call: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed that there is no rule for.
    #[error("{call}: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// For `map_err`: the failure of `call`.
pub(crate) fn system(call: &'static str) -> impl Fn(Errno) -> SocketError {
    move |errno| SocketError::System { call, source: errno.into() }
}

/// What descriptors must be. Checked by both ends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DescriptorError {
    /// Too many or too few.
    #[error("{found} descriptors with a message: must be {wanted}")]
    Count {
        /// How many.
        found: usize,
        /// How many there must be.
        wanted: usize,
    },
    /// One that can be written to, or that only names a file.
    #[error("a descriptor with flags {flags:#o}: must be open for reading, and for nothing else")]
    Access {
        /// Its flags, as in open(2).
        flags: u32,
    },
}

/// Why a message was not sent. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It is no proper message: a mistake of the caller's.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Its descriptors are not what its kind wants: a mistake of the caller's.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// The socket does not block, and the other end has too much to read already.
    #[error("the other end has not read what was sent before: try again when the socket is ready")]
    WouldBlock,
    /// The other end is closed.
    #[error("the other end has closed the connection")]
    Closed,
    /// The socket's buffer is too small for it.
    #[error("a message of {bytes} bytes is more than the socket takes: set a larger SO_SNDBUF")]
    TooLong {
        /// The message's length.
        bytes: usize,
    },
    /// A system call failed that there is no rule for.
    #[error("{call}: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why no message was received. Descriptors that came with it are closed.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// What came is no proper message: the other end breaks the protocol. The connection should be
    /// closed, though the next message can be received.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its descriptors are not what its kind wants. As above.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// More descriptors than any message has, or than this process has room for.
    #[error(
        "descriptors were lost with a message, of which {kept} came: at most {max} are allowed, \
         and this process needs room for as many (ulimit -n)"
    )]
    DescriptorsLost {
        /// How many came.
        kept: usize,
        /// The most any message has.
        max: usize,
    },
    /// The socket does not block, and there is nothing to receive.
    #[error("nothing was sent yet: try again when the socket is ready")]
    WouldBlock,
    /// A system call failed that there is no rule for.
    #[error("{call}: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
