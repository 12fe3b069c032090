//! The `numerge` program.

use std::path::Path;
use std::process::{Command, Output};

use crate::bed::{merger, page_of};

fn numerge(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_numerge")).args(arguments).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn merges_files_and_reports_in_json() {
    if merger().is_none() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let image: Vec<u8> = (0..1000_u64).flat_map(|page| page_of(page % 900)).collect();
    std::fs::write(root.path().join("image"), &image[..image.len() - 100]).unwrap();
    let output = numerge(&["merge", "--json", "--copies", "4", path(root.path())]);
    let report = json(&output);
    assert_eq!(report["verified"], true);
    assert_eq!(report["bytes_registered"], 4 * 1000 * 4096);
    // The last page lost its end, so it is like no other of its image: 901 contents.
    assert_eq!(report["pages_shared"], 901);
    assert_eq!(report["pages_sharing"], 4000 - 901);
    assert_eq!(report["bytes_saved"], (4000 - 901) * 4096);
    assert_eq!(report["files_padded"], 1);
    assert!(report["metadata_bytes"].as_u64().unwrap() > 4000 * 16);
    assert!(report["mappings"].as_u64().unwrap() > 0);
    let sum = |list: &str, field: &str| -> u64 {
        let of = report[list].as_array().unwrap().iter();
        of.map(|one| one[field].as_u64().unwrap()).sum()
    };
    for counter in ["pages_shared", "pages_sharing", "stable_node_chains", "stable_node_dups"] {
        assert_eq!(report[counter], sum("nodes", counter), "{counter}");
    }
    assert_eq!((sum("nodes", "pages_home"), sum("regions", "bytes")), (4000, 4000 * 4096));
    assert_eq!(report["stable_nodes_queued"], 0);
    for region in report["regions"].as_array().unwrap() {
        let places = region["pages_by_node"].as_object().unwrap().values();
        assert_eq!(places.map(|pages| pages.as_u64().unwrap()).sum::<u64>(), 1000, "{region}");
    }
    for stage in ["load", "scan", "merge", "verify", "unmerge", "total"] {
        assert!(report["seconds"][stage].is_f64(), "{stage}");
        assert!(report["cpu_seconds"][stage].is_f64(), "{stage}");
    }
    assert!(output.stderr.is_empty(), "no progress bar in a pipe");
}

#[test]
fn options_reach_the_engine() {
    if merger().is_none() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let pages: Vec<u8> = (0..100_u64).flat_map(|page| page_of(u64::from(page < 90))).collect();
    std::fs::write(file.path(), pages).unwrap();
    let options = [
        "merge",
        "--json",
        "--max-page-sharing",
        "2",
        "--use-zero-pages",
        "--threads-per-node",
        "1",
        "--merge-across-nodes",
        "0",
        "--help-other-nodes",
        "--move-frames-back",
        "--keep-running",
        "1",
    ];
    let report = json(&numerge(&[&options[..], &[path(file.path())]].concat()));
    assert_eq!((&report["pages_shared"], &report["pages_sharing"]), (&45.into(), &45.into()));
    assert_eq!((&report["ksm_zero_pages"], &report["stable_node_chains"]), (&10.into(), &1.into()));
    assert_eq!(report["verified"], true);
}

#[test]
fn the_summary_names_what_a_person_wants_to_know() {
    if merger().is_none() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; 20 * 4096 + 1]).unwrap();
    let output = numerge(&["merge", path(file.path())]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for what in ["Loaded", "Saved", "Given back", "Verified", "padded with zeros", "metadata"] {
        assert!(text.contains(what), "{what}: {text}");
    }
}

#[test]
fn bad_input_is_named_and_exits_with_failure() {
    let root = tempfile::tempdir().unwrap();
    let empty = root.path().join("empty");
    std::fs::write(&empty, []).unwrap();
    let missing = root.path().join("missing");
    for (arguments, said) in [
        (vec!["merge", path(&missing)], "missing: No such file"),
        (vec!["merge", path(&empty)], "is empty"),
        (vec!["merge", "/dev/null"], "neither a file nor a directory"),
        (vec!["merge"], "PATH"),
        (vec!["merge", "--copies", "0", path(&empty)], "1..=65535"),
        (vec!["merge", "--max-page-sharing", "1", path(&empty)], "2..=2147483647"),
        (vec!["merge", "--merge-across-nodes", "2", path(&empty)], "0..=1"),
        (vec!["merge", "--threads-per-node", "0", path(&empty)], "1..=1024"),
    ] {
        let output = numerge(&arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
}

#[test]
fn too_little_memory_is_said_before_it_is_used() {
    if merger().is_none() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let output = numerge(&["merge", path(file.path())]);
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("out of memory"), "{text}");
}

#[test]
fn topology_prints_described_machines() {
    let run = |arguments: &[&str], synthetic: &str| {
        Command::new(env!("CARGO_BIN_EXE_numerge"))
            .args(arguments)
            .env("HWLOC_SYNTHETIC", synthetic)
            .output()
            .unwrap()
    };
    let two = "pack:2 [numa(memory=8GiB)] core:2 pu:1";
    let report = json(&run(&["topology", "--json"], two));
    assert_eq!(report["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(report["nodes"][1]["cpus"], serde_json::json!([2, 3]));
    let text = String::from_utf8(run(&["topology"], two).stdout).unwrap();
    assert!(text.contains("8.0 GiB") || text.contains("8 GiB"), "{text}");
    let bad = run(&["topology"], "pack:two");
    assert!(!bad.status.success());
    assert!(String::from_utf8(bad.stderr).unwrap().contains("pack:two"));
}
