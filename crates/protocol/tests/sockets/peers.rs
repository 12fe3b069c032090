//! Who is at the other end.

use std::os::fd::OwnedFd;

use numerge_protocol::{Socket, SocketError};

#[test]
fn the_peer_is_this_process() {
    let (one, _other) = Socket::pair().unwrap();
    let peer = one.peer().unwrap();
    assert_eq!(peer.pid.map(std::num::NonZero::get), i32::try_from(std::process::id()).ok());
    assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    assert_eq!(peer.gid, rustix::process::getegid().as_raw());
}

#[test]
fn the_peers_pidfd_is_this_process() {
    let (one, _other) = Socket::pair().unwrap();
    // None before Linux 6.5.
    if let Some(pidfd) = one.peer_pidfd().unwrap() {
        let number = std::os::fd::AsRawFd::as_raw_fd(&pidfd);
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let wanted = format!("Pid:\t{}\n", std::process::id());
        assert!(text.contains(&wanted), "{text}");
        let flags = rustix::io::fcntl_getfd(&pidfd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn only_connected_sockets_of_the_right_kind_are_taken_over() {
    let (one, other) = Socket::pair().unwrap();
    let one = OwnedFd::from(one);
    rustix::io::fcntl_setfd(&one, rustix::io::FdFlags::empty()).unwrap();
    let one = Socket::try_from(one).unwrap();
    let flags = rustix::io::fcntl_getfd(&one).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    drop(other);

    use rustix::net::{AddressFamily, SocketType, socket, socketpair};
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let unconnected = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    let flags = rustix::net::SocketFlags::empty();
    let (stream, _end) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    for bad in [file, unconnected, stream] {
        let error = Socket::try_from(bad).unwrap_err();
        assert!(matches!(error, SocketError::WrongSocket { .. }), "{error}");
    }
}
