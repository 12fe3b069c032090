//! Who is at the other end, as the kernel says.

use std::io;
use std::num::NonZero;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::error::SocketError;

/// Who made the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Credentials {
    /// The process; None if it is in a PID namespace that this process does not see into.
    pub pid: Option<NonZero<i32>>,
    /// Its effective user. 65534 also stands for one that this user namespace does not know.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

// `rustix::net::sockopt::socket_peercred` has a type that can't hold the PID 0 of a process outside
// this PID namespace.
pub(crate) fn credentials(socket: BorrowedFd<'_>) -> Result<Credentials, SocketError> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    // SAFETY: any bits are a valid ucred.
    unsafe { option(socket, libc::SO_PEERCRED, &mut found) }
        .map_err(|source| SocketError::System { call: "getsockopt(SO_PEERCRED)", source })?;
    Ok(Credentials { pid: NonZero::new(found.pid), uid: found.uid, gid: found.gid })
}

pub(crate) fn pidfd(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, SocketError> {
    let mut found: RawFd = -1;
    // SAFETY: any bits are a valid RawFd.
    match unsafe { option(socket, libc::SO_PEERPIDFD, &mut found) } {
        // SAFETY: the kernel has just made this descriptor, and for us.
        Ok(()) => Ok(Some(unsafe { OwnedFd::from_raw_fd(found) })),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        Err(source) => Err(SocketError::System { call: "getsockopt(SO_PEERPIDFD)", source }),
    }
}

/// Reads a socket option of the level SOL_SOCKET, all of it or an error.
///
/// # Safety
/// Whatever bytes the kernel writes must be a valid `T`.
unsafe fn option<T>(socket: BorrowedFd<'_>, name: libc::c_int, value: &mut T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    let mut len = size;
    // SAFETY: the kernel writes at most `len` bytes to `value`, which has as many, and they make a
    // valid value, as the caller promises.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_mut(value).cast(),
            &raw mut len,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    if len != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
