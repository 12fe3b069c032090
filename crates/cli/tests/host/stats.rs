//! `--stats` and `-n` of `numerge run`.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::bed::{AT_FULL_SPEED, c_program, can_merge, numerge};

/// Of copies.c: pages of each copy, and how many of them are equal.
const PAGES: u64 = 400;
const ALIKE: u64 = 2;
const COPIES: u64 = 2;

/// What README.md says that only one of the two has.
const ONLY_OF_MERGE: [&str; 16] = [
    "bytes_registered",
    "host_bytes_freed",
    "mem_available_bytes",
    "pss_bytes",
    "verified",
    "pages_written",
    "mappings_limit",
    "seconds",
    "cpu_seconds",
    "nodes",
    "regions",
    "pools",
    "files",
    "files_padded",
    "files_skipped",
    "errors",
];
const ONLY_OF_STATS: [&str; 6] =
    ["bytes_saved_peak", "clients", "domains", "longest_stall_ms", "stalled_ms", "stalls"];
/// Of counters that are there when there is something to count, these count something here.
const COUNTED: [&str; 4] = ["pages_shared", "pages_sharing", "pages_registered", "bytes_saved"];

fn names(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The statistics of a run by these words, which end with `--`, of so many copies of copies.c; it ends when all of
/// their pages are merged.
fn statistics(words: &[&str], copies: u64) -> Value {
    let scratch = tempfile::tempdir().unwrap();
    let (merged, file) = (scratch.path().join("merged"), scratch.path().join("stats"));
    fs::create_dir(&merged).unwrap();
    let mut run = numerge(&["run", "--stats"]);
    run.arg(&file).args(AT_FULL_SPEED).args(words).arg(c_program("copies.c"));
    let output = run.arg(&merged).arg(copies.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(&merged).unwrap().count() as u64, copies);
    serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap()
}

#[test]
fn s5_5_statistics_of_copies_have_the_names_that_a_merge_reports() {
    if !can_merge() {
        return;
    }
    let stats = statistics(&["-n", &COPIES.to_string(), "--"], COPIES);
    // All copies' pages, in one frame for each content.
    let saved = (PAGES * COPIES - PAGES / ALIKE) * 4096;
    assert_eq!(stats["bytes_saved_peak"], saved, "{stats}");
    for counter in COUNTED {
        assert!(stats[counter].as_u64() > Some(0), "{counter}: {stats}");
    }

    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let output = numerge(&["merge", "--json"]).arg(&image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (stats, report) = (names(&stats), names(&report));
    let missing: BTreeSet<&str> = report.difference(&stats).copied().collect();
    assert_eq!(missing, ONLY_OF_MERGE.into(), "in a merge's report only");
    let more: BTreeSet<&str> = stats.difference(&report).copied().collect();
    assert_eq!(more, ONLY_OF_STATS.into(), "in statistics only");
}

/// Without an administrator, a domain has in it who asks for it. A run in the run has the same, but with another
/// engine.
#[test]
fn s6_an_engine_of_the_commands_own_has_the_domain_it_asks_for() {
    if !can_merge() {
        return;
    }
    let again = [env!("CARGO_BIN_EXE_numerge"), "run"];
    for (inner, named) in [
        (vec![], true),
        ([&again[..], &["--"]].concat(), true),
        ([&again[..], &AT_FULL_SPEED, &["--"]].concat(), false),
    ] {
        let stats = statistics(&[&["--domain", "web", "--"], &inner[..]].concat(), 1);
        assert_eq!(stats["domains"][0]["name"] == "web", named, "{inner:?}: {stats}");
    }
}
