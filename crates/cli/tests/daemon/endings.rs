//! The daemon's end, of its own will or not, and the next one.

use std::fs;

use rustix::process::Signal;

use crate::bed::{Bed, By, Daemon, Program};

const PAGES: u64 = 300;

fn two_programs(bed: &Bed) -> [Program; 2] {
    [(), ()].map(|()| bed.program(&By::me(), PAGES, 1))
}

/// Mappings of frames that the daemon's clients have.
fn mapped_frames(pids: &[i32]) -> usize {
    let maps = pids.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap());
    maps.map(|maps| maps.matches("numerge-frames").count()).sum()
}

fn pids(daemon: &Daemon) -> Vec<i32> {
    let status = daemon.status();
    let pids = status["clients"].as_array().unwrap().iter();
    pids.map(|client| i32::try_from(client["pid"].as_i64().unwrap()).unwrap()).collect()
}

fn are_whole(programs: &mut [Program]) {
    programs.iter_mut().for_each(Program::is_whole);
}

#[test]
fn s1_1_an_orderly_end_gives_all_memory_back() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut programs = two_programs(&bed);
    daemon.until_merged(PAGES, PAGES);
    let clients = pids(&daemon);
    assert!(mapped_frames(&clients) > 0);
    daemon.end();
    assert_eq!(mapped_frames(&clients), 0);
    are_whole(&mut programs);
}

#[test]
fn s1_1_what_is_kept_goes_over_to_the_next_daemon() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--at-end", "keep"]);
    let mut programs = two_programs(&bed);
    daemon.until_merged(PAGES, PAGES);
    let clients = pids(&daemon);
    daemon.end();
    assert!(mapped_frames(&clients) > 0);
    are_whole(&mut programs);
    let next = bed.daemon(&[]);
    next.until_merged(PAGES, PAGES);
    are_whole(&mut programs);
    // Both have one frame for each content still: those of the first daemon are given up.
    let mut more = bed.program(&By::me(), PAGES, 1);
    next.until_merged(PAGES, 2 * PAGES);
    more.is_whole();
}

/// Killed again and again while pages are merged, written to, and merged again.
#[test]
fn s1_1_a_daemon_killed_while_it_merges_leaves_all_memory_whole() {
    let Some(bed) = Bed::new() else { return };
    let mut daemon = bed.daemon(&[]);
    let mut programs = two_programs(&bed).map(|program| (program, 0_u64));
    for round in 0..4 {
        daemon.until_clients(2);
        // Killed at another moment each time, in the last round at rest.
        for step in 0..40 * (round + 1) {
            for (program, written) in &mut programs {
                *written += 1;
                let page = *written * 31 % PAGES;
                assert_eq!(program.ask(&format!("write {page} {}", page + 1)), "ok");
            }
            if step % 20 == 0 {
                programs.iter_mut().for_each(|(program, _)| program.is_whole());
            }
        }
        if round == 3 {
            daemon.until_merged(PAGES, PAGES);
        }
        daemon.kill();
        programs.iter_mut().for_each(|(program, _)| program.is_whole());
        daemon = bed.daemon(&[]);
    }
    daemon.until_merged(PAGES, PAGES);
    programs.iter_mut().for_each(|(program, _)| program.is_whole());
}

#[test]
fn s5_3_a_program_that_executes_another_begins_anew() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut programs = two_programs(&bed);
    daemon.until_merged(PAGES, PAGES);
    for _ in 0..3 {
        assert_eq!(programs[0].ask("exec"), "ready");
        programs[1].is_whole();
        daemon.until_clients(2);
        daemon.until_merged(PAGES, PAGES);
        are_whole(&mut programs);
    }
}

/// Whoever does not run for a while keeps nobody else from merging, and finds all as it was.
#[test]
fn s6_a_stopped_program_holds_nobody_up() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut stopped = bed.program(&By::me(), PAGES, 1);
    daemon.until_clients(1);
    let pid = pids(&daemon)[0];
    let signal = |signal| {
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal)
            .unwrap();
    };
    signal(Signal::STOP);
    // It is asked to merge with the first of these, and can't answer.
    let mut like_it = bed.program(&By::me(), PAGES, 1);
    let mut others = [(), ()].map(|()| bed.program(&By::me(), PAGES, 5001));
    crate::bed::until(
        || daemon.number("pages_sharing") >= PAGES,
        || format!("the others wait: {}", daemon.status()),
    );
    are_whole(&mut others);
    like_it.is_whole();
    // One that ends meanwhile.
    drop(like_it);
    daemon.until_clients(3);
    let mut like_it = bed.program(&By::me(), PAGES, 1);
    daemon.scan_twice();
    signal(Signal::CONT);
    daemon.until_merged(2 * PAGES, 2 * PAGES);
    stopped.is_whole();
    like_it.is_whole();
    are_whole(&mut others);
}

/// Unmerging waits for a program that does not run, and nobody waits for it.
#[test]
fn s5_2_run_2_with_a_stopped_program_holds_up_no_other_question() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut programs = two_programs(&bed);
    let mut others = [(), ()].map(|()| bed.program(&By::me(), PAGES, 5001));
    daemon.until_merged(2 * PAGES, 2 * PAGES);
    let stopped = rustix::process::Pid::from_raw(pids(&daemon)[0]).unwrap();
    rustix::process::kill_process(stopped, Signal::STOP).unwrap();
    let mut answered = 0;
    std::thread::scope(|scope| {
        let unmerging = scope.spawn(|| daemon.client().set("run", 2));
        while !unmerging.is_finished() {
            daemon.client().set("sleep_millisecs", 2 + answered % 2).unwrap();
            assert!(daemon.number("pages_registered") > 0);
            answered += 1;
        }
        let error = unmerging.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("does not answer"), "{error}");
    });
    println!("{answered} questions answered meanwhile");
    assert!(answered > 5, "{answered} questions answered meanwhile");
    // All is unmerged but what the stopped program holds.
    let left = daemon.number("pages_shared") + daemon.number("pages_sharing");
    assert!(left <= PAGES, "{left} pages are merged still");
    rustix::process::kill_process(stopped, Signal::CONT).unwrap();
    crate::bed::until(|| daemon.client().set("run", 2).is_ok(), || format!("{}", daemon.status()));
    assert_eq!(daemon.number("pages_shared"), 0);
    are_whole(&mut programs);
    are_whole(&mut others);
}
