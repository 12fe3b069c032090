//! Sending and receiving.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use numerge_protocol::{
    Answer, Buffer, DecodeError, DescriptorError, EncodeError, Outcome, OutcomeRun, ReceiveError,
    RegionId, Run, SendError, Sequence, Socket, Span, Target, ToClient, ToEngine, Vpn,
};

use crate::common::{FRAMES, HELLO, bytes_of, send_raw, some_file};

fn receive(socket: &Socket) -> Result<Option<ToEngine<'static>>, ReceiveError> {
    Ok(socket.receive(&mut Buffer::new())?.map(|(message, _)| message))
}

const fn unregister(region: u64) -> ToEngine<'static> {
    ToEngine::Unregister { region: RegionId(region) }
}

fn long_merge() -> ToClient<'static> {
    let run = Run { span: Span { start: Vpn(1 << 35), pages: 16 }, target: Target::Zero };
    ToClient::Merge { sequence: Sequence(9), runs: vec![run; 1024].into() }
}

#[test]
fn a_descriptor_arrives_and_works() {
    let (one, other) = Socket::pair().unwrap();
    let mut written = tempfile::NamedTempFile::new().unwrap();
    written.write_all(b"content").unwrap();
    let file = File::open(written.path()).unwrap();
    one.send(&FRAMES, &[file.as_fd()]).unwrap();
    drop(file);
    let (message, fds) = other.receive::<ToClient<'_>>(&mut Buffer::new()).unwrap().unwrap();
    assert_eq!(message, FRAMES);
    let [fd] = <[_; 1]>::try_from(fds).unwrap();
    assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    let mut file = File::from(fd);
    file.seek(SeekFrom::Start(3)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "tent");
}

#[test]
fn messages_arrive_in_order_one_a_packet() {
    let (one, other) = Socket::pair().unwrap();
    let mut buffer = Buffer::new();
    one.send(&HELLO, &[some_file().as_fd()]).unwrap();
    for region in 0..20 {
        one.send_with(&unregister(region), &[], &mut buffer).unwrap();
    }
    one.send(&ToEngine::Bye, &[]).unwrap();
    drop(one);
    assert_eq!(receive(&other).unwrap(), Some(HELLO));
    for region in 0..20 {
        assert_eq!(receive(&other).unwrap(), Some(unregister(region)));
    }
    assert_eq!(receive(&other).unwrap(), Some(ToEngine::Bye));
    assert!(receive(&other).unwrap().is_none());
    assert!(receive(&other).unwrap().is_none());
}

#[test]
fn long_messages_arrive() {
    let (one, other) = Socket::pair().unwrap();
    one.send(&long_merge(), &[]).unwrap();
    let mut buffer = Buffer::new();
    let (message, fds) = other.receive::<ToClient<'_>>(&mut buffer).unwrap().unwrap();
    assert_eq!((message, fds.len()), (long_merge(), 0));

    // Lent by the sender, which keeps its list and so allocates none.
    let mut runs = Vec::with_capacity(16_384);
    for page in 0..16_384 {
        let outcome = if page % 2 == 0 { Outcome::Merged } else { Outcome::Gone };
        OutcomeRun::push(&mut runs, outcome);
    }
    let answer = Answer::Merged(runs.as_slice().into());
    let message = ToEngine::Done { sequence: Sequence(1), answer };
    other.send_with(&message, &[], &mut buffer).unwrap();
    assert_eq!(receive(&one).unwrap(), Some(message));
}

#[test]
fn descriptors_are_counted_before_sending() {
    let (one, other) = Socket::pair().unwrap();
    let file = some_file();
    let fd = file.as_fd();
    let fails = |message: &ToEngine<'_>, fds: &[BorrowedFd<'_>], wanted| {
        let error = one.send(message, fds).unwrap_err();
        let found = fds.len();
        let SendError::Descriptors(error) = error else { panic!("{error}") };
        assert_eq!(error, DescriptorError::Count { found, wanted });
    };
    fails(&HELLO, &[], 1);
    fails(&HELLO, &[fd, fd], 1);
    fails(&HELLO, &[fd; 300], 1);
    fails(&ToEngine::Bye, &[fd], 0);
    // Nothing of them was sent.
    drop(one);
    assert!(receive(&other).unwrap().is_none());
}

