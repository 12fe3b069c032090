//! Where clients connect to.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::error::{SocketError, system};
use crate::socket::{self, Socket};

/// Clients that may wait to be accepted; more are told to come later.
const BACKLOG: i32 = 128;
/// How long another process may hold the directory's lock. It is held for some system calls only.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Time between two attempts to take it.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// A socket that clients connect to. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    /// None if another process made it and passed it on. First, for the file must be removed before
    /// the socket is closed: as long as we listen, it can't be another engine's.
    #[expect(dead_code, reason = "it is there to be dropped")]
    file: Option<SocketFile>,
    socket: OwnedFd,
}

/// The file of a socket, and which file it was when it was made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Listener {
    /// Listens at `path`. The file gets the permissions `mode`, whatever the umask; who may write
    /// to it may connect. A socket left there by an engine that has ended is replaced.
    ///
    /// Two engines that start at the same moment can't both find the other's socket left over: who
    /// looks and replaces holds the lock (flock) of the directory.
    ///
    /// # Errors
    /// [`SocketError::InUse`] if somebody listens there, [`SocketError::NotASocket`] if the file is
    /// something else. Nothing was changed then.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        if mode > 0o777 {
            return Err(SocketError::Mode { found: mode });
        }
        let address = socket::address(path)?;
        let mode = Mode::from_raw_mode(mode);
        let socket = socket::new_socket(SocketFlags::empty())?;
        // The file is born with these less the umask, so never with more.
        rustix::fs::fchmod(&socket, mode).map_err(system("fchmod"))?;
        let _lock = lock_directory(path)?;
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_left_over(path)?;
                rustix::net::bind(&socket, &address).map_err(at_path("bind", path))?;
            }
            other => other.map_err(at_path("bind", path))?,
        }
        // From here on a failure removes the file again. Nobody can connect before `listen`.
        let file = SocketFile::open(path, mode)?;
        let made = Self { file: Some(file), socket };
        rustix::net::listen(&made.socket, BACKLOG).map_err(system("listen"))?;
        Ok(made)
    }

    /// Accepts the next client. The connection blocks, whether the listener does or not; its other
    /// end has passed no check but that of the file's permissions.
    ///
    /// # Errors
    /// What the system said: EAGAIN if the listener does not block and nobody waits; EMFILE and the
    /// like if resources ran out, and then the client still waits.
    pub fn accept(&self) -> std::io::Result<Socket> {
        loop {
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(fd) => return Ok(socket::accepted(fd)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Makes [`Self::accept`] give EAGAIN instead of waiting, or wait again.
    ///
    /// # Errors
    /// What the system said.
    pub fn set_nonblocking(&self, nonblocking: bool) -> Result<(), SocketError> {
        rustix::io::ioctl_fionbio(&self.socket, nonblocking).map_err(system("ioctl(FIONBIO)"))
    }
}

impl TryFrom<OwnedFd> for Listener {
    type Error = SocketError;

    /// Takes over a listening socket, as from systemd. Its file is not removed.
    fn try_from(fd: OwnedFd) -> Result<Self, SocketError> {
        Ok(Self { file: None, socket: socket::take_over(fd, true)? })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl SocketFile {
    /// Sees to it that the file just made has all permissions of `mode`.
    fn open(path: &Path, mode: Mode) -> Result<Self, SocketError> {
        // Not by its path: who may write to the directory could have put a link there.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(at_path("open", path))?;
        let stat = rustix::fs::fstat(&file).map_err(at_path("fstat", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(SocketError::NotASocket { path: path.into() });
        }
        let made = Self { path: path.into(), id: (stat.st_dev, stat.st_ino) };
        if Mode::from_raw_mode(stat.st_mode) == mode {
            return Ok(made);
        }
        rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
            .map_err(at_path("chmod", path))?;
        Ok(made)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another engine can't have replaced it while we listen, which ends after this; but it may
        // have been removed or renamed by hand, and another put there.
        let found = rustix::fs::statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.id) {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn at_path<'a>(call: &'static str, path: &'a Path) -> impl Fn(Errno) -> SocketError + use<'a> {
    move |errno| SocketError::AtPath { call, path: path.into(), source: errno.into() }
}

/// Takes the lock of the directory that `path` is in; it is given back when the result is dropped.
fn lock_directory(path: &Path) -> Result<OwnedFd, SocketError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(parent, flags, Mode::empty()).map_err(at_path("open directory", path))?;
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if Instant::now() < until => std::thread::sleep(LOCK_RETRY),
            Err(Errno::AGAIN) => return Err(SocketError::Locked { path: path.into() }),
            Err(errno) => return Err(at_path("flock", path)(errno)),
        }
    }
}

/// Removes the socket at `path` if nobody listens there.
fn remove_left_over(path: &Path) -> Result<(), SocketError> {
    let stat = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(at_path("stat", path)(errno)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(SocketError::NotASocket { path: path.into() });
    }
    match Socket::connect(path) {
        Ok(_) | Err(SocketError::Busy { .. } | SocketError::OtherType { .. }) => {
            Err(SocketError::InUse { path: path.into() })
        }
        Err(SocketError::Nobody { .. }) => match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(at_path("unlink", path)(errno)),
        },
        Err(other) => Err(other),
    }
}
