//! Programs that do to their memory all that programs do, and check it.

use std::path::Path;

use crate::bed::{c_program, can_merge, example, numerge};

fn seconds() -> String {
    std::env::var("NUMERGE_STRESS_SECONDS").unwrap_or_else(|_| "10".into())
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
    command.arg("--stats").arg(&stats).arg("--").arg(program).arg(seconds());
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