#[test]
fn descriptors_are_counted_when_received() {
    let file = some_file();
    for (message, found, wanted) in [(HELLO, 0, 1), (HELLO, 2, 1), (ToEngine::Bye, 1, 0)] {
        let (one, other) = Socket::pair().unwrap();
        send_raw(&one, &bytes_of(&message), &vec![file.as_fd(); found]);
        let error = receive(&other).unwrap_err();
        let ReceiveError::Descriptors(error) = error else { panic!("{error}") };
        assert_eq!(error, DescriptorError::Count { found, wanted });
    }
    for found in [0, 2] {
        let (one, other) = Socket::pair().unwrap();
        send_raw(&one, &bytes_of(&ToClient::Userfaultfd), &vec![file.as_fd(); found]);
        let error = other.receive::<ToClient<'_>>(&mut Buffer::new()).unwrap_err();
        let ReceiveError::Descriptors(error) = error else { panic!("{error}") };
        assert_eq!(error, DescriptorError::Count { found, wanted: 1 });
    }
    let (one, other) = Socket::pair().unwrap();
    send_raw(&one, &bytes_of(&HELLO), &[file.as_fd(); 100]);
    let error = receive(&other).unwrap_err();
    assert!(matches!(error, ReceiveError::DescriptorsLost { max: 1, .. }), "{error}");
}

#[test]
fn descriptors_that_can_be_written_to_are_refused_by_both_ends() {
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let (one, other) = Socket::pair().unwrap();
    let read_write = File::options().read(true).write(true).open(&path).unwrap();
    let write = File::options().append(true).open(&path).unwrap();
    let flags = rustix::fs::OFlags::PATH.bits().cast_signed();
    let name = File::options().read(true).custom_flags(flags).open(&path).unwrap();
    for bad in [read_write, write, name] {
        for message in [FRAMES, ToClient::Userfaultfd] {
            let error = one.send(&message, &[bad.as_fd()]).unwrap_err();
            let access = matches!(error, SendError::Descriptors(DescriptorError::Access { .. }));
            assert!(access, "{error}");
            send_raw(&one, &bytes_of(&message), &[bad.as_fd()]);
            let error = other.receive::<ToClient<'_>>(&mut Buffer::new()).unwrap_err();
            let access = matches!(error, ReceiveError::Descriptors(DescriptorError::Access { .. }));
            assert!(access, "{error}");
        }
    }
}

#[test]
fn packets_that_are_too_long_are_refused_whole() {
    let (one, other) = Socket::pair().unwrap();
    for found in [(64 << 10) + 1, 100_000] {
        send_raw(&one, &vec![0; found], &[]);
        send_raw(&one, &bytes_of(&ToEngine::Bye), &[]);
        let error = receive(&other).unwrap_err();
        let ReceiveError::Decode(error) = error else { panic!("{error}") };
        assert_eq!(error, DecodeError::TooLong { found });
        // The rest of it is not taken for the next message.
        assert_eq!(receive(&other).unwrap(), Some(ToEngine::Bye));
    }
}

#[test]
fn empty_packets_are_not_the_end() {
    let (one, other) = Socket::pair().unwrap();
    send_raw(&one, &[], &[]);
    one.send(&ToEngine::Bye, &[]).unwrap();
    let error = receive(&other).unwrap_err();
    assert!(matches!(error, ReceiveError::Decode(DecodeError::TooShort { found: 0 })), "{error}");
    assert_eq!(receive(&other).unwrap(), Some(ToEngine::Bye));
}

#[test]
fn what_was_sent_before_closing_arrives_though_the_closer_left_things_unread() {
    let (one, other) = Socket::pair().unwrap();
    other.send(&ToClient::Leave { keep: true }, &[]).unwrap();
    one.send(&unregister(1), &[]).unwrap();
    one.send(&ToEngine::Bye, &[]).unwrap();
    drop(one);
    assert_eq!(receive(&other).unwrap(), Some(unregister(1)));
    assert_eq!(receive(&other).unwrap(), Some(ToEngine::Bye));
    assert!(receive(&other).unwrap().is_none());
}

#[test]
fn sending_to_a_closed_end_is_an_error_and_no_signal() {
    let (one, other) = Socket::pair().unwrap();
    drop(other);
    for _ in 0..2 {
        let error = one.send(&ToEngine::Bye, &[]).unwrap_err();
        assert!(matches!(error, SendError::Closed), "{error}");
    }
    // Also if it had not read all, which the kernel says otherwise.
    let (one, other) = Socket::pair().unwrap();
    one.send(&ToEngine::Bye, &[]).unwrap();
    drop(other);
    for _ in 0..2 {
        let error = one.send(&ToEngine::Bye, &[]).unwrap_err();
        assert!(matches!(error, SendError::Closed), "{error}");
    }
    assert!(receive(&one).unwrap().is_none());
}

