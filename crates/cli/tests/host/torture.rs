//! Programs that do to their memory all that programs do, and check it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::bed::{Host, Running, c_program, can_merge, example, numerge};

/// How long a daemon lives that is killed.
const LIFE: Duration = Duration::from_secs(2);

/// As long as NUMERGE_STRESS_SECONDS says, or so many.
fn seconds(otherwise: &str) -> String {
    std::env::var("NUMERGE_STRESS_SECONDS").unwrap_or_else(|_| otherwise.into())
}

/// Runs a program for some seconds below `numerge run` at full speed.
fn torture(program: &Path) {
    if !can_merge() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let stats = scratch.path().join("stats");
    let settings = ["pages_to_scan=100000", "sleep_millisecs=0", "max_page_sharing=16"];
    let mut command = numerge(&["run"]);
    settings.iter().for_each(|setting| {
        command.args(["--set", setting]);
    });
    command.arg("--stats").arg(&stats).arg("--").arg(program).arg(seconds("10"));
    let output = command.current_dir(scratch.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}{failed}", output.status);
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
    println!("{said}{stats}");
    assert!(stats["bytes_saved_peak"].as_u64() > Some(1 << 20), "nothing was merged: {stats}");
    assert!(stats["pages_broken"].as_u64() > Some(0), "no merged page was written to: {stats}");
}

#[test]
fn s1_1_a_c_program_finds_its_memory_as_it_left_it() {
    torture(&c_program("torture.c"));
}

#[test]
fn s1_1_a_rust_program_finds_its_memory_as_it_left_it() {
    torture(&example("torture"));
}

/// Both at once under a daemon that is killed again and again, and started anew.
#[test]
fn s6_daemons_are_killed_and_programs_find_their_memory_as_they_left_it() {
    if !can_merge() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut host = Host::new();
    let mut programs = [c_program("torture.c"), example("torture")].map(|program| {
        let mut command = host.run("advised");
        command.arg(program).arg(seconds("12")).current_dir(scratch.path());
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    });
    let (mut killed, mut had_merged) = (0, 0);
    while programs.iter_mut().any(|program| program.0.try_wait().unwrap().is_none()) {
        std::thread::sleep(LIFE);
        had_merged += u32::from(host.number("bytes_saved") > 0);
        host.kill_and_start();
        killed += 1;
    }
    for mut program in programs {
        let status = program.0.wait().unwrap();
        let said = std::io::read_to_string(program.0.stdout.take().unwrap()).unwrap();
        let failed = std::io::read_to_string(program.0.stderr.take().unwrap()).unwrap();
        println!("{said}");
        assert!(status.success(), "{status}: {said}{failed}");
    }
    println!("{killed} daemons killed, of which {had_merged} had merged something");
    assert!(had_merged > 1, "the programs did not come back after a daemon was killed");
}
