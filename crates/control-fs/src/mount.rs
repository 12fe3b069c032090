//! The files at their place, from beginning to end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::filesystem::ControlFilesystem;
use crate::place::{Mounted, Place};
use crate::relay::Relay;
use crate::source::Source;
use crate::turns::Turns;
use crate::writes::Writes;

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
    /// What somebody else's process has left there, that is gone.
    #[error("{}: a dead mount of type {kind} is there, which is not numerge's: unmount it, or name \
             another directory", .path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The type of its file system.
        kind: String,
    },
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
    // Dropped before those who serve it.
    place: Option<Place>,
    path: PathBuf,
    writes: Arc<Writes>,
    relay: Option<Relay>,
    session: Option<fuser::BackgroundSession>,
}

impl ControlFs {
    /// Shows a source's files at a directory: see [`Mounted::new`].
    ///
    /// # Errors
    /// [`MountError`], with nothing left behind.
    pub fn mount(path: &Path, source: Arc<dyn Source>) -> Result<Self, MountError> {
        Self::serve(Mounted::new(path)?, source)
    }

    /// Shows a source's files where they are mounted already.
    ///
    /// # Errors
    /// [`MountError`], with nothing left behind.
    pub fn serve(mounted: Mounted, source: Arc<dyn Source>) -> Result<Self, MountError> {
        let Mounted { place, device, owner } = mounted;
        let path = place.path().to_owned();
        let failed = |call: &'static str| {
            let path = path.clone();
            move |source: io::Error| MountError::Mount { path, call, source }
        };
        let writes = Arc::new(Writes::new(Arc::clone(&source)));
        let (place, noted) = (Some(place), Arc::clone(&writes));
        // From here on dropping takes all of it away.
        let mut files =
            Self { place, path: path.clone(), writes: noted, relay: None, session: None };
        let turns = Arc::new(Turns::default());
        let filesystem =
            ControlFilesystem::new(source, Arc::clone(&writes), Arc::clone(&turns), owner);
        // A thread of its own, whose turns all threads get that come from it: somebody waits for them.
        let starter = std::thread::Builder::new().name("control-fs".into()).spawn(move || {
            numerge_topology::take_short_turns();
            let (relay, far) = Relay::start(device, writes, turns)?;
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
}

fn panicked<T>(_: Box<dyn std::any::Any + Send>) -> io::Result<T> {
    Err(io::Error::other("it panicked"))
}

impl Drop for ControlFs {
    fn drop(&mut self) {
        drop(self.place.take());
        self.writes.interrupt_all();
        drop(self.relay.take());
        if let Some(session) = self.session.take() {
            // It ends with an error, as the connection did.
            let _ = session.join();
        }
    }
}
