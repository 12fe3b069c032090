//! Programs whose memory is written to where that is hard to see, or that leave little to work with.

use std::process::Stdio;

use crate::bed::{c_program, can_merge, numerge};

/// Runs a program with everything merged as fast as can be; it must end by itself, and say that all is right.
fn is_right(program: &str, argument: &str) {
    if !can_merge() {
        return;
    }
    let fast = ["run", "--scope", "mapped", "--set", "sleep_millisecs=0", "--set"];
    let mut run = numerge(&fast);
    run.args(["pages_to_scan=100000", "--"]).arg(c_program(program)).arg(argument);
    let ended = run.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let [said, errors] = [ended.stdout, ended.stderr].map(|text| String::from_utf8(text).unwrap());
    if said.starts_with("SKIPPED") {
        println!("{said}");
        return;
    }
    assert_eq!(said, "right\n", "{program} {argument}: {}: {errors}", ended.status);
}

#[test]
fn s1_1_what_a_slow_file_system_reads_is_not_lost() {
    is_right("slow_read.c", "2");
}

#[test]
fn s1_1_what_a_ring_reads_is_not_lost_though_no_file_tells_of_it() {
    is_right("ring.c", "closed");
    is_right("ring.c", "thread");
}

#[test]
fn s6_a_program_that_may_have_no_files() {
    is_right("no_files.c", "");
}

/// As it does without numerge, whether it takes them before its memory is merged or after; merging itself takes no
/// more than half of them.
#[test]
fn s6_a_program_that_needs_nearly_all_mappings_gets_them() {
    is_right("many.c", "first");
    is_right("many.c", "last");
}
