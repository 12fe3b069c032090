//! No descriptor that came with a refused message stays open. Counts all of the process's, so it is
//! the only test of its program.

mod common;

use std::os::fd::AsFd;

use common::{FRAMES, HELLO, bytes_of, send_raw, some_file};
use numerge_protocol::{Buffer, Message, ReceiveError, Socket, ToClient, ToEngine};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count()
}

/// Receives what was sent, and gives why it was refused; nothing stays open.
fn refused<M: Message>(bytes: &[u8], fds: usize, buffer: &mut Buffer) -> ReceiveError {
    let (one, other) = Socket::pair().expect("a pair");
    let file = some_file();
    let before = open_descriptors();
    send_raw(&one, bytes, &vec![file.as_fd(); fds]);
    let Err(error) = other.receive::<M>(buffer) else {
        panic!("took a message that it should refuse: {fds} descriptors, {} bytes", bytes.len());
    };
    assert_eq!(open_descriptors(), before, "after {error}");
    // The connection itself goes on.
    send_raw(&one, &bytes_of(&HELLO), &[file.as_fd()]);
    let (message, fds) =
        other.receive::<ToEngine<'_>>(buffer).expect("a good message").expect("not the end");
    assert_eq!((message, fds.len()), (HELLO, 1));
    drop(fds);
    assert_eq!(open_descriptors(), before);
    error
}

#[test]
fn descriptors_of_refused_messages_are_closed() {
    let mut buffer = Buffer::new();
    let b = &mut buffer;
    let hello = bytes_of(&HELLO);
    let bye = bytes_of(&ToEngine::Bye);
    for fds in [0, 2, 3, 4, 100] {
        let error = refused::<ToEngine<'_>>(&hello, fds, b);
        // How many more than one are counted depends on how the buffer for them lies.
        let is_counted = matches!(error, ReceiveError::Descriptors(_));
        assert!(is_counted || fds > 2, "{fds}: {error}");
        let is_lost = matches!(error, ReceiveError::DescriptorsLost { .. });
        assert_eq!(is_lost, !is_counted, "{fds}: {error}");
        assert!(is_lost || fds < 10, "{fds}: {error}");
    }
    for fds in [0, 2, 50] {
        refused::<ToClient<'_>>(&bytes_of(&ToClient::Userfaultfd), fds, b);
    }
    for fds in [1, 2, 50] {
        refused::<ToEngine<'_>>(&bye, fds, b);
        // Not for this end; nothing at all; too long; not of this version; no message.
        refused::<ToEngine<'_>>(&bytes_of(&FRAMES), fds, b);
        refused::<ToClient<'_>>(&hello, fds, b);
        refused::<ToEngine<'_>>(&bytes_of(&ToClient::Userfaultfd), fds, b);
        refused::<ToEngine<'_>>(&[], fds, b);
        refused::<ToEngine<'_>>(&vec![0; (64 << 10) + 1], fds, b);
        refused::<ToEngine<'_>>(&[0, 0, 3], fds, b);
        refused::<ToEngine<'_>>(&hello[..hello.len() - 1], fds, b);
        refused::<ToEngine<'_>>(&[&hello[..], &[0]].concat(), fds, b);
    }

    // What nobody receives goes with the socket.
    let before = open_descriptors();
    let (one, other) = Socket::pair().unwrap();
    let file = some_file();
    one.send(&HELLO, &[file.as_fd()]).unwrap();
    drop((one, other, file));
    assert_eq!(open_descriptors(), before);

    // A process that has no room for more descriptors refuses, and keeps what it has.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let (one, other) = Socket::pair().unwrap();
    let file = some_file();
    let mut filling = Vec::new();
    while let Ok(more) = file.try_clone() {
        filling.push(more);
        if filling.len() > 100_000 {
            // No test of this where the limit is so high.
            eprintln!("descriptors are limited to {:?}: not used up", limit.current);
            return;
        }
    }
    send_raw(&one, &hello, &[file.as_fd()]);
    let error = other.receive::<ToEngine<'_>>(b).unwrap_err();
    assert!(matches!(error, ReceiveError::DescriptorsLost { kept: 0, .. }), "{error}");
    drop(filling);
    one.send(&HELLO, &[file.as_fd()]).unwrap();
    other.receive::<ToEngine<'_>>(b).unwrap().unwrap();
}
