//! Clients that mean harm: the daemon stays, its other clients go on, and it holds nothing of theirs
//! afterwards.

use std::fs;
use std::process::Command;

use crate::bed::{Bed, By, Daemon, Program, is_root, until};

const PAGES: u64 = 200;
const ONE: u32 = 64_001;
const OTHER: u32 = 64_002;

fn open_files(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count()
}

fn threads(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap().count()
}

/// Waits until the daemon has no more than it had before.
fn until_nothing_is_left(daemon: &Daemon, (files, before): (usize, usize)) {
    let seen = || (open_files(daemon), threads(daemon));
    until(
        || seen().0 <= files && seen().1 <= before,
        || format!("(files, threads) {:?}, not {:?}", seen(), (files, before)),
    );
}

fn two_programs(bed: &Bed, daemon: &Daemon) -> [Program; 2] {
    let programs = [(), ()].map(|()| bed.program(&By::me(), PAGES, 1));
    daemon.until_merged(PAGES, PAGES);
    programs
}

/// Those who were there are merged still, and another is served.
fn go_on(bed: &Bed, daemon: &Daemon, programs: &mut [Program]) {
    programs.iter_mut().for_each(Program::is_whole);
    let mut another = bed.program(&By::me(), PAGES, 1);
    daemon.until_merged(PAGES, 2 * PAGES);
    another.is_whole();
    drop(another);
    daemon.until_merged(PAGES, PAGES);
    programs.iter_mut().for_each(Program::is_whole);
}

#[test]
fn s6_descriptors_that_nobody_asked_for_are_closed() {
    // Else the daemon's descriptors can't be counted.
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut programs = two_programs(&bed, &daemon);
    let before = (open_files(&daemon), threads(&daemon));
    for count in ["0", "2", "3", "200", "253"] {
        let mut hostile = bed.hostile(&["fds", count]);
        let answer = hostile.answer();
        assert!(answer.starts_with("rejected") && answer.contains("descriptors"), "{answer}");
    }
    let others = format!("/proc/{}/pagemap", std::process::id());
    for wrong in [
        &["pipe"][..],
        &["file", &others],
        &["file", "/proc/self/maps"],
        &["file", "/etc/passwd"],
        &["file", "/"],
        &["file", "/dev/zero"],
    ] {
        let answer = bed.hostile(wrong).answer();
        assert!(answer.contains("another file"), "{wrong:?}: {answer}");
    }
    until_nothing_is_left(&daemon, before);
    go_on(&bed, &daemon, &mut programs);
}

#[test]
fn s6_ten_thousand_connections_leave_nothing() {
    // Else the daemon's descriptors can't be counted.
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut programs = two_programs(&bed, &daemon);
    let before = (open_files(&daemon), threads(&daemon));
    assert_eq!(bed.hostile(&["passing", "10000"]).answer(), "10000");
    until_nothing_is_left(&daemon, before);
    // However often it was turned away, it could have that said so often only.
    let said = bed.log().lines().count();
    assert!(said < 200, "{said} lines in the log");
    go_on(&bed, &daemon, &mut programs);
}

/// As many connections as one user may have keep no other user out.
#[test]
fn s6_a_users_crowd_keeps_no_other_user_out() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut programs = two_programs(&bed, &daemon);
    let mut crowd = bed.hostile_by(&By::user(ONE), &["crowd", "2000"]);
    crowd.answer();
    let mut others = [(), ()].map(|()| bed.program(&By::user(OTHER), PAGES, 1));
    daemon.until_merged(2 * PAGES, 2 * PAGES);
    others.iter_mut().for_each(Program::is_whole);
    drop(others);
    daemon.until_merged(PAGES, PAGES);
    go_on(&bed, &daemon, &mut programs);
    assert!(bed.log().contains("as many clients as allowed"), "{}", bed.log());
}

/// Whoever never reads what he is answered is dropped, and the daemon keeps none of it.
#[test]
fn s6_who_floods_is_dropped() {
    // Else the daemon's descriptors can't be counted.
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut programs = two_programs(&bed, &daemon);
    let before = (open_files(&daemon), threads(&daemon));
    let mut hostile = bed.hostile(&["flood", "100000000"]);
    assert_eq!(hostile.answer(), "welcome");
    // Ends only because it was hung up on.
    let said: u64 = hostile.answer().parse().unwrap();
    assert!(said < 100_000_000);
    until_nothing_is_left(&daemon, before);
    assert!(bed.log().contains("the client does not read"), "{}", bed.log());
    go_on(&bed, &daemon, &mut programs);
}

/// The frames' files are there to be read through the mappings of who is merged, and for nothing else,
/// for any process of a user that is merged.
#[test]
fn s6_a_clients_frames_can_not_be_opened_by_other_means() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--user", "nobody"]);
    let mut programs = [(), ()].map(|()| bed.program(&By::user(ONE), PAGES, 1));
    daemon.until_merged(PAGES, PAGES);
    let status = daemon.status();
    let script = r#"
        for pid in "$@"; do
            for fd in /proc/$pid/task/*/fd/*; do
                case $(readlink $fd) in
                *numerge-frames*)
                    echo found
                    (: <$fd) && echo read
                    (: >>$fd) && echo append
                    (: >$fd) && echo truncate
                    (: <>$fd) && echo both
                    chmod 600 $fd && echo chmod
                    truncate -s 0 $fd && echo shrink
                    truncate -s 2G $fd && echo grow
                    fallocate -p -o 0 -l 4096 $fd && echo punch
                    dd if=/dev/zero of=$fd bs=4096 count=1 conv=notrunc && echo write
                esac
            done
        done
    "#;
    let mut thief = Command::new("setpriv");
    thief.args(["--reuid", &ONE.to_string(), "--regid", &ONE.to_string(), "--clear-groups"]);
    thief.args(["sh", "-c", script, "sh"]);
    for client in status["clients"].as_array().unwrap() {
        thief.arg(client["pid"].to_string());
    }
    let output = thief.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let words: std::collections::BTreeSet<&str> = said.split_whitespace().collect();
    assert_eq!(words.into_iter().collect::<Vec<_>>(), ["found"], "{said}");
    programs.iter_mut().for_each(Program::is_whole);
}
