//! Programs whose calls the agent does not see: they work as without it, and are not merged.

use std::path::Path;

use crate::bed::{AT_FULL_SPEED, c_program, c_program_with, can_merge, numerge};

const SECONDS: &str = "4";

/// Runs bypass.c at full speed, which has to find its memory right, and gives how many bytes were saved.
fn saved(program: &Path, how: &str) -> u64 {
    let stats = tempfile::NamedTempFile::new().unwrap();
    let mut run = numerge(&["run"]);
    run.args(AT_FULL_SPEED).arg("--stats").arg(stats.path()).arg("--");
    let output = run.arg(program).args([how, SECONDS]).output().unwrap();
    let failed = String::from_utf8_lossy(&output.stderr);
    // Its own.
    assert_eq!(output.status.code(), Some(7), "{how}: {}: {failed}", output.status);
    println!("{how}: {}", String::from_utf8_lossy(&output.stdout));
    let stats: serde_json::Value = serde_json::from_reader(stats).unwrap();
    stats["bytes_saved_peak"].as_u64().unwrap()
}

#[test]
fn s1_1_a_program_that_is_linked_statically_runs_unmerged() {
    if !can_merge() {
        return;
    }
    // It would be merged otherwise.
    assert!(saved(&c_program("bypass.c"), "library") > 1 << 18);
    let program = c_program_with("bypass.c", "bypass-static.c", &["-static"]);
    assert_eq!(saved(&program, "library"), 0);
}

/// Go's runtime changes memory by instructions of its own, also what it has mapped by the C library.
#[test]
fn s1_1_a_program_of_gos_is_not_merged_and_people_are_told_why() {
    if !can_merge() {
        return;
    }
    let program = c_program_with("go.c", "go-program.c", &["-DGO", "-ldl"]);
    assert_eq!(told(&program, None), (true, false));
    // It would be merged otherwise, and is for as long as it has loaded no such library.
    let program = c_program_with("go.c", "go-none.c", &["-ldl"]);
    assert_eq!(told(&program, None), (false, true));
    let options = ["-DGO", "-DLIBRARY", "-shared", "-fPIC"];
    let library = c_program_with("go.c", "go-library.c", &options);
    assert_eq!(told(&program, Some(&library)), (true, true));
}

/// Whether people were told why go.c is not merged, and whether it ever was.
fn told(program: &Path, library: Option<&Path>) -> (bool, bool) {
    let mut run = numerge(&["run", "--scope", "mapped"]);
    let run = run.args(AT_FULL_SPEED).arg("--").arg(program).args(library);
    let output = run.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{}: {said}", output.status);
    (said.contains("is of Go"), output.stdout == b"merged\n")
}

/// The C library's syscall(3) does what its functions of the calls' names do.
#[cfg(target_arch = "x86_64")]
#[test]
fn s1_1_memory_that_is_mapped_and_changed_by_syscall_is_merged_and_right() {
    if can_merge() {
        assert!(saved(&c_program("bypass.c"), "syscall") > 1 << 18);
    }
}

/// Whoever maps memory past the C library may unmap it unseen: it is not merged, whoever marks it.
#[cfg(target_arch = "x86_64")]
#[test]
fn s1_1_memory_that_is_mapped_past_the_c_library_is_not_merged() {
    if !can_merge() {
        return;
    }
    let program = c_program("bypass.c");
    assert_eq!(saved(&program, "raw"), 0);
    assert_eq!(saved(&program, "marked"), 0);
}
