//! Each call a program can make about its memory, on memory that is merged: the program sees what it sees
//! without the agent.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::Command;

use common::engine::Engine;
use common::{can_merge, output, program, with_agent};

fn same(cases: &[&str]) {
    if !can_merge() {
        return;
    }
    let engine = Engine::new();
    let program = program("calls");
    for case in cases {
        let without = output(Command::new(&program).arg(case));
        let with = output(with_agent(&program, &engine.socket()).arg(case));
        assert_eq!(with, without, "{case}");
        println!("{case}: same");
    }
    let counts = engine.counts();
    println!("{counts:?}");
    assert!(counts.merged >= 64 * cases.len() as u64, "{counts:?}");
    assert_eq!(counts.lies, 0, "{counts:?}");
    std::fs::remove_file(program).unwrap();
}

#[test]
fn s1_1_content_that_is_dropped() {
    same(&[
        "nothing",
        "dontneed",
        "dontneed_all",
        "dontneed_hole",
        "dontneed_locked",
        "free",
        "remove",
    ]);
}

#[test]
fn s1_1_advice() {
    same(&[
        "unmergeable",
        "hugepage",
        "sequential",
        "willneed",
        "pageout",
        "cold",
        "populate",
        "dontdump",
        "dontfork",
        "wipeonfork",
        "bad_advice",
        "posix",
    ]);
}

#[test]
fn s1_1_mapping_and_unmapping() {
    same(&[
        "munmap",
        "map_over",
        "mremap_move",
        "mremap_grow",
        "mremap_shrink",
        "mremap_onto",
        "mremap_keep",
    ]);
}

#[test]
fn s1_1_attributes() {
    same(&["mprotect", "pkey", "mlock", "mlockall", "mbind", "named", "uffd"]);
}

#[test]
fn s1_1_forks() {
    same(&["fork", "fork_drops", "fork_moves", "fork_forks"]);
}
