//! The program.

use std::process::Command;

use serde_json::Value;

use crate::bed::PAGE;
use crate::kernel;

fn merge(across: &str) -> Value {
    kernel::quiet();
    let root = tempfile::tempdir().unwrap();
    let image: Vec<u8> =
        (0..1000_u64).flat_map(|page| (page % 900).to_le_bytes().repeat(PAGE / 8)).collect();
    std::fs::write(root.path().join("image"), image).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_numerge"))
        .args(["merge", "--json", "--copies", "2", "--merge-across-nodes", across])
        .arg(root.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verified"], true);
    for counter in [
        "pages_shared",
        "pages_sharing",
        "pages_unshared",
        "pages_volatile",
        "ksm_zero_pages",
        "pages_scanned",
        "pages_skipped",
        "pages_broken",
        "stable_node_chains",
        "stable_node_dups",
        "stable_nodes_replaced",
    ] {
        assert_eq!(report[counter], sum(&report["nodes"], counter), "{counter}: {report}");
    }
    assert_eq!(sum(&report["nodes"], "pages_home"), 2000, "{report}");
    assert_eq!(report["pages_shared"], counts(&report["pools"], "frames_by_node"), "{report}");
    assert_eq!(counts(&report["regions"], "pages_by_node"), 2000, "{report}");
    report
}

fn sum(list: &Value, field: &str) -> u64 {
    list.as_array().unwrap().iter().map(|one| one[field].as_u64().unwrap()).sum()
}

fn counts(list: &Value, field: &str) -> u64 {
    let of = list.as_array().unwrap().iter().flat_map(|one| one[field].as_object().unwrap());
    of.map(|(_, count)| count.as_u64().unwrap()).sum()
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_1_numerge_merge_keeps_to_each_node_when_told_to() {
    let report = merge("0");
    for pool in report["pools"].as_array().unwrap() {
        let places = pool["frames_by_node"].as_object().unwrap();
        let own = pool["nid"].to_string();
        assert!(places.keys().all(|at| *at == own), "{report}");
    }
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_1_numerge_merge_merges_across_nodes() {
    let report = merge("1");
    let number = |counter: &str| report[counter].as_u64().unwrap();
    assert_eq!(number("pages_shared") + number("pages_sharing"), 2000, "{report}");
    // One for each content, also where two nodes' shards found it at the same moment.
    assert_eq!(number("pages_shared"), 900, "{report}");
}
