//! The side that answers.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::{Answer, MOST_BYTES, Request};

/// Connections at one time, a thread each.
const CONNECTIONS: usize = 64;

/// Who knows the answers.
pub trait Answers: Send + Sync {
    /// Answers a request. May take long; others are answered meanwhile.
    fn answer(&self, request: Request) -> Answer;
}

/// Answers at a socket until it is dropped, which removes the socket.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Answers at a new socket, to its owner and root only.
    ///
    /// # Errors
    /// What the system said: the path is in use, too long, or not to be written to.
    pub fn bind(path: &Path, answers: Arc<dyn Answers>) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            let connections = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream {
                    accept(stream, &answers, &connections);
                }
            }
        })?;
        Ok(Self { path: path.into(), stop, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread, which is in accept(2).
        let woken = UnixStream::connect(&self.path).is_ok();
        let _ = fs::remove_file(&self.path);
        if woken && let Some(thread) = self.thread.take() {
            let _ = thread.join();
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
