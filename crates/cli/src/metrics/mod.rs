//! `--metrics`: all counters for a monitoring system, as OpenMetrics text by HTTP.
//!
//! Off unless asked for. On a Unix socket for root alone, or on a port that only this machine can reach;
//! there, all its users can. One request is answered at a time, each has a few seconds, and what was
//! counted is counted anew after a second: who asks in a loop costs little.

mod figures;
mod http;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use numerge::control::Listener;
use numerge_server::Server;
use rustix::event::{EventfdFlags, PollFd, PollFlags};

use http::Connection;

/// For how long what was counted is given to whoever asks.
const FRESH: Duration = Duration::from_secs(1);
/// How long to wait when resources for a connection have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Where metrics are asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    /// A path with a slash in it.
    Unix(PathBuf),
    /// A loopback address and a port.
    Tcp(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let wanted = "a path of a Unix socket with a slash in it is wanted, or a loopback address \
            and a port, as 127.0.0.1:9155";
        let address: SocketAddr = text.parse().map_err(|_| format!("'{text}': {wanted}"))?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(format!("'{text}' can be reached from elsewhere: {wanted}"))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// A socket where nobody is answered yet.
pub(crate) enum Socket {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Socket {
    /// Listens there, as who this process is now.
    ///
    /// # Errors
    /// What the system said, with the address.
    pub(crate) fn bind(address: &Address) -> Result<Self, String> {
        let bound = match address {
            Address::Unix(path) => {
                // What a daemon that was killed has left.
                let is_left = std::os::unix::net::UnixStream::connect(path)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                let removed = if is_left { std::fs::remove_file(path) } else { Ok(()) };
                removed
                    .and_then(|()| Listener::socket(path))
                    .map(|socket| Self::Unix(socket, path.clone()))
            }
            Address::Tcp(address) => TcpListener::bind(address).map(Self::Tcp),
        };
        let bound = bound.and_then(|socket| socket.set_nonblocking().map(|()| socket));
        bound.map_err(|error| format!("--metrics {address}: {error}"))
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(socket, _) => socket.set_nonblocking(true),
            Self::Tcp(socket) => socket.set_nonblocking(true),
        }
    }

    fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(socket, _) => Ok(socket.accept()?.0.into()),
            Self::Tcp(socket) => Ok(socket.accept()?.0.into()),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket, _) => socket.as_fd(),
            Self::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Where it is not to be removed, the next daemon finds that nobody listens there.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Answers until it is dropped.
pub(crate) struct Metrics {
    /// Readable once it is to end.
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    /// # Errors
    /// What the system said: there is no thread, or no descriptor.
    pub(crate) fn serve(socket: Socket, server: Weak<Server>) -> io::Result<Self> {
        let stop = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || serve(&socket, &stopped, &server))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // Fails only if it is readable already.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &Socket, stop: &OwnedFd, server: &Weak<Server>) {
    let mut counted: Option<(Instant, String)> = None;
    loop {
        let mut polled = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
        ];
        let _ = rustix::event::poll(&mut polled, None);
        if !polled[0].revents().is_empty() {
            return;
        }
        let connection = match socket.accept() {
            Ok(connection) => connection,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            // Descriptors have run out, and who waits, waits.
            Err(_) => {
                std::thread::sleep(ACCEPT_RETRY);
                continue;
            }
        };
        let text = || {
            if counted.as_ref().is_none_or(|(when, _)| when.elapsed() >= FRESH) {
                let text = server.upgrade().and_then(|server| figures::text(&server).ok());
                counted = text.map(|text| (Instant::now(), text));
            }
            counted.as_ref().map(|(_, text)| text.clone())
        };
        // Whatever ends it, there is nobody to tell.
        let _ = connection.answer(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s6_an_address_that_others_can_reach_is_refused() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("/run/numerge/metrics"), Ok(Address::Unix("/run/numerge/metrics".into())));
        assert_eq!(parse("./metrics"), Ok(Address::Unix("./metrics".into())));
        assert!(matches!(parse("127.0.0.1:9155"), Ok(Address::Tcp(_))));
        assert!(matches!(parse("[::1]:9155"), Ok(Address::Tcp(_))));
        for bad in ["0.0.0.0:9155", "[::]:9155", "10.1.2.3:80", "[::ffff:10.1.2.3]:80"] {
            assert!(parse(bad).unwrap_err().contains("from elsewhere"), "{bad}");
        }
        for bad in ["", "9155", "localhost:9155", "127.0.0.1", "127.0.0.1:99999"] {
            assert!(parse(bad).unwrap_err().contains("is wanted"), "{bad}");
        }
    }
}
