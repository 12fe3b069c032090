//! Programs that close descriptors which they did not open, and put their own in their place.

use std::fs;

use crate::bed::{AT_FULL_SPEED, c_program, can_merge, numerge};

fn files(how: &str) {
    if !can_merge() {
        return;
    }
    let mut run = numerge(&["run"]);
    run.args(AT_FULL_SPEED).arg("--").arg(c_program("files.c")).arg(how);
    let output = run.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{how}: {}: {said}{failed}", output.status);
    assert_eq!(said, "right\n");
}

#[test]
fn s1_1_a_program_that_closes_all_descriptors_keeps_its_memory() {
    files("close");
}

#[test]
fn s1_1_a_program_that_puts_files_of_its_own_everywhere_keeps_its_memory() {
    files("put");
}

/// A shell's own, which its children inherit.
#[test]
fn a_shells_files_are_its_own() {
    const SCRIPT: &str = "for n in {3..20}; do eval \"exec $n>>file$n\"; done
        for n in {3..20}; do echo line $n >&$n; done
        text=$(head -c 4000000 /dev/zero | tr '\\0' x)
        (for n in {3..20}; do echo ${#text} >&$n; done)
        ls /proc/self/fd | wc -l; set -- /proc/$$/fd/*; echo $#";
    let bash = |mut run: std::process::Command| {
        let scratch = tempfile::tempdir().unwrap();
        let output = run.args(["-c", SCRIPT]).current_dir(scratch.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        for n in 3..21 {
            let content = fs::read_to_string(scratch.path().join(format!("file{n}"))).unwrap();
            assert_eq!(content, format!("line {n}\n4000000\n"));
        }
        String::from_utf8(output.stdout).unwrap()
    };
    let mut below = numerge(&["run", "--scope", "mapped"]);
    below.args(AT_FULL_SPEED).args(["--", "bash"]);
    assert_eq!(bash(below), bash(std::process::Command::new("bash")));
}
