//! `--control-dir` of a daemon that is root only at its beginning.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::bed::{Bed, Daemon, is_root, until};

/// The user that the daemon becomes, and another.
const DAEMON: &str = "nobody";
const OTHER: &str = "64001";

/// None, with the reason printed, where there can be no such files.
pub(crate) fn bed() -> Option<Bed> {
    if !is_root() {
        return None;
    }
    if !Path::new("/dev/fuse").exists() {
        println!("SKIPPED: control files need /dev/fuse");
        return None;
    }
    Bed::new()
}

fn start(bed: &Bed, place: &Path) -> Daemon {
    let daemon = bed.daemon(&["--user", DAEMON, "--control-dir", place.to_str().unwrap()]);
    // The socket answers before the files do.
    until(|| place.join("run").exists(), || bed.log());
    daemon
}

/// The type of what is mounted at a place last.
fn mounted(place: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let here = mounts.lines().rfind(|line| line.split(' ').nth(1) == place.to_str());
    here.map(|line| line.split(' ').nth(2).unwrap().to_owned())
}

/// Processes that wait to take files away from a place.
fn keepers(place: &Path) -> Vec<i32> {
    let wanted = format!("keep-files\0{}\0", place.display());
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let is_keeper = |process: &fs::DirEntry| {
        let line = fs::read_to_string(process.path().join("cmdline"));
        line.is_ok_and(|line| line.contains(&wanted))
    };
    let pids = processes.filter(is_keeper).filter_map(|one| one.file_name().to_str()?.parse().ok());
    pids.collect()
}

/// Whether a process has a handler for a signal.
fn catches(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
}

/// What a shell says as another user.
fn as_other(script: &str) -> String {
    let mut shell = Command::new("setpriv");
    shell.args(["--reuid", OTHER, "--regid", OTHER, "--clear-groups", "sh", "-c", script]);
    String::from_utf8(shell.output().unwrap().stdout).unwrap()
}

#[test]
fn s5_4_a_daemon_that_becomes_a_user_has_files_as_the_kernels() {
    let Some(bed) = bed() else { return };
    let place = bed.path("ksm");
    let daemon = start(&bed, &place);
    let file = place.join("sleep_millisecs");
    let told = fs::metadata(&file).unwrap();
    assert_eq!((told.uid(), told.gid(), told.mode() & 0o7777), (0, 0, 0o644));
    assert_eq!(fs::read_to_string(&file).unwrap(), "1\n");
    fs::write(&file, "3\n").unwrap();
    assert_eq!(daemon.client().get("sleep_millisecs").unwrap(), 3);
    let script = format!("cat {0}; echo 4 2>&- >{0} || echo refused", file.display());
    assert_eq!(as_other(&script), "3\nrefused\n");
    assert_eq!(daemon.client().get("sleep_millisecs").unwrap(), 3);
    assert_eq!(keepers(&place).len(), 1);
    daemon.end();
    assert_eq!((mounted(&place), keepers(&place)), (None, vec![]));
    assert!(!place.exists(), "a directory that was made goes with the files");
}

#[test]
fn files_of_a_daemon_that_became_a_user_and_was_killed_are_taken_away() {
    let Some(bed) = bed() else { return };
    let place = bed.path("ksm");
    fs::create_dir(&place).unwrap();
    for _ in 0..3 {
        let daemon = start(&bed, &place);
        assert_eq!(mounted(&place).as_deref(), Some("fuse.numerge"));
        // What a service manager sends to all of a daemon's processes is not for it.
        let keeper = keepers(&place)[0];
        until(|| catches(keeper, Signal::TERM), || "it does not catch SIGTERM".into());
        let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
        rustix::process::kill_process(keeper, Signal::TERM).unwrap();
        daemon.kill();
        until(|| keepers(&place).is_empty(), || "the keeper does not end".into());
        assert_eq!(mounted(&place), None);
        assert!(place.exists(), "a directory that was there stays");
    }
}

#[test]
fn what_was_mounted_in_the_place_of_a_daemons_files_stays() {
    let Some(bed) = bed() else { return };
    let place = bed.path("ksm");
    fs::create_dir(&place).unwrap();
    let daemon = start(&bed, &place);
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("other", &place, "tmpfs", flags, c"").unwrap();
    daemon.kill();
    until(|| keepers(&place).is_empty(), || "the keeper does not end".into());
    assert_eq!(mounted(&place).as_deref(), Some("tmpfs"));
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
}
