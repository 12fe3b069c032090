//! Machines described to hwloc by `HWLOC_SYNTHETIC` and `HWLOC_XMLFILE`, and this one.
//!
//! The variables count for a whole process, so each test runs this test program again as a child,
//! with the variables set, and has it print what it discovered.

// Clippy knows `#[test]` functions as tests, but not the functions that they call.
#![allow(clippy::unwrap_used)]

use std::env;
use std::process::Command;

use numerge_topology::{Nid, Topology, TopologyError};
use serde_json::{Value, json};

/// What the child's line starts with if there is a topology, with JSON after it.
const FOUND: &str = "found: ";
/// What the child's line starts with if there is none, with the message after it.
const FAILED: &str = "failed: ";

/// Not a test of its own: it is what the others run as a child.
#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    match Topology::discover() {
        Ok(topology) => {
            println!("\n{FOUND}{}", serde_json::to_string(&topology).unwrap());
            if !topology.is_this_machine() {
                nothing_can_be_bound(&topology);
            }
        }
        Err(error) => println!("\n{FAILED}{error}"),
    }
}

/// On a described machine there is nothing to pin to.
fn nothing_can_be_bound(topology: &Topology) {
    let nid = topology.nodes()[0].nid;
    let error = topology.pin_current_thread(nid).unwrap_err();
    assert!(matches!(error, TopologyError::NotThisMachine), "{error}");
    let error = topology.bind_memory(0, 4096, nid).unwrap_err();
    assert!(matches!(error, TopologyError::NotThisMachine), "{error}");
}

/// What a child discovers with these variables set: the topology as JSON, or the error's message.
fn discover(variables: &[(&str, &str)]) -> Result<Value, String> {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "child", "--ignored", "--nocapture"]);
    for inherited in ["HWLOC_SYNTHETIC", "HWLOC_XMLFILE", "HWLOC_THISSYSTEM"] {
        child.env_remove(inherited);
    }
    let output = child.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    if let Some(message) = text.lines().find_map(|line| line.strip_prefix(FAILED)) {
        return Err(message.to_owned());
    }
    let found = text.lines().find_map(|line| line.strip_prefix(FOUND));
    Ok(serde_json::from_str(found.expect("the child prints what it found")).unwrap())
}

fn synthetic(description: &str) -> Result<Value, String> {
    discover(&[("HWLOC_SYNTHETIC", description)])
}

fn node(nid: u32, cpus: &[u32], memory_bytes: u64, distances: &[u32]) -> Value {
    json!({"nid": nid, "cpus": cpus, "memory_bytes": memory_bytes, "distances": distances})
}

#[test]
fn this_machine_is_discovered() {
    let seen = discover(&[]).unwrap();
    assert_eq!(seen["this_machine"], true);
    let empty = discover(&[("HWLOC_SYNTHETIC", ""), ("HWLOC_XMLFILE", "")]).unwrap();
    assert_eq!(empty["this_machine"], true, "an empty variable counts as unset");
}

#[test]
fn two_nodes_are_described() {
    // hwloc's GB is 1000^3 bytes.
    let seen = synthetic("pack:2 [numa(memory=8GB)] core:2 pu:1").unwrap();
    let nodes =
        [node(0, &[0, 1], 8_000_000_000, &[10, 20]), node(1, &[2, 3], 8_000_000_000, &[20, 10])];
    assert_eq!(seen, json!({"nodes": nodes, "this_machine": false}));
}

#[test]
fn four_nodes_are_described() {
    let seen = synthetic("pack:2 numa:2(memory=1GiB) core:2 pu:2").unwrap();
    let nodes = [
        node(0, &[0, 1, 2, 3], 1 << 30, &[10, 20, 20, 20]),
        node(1, &[4, 5, 6, 7], 1 << 30, &[20, 10, 20, 20]),
        node(2, &[8, 9, 10, 11], 1 << 30, &[20, 20, 10, 20]),
        node(3, &[12, 13, 14, 15], 1 << 30, &[20, 20, 20, 10]),
    ];
    assert_eq!(seen["nodes"], json!(nodes));
}

#[test]
fn s4_6_node_numbers_have_gaps() {
    let seen = synthetic("numa:2(memory=1GiB indexes=2,5) pu:1").unwrap();
    let nodes = [node(2, &[0], 1 << 30, &[10, 20]), node(5, &[1], 1 << 30, &[20, 10])];
    assert_eq!(seen["nodes"], json!(nodes));
}

