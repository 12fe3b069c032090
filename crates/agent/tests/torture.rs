//! Everything a program does at once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::engine::Engine;
use common::{can_merge, output, program, with_agent};

#[test]
fn s1_1_all_that_programs_do_at_once() {
    if !can_merge() {
        return;
    }
    let engine = Engine::new();
    let program = program("torture");
    for unmerges in [false, true] {
        if unmerges {
            engine.unmerge_too();
        }
        let said = output(with_agent(&program, &engine.socket()).arg("4000"));
        let counts = engine.counts();
        println!("{said}{counts:?}");
        assert!(counts.merged > 0 && counts.gone > 0, "{counts:?}");
        assert_eq!(counts.unmerged > 0, unmerges, "{counts:?}");
        assert_eq!(counts.lies, 0, "{counts:?}");
    }
    std::fs::remove_file(program).unwrap();
}

#[test]
fn s6_the_same_while_engines_come_and_go() {
    if !can_merge() {
        return;
    }
    let mut engine = Engine::new();
    let program = program("torture");
    let mut command = with_agent(&program, &engine.socket());
    let mut child = command.arg("6000").stdout(Stdio::piped()).spawn().unwrap();
    let (mut engines, mut merged) = (1, 0);
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(700));
        let counts = engine.counts();
        merged += u64::from(counts.merged > 0);
        assert_eq!(counts.lies, 0, "{counts:?}");
        engine = engine.again();
        engines += 1;
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    println!("{said}{engines} engines, {merged} of which merged something");
    assert!(output.status.success(), "{said}");
    assert!(merged > 1, "of {engines} engines only {merged} merged anything");
    std::fs::remove_file(program).unwrap();
}
