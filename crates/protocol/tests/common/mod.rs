//! What tests of sockets share.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use numerge_protocol::limits::VERSION;
use numerge_protocol::{Scope, ToClient, ToEngine};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

pub(crate) const HELLO: ToEngine<'_> =
    ToEngine::Hello { version: VERSION, page_size: 4096, scope: Scope::Advised, domain: None };
pub(crate) const FRAMES: ToClient<'_> = ToClient::Frames { file: 1, pages: 2 };

/// Some file, open for reading.
pub(crate) fn some_file() -> File {
    File::open("/proc/self/pagemap").expect("/proc is mounted")
}

/// The encoding of a message, of any length.
pub(crate) fn bytes_of<M: numerge_protocol::Message>(message: &M) -> Vec<u8> {
    let mut buffer = vec![0; 64 << 10];
    numerge_protocol::encode(message, &mut buffer).expect("a good message").to_vec()
}

/// Sends any bytes with any descriptors, which a [`numerge_protocol::Socket`] would not.
pub(crate) fn send_raw(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    let parts = [IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL).expect("room to send");
}
