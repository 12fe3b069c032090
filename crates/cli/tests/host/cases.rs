//! Nothing that a program may do to its own memory changes its meaning because that is merged: programs of
//! cases, each run below numerge and without.

use std::path::Path;
use std::process::Command;

use crate::bed::{Host, c_program, can_merge};

fn output(mut run: Command) -> String {
    let output = run.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    format!("{said}{}{}", String::from_utf8_lossy(&output.stderr), output.status)
}

fn cases(program: &Path) -> Vec<String> {
    let output = Command::new(program).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(Into::into).collect()
}

/// What is told differently, line by line.
fn differences(case: &str, merged: &str, alone: &str) -> Vec<String> {
    let mut all = Vec::new();
    let (mut merged, mut alone) = (merged.lines(), alone.lines());
    loop {
        match (merged.next(), alone.next()) {
            (None, None) => return all,
            (merged, alone) if merged == alone => {}
            (merged, alone) => {
                all.push(format!("{case}\n  merged: {merged:?}\n  alone:  {alone:?}"))
            }
        }
    }
}

fn same_as_alone(name: &str) {
    if !can_merge() {
        return;
    }
    let program = c_program(name);
    let host = Host::new();
    let mut found = Vec::new();
    for case in cases(&program) {
        let mut run = host.run("advised");
        run.arg(&program).arg(&case);
        let mut alone = Command::new(&program);
        alone.arg(&case);
        let (merged, alone) = (output(run), output(alone));
        alone
            .lines()
            .filter(|line| line.starts_with("SKIPPED"))
            .for_each(|line| println!("{line}"));
        found.extend(differences(&case, &merged, &alone));
        if !alone.ends_with("exit status: 0") {
            found.push(format!("{case} fails by itself: {alone}"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn s1_1_advice_and_attributes_mean_the_same_on_merged_memory() {
    same_as_alone("advice.c");
}

#[test]
fn s1_1_what_changes_mappings_means_the_same_on_merged_memory() {
    same_as_alone("mappings.c");
}

#[test]
fn s1_1_what_others_do_to_memory_means_the_same_on_merged_memory() {
    same_as_alone("kernel.c");
}

#[test]
fn s1_1_all_memory_of_a_process_is_merged_if_it_says_so_and_that_is_inherited() {
    same_as_alone("memory_merge.c");
}
