//! Engines that come and go, and settings: the program has its memory, whatever happens.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::engine::{Counts, Engine, nobody};
use common::{can_merge, output, preload, program, with_agent};

/// A client that does as it is told.
struct Client {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn new(socket: &Path) -> Self {
        let program = program("lives");
        let mut child = with_agent(&program, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut client = Self { orders: child.stdin.take(), child, answers };
        client.told("c");
        std::fs::remove_file(program).unwrap();
        client
    }

    /// Tells it something; all must be fine then.
    fn told(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "fine\n", "{order}");
    }

    fn ends_well(mut self) {
        drop(self.orders.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Already over, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something holds of what an engine counts.
fn until(engine: &Engine, holds: impl Fn(&Counts) -> bool) {
    let began = Instant::now();
    while !holds(&engine.counts()) {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", engine.counts());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn s6_an_engine_that_vanishes_and_another() {
    if !can_merge() {
        return;
    }
    let engine = Engine::new();
    let mut client = Client::new(&engine.socket());
    client.told("m");
    client.told("w");
    let engine = engine.again();
    for order in ["c", "w", "d", "c", "w"] {
        client.told(order);
    }
    // The new one begins with memory that is the program's own, and merges it.
    until(&engine, |counts| counts.merged >= 64);
    client.told("c");
    client.told("w");
    client.told("c");
    for _ in 0..5 {
        client.told("k");
    }
    assert_eq!(engine.counts().lies, 0);
    drop(engine);
    client.told("c");
    client.ends_well();
}

#[test]
fn s6_an_engine_that_comes_late() {
    if !can_merge() {
        return;
    }
    let engine = Engine::new();
    let nowhere = tempfile::tempdir().unwrap();
    let link = nobody(nowhere.path());
    let mut client = Client::new(&link);
    for order in ["c", "w", "c"] {
        client.told(order);
    }
    std::os::unix::fs::symlink(engine.socket(), &link).unwrap();
    client.told("m");
    client.told("c");
    client.ends_well();
}

#[test]
fn s6_an_engine_that_says_that_it_leaves() {
    if !can_merge() {
        return;
    }
    for keep in [false, true] {
        let engine = Engine::new();
        let mut client = Client::new(&engine.socket());
        client.told("m");
        client.told("w");
        engine.leave(keep);
        until(&engine, |counts| counts.byes > 0);
        // It tells everybody who comes to leave, so nothing is merged any more.
        client.told("f");
        client.told("c");
        client.ends_well();
    }
}

#[test]
fn s1_1_a_child_has_a_connection_of_its_own() {
    if !can_merge() {
        return;
    }
    let engine = Engine::new();
    let mut client = Client::new(&engine.socket());
    client.told("m");
    client.told("k");
    assert_eq!(engine.counts().clients, 2);
    client.told("w");
    client.told("m");
    assert_eq!(engine.counts().lies, 0);
    client.ends_well();
}

#[test]
fn s1_1_large_mappings_of_a_program_with_a_malloc_of_its_own() {
    mapped("own_malloc");
}

#[test]
fn s1_1_reserved_memory_and_stacks_of_the_programs_own() {
    mapped("reserves");
}

fn mapped(name: &str) {
    if !can_merge() {
        return;
    }
    let engine = Engine::new();
    let program = program(name);
    let mut command = with_agent(&program, &engine.socket());
    assert_eq!(output(command.env("NUMERGE_SCOPE", "mapped")), "fine\n");
    let counts = engine.counts();
    println!("{counts:?}");
    assert!(counts.merged > 0, "{counts:?}");
    assert_eq!(counts.lies, 0, "{counts:?}");
    std::fs::remove_file(program).unwrap();
}

#[test]
fn s6_a_program_gets_the_mappings_that_merging_took() {
    if !can_merge() {
        return;
    }
    let engine = Engine::new();
    let program = program("mappings");
    assert_eq!(output(&mut with_agent(&program, &engine.socket())), "fine\n");
    std::fs::remove_file(program).unwrap();
}

#[test]
fn bad_settings_are_named_and_nothing_else_happens() {
    let engine = Engine::new();
    let program = program("lives");
    for (name, value, allowed) in [
        ("NUMERGE_SCOPE", "everything", "`advised` and `mapped`"),
        ("NUMERGE_DOMAIN", "a b", "A-Z"),
        ("NUMERGE_SOCKET", "", "path of a socket"),
    ] {
        let mut command = with_agent(&program, &engine.socket());
        let output = command.env(name, value).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(name) && said.contains(value) && said.contains(allowed), "{said}");
    }
    // Without an engine to go to there is nothing to say.
    let mut command = Command::new(&program);
    assert_eq!(output(command.env("LD_PRELOAD", preload()).stdin(Stdio::null())), "");
    assert_eq!(engine.counts().clients, 0);
    std::fs::remove_file(program).unwrap();
}
