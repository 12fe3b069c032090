//! Programs that are hard on whoever merges their memory: they run as without the agent.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::engine::{Counts, Engine};
use common::{can_merge, output, program, with_agent};
use numerge_protocol::limits::REGION_MESSAGES;

/// Of hostile.c's patchwork.
const REGIONS: u64 = 12_000;
/// Longer than any of them takes, by far.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program must end by itself.
fn ends(mut command: Command) -> String {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            let said = child.wait_with_output().unwrap();
            panic!("{command:?} does not end: {}", String::from_utf8_lossy(&said.stdout));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{command:?}: {}: {said}{errors}", output.status);
    said
}

fn run(program: &Path, case: &str, prepare: impl Fn(&Engine)) -> Option<Counts> {
    if !can_merge() {
        return None;
    }
    let alone = output(Command::new(program).arg(case));
    assert_eq!(alone.lines().last(), Some("fine"), "{case}, without the agent");
    let engine = Engine::new();
    prepare(&engine);
    let mut command = with_agent(program, &engine.socket());
    command.arg(case);
    assert_eq!(ends(command), alone, "{case}");
    let counts = engine.counts();
    println!("{case}: {counts:?}");
    assert!(counts.merged >= 64, "{case}: {counts:?}");
    assert_eq!(counts.lies, 0, "{case}: {counts:?}");
    Some(counts)
}

fn fine(cases: &[&str]) {
    let program = program("hostile");
    for case in cases {
        run(&program, case, |_| {});
    }
    std::fs::remove_file(program).unwrap();
}

#[test]
fn s1_1_threads_that_end() {
    fine(&["first_thread_ends", "last_thread_ends"]);
}

#[test]
fn s1_1_handlers_of_forks_that_take_a_lock_under_which_memory_is_mapped() {
    fine(&["atfork_lock"]);
}

#[test]
fn s1_1_processes_made_in_every_way() {
    fine(&["kinds_of_fork", "clone_offers"]);
}

#[test]
fn s1_1_shared_memory_over_what_is_merged() {
    fine(&["segments"]);
}

#[test]
fn s1_1_threads_on_stacks_of_the_programs_own() {
    fine(&["own_stacks"]);
}

#[test]
fn s6_files_are_the_programs_alone() {
    fine(&["closes_files"]);
}

#[test]
fn s1_1_programs_that_give_up_their_rights() {
    fine(&["strict"]);
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        fine(&["other_user"]);
    } else {
        println!("SKIPPED: becoming another user wants root");
    }
}

#[test]
fn s1_1_libraries_that_come_and_go() {
    fine(&["libraries"]);
}

#[test]
fn s6_locks_that_the_kernel_writes_to() {
    fine(&["kernels_locks"]);
}

#[test]
fn s1_1_advice_to_the_process_itself() {
    fine(&["process_advice"]);
}

#[test]
fn s1_1_places_that_are_used_again() {
    fine(&["reuse"]);
}

#[test]
fn s6_memory_of_the_c_librarys_is_left_alone() {
    fine(&["librarys_own", "places_that_change_hands"]);
}

/// What the engine asks is answered in time, however many mappings there are to be told of.
#[test]
fn s6_who_tells_of_many_regions_listens_in_between() {
    let program = program("hostile");
    if let Some(counts) = run(&program, "patchwork", |_| {}) {
        assert!(counts.registered >= REGIONS, "{counts:?}");
        assert!((1..REGION_MESSAGES as u64 / 2).contains(&counts.behind), "{counts:?}");
    }
    std::fs::remove_file(program).unwrap();
}

#[test]
fn s6_more_messages_than_may_wait() {
    let program = program("hostile");
    if let Some(counts) = run(&program, "storm", Engine::become_deaf) {
        // The connection was given up, and there was another one.
        assert!(counts.clients >= 2, "{counts:?}");
    }
    std::fs::remove_file(program).unwrap();
}