#[test]
fn a_peer_that_closes_ends_waiting() {
    let (one, other) = Socket::pair().unwrap();
    std::thread::scope(|threads| {
        let waiting = threads.spawn(|| receive(&other));
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(one);
        assert!(waiting.join().unwrap().unwrap().is_none());
    });
    let (one, other) = Socket::pair().unwrap();
    std::thread::scope(|threads| {
        let waiting = threads.spawn(|| {
            loop {
                if let Err(error) = one.send(&long_merge(), &[]) {
                    return error;
                }
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(other);
        let error = waiting.join().unwrap();
        assert!(matches!(error, SendError::Closed), "{error}");
    });
}

#[test]
fn a_full_socket_would_block_and_takes_messages_again_when_read() {
    let (one, other) = Socket::pair().unwrap();
    one.set_nonblocking(true).unwrap();
    other.set_nonblocking(true).unwrap();
    let nothing = other.receive::<ToClient<'_>>(&mut Buffer::new()).unwrap_err();
    assert!(matches!(nothing, ReceiveError::WouldBlock), "{nothing}");

    let mut sent = 0;
    let error = loop {
        match one.send(&long_merge(), &[]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 10_000, "a socket without end");
    };
    assert!(matches!(error, SendError::WouldBlock), "{error}");
    assert!(sent >= 1);
    let mut buffer = Buffer::new();
    for _ in 0..sent {
        let (message, _) = other.receive::<ToClient<'_>>(&mut buffer).unwrap().unwrap();
        assert_eq!(message, long_merge());
    }
    let nothing = other.receive::<ToClient<'_>>(&mut buffer).unwrap_err();
    assert!(matches!(nothing, ReceiveError::WouldBlock), "{nothing}");
    one.send(&long_merge(), &[]).unwrap();

    drop(one);
    other.receive::<ToClient<'_>>(&mut buffer).unwrap().unwrap();
    assert!(other.receive::<ToClient<'_>>(&mut buffer).unwrap().is_none());
}

#[test]
fn a_message_beyond_the_sockets_buffer_is_an_error() {
    let (one, _other) = Socket::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&one, 4096).unwrap();
    let error = one.send(&long_merge(), &[]).unwrap_err();
    assert!(matches!(error, SendError::TooLong { bytes } if bytes > 8192), "{error}");
    one.send(&ToClient::Leave { keep: false }, &[]).unwrap();
}

#[test]
fn messages_beyond_their_limits_are_not_sent() {
    let (one, other) = Socket::pair().unwrap();
    let span = Span { start: Vpn(0), pages: 0 };
    let error = one.send(&ToEngine::Gone { span }, &[]).unwrap_err();
    assert!(matches!(error, SendError::Encode(EncodeError::Violation(_))), "{error}");
    drop(one);
    assert!(receive(&other).unwrap().is_none());
}

#[test]
fn threads_send_and_receive_at_once() {
    const THREADS: u64 = 4;
    const EACH: u64 = 500;
    let (one, other) = Socket::pair().unwrap();
    let file = some_file();
    let received = std::thread::scope(|threads| {
        let senders: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (one, file) = (&one, &file);
                threads.spawn(move || {
                    for n in 0..EACH {
                        one.send(&unregister(thread * EACH + n), &[]).unwrap();
                        one.send(&HELLO, &[file.as_fd()]).unwrap();
                    }
                })
            })
            .collect();
        let receivers: Vec<_> = (0..2)
            .map(|_| {
                threads.spawn(|| {
                    let mut buffer = Buffer::new();
                    let mut all = Vec::new();
                    while let Some((message, fds)) = other.receive(&mut buffer).unwrap() {
                        assert_eq!(fds.len(), usize::from(message == HELLO));
                        if let ToEngine::Unregister { region } = message {
                            all.push(region.0);
                        }
                    }
                    all
                })
            })
            .collect();
        senders.into_iter().for_each(|thread| thread.join().unwrap());
        rustix::net::shutdown(&one, rustix::net::Shutdown::Write).unwrap();
        let all = receivers.into_iter().flat_map(|thread| thread.join().unwrap());
        let mut all: Vec<u64> = all.collect();
        all.sort_unstable();
        all
    });
    assert_eq!(received, (0..THREADS * EACH).collect::<Vec<_>>());
}
