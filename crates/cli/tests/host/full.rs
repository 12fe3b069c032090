//! `numerge run` where a disk or a file system in memory is full.

use std::fs;
use std::process::{Command, Output};

use crate::bed::{AT_FULL_SPEED, by_way_of, c_program, can_merge, numerge};

#[test]
fn s6_statistics_that_can_not_be_written_are_complained_of_when_the_command_has_ended() {
    let run = numerge(&["run", "--stats", "/dev/full", "--", "sh", "-c", "exit 7"]).output();
    let output = run.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("can't write statistics to /dev/full: No space left"), "{error}");
    assert_eq!(output.status.code(), Some(7), "{error}");
}

/// Runs a command where /dev/shm is full, and TMPDIR too if that is wanted; None if only root may do so.
fn in_full(command: &Command, also_tmpdir: bool) -> Option<Output> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can mount a file system that is full");
        return None;
    }
    // Not one file more, and not one page.
    let script = "mount -t tmpfs -o size=64k,nr_inodes=2 none /dev/shm
        dd if=/dev/zero of=/dev/shm/filling bs=4096 2>/dev/null || true
        if { echo more >>/dev/shm/filling; } 2>/dev/null; then echo not full >&2; exit 99; fi
        if mkdir /dev/shm/more 2>/dev/null; then echo not full >&2; exit 99; fi
        \"$@\"";
    let mut full = Command::new("unshare");
    full.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"]);
    let mut full = by_way_of(full, command);
    if also_tmpdir {
        full.env("TMPDIR", "/dev/shm").env_remove("XDG_RUNTIME_DIR");
    }
    Some(full.output().unwrap())
}

/// Frames are memory that belongs to no file system that is mounted anywhere.
#[test]
fn s6_programs_are_merged_though_dev_shm_is_full() {
    if !can_merge() {
        return;
    }
    let merged = tempfile::tempdir().unwrap();
    let mut run = numerge(&["run"]);
    run.args(AT_FULL_SPEED).arg("--").arg(c_program("copies.c")).arg(merged.path()).arg("1");
    let Some(output) = in_full(&run, false) else { return };
    // It waits until all of its pages are merged.
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(merged.path()).unwrap().count(), 1);
}

#[test]
fn s6_no_room_for_a_socket_is_an_error_before_the_command_runs() {
    let run = numerge(&["run", "--", "echo", "it runs"]);
    let Some(output) = in_full(&run, true) else { return };
    let error = String::from_utf8_lossy(&output.stderr);
    let said = "can't make a directory for a socket in /dev/shm: No space left on device";
    assert!(error.contains(said), "{error}");
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}
