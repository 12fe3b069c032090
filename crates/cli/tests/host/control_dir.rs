//! The daemon's control files: there from the beginning to the end, whatever that is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::bed::{can_merge, numerge};

/// A daemon at a place of its own. Killed when dropped, with its files taken away.
struct Daemon {
    child: Child,
    place: TempDir,
}

fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start(place: &Path) -> Child {
    let [socket, files] = ["socket", "ksm"].map(|name| place.join(name));
    let [socket, files] = [&socket, &files].map(|path| path.to_str().unwrap());
    numerge(&["daemon", "--socket", socket, "--control-dir", files]).spawn().unwrap()
}

impl Daemon {
    /// None, with the reason printed, where that is not permitted.
    fn start(place: TempDir) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            println!("SKIPPED: mounting control files needs root and /dev/fuse");
            return None;
        }
        if !can_merge() {
            return None;
        }
        let daemon = Self { child: start(place.path()), place };
        until("its files are there", || fs::read(daemon.files().join("run")).is_ok());
        Some(daemon)
    }

    fn files(&self) -> PathBuf {
        self.place.path().join("ksm")
    }

    fn end(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.end(Signal::KILL);
        }
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.files(), flags);
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

#[test]
fn s5_4_the_daemons_files_steer_it_and_go_with_it() {
    let Some(mut daemon) = Daemon::start(tempfile::tempdir().unwrap()) else { return };
    let files = daemon.files();
    assert_eq!(fs::read_to_string(files.join("run")).unwrap(), "1\n", "a daemon scans");
    fs::write(files.join("sleep_millisecs"), "321\n").unwrap();
    let socket = daemon.place.path().join("socket");
    let socket = socket.to_str().unwrap();
    let asked = numerge(&["get", "--socket", socket, "sleep_millisecs"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout), "321\n");
    assert!(
        numerge(&["set", "--socket", socket, "use_zero_pages", "1"]).status().unwrap().success()
    );
    assert_eq!(fs::read_to_string(files.join("use_zero_pages")).unwrap(), "1\n");
    daemon.end(Signal::TERM);
    assert!(!is_mounted(&files) && !files.exists());
}

#[test]
fn what_a_killed_daemon_left_mounted_the_next_replaces() {
    let Some(mut daemon) = Daemon::start(tempfile::tempdir().unwrap()) else { return };
    let files = daemon.files();
    daemon.end(Signal::KILL);
    assert!(is_mounted(&files), "else this shows nothing");
    let error = fs::read(files.join("run")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    let mut next = start(daemon.place.path());
    until("the next one's files are there", || fs::read(files.join("run")).is_ok());
    kill_process(Pid::from_child(&next), Signal::TERM).unwrap();
    next.wait().unwrap();
    assert!(!is_mounted(&files));
}
