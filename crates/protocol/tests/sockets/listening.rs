//! Listening, connecting, and what is left over.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use numerge_protocol::{Buffer, Listener, Socket, SocketError, ToEngine};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

/// What an engine that was killed leaves behind.
fn left_over(path: &Path) {
    let socket =
        rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("works");
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).expect("works")).expect("works");
}

fn works(listener: &Listener, path: &Path) {
    let client = Socket::connect(path).expect("works");
    let server = listener.accept().expect("works");
    client.send(&ToEngine::Bye, &[]).expect("works");
    let (message, _) =
        server.receive::<ToEngine<'_>>(&mut Buffer::new()).expect("works").expect("works");
    assert_eq!(message, ToEngine::Bye);
    let peer = server.peer().expect("works");
    assert_eq!(peer.pid.map(std::num::NonZero::get), i32::try_from(std::process::id()).ok());
    for fd in [client.as_fd(), server.as_fd(), listener.as_fd()] {
        assert!(rustix::io::fcntl_getfd(fd).expect("works").contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn clients_connect_and_the_file_goes_with_the_listener() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&path, 0o600).unwrap();
    works(&listener, &path);
    drop(listener);
    assert!(!path.exists());
    let error = Socket::connect(&path).unwrap_err();
    assert!(matches!(error, SocketError::Nobody { .. }), "{error}");
}

#[test]
fn the_file_has_the_mode_asked_for_whatever_the_umask() {
    let folder = tempfile::tempdir().unwrap();
    for mode in [0o600, 0o660, 0o666, 0o777] {
        let path = folder.path().join(format!("{mode:o}"));
        let _listener = Listener::bind(&path, mode).unwrap();
        let found = std::fs::symlink_metadata(&path).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o7777, mode);
    }
    let error = Listener::bind(&folder.path().join("x"), 0o1000).unwrap_err();
    assert!(matches!(error, SocketError::Mode { found: 0o1000 }), "{error}");
}

#[test]
fn what_an_engine_left_over_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    left_over(&path);
    let error = Socket::connect(&path).unwrap_err();
    assert!(matches!(error, SocketError::Nobody { .. }), "{error}");
    works(&Listener::bind(&path, 0o600).unwrap(), &path);
}

#[test]
fn somebody_who_listens_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let first = Listener::bind(&path, 0o600).unwrap();
    let error = Listener::bind(&path, 0o600).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    // The attempt has connected.
    drop(first.accept().unwrap());
    works(&first, &path);

    let path = folder.path().join("stream");
    let _other = UnixListener::bind(&path).unwrap();
    let error = Listener::bind(&path, 0o600).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    let error = Socket::connect(&path).unwrap_err();
    assert!(matches!(error, SocketError::OtherType { .. }), "{error}");
}

#[test]
fn an_engine_with_too_many_waiting_is_busy_and_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&path, 0o600).unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        match Socket::connect(&path) {
            Ok(socket) => waiting.push(socket),
            Err(error) => break error,
        }
        assert!(waiting.len() < 10_000, "a backlog without end");
    };
    assert!(matches!(error, SocketError::Busy { .. }), "{error}");
    let error = Listener::bind(&path, 0o600).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    drop(listener.accept().unwrap());
    Socket::connect(&path).unwrap();
}

#[test]
fn only_sockets_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    let link = folder.path().join("link");
    let target = folder.path().join("target");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    for path in [&file, &link, &folder.path().to_owned()] {
        let error = Listener::bind(path, 0o600).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn paths_that_can_t_be_are_refused() {
    let long = "x".repeat(109);
    for bad in ["", "a\0b", &long] {
        for error in [
            Listener::bind(Path::new(bad), 0o600).unwrap_err(),
            Socket::connect(Path::new(bad)).unwrap_err(),
        ] {
            assert!(matches!(error, SocketError::Path { .. }), "{bad:?}: {error}");
        }
    }
    let error = Listener::bind(Path::new("/no/such/folder/socket"), 0o600).unwrap_err();
    assert!(matches!(error, SocketError::AtPath { .. }), "{error}");
}

#[test]
fn of_engines_that_start_at_once_one_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    for _ in 0..50 {
        left_over(&path);
        let bound: Vec<_> = std::thread::scope(|threads| {
            let starting: Vec<_> =
                (0..4).map(|_| threads.spawn(|| Listener::bind(&path, 0o600))).collect();
            starting.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for error in bound.iter().filter_map(|bound| bound.as_ref().err()) {
            assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        }
        assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
        Socket::connect(&path).unwrap();
    }
}

#[test]
fn a_locked_directory_is_waited_for_and_then_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let held = std::fs::File::open(folder.path()).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let path = folder.path().join("socket");
    let error = Listener::bind(&path, 0o600).unwrap_err();
    assert!(matches!(error, SocketError::Locked { .. }), "{error}");
    assert!(!path.exists());
    std::thread::scope(|threads| {
        let waiting = threads.spawn(|| Listener::bind(&path, 0o600));
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(held);
        works(&waiting.join().unwrap().unwrap(), &path);
    });
}

#[test]
fn a_file_that_another_put_there_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let first = Listener::bind(&path, 0o600).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = Listener::bind(&path, 0o600).unwrap();
    drop(first);
    works(&second, &path);
}

#[test]
fn an_inherited_listener_works_and_leaves_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let again = socket.try_clone().unwrap();
    let error = Listener::try_from(again).unwrap_err();
    assert!(matches!(error, SocketError::WrongSocket { .. }), "{error}");
    rustix::net::listen(&socket, 4).unwrap();
    let listener = Listener::try_from(socket).unwrap();
    works(&listener, &path);
    listener.set_nonblocking(true).unwrap();
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(listener);
    assert!(path.exists());
}
