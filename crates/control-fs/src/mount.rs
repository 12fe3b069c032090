//! Mounting the files, and unmounting them.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::filesystem::ControlFilesystem;
use crate::relay::Relay;
use crate::source::Source;
use crate::writes::Writes;

/// What stands in the first and third column of /proc/mounts.
const NAME: &str = "numerge";
const TYPE: &str = "fuse.numerge";

/// Most stale mounts at one place that are cleared away.
const STALE: usize = 64;

/// Why there are no files.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory can't be had.
    #[error("can't make the directory {}: {source}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another engine's files are there.
    #[error("{}: another numerge has its control files there", .0.display())]
    InUse(PathBuf),
    /// Not permitted: root (CAP_SYS_ADMIN) is needed, and /dev/fuse.
    #[error("can't mount control files at {}: {call}: {source}: root is needed, and /dev/fuse",
            .path.display())]
    Mount {
        /// The directory.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A directory with the control files of a source. Dropping it takes them away; whoever has one open
/// gets ENOTCONN.
pub struct ControlFs {
    path: PathBuf,
    /// Whether the directory was made for them.
    is_made: bool,
    writes: Arc<Writes>,
    // Dropped after unmounting.
    relay: Option<Relay>,
    session: Option<fuser::BackgroundSession>,
}

impl ControlFs {
    /// Shows a source's files at a directory, which is made if it is missing. What was left there by a
    /// process that was killed is replaced.
    ///
    /// # Errors
    /// [`MountError`], with nothing left behind.
    pub fn mount(path: &Path, source: Arc<dyn Source>) -> Result<Self, MountError> {
        let failed = |call: &'static str| {
            let path = path.to_owned();
            move |source: io::Error| MountError::Mount { path, call, source }
        };
        clear_stale(path)?;
        let directory = |source| MountError::Directory { path: path.into(), source };
        let is_made = !path.exists();
        fs::create_dir_all(path).map_err(directory)?;
        let path = path.canonicalize().map_err(directory)?;
        let writes = Arc::new(Writes::new(Arc::clone(&source)));
        let mut files =
            Self { path, is_made, writes: Arc::clone(&writes), relay: None, session: None };
        let device = open_and_mount(&files.path).map_err(|(call, errno)| {
            files.remove_directory();
            failed(call)(errno.into())
        })?;
        // From here on dropping unmounts.
        let filesystem = ControlFilesystem::new(source, Arc::clone(&writes));
        // A thread of its own, whose turns all threads get that come from it: somebody waits for them, on
        // machines that are busy unmerging, say (S5.2).
        let starter = std::thread::Builder::new().name("control-fs".into()).spawn(move || {
            numerge_topology::take_short_turns();
            let (relay, far) = Relay::start(device, writes)?;
            let config = fuser::Config::default();
            let session = fuser::Session::from_fd(filesystem, far, fuser::SessionACL::All, config);
            Ok((relay, session.and_then(fuser::Session::spawn)))
        });
        let started = starter.and_then(|starter| starter.join().unwrap_or_else(panicked));
        let (relay, session) = started.map_err(failed("start a thread"))?;
        files.relay = Some(relay);
        files.session = Some(session.map_err(failed("greet the kernel"))?);
        Ok(files)
    }

    /// Where they are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn remove_directory(&self) {
        if self.is_made {
            // Somebody may have put something there.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl Drop for ControlFs {
    fn drop(&mut self) {
        // Fails if somebody unmounted it before. Who is in it may stay, and finds nothing.
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        self.remove_directory();
        self.writes.interrupt_all();
        drop(self.relay.take());
        if let Some(session) = self.session.take() {
            // It ends with an error, as the connection did.
            let _ = session.join();
        }
    }
}

fn panicked<T>(_: Box<dyn std::any::Any + Send>) -> io::Result<T> {
    Err(io::Error::other("it panicked"))
}

/// Takes away what processes that are gone have left mounted.
fn clear_stale(path: &Path) -> Result<(), MountError> {
    for _ in 0..STALE {
        match rustix::fs::stat(path) {
            Err(Errno::NOTCONN) => {
                rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(|errno| {
                    MountError::Mount { path: path.into(), call: "umount", source: errno.into() }
                })?;
            }
            Ok(_) if is_ours(path) => return Err(MountError::InUse(path.into())),
            _ => break,
        }
    }
    Ok(())
}

/// Whether control files are mounted at a directory.
fn is_ours(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut columns = line.split(' ').skip(1);
        let (at, kind) = (columns.next().unwrap_or_default(), columns.next());
        kind == Some(TYPE) && Path::new(&unescaped(at)) == path
    })
}

/// A path of /proc/mounts, where blanks and the like are octal numbers.
fn unescaped(path: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(path.to_owned(), |path, (code, meant)| path.replace(code, meant))
}

fn open_and_mount(path: &Path) -> Result<OwnedFd, (&'static str, Errno)> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| ("open /dev/fuse", errno))?;
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let options = std::ffi::CString::new(options).map_err(|_| ("mount", Errno::INVAL))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(NAME, path, TYPE, flags, options.as_c_str())
        .map_err(|errno| ("mount", errno))?;
    Ok(device)
}
