//! Sending to a client, without ever waiting for it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use numerge_linux::FramePools;
use numerge_protocol::limits::{FILE_PAGES, MESSAGE_BYTES};
use numerge_protocol::{Buffer, ReceiveError, SendError, Socket, SocketError, ToClient, ToEngine};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{Shutdown, sockopt};

/// Bytes that may be on their way to a client: all questions that may be unanswered, and the kernel's
/// own bookkeeping. It gives less if its limit is lower.
const SEND_BUFFER_BYTES: usize = 16 * MESSAGE_BYTES;

/// A connection.
pub(crate) struct Link {
    socket: Socket,
    outgoing: Mutex<Outgoing>,
}

struct Outgoing {
    buffer: Buffer,
    /// Numbers of the files that the client has.
    files: BTreeSet<u64>,
}

impl Link {
    /// Takes over a connection, which does not block from now on.
    pub(crate) fn new(socket: Socket) -> Result<Self, SocketError> {
        socket.set_nonblocking(true)?;
        // Where that is refused, questions wait more often.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
        let outgoing = Outgoing { buffer: Buffer::new(), files: BTreeSet::new() };
        Ok(Self { socket, outgoing: Mutex::new(outgoing) })
    }

    /// Who made the other end.
    pub(crate) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends a message without a descriptor.
    pub(crate) fn send(&self, message: &ToClient<'_>) -> Result<(), SendError> {
        self.socket.send_with(message, &[], &mut self.outgoing.lock().buffer)
    }

    /// Sends a message with its descriptor.
    pub(crate) fn send_lending(
        &self,
        message: &ToClient<'_>,
        fd: BorrowedFd<'_>,
    ) -> Result<(), SendError> {
        self.socket.send_with(message, &[fd], &mut self.outgoing.lock().buffer)
    }

    /// Sends a message, for which the client is given some time to read what it was sent before. Only
    /// for who may wait that long.
    pub(crate) fn send_patiently(&self, message: &ToClient<'_>, most: Duration) -> bool {
        match self.send(message) {
            Err(SendError::WouldBlock) => {
                let mut polled = [PollFd::new(&self.socket, PollFlags::OUT)];
                poll(&mut polled, Some(most)).is_ok_and(|ready| ready) && self.send(message).is_ok()
            }
            sent => sent.is_ok(),
        }
    }

    /// Sees to it that the client has these files, by their numbers.
    pub(crate) fn send_files(
        &self,
        pools: &FramePools,
        files: &BTreeSet<u64>,
    ) -> Result<(), SendError> {
        let outgoing = &mut *self.outgoing.lock();
        for &number in files {
            if outgoing.files.contains(&number) {
                continue;
            }
            let fd = open(pools, number)
                .map_err(|source| SendError::System { call: "open a pool file", source })?;
            let file = u32::try_from(number).unwrap_or(u32::MAX);
            let message = ToClient::Frames { file, pages: FILE_PAGES };
            self.socket.send_with(&message, &[fd.as_fd()], &mut outgoing.buffer)?;
            outgoing.files.insert(number);
        }
        Ok(())
    }

    /// Waits for the next message: None at the end of the connection, if it takes too long, or if
    /// `process`, a pidfd, has ended without having said more: a child of it may hold the other end
    /// open.
    pub(crate) fn receive(
        &self,
        buffer: &mut Buffer,
        most: Option<Duration>,
        process: Option<BorrowedFd<'_>>,
    ) -> Result<Option<(ToEngine<'static>, Vec<OwnedFd>)>, ReceiveError> {
        let mut is_last = false;
        loop {
            match self.socket.receive(buffer) {
                Err(ReceiveError::WouldBlock) if is_last => return Ok(None),
                Err(ReceiveError::WouldBlock) => {}
                received => return received,
            }
            let failed = |source| ReceiveError::System { call: "poll", source };
            let mut polled = vec![PollFd::new(&self.socket, PollFlags::IN)];
            polled.extend(process.map(|process| PollFd::from_borrowed_fd(process, PollFlags::IN)));
            if !poll(&mut polled, most).map_err(failed)? {
                return Ok(None);
            }
            is_last = polled.get(1).is_some_and(|process| !process.revents().is_empty());
        }
    }

    /// Whether there is something to receive, the end of the connection included.
    pub(crate) fn has_input(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        // Where that can't be told, nobody waits for it.
        poll(&mut polled, Some(Duration::ZERO)).is_ok_and(|ready| ready)
    }

    /// Waits until there is something to receive, the end of the connection and of `process`, a pidfd,
    /// included.
    pub(crate) fn wait_for_input(&self, process: BorrowedFd<'_>) {
        let process = PollFd::from_borrowed_fd(process, PollFlags::IN);
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN), process];
        // Who called looks for itself.
        let _ = poll(&mut polled, None);
    }

    /// Ends the connection, in both directions. Who waits to receive is woken.
    pub(crate) fn hang_up(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

/// Waits until something is ready; false if it takes too long.
fn poll(polled: &mut [PollFd<'_>], most: Option<Duration>) -> io::Result<bool> {
    let most = most.map(Timespec::try_from).transpose();
    let most = most.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    loop {
        match rustix::event::poll(polled, most.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

fn open(pools: &FramePools, number: u64) -> io::Result<OwnedFd> {
    pools.read_only_file(number)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}
