//! Guests of QEMU's, for which there are scripts in `tools`: here as short as they can be.

use std::path::Path;
use std::process::Command;

use crate::bed::{build, built, can_merge};

fn guests(tool: &str, arguments: &[&str]) {
    if !can_merge() {
        return;
    }
    if !cfg!(target_arch = "x86_64") {
        println!("SKIPPED: the guests are x86_64");
        return;
    }
    build();
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools").join(tool);
    let mut run = Command::new(tool);
    run.args(arguments).arg("--built").arg(built());
    // The guests' kernel is kept there.
    run.env("CARGO_TARGET_DIR", built().parent().unwrap());
    run.env_remove("NUMERGE_SOCKET").env_remove("NUMERGE_AGENT");
    let ended = run.output().unwrap();
    let [said, errors] = [ended.stdout, ended.stderr].map(|text| String::from_utf8(text).unwrap());
    println!("{said}");
    assert!(ended.status.success(), "{}: {said}{errors}", ended.status);
}

#[test]
fn s3_6_a_guests_page_cache_is_merged_as_often_as_it_is_filled() {
    guests("decay", &["--rounds", "2", "--guests", "2", "--memory", "128", "--balloon"]);
}

#[test]
fn s1_1_a_merged_guest_moves_by_post_copy() {
    guests("postcopy", &["--memory", "128"]);
}
