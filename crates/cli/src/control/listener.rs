//! The side that answers.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{Answer, MOST_BYTES, Request};

/// Connections at one time, a thread each.
const CONNECTIONS: usize = 64;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;
/// How long to wait when resources for another connection have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Who knows the answers.
pub trait Answers: Send + Sync {
    /// Answers a request. May take long; others are answered meanwhile.
    fn answer(&self, request: Request) -> Answer;
}

/// Answers at a socket until it is dropped, which removes the socket's file if it has one of its own.
#[derive(Debug)]
pub struct Listener {
    path: Option<PathBuf>,
    /// Readable once it is to end.
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// A socket at a new path, for its owner and root only.
    ///
    /// # Errors
    /// What the system said: the path is in use, too long, or not to be written to.
    pub fn socket(path: &Path) -> io::Result<UnixListener> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // The file is born with these, so nobody else gets in before.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket.into())
    }

    /// Answers at a listening socket. `path` is its file, to be removed in the end; none if it is
    /// somebody else's, as systemd's.
    ///
    /// # Errors
    /// What the system said.
    pub fn serve(
        socket: UnixListener,
        path: Option<PathBuf>,
        answers: Arc<dyn Answers>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let stop = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept_all(&socket, &stopped, &answers))?;
        Ok(Self { path, stop, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Where it is not to be removed, the next daemon finds that nobody listens there.
            let _ = fs::remove_file(path);
        }
        // Fails only if it is readable already.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept_all(socket: &UnixListener, stop: &OwnedFd, answers: &Arc<dyn Answers>) {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let mut polled = [PollFd::new(stop, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        let _ = rustix::event::poll(&mut polled, None);
        if !polled[0].revents().is_empty() {
            return;
        }
        match socket.accept() {
            Ok((stream, _)) => accept(stream, answers, &connections),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Descriptors have run out, and who waits, waits.
            Err(_) => std::thread::sleep(ACCEPT_RETRY),
        }
    }
}

/// Answers one connection in a thread of its own; one too many is closed.
fn accept(stream: UnixStream, answers: &Arc<dyn Answers>, connections: &Arc<AtomicUsize>) {
    if connections.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS {
        connections.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let (answers, count) = (Arc::clone(answers), Arc::clone(connections));
    let converse = move || {
        // Whatever ends it, there is nobody to tell.
        let _ = converse(stream, &*answers);
        count.fetch_sub(1, Ordering::SeqCst);
    };
    if std::thread::Builder::new().name("control".into()).spawn(converse).is_err() {
        connections.fetch_sub(1, Ordering::SeqCst);
    }
}

fn converse(mut stream: UnixStream, answers: &dyn Answers) -> io::Result<()> {
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut requests).take(MOST_BYTES).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => answers.answer(request),
            Err(error) => Answer::error(libc::EINVAL, format_args!("not a request: {error}")),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        stream.write_all(&line)?;
    }
}
