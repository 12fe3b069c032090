//! A connection: messages with descriptors over a Unix socket of type SOCK_SEQPACKET.
//!
//! A packet is a message. The kernel sends and receives a packet whole or not at all, so any number
//! of threads may send and receive at once; each receiving thread has its own [`Buffer`].

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sockopt,
};

use crate::codec::{self, DecodeError, EncodeError, Message};
use crate::error::{DescriptorError, ReceiveError, SendError, SocketError, system};
use crate::limits::{DESCRIPTORS, MESSAGE_BYTES, SHORT_BYTES};
use crate::peer::{self, Credentials};

/// Room for one message of any length, to be used again and again. The one allocation is made here.
#[derive(Debug)]
pub struct Buffer(Box<[u8]>);

impl Buffer {
    /// Allocates the room.
    #[must_use]
    pub fn new() -> Self {
        Self(vec![0; MESSAGE_BYTES].into_boxed_slice())
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

/// One end of a connection. Closed when dropped.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Two ends of one connection, blocking.
    ///
    /// # Errors
    /// What the system said.
    pub fn pair() -> Result<(Self, Self), SocketError> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(system("socketpair"))?;
        Ok((Self(one), Self(other)))
    }

    /// Connects to who listens at `path`. Never waits; the connection blocks afterwards.
    ///
    /// # Errors
    /// [`SocketError::Nobody`] if there is no engine, [`SocketError::Busy`] if it does not answer.
    pub fn connect(path: &Path) -> Result<Self, SocketError> {
        let at_path = |errno: Errno| match errno {
            Errno::NOENT | Errno::CONNREFUSED => SocketError::Nobody { path: path.into() },
            Errno::AGAIN => SocketError::Busy { path: path.into() },
            Errno::PROTOTYPE => SocketError::OtherType { path: path.into() },
            other => {
                SocketError::AtPath { call: "connect", path: path.into(), source: other.into() }
            }
        };
        let socket = Self(new_socket(SocketFlags::NONBLOCK)?);
        rustix::net::connect(&socket.0, &address(path)?).map_err(at_path)?;
        socket.set_nonblocking(false)?;
        Ok(socket)
    }

    /// Makes sending and receiving give `WouldBlock` instead of waiting, or wait again. Holds for
    /// all who have this socket, other processes too.
    ///
    /// # Errors
    /// What the system said.
    pub fn set_nonblocking(&self, nonblocking: bool) -> Result<(), SocketError> {
        rustix::io::ioctl_fionbio(&self.0, nonblocking).map_err(system("ioctl(FIONBIO)"))
    }

