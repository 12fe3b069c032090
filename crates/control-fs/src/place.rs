//! Where files are mounted: made, known again, and taken away by whoever may.
//!
//! A mount is taken away only if it is the one that was made, by the number that the kernel gives to it
//! and to no other one since it was started: at its place there may be another engine's meanwhile. To
//! mount and unmount takes root. A process that becomes somebody else leaves the end to a *keeper*, a
//! process that stays root and waits for the end of a pipe, which comes also if the other is killed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::mount::MountError;

/// What stands in the first and third column of /proc/mounts.
const NAME: &str = "numerge";
const TYPE: &str = "fuse.numerge";

/// Most stale mounts at one place that are cleared away.
const STALE: usize = 64;

/// `STATX_MNT_ID_UNIQUE`, of Linux 6.8.
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// A mount that nobody serves yet: who looks into it waits. Dropping it takes it away.
pub struct Mounted {
    pub(crate) place: Place,
    /// What the kernel's requests come by.
    pub(crate) device: OwnedFd,
    /// Whose the files are, user and group.
    pub(crate) owner: (u32, u32),
}

/// A mount, which dropping takes away.
pub(crate) struct Place {
    path: PathBuf,
    /// Whether the directory was made for it.
    is_made: bool,
    number: u64,
    keeper: Option<Child>,
}

impl Mounted {
    /// Mounts files at a directory, which is made if it is missing, as the calling user's. What was left
    /// there by a process that was killed is replaced.
    ///
    /// # Errors
    /// [`MountError`], with nothing left behind.
    pub fn new(path: &Path) -> Result<Self, MountError> {
        clear_stale(path)?;
        let directory = |source| MountError::Directory { path: path.into(), source };
        let is_made = !path.exists();
        fs::create_dir_all(path).map_err(directory)?;
        let path = path.canonicalize().map_err(directory)?;
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let mounted = open_and_mount(&path, owner);
        let (device, number) = mounted.map_err(|(call, errno)| {
            remove(&path, is_made);
            MountError::Mount { path: path.clone(), call, source: errno.into() }
        })?;
        Ok(Self { place: Place { path, is_made, number, keeper: None }, device, owner })
    }

    /// Leaves it to another process to take this away, at the latest when the calling one ends. The
    /// command gets three more arguments, those of [`keep`], and its standard input; it must call that.
    ///
    /// # Errors
    /// What the system said if it can't be started.
    pub fn leave_to(&mut self, mut keeper: Command) -> io::Result<()> {
        let Place { path, number, is_made, .. } = &self.place;
        keeper.arg(path).arg(number.to_string()).arg(is_made.to_string());
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.place.keeper = Some(keeper.spawn()?);
        Ok(())
    }
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    /// Who is in it may stay, and finds nothing.
    fn drop(&mut self) {
        match self.keeper.take() {
            Some(mut keeper) => {
                drop(keeper.stdin.take());
                // Where it was killed, the next one at this place clears away what is left.
                let _ = keeper.wait();
            }
            None => take_away(&self.path, self.number, self.is_made),
        }
    }
}

/// Waits for the end of standard input, and takes a mount away then: a keeper's work.
pub fn keep(path: &Path, number: u64, is_made: bool) {
    // Whether there is an end or an error, there is nothing more to wait for.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    take_away(path, number, is_made);
}

fn take_away(path: &Path, number: u64, is_made: bool) {
    // Fails if somebody unmounted it before.
    if let Ok(top) = top(path)
        && number_of(&top, UNIQUE) == Ok(number)
    {
        let _ = unmount(&top);
    }
    remove(path, is_made);
}

fn remove(path: &Path, is_made: bool) {
    if is_made {
        // Somebody may have put something there.
        let _ = fs::remove_dir(path);
    }
}

/// What is at a path, mounted last, without asking whoever serves it.
fn top(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The number of the mount that a directory is in.
fn number_of(directory: &OwnedFd, which: StatxFlags) -> rustix::io::Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let told = rustix::fs::statx(directory.as_fd(), "", flags, which)?;
    if told.stx_mask & which.bits() == 0 { Err(Errno::NOSYS) } else { Ok(told.stx_mnt_id) }
}

/// Unmounts what a descriptor is the root of, whatever has been mounted over it.
fn unmount(root: &OwnedFd) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", root.as_raw_fd());
    rustix::mount::unmount(path, UnmountFlags::DETACH)
}

/// Takes away what processes that are gone have left mounted.
fn clear_stale(path: &Path) -> Result<(), MountError> {
    for _ in 0..STALE {
        let Ok(top) = top(path) else { break };
        let kind = kind_of(&top);
        let is_ours = kind.as_deref() == Some(TYPE);
        match ask(path) {
            Err(Errno::NOTCONN) if is_ours => unmount(&top).map_err(|errno| MountError::Mount {
                path: path.into(),
                call: "umount",
                source: errno.into(),
            })?,
            Err(Errno::NOTCONN) => {
                let kind = kind.unwrap_or_else(|| "unknown".into());
                return Err(MountError::Foreign { path: path.into(), kind });
            }
            Ok(()) if is_ours => return Err(MountError::InUse(path.into())),
            _ => break,
        }
    }
    Ok(())
}

/// Asks whoever serves a directory for it: the kernel would answer with what it keeps, though he is gone.
fn ask(path: &Path) -> rustix::io::Result<()> {
    let (flags, which) = (AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
    rustix::fs::statx(rustix::fs::CWD, path, flags, which).map(drop)
}

/// The type of the file system that a directory is in.
fn kind_of(directory: &OwnedFd) -> Option<String> {
    let number = number_of(directory, StatxFlags::MNT_ID).ok()?.to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(&number))?;
    line.split_once(" - ")?.1.split(' ').next().map(str::to_owned)
}

fn open_and_mount(
    path: &Path,
    (user, group): (u32, u32),
) -> Result<(OwnedFd, u64), (&'static str, Errno)> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| ("open /dev/fuse", errno))?;
    let options = format!(
        "fd={},rootmode=40000,user_id={user},group_id={group},default_permissions,allow_other",
        device.as_raw_fd(),
    );
    let options = std::ffi::CString::new(options).map_err(|_| ("mount", Errno::INVAL))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(NAME, path, TYPE, flags, options.as_c_str())
        .map_err(|errno| ("mount", errno))?;
    match top(path).and_then(|top| number_of(&top, UNIQUE)) {
        Ok(number) => Ok((device, number)),
        Err(errno) => {
            let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
            Err(("statx", errno))
        }
    }
}
