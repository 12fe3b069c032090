//! What the files do is what the kernel's do.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use numerge_engine::Nid;
use numerge_engine::machine::Vpn;

use crate::bed::Bed;

/// What `ksm-facts` printed of Linux 6.18's own files.
const RECORDED: &str = include_str!("../facts/linux-6.18.txt");

const KERNELS: &str = "/sys/kernel/mm/ksm";

/// The facts of a directory, asked by a command to which the directory is added.
fn facts(mut command: Command, directory: &Path) -> String {
    let output = command.arg(directory).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "");
    String::from_utf8(output.stdout).unwrap()
}

/// Lines of one and not of the other, for people.
fn differences(ours: &str, theirs: &str) -> String {
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (ours.lines().collect(), theirs.lines().collect());
    let mut lines: Vec<String> = a.difference(&b).map(|line| format!("+ {line}")).collect();
    lines.extend(b.difference(&a).map(|line| format!("- {line}")));
    lines.join("\n")
}

#[test]
fn s5_4_files_take_and_give_what_the_kernels_do() {
    let Some(bed) = Bed::new(10) else { return };
    // Some of the facts are about merged pages.
    (0..2).for_each(|page| bed.machine.write(Vpn(page), 5, Nid(0)));
    let ours = facts(Command::new(env!("CARGO_BIN_EXE_ksm-facts")), bed.directory());
    assert!(ours == RECORDED, "+ ours, - the kernel's:\n{}", differences(&ours, RECORDED));
}

/// What was recorded is what this kernel does, as far as it has the files.
#[test]
fn s5_4_the_recorded_facts_are_this_kernels() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let ksm = Path::new(KERNELS);
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || !ksm.join("run").exists() {
        println!("SKIPPED: root and a kernel with KSM are needed to ask the kernel's own files");
        return;
    }
    let read = |name: &str| std::fs::read_to_string(ksm.join(name)).unwrap_or_default();
    if read("run") != "0\n" || read("pages_shared") != "0\n" {
        println!("SKIPPED: ksmd is in use");
        return;
    }
    let mut command = Command::new(root.join("perf/ksm"));
    command.arg(env!("CARGO_BIN_EXE_ksm-facts"));
    let theirs = facts(command, ksm);
    // A line that this kernel does not have is of a file that it does not have.
    let is_there = |line: &&str| {
        let subject = line.split(':').next().unwrap_or_default();
        let name = subject.rsplit(' ').next().unwrap_or_default();
        name == "directory" || ksm.join(name).exists()
    };
    let recorded: Vec<&str> = RECORDED.lines().filter(is_there).collect();
    let recorded = recorded.join("\n") + "\n";
    assert!(recorded == theirs, "+ recorded, - found:\n{}", differences(&recorded, &theirs));
}
