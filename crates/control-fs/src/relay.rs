//! Between the kernel and `fuser`: passes requests on in one direction and answers in the other.
//!
//! `fuser` does not tell a file system of signals that callers get (FUSE_INTERRUPT), and says to the
//! kernel that it never will. So those are taken out here, where they go by. What the messages look
//! like is in the kernel's `include/uapi/linux/fuse.h`; of it only the headers' fields matter here,
//! and they are the same in all versions.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

use crate::turns::Turns;
use crate::writes::Writes;

/// Most bytes that the kernel is to send with one write. All but the first page of it is left unread,
/// as the kernel does with its own files, and the writer is told.
pub(crate) const WRITE_BYTES: u32 = 1 << 16;
/// Most bytes of a message.
const MESSAGE_BYTES: usize = 1 << 18;

/// `enum fuse_opcode`.
const FUSE_WRITE: u32 = 16;
const FUSE_INTERRUPT: u32 = 36;
const FUSE_DESTROY: u32 = 38;

/// `struct fuse_in_header`: length, opcode and number of the request, and what is of no interest here.
const IN_HEADER_BYTES: usize = 40;

/// A relay at work. Dropping it ends it, and what the kernel has sent is not answered any more.
pub(crate) struct Relay {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<OwnedFd>,
}

impl Relay {
    /// Relays between a /dev/fuse that is mounted and the descriptor that is given back.
    pub(crate) fn start(
        device: OwnedFd,
        writes: Arc<Writes>,
        turns: Arc<Turns>,
    ) -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::ioctl_fionbio(&device, true)?;
        let stop = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut relay = Self { threads: Vec::new(), stop: Arc::clone(&stop) };
        let (device, near) = (Arc::new(device), Arc::new(near));
        let (to, from, noted) = (Arc::clone(&device), Arc::clone(&near), Arc::clone(&writes));
        let same = Arc::clone(&turns);
        let requests = move || {
            pass_requests(&device, &near, &stop, &writes, &turns);
            // The other one ends with the answer; if there is nobody to give one, at once.
            let _ = send(&near, &end());
        };
        relay.spawn("control-fs-in", requests)?;
        relay.spawn("control-fs-out", move || pass_answers(&from, &to, &noted, &same))?;
        Ok((relay, far))
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Fails only if it is readable already.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn pass_requests(
    device: &OwnedFd,
    near: &OwnedFd,
    stop: &OwnedFd,
    writes: &Arc<Writes>,
    turns: &Turns,
) {
    let mut buffer = vec![0; MESSAGE_BYTES];
    loop {
        let mut polled = [PollFd::new(stop, PollFlags::IN), PollFd::new(device, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) if polled[0].revents().is_empty() => {}
            Err(Errno::INTR) => continue,
            _ => return,
        }
        let request = match rustix::io::read(device, &mut buffer[..]) {
            Ok(length) => &buffer[..length],
            // Taken back, or nothing there after all.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            // Most often: not mounted any more.
            Err(_) => return,
        };
        turns.follow();
        match opcode(request) {
            Some(FUSE_INTERRUPT) => {
                if let Some(number) = number(request, IN_HEADER_BYTES) {
                    writes.interrupt(number);
                }
                continue;
            }
            Some(FUSE_WRITE) => {
                if let Some(number) = number(request, NUMBER_AT) {
                    writes.begin(number);
                }
            }
            _ => {}
        }
        if send(near, request).is_err() {
            return;
        }
    }
}

fn pass_answers(near: &OwnedFd, device: &OwnedFd, writes: &Writes, turns: &Turns) {
    let mut buffer = vec![0; MESSAGE_BYTES];
    loop {
        let answer = match rustix::net::recv(near, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => return,
            Ok((length, _)) => &buffer[..length],
            Err(Errno::INTR) => continue,
            Err(_) => return,
        };
        turns.follow();
        match number(answer, NUMBER_AT) {
            Some(END) => return,
            Some(number) => writes.end(number),
            None => {}
        }
        // Fails where nobody waits for it any more.
        let _ = rustix::io::write(device, answer);
    }
}

fn send(to: &OwnedFd, message: &[u8]) -> io::Result<()> {
    loop {
        match rustix::net::send(to, message, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return sent.map(drop).map_err(Into::into),
        }
    }
}

/// A number that the kernel, which counts from 0, does not come to.
const END: u64 = u64::MAX;

/// The request by which `fuser` sees that it was the last.
fn end() -> [u8; IN_HEADER_BYTES] {
    let mut request = [0; IN_HEADER_BYTES];
    request[..4].copy_from_slice(&40_u32.to_ne_bytes());
    request[4..8].copy_from_slice(&FUSE_DESTROY.to_ne_bytes());
    request[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&END.to_ne_bytes());
    request
}

/// Where a request's number is in both headers, after two fields of 32 bits.
const NUMBER_AT: usize = 8;

fn opcode(request: &[u8]) -> Option<u32> {
    let bytes = request.get(4..8)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn number(message: &[u8], at: usize) -> Option<u64> {
    let bytes = message.get(at..at + 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}