    /// Checks, encodes and sends a message with its descriptors, all of it or nothing.
    ///
    /// A message of at most [`SHORT_BYTES`], which is every one without a list, is encoded on the
    /// stack; the others allocate [`MESSAGE_BYTES`] for the time of the call. [`Self::send_with`]
    /// never allocates.
    ///
    /// # Errors
    /// [`SendError`]; the message was not sent.
    pub fn send<M: Message>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        check_descriptors(message, fds)?;
        let mut short = [0; SHORT_BYTES];
        match codec::encode(message, &mut short) {
            Ok(bytes) => self.send_bytes(bytes, fds),
            Err(EncodeError::Room { .. }) => self.send_with(message, fds, &mut Buffer::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Like [`Self::send`], but encodes into `buffer`, so that nothing is allocated.
    ///
    /// # Errors
    /// [`SendError`]; the message was not sent.
    pub fn send_with<M: Message>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
        buffer: &mut Buffer,
    ) -> Result<(), SendError> {
        check_descriptors(message, fds)?;
        let bytes = codec::encode(message, &mut buffer.0)?;
        self.send_bytes(bytes, fds)
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                let found = fds.len();
                return Err(DescriptorError::Count { found, wanted: DESCRIPTORS }.into());
            }
            let flags = SendFlags::NOSIGNAL;
            return match rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags)
            {
                Ok(_whole) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Err(SendError::WouldBlock),
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Err(SendError::Closed),
                Err(Errno::MSGSIZE) => Err(SendError::TooLong { bytes: bytes.len() }),
                Err(errno) => Err(SendError::System { call: "sendmsg", source: errno.into() }),
            };
        }
    }

    /// Receives, decodes and checks the next message with its descriptors, which are closed on
    /// exec; None if the other end has closed the connection and all it sent was received.
    ///
    /// The lists and texts of a message, and descriptors, are allocated.
    ///
    /// # Errors
    /// [`ReceiveError`]. A packet that is no proper message is gone, and its descriptors closed.
    pub fn receive<M: Message>(
        &self,
        buffer: &mut Buffer,
    ) -> Result<Option<(M, Vec<OwnedFd>)>, ReceiveError> {
        // One too many are received, to tell that there were too many.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = self.receive_packet(&mut buffer.0, &mut control)?;
        let mut fds = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = part {
                fds.extend(more);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ReceiveError::DescriptorsLost { kept: fds.len(), max: DESCRIPTORS });
        }
        let found = received.bytes;
        if found == 0 && fds.is_empty() && self.is_closed()? {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(DecodeError::TooLong { found }.into());
        }
        let bytes = buffer.0.get(..found).ok_or(DecodeError::TooLong { found })?;
        let message: M = codec::decode(bytes)?;
        check_descriptors(&message, &fds)?;
        Ok(Some((message, fds)))
    }

    fn receive_packet(
        &self,
        bytes: &mut [u8],
        control: &mut RecvAncillaryBuffer<'_>,
    ) -> Result<rustix::net::RecvMsg, ReceiveError> {
        // TRUNC asks for a packet's whole length, so that an error can tell it.
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::TRUNC;
        let mut was_reset = false;
        loop {
            let mut parts = [IoSliceMut::new(bytes)];
            return match rustix::net::recvmsg(&self.0, &mut parts, control, flags) {
                Ok(received) => Ok(received),
                Err(Errno::INTR) => continue,
                // Said once if the other end closed without having read all. What it had sent
                // before is there still, and then comes the end.
                Err(Errno::CONNRESET) if !was_reset => {
                    was_reset = true;
                    continue;
                }
                Err(Errno::AGAIN) => Err(ReceiveError::WouldBlock),
                Err(errno) => Err(ReceiveError::System { call: "recvmsg", source: errno.into() }),
            };
        }
    }

    /// Whether the other end sends no more: an empty packet and the end look alike otherwise.
    fn is_closed(&self) -> Result<bool, ReceiveError> {
        let mut polled = [PollFd::new(&self.0, PollFlags::RDHUP)];
        loop {
            match rustix::event::poll(&mut polled, Some(&Timespec::default())) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(ReceiveError::System { call: "poll", source: errno.into() });
                }
            }
        }
        Ok(polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP))
    }

    /// Who made the other end: with `connect`, as it was then; with `pair`, who made the pair.
    ///
    /// # Errors
    /// What the system said.
    pub fn peer(&self) -> Result<Credentials, SocketError> {
        peer::credentials(self.0.as_fd())
    }

    /// A descriptor of the process that made the other end, which a new process of the same number
    /// can't be taken for; None if the kernel has no such thing (before Linux 6.5).
    ///
    /// # Errors
    /// What the system said; that the process is gone, for one.
    pub fn peer_pidfd(&self) -> Result<Option<OwnedFd>, SocketError> {
        peer::pidfd(self.0.as_fd())
    }
}

impl TryFrom<OwnedFd> for Socket {
    type Error = SocketError;

    /// Takes over a connection, such as one inherited. It is closed on exec from now on.
    fn try_from(fd: OwnedFd) -> Result<Self, SocketError> {
        take_over(fd, false).map(Self)
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.0
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Wraps what accept gave.
pub(crate) const fn accepted(fd: OwnedFd) -> Socket {
    Socket(fd)
}

/// An unconnected socket of the right kind.
pub(crate) fn new_socket(flags: SocketFlags) -> Result<OwnedFd, SocketError> {
    let flags = flags | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(system("socket"))
}

/// A path as an address.
pub(crate) fn address(path: &Path) -> Result<SocketAddrUnix, SocketError> {
    // An empty one would be an abstract address.
    if path.as_os_str().is_empty() {
        return Err(SocketError::Path { path: path.into() });
    }
    SocketAddrUnix::new(path).map_err(|_| SocketError::Path { path: path.into() })
}

/// Checks that a descriptor of unknown origin is a socket of the right kind.
pub(crate) fn take_over(fd: OwnedFd, listening: bool) -> Result<OwnedFd, SocketError> {
    let wanted = if listening {
        "a listening Unix socket of type SOCK_SEQPACKET"
    } else {
        "a connected Unix socket of type SOCK_SEQPACKET"
    };
    let is_right = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&fd) == Ok(SocketType::SEQPACKET)
        && sockopt::socket_acceptconn(&fd) == Ok(listening)
        && (listening || rustix::net::getpeername(&fd).is_ok());
    if !is_right {
        return Err(SocketError::WrongSocket { fd: fd.as_raw_fd(), wanted });
    }
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(system("fcntl"))?;
    Ok(fd)
}

fn check_descriptors<M: Message>(message: &M, fds: &[impl AsFd]) -> Result<(), DescriptorError> {
    let (found, wanted) = (fds.len(), message.descriptors());
    if found != wanted {
        return Err(DescriptorError::Count { found, wanted });
    }
    for fd in fds {
        // Of an open descriptor this can't fail; if it does, it is not open for reading.
        let flags = rustix::fs::fcntl_getfl(fd).unwrap_or(OFlags::WRONLY);
        if flags & OFlags::ACCMODE != OFlags::RDONLY || flags.contains(OFlags::PATH) {
            return Err(DescriptorError::Access { flags: flags.bits() });
        }
    }
    Ok(())
}
