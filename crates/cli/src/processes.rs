//! `--as-ksm`: the kernel's files in `/proc/PID`, for each process of the namespace that has the agent.
//!
//! A process asks (`numerge_protocol::proc_files`), and files of the control file system, which are about it
//! alone, are mounted over the two that the kernel has there. They are seen in this process's mount namespace
//! and in no other, and go when the process does: the kernel unmounts what is in its directory then.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use numerge_server::{Listener, Socket, proc_files};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::net::RecvFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// Processes that have files at one time; what comes then has the kernel's. A mount namespace has room for
/// 100,000 mounts (`fs.mount-max`), if nobody has said otherwise.
const MOST: usize = 4096;

/// How long to wait when resources for another connection have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What is mounted for a process.
const FILES: [&str; 2] = ["ksm_merging_pages", "ksm_stat"];

/// The processes that have asked for files: whether all that they map is to be merged, by number.
#[derive(Default)]
pub(crate) struct Processes(Mutex<BTreeMap<u32, bool>>);

impl Processes {
    /// Those that are there still.
    pub(crate) fn all(&self) -> Vec<u32> {
        let all: Vec<u32> = self.0.lock().keys().copied().collect();
        all.into_iter().filter(|pid| owner(*pid).is_some()).collect()
    }

    /// Whose the files of one are, user and group, and whether all that it maps is to be merged. None if it
    /// has none, or is no more.
    pub(crate) fn get(&self, pid: u32) -> Option<((u32, u32), bool)> {
        let merges_any = *self.0.lock().get(&pid)?;
        Some((owner(pid)?, merges_any))
    }

    /// False if there may be no more.
    fn admit(&self, pid: u32, merges_any: bool, is_alive: impl Fn(u32) -> bool) -> bool {
        let mut known = self.0.lock();
        if known.len() >= MOST && !known.contains_key(&pid) {
            known.retain(|pid, _| is_alive(*pid));
        }
        let is_admitted = known.len() < MOST || known.contains_key(&pid);
        if is_admitted {
            known.insert(pid, merges_any);
        }
        is_admitted
    }

    /// Shows files to who asks for them at a socket, until this process ends. `directory` is where the control
    /// file system is that tells of these processes.
    pub(crate) fn show_in_proc(
        self: Arc<Self>,
        directory: &Path,
        socket: &Path,
    ) -> Result<(), Box<dyn Error>> {
        let listener = Listener::bind(socket, 0o600)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let files = rustix::fs::open(directory.join("numerge/proc"), flags, Mode::empty())?;
        std::thread::Builder::new().name("proc-files".into()).spawn(move || {
            // Many programs may begin at a time, all of which wait for this.
            numerge_topology::take_short_turns();
            loop {
                match listener.accept() {
                    Ok(client) => {
                        // What can't be shown is not: who asked goes on, and sees the kernel's.
                        let _ = self.show(&files, &client);
                    }
                    // Descriptors have run out, and who waits, waits.
                    Err(_) => std::thread::sleep(ACCEPT_RETRY),
                }
            }
        })?;
        Ok(())
    }

    /// Shows a client its files, and keeps what it says.
    fn show(&self, files: &OwnedFd, client: &Socket) -> Option<()> {
        let merges_any = hear(client)?;
        let pid = u32::try_from(client.peer().ok()?.pid?.get()).ok()?;
        let process = client.peer_pidfd().ok()??;
        let place = open(CWD, &format!("/proc/{pid}"), OFlags::DIRECTORY)?;
        // Had it ended before that was opened, its number might be another's by now.
        if has_ended(&process)? || !self.admit(pid, merges_any, |pid| owner(pid).is_some()) {
            return None;
        }
        let device = device_of(files)?;
        for name in FILES {
            let there = open(place.as_fd(), name, OFlags::empty())?;
            // After an exec they are there.
            if device_of(&there)? == device {
                continue;
            }
            let ours = open(files.as_fd(), &format!("{pid}/{name}"), OFlags::empty())?;
            rustix::mount::mount_bind(by_number(&ours), by_number(&there)).ok()?;
        }
        Some(())
    }
}

/// Whether all that a client maps is to be merged; None if it does not say so.
fn hear(client: &Socket) -> Option<bool> {
    set_socket_timeout(client, Timeout::Recv, Some(proc_files::ASK_WAIT)).ok()?;
    // One more than there may be, to tell that there were too many.
    let mut said = [0; 2];
    match rustix::net::recv(client, &mut said[..], RecvFlags::empty()).ok()? {
        (1, _) if said[0] == proc_files::SOME => Some(false),
        (1, _) if said[0] == proc_files::ANY => Some(true),
        _ => None,
    }
}

/// Whose the kernel's files of a process are; None if there is no such process.
fn owner(pid: u32) -> Option<(u32, u32)> {
    let directory = fs::metadata(format!("/proc/{pid}")).ok()?;
    Some((directory.uid(), directory.gid()))
}

fn has_ended(process: &OwnedFd) -> Option<bool> {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec::default())).ok().map(|ready| ready > 0)
}

/// What has this name, to be mounted or mounted over.
fn open(directory: BorrowedFd<'_>, name: &str, flags: OFlags) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
    rustix::fs::openat(directory, name, flags, Mode::empty()).ok()
}

/// A path to what is open, whatever has its name by now.
fn by_number(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// The file system that a file is in, without asking whoever serves it.
fn device_of(file: &OwnedFd) -> Option<(u32, u32)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let told = rustix::fs::statx(file, "", flags, StatxFlags::empty()).ok()?;
    Some((told.stx_dev_major, told.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_processes_and_those_that_are_gone_make_room() {
        let processes = Processes::default();
        let all = u32::try_from(MOST).expect("not so many");
        assert!((0..all).all(|pid| processes.admit(pid, false, |_| true)));
        assert!(!processes.admit(all, false, |_| true));
        assert!(processes.admit(7, true, |_| true), "who is known may say something else");
        assert_eq!(processes.0.lock().get(&7), Some(&true));
        assert!(processes.admit(all, false, |pid| pid != 3));
        assert!(!processes.admit(3, false, |_| true));
    }

    #[test]
    fn who_is_gone_has_no_files() {
        let processes = Processes::default();
        let own = std::process::id();
        // No process has a number as large.
        for pid in [own, u32::MAX] {
            assert!(processes.admit(pid, true, |_| true));
        }
        assert_eq!(processes.all(), [own]);
        assert!(processes.get(own).is_some_and(|(_, merges_any)| merges_any));
        assert_eq!(processes.get(u32::MAX), None);
    }
}
