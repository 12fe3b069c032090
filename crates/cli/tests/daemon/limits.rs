//! What runs out, in the daemon and in programs: it is said or counted, and everything goes on.

use std::fs::File;

use crate::bed::{Bed, By, Program, until};

const PAGES: u64 = 200;

/// A daemon that may not have as much of something.
fn limited(bed: &Bed, limit: &str) -> crate::bed::Daemon {
    let daemon = bed.daemon_command(&[]);
    let mut command = std::process::Command::new("prlimit");
    command.arg(limit).arg(daemon.get_program()).args(daemon.get_args());
    bed.start(command)
}

#[test]
fn s6_a_daemon_without_descriptors_serves_who_is_there_and_others_later() {
    let Some(bed) = Bed::new() else { return };
    let daemon = limited(&bed, "--nofile=60");
    let mut programs = [(), ()].map(|()| bed.program(&By::me(), PAGES, 1));
    daemon.until_merged(PAGES, PAGES);
    let mut crowd = bed.hostile(&["crowd", "100"]);
    crowd.answer();
    until(|| bed.log().contains("Too many open files"), || bed.log());
    programs.iter_mut().for_each(Program::is_whole);
    drop(crowd);
    let mut another = bed.program(&By::me(), PAGES, 1);
    daemon.until_merged(PAGES, 2 * PAGES);
    another.is_whole();
}

/// Frames' files have a size that is not allowed, or can't be mapped.
#[test]
fn s6_a_daemon_without_frames_merges_nothing_and_goes_on() {
    for limit in ["--fsize=1048576", "--as=1000000000"] {
        let Some(bed) = Bed::new() else { return };
        let daemon = limited(&bed, limit);
        let mut programs = [(), ()].map(|()| bed.program(&By::me(), PAGES, 1));
        until(|| daemon.number("frames_refused") > 0, || format!("{limit}: {}", daemon.status()));
        daemon.scan_twice();
        assert_eq!(daemon.number("pages_shared"), 0, "{limit}");
        programs.iter_mut().for_each(Program::is_whole);
        daemon.end();
        programs.iter_mut().for_each(Program::is_whole);
    }
}

/// A program that has no room for what merging takes is not merged; the others are.
#[test]
fn s6_a_program_without_room_goes_on_unmerged() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    for limit in ["--nofile=9", "--as=100000000"] {
        let mut poor = bed.program(&By::me().limited(limit), PAGES, 1);
        let mut programs = [(), ()].map(|()| bed.program(&By::me(), PAGES, 1));
        until(
            || daemon.number("pages_sharing") >= PAGES,
            || format!("{limit}: {}", daemon.status()),
        );
        daemon.scan_twice();
        poor.is_whole();
        assert_eq!(poor.ask("write 3 77"), "ok");
        poor.is_whole();
        programs.iter_mut().for_each(Program::is_whole);
    }
}

/// Two programs are merged, and the daemon ends as it should: `end` fails if it panicked.
fn merges_and_ends(bed: &Bed, daemon: crate::bed::Daemon, and_then: impl FnOnce()) {
    let mut programs = vec![bed.program(&By::me(), PAGES, 1), bed.program(&By::me(), PAGES, 1)];
    daemon.until_merged(PAGES, PAGES);
    and_then();
    programs.push(bed.program(&By::me(), PAGES, 1));
    daemon.until_merged(PAGES, 2 * PAGES);
    daemon.end();
    programs.iter_mut().for_each(Program::is_whole);
}

#[test]
fn s6_a_daemon_whose_log_is_full_goes_on() {
    let Some(bed) = Bed::new() else { return };
    let full = File::options().write(true).open("/dev/full").unwrap();
    let daemon = bed.start_logging_to(full.into(), bed.daemon_command(&["--log", "debug"]));
    merges_and_ends(&bed, daemon, || {});
}

#[test]
fn s6_a_daemon_whose_log_nobody_reads_any_more_goes_on() {
    let Some(bed) = Bed::new() else { return };
    let (reader, writer) = std::io::pipe().unwrap();
    let daemon = bed.start_logging_to(writer.into(), bed.daemon_command(&[]));
    merges_and_ends(&bed, daemon, || drop(reader));
}