#[test]
fn s4_6_of_two_memories_at_one_package_one_is_without_cpus() {
    let seen = synthetic("pack:2 [numa(memory=8GiB)] [numa(memory=1GiB)] pu:2").unwrap();
    let nodes = [
        node(0, &[0, 1], 8 << 30, &[10, 20, 20, 20]),
        node(1, &[], 1 << 30, &[20, 10, 20, 20]),
        node(2, &[2, 3], 8 << 30, &[20, 20, 10, 20]),
        node(3, &[], 1 << 30, &[20, 20, 20, 10]),
    ];
    assert_eq!(seen["nodes"], json!(nodes));
}

#[test]
fn s4_6_memory_of_the_whole_machine_is_a_node_without_cpus() {
    let seen = synthetic("[numa(memory=1GiB)] pack:2 [numa(memory=8GiB)] pu:1").unwrap();
    let nodes = [
        node(0, &[0], 8 << 30, &[10, 20, 20]),
        node(1, &[1], 8 << 30, &[20, 10, 20]),
        node(2, &[], 1 << 30, &[20, 20, 10]),
    ];
    assert_eq!(seen["nodes"], json!(nodes));
}

#[test]
fn s4_6_an_xml_file_describes_nodes_without_cpus_or_memory() {
    // Written by hand after what lstopo exports; no comments in it, for hwloc without libxml2 takes none.
    // Node 0: CPUs 0 and 2. Node 2: CPU 1, no memory. Node 7: memory beside the packages (CXL), no CPUs.
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cxl.xml");
    let seen = discover(&[("HWLOC_XMLFILE", file)]).unwrap();
    let nodes = [
        node(0, &[0, 2], 8 << 30, &[10, 20, 20]),
        node(2, &[1], 0, &[20, 10, 20]),
        node(7, &[], 16 << 30, &[20, 20, 10]),
    ];
    assert_eq!(seen, json!({"nodes": nodes, "this_machine": false}));
}

#[test]
fn a_machine_without_any_memory_is_refused() {
    let message = synthetic("pack:2 [numa(memory=0)] pu:1").unwrap_err();
    assert!(message.contains("no node has memory"), "{message}");
}

#[test]
fn a_description_that_hwloc_drops_is_named() {
    for broken in ["rubbish", "pack:2 [numa(memory=8GB)] core:0 pu:1"] {
        let message = synthetic(broken).unwrap_err();
        let named = format!("HWLOC_SYNTHETIC={broken:?}");
        assert!(message.contains(&named), "{message}");
    }
    let no_xml = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for broken in ["/no/such/file.xml", no_xml] {
        let message = discover(&[("HWLOC_XMLFILE", broken)]).unwrap_err();
        assert!(message.contains(&format!("HWLOC_XMLFILE={broken:?}")), "{message}");
    }
}

#[test]
fn a_description_is_never_taken_for_this_machine() {
    let variables = [("HWLOC_SYNTHETIC", "numa:2 pu:1"), ("HWLOC_THISSYSTEM", "1")];
    let message = discover(&variables).unwrap_err();
    assert!(message.contains("HWLOC_THISSYSTEM"), "{message}");
}

#[test]
fn of_two_descriptions_neither_is_dropped_silently() {
    let variables = [("HWLOC_SYNTHETIC", "numa:2 pu:1"), ("HWLOC_XMLFILE", "/some/file.xml")];
    let message = discover(&variables).unwrap_err();
    assert!(message.contains("unset one"), "{message}");
}

#[test]
fn lookups_work_on_this_machine() {
    let machine = Topology::discover().unwrap();
    if !machine.is_this_machine() {
        println!("SKIPPED: HWLOC_ variables describe another machine");
        return;
    }
    for node in machine.nodes() {
        assert_eq!(machine.distance(node.nid, node.nid), Some(10));
        assert!(machine.nearest_with_cpus(node.nid).is_some());
        assert!(machine.nearest_with_memory(node.nid).is_some());
        for &cpu in &node.cpus {
            assert_eq!(machine.node_of_cpu(cpu), Some(node));
        }
    }
    assert_eq!(machine.node(Nid(u32::MAX)), None);
}
