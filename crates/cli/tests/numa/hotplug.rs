//! Three nodes, of which node 1 can lose its memory and CPUs, and node 2, which has only memory, can
//! vanish and come back.

use numerge::{Nid, Options};

use crate::any::offline::has_threads;
use crate::bed::{Bed, Guest, wait_for, while_written};
use crate::kernel;

const HOME: Nid = Nid(0);
const WITH_CPUS: Nid = Nid(1);
const ONLY_MEMORY: Nid = Nid(2);

/// Plugs in what a test that failed may have left out.
fn all_online() {
    for nid in [WITH_CPUS, ONLY_MEMORY] {
        online(nid);
    }
}

fn online(nid: Nid) {
    kernel::run("node-online", &[&nid.to_string()]);
}

fn offline(nid: Nid) {
    kernel::run("node-offline", &[&nid.to_string()]);
}

/// Pages of each guest; merging single pages takes milliseconds under emulation.
const PAGES: usize = 128;

/// A guest on each of the nodes.
fn guests(bed: &Bed) -> [Guest; 3] {
    [HOME, WITH_CPUS, ONLY_MEMORY].map(|nid| bed.guest(nid, PAGES, |page| page as u64 % 5))
}

/// A node goes and comes back while the engine scans and merges and programs write.
fn goes_and_comes_back(nid: Nid) {
    all_online();
    let bed = Bed::at_work();
    let guests = guests(&bed);
    let all: Vec<&Guest> = guests.iter().collect();
    bed.start();
    assert!(bed.node(nid).pages_shared > 0);
    while_written(&bed, &all, Some(HOME), || {
        offline(nid);
        wait_for("the end of the node's shard", || !bed.node(nid).online && !has_threads(nid));
        bed.wait_for_scans(4);
        let node = bed.node(nid);
        assert_eq!((node.pages_home, node.pages_shared), (0, 0), "{node:?}");
        // Nothing is left behind there.
        assert!(bed.merger.pools().iter().all(|pool| !pool.frames.contains_key(&nid)));
        for guest in &guests {
            assert!(!guest.region.pages_by_node().unwrap().contains_key(&nid));
        }
        assert_eq!(bed.merger.counters().pages_registered, 3 * PAGES as u64);
    });
    bed.come_to_rest();
    while_written(&bed, &all, Some(HOME), || {
        online(nid);
        wait_for("the node's new shard", || bed.node(nid).online && has_threads(nid));
        bed.wait_for_scans(4);
    });
    let guest = guests.iter().zip([HOME, WITH_CPUS, ONLY_MEMORY]).find(|(_, at)| *at == nid);
    guest.unwrap().0.place(0..PAGES, nid);
    bed.come_to_rest();
    let node = bed.node(nid);
    assert!(node.pages_home == PAGES as u64 && node.pages_shared > 0, "{node:?}");
    bed.unmerge(&all);
    bed.merger.shut_down().unwrap();
    all.iter().for_each(|guest| guest.check());
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_a_node_with_cpus_goes_and_comes_back_in_the_middle() {
    goes_and_comes_back(WITH_CPUS);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_a_node_of_memory_only_vanishes_and_comes_back_in_the_middle() {
    goes_and_comes_back(ONLY_MEMORY);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_threads_of_a_node_that_was_plugged_in_again_run_on_its_cpus() {
    all_online();
    let bed = Bed::with(Options { threads_per_node: Some(2), ..Options::default() });
    let guests = guests(&bed);
    bed.start();
    offline(WITH_CPUS);
    wait_for("the end of the node's shard", || !has_threads(WITH_CPUS));
    online(WITH_CPUS);
    wait_for("the node's new shard", || has_threads(WITH_CPUS));
    crate::any::locality::check_threads(&bed);
    bed.unmerge(&guests.iter().collect::<Vec<_>>());
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_a_node_emptied_by_command_can_be_unplugged_and_follows_the_machine_back() {
    all_online();
    let bed = Bed::at_work();
    let guests = guests(&bed);
    let all: Vec<&Guest> = guests.iter().collect();
    bed.start();
    while_written(&bed, &all, Some(HOME), || {
        bed.merger.offline_node(ONLY_MEMORY).unwrap();
        bed.wait_for_scans(2);
        offline(ONLY_MEMORY);
        bed.wait_for_scans(2);
        assert!(!bed.node(ONLY_MEMORY).online);
        // It went and came back, so that the command has had its effect.
        online(ONLY_MEMORY);
        wait_for("the node's new shard", || bed.node(ONLY_MEMORY).online);
    });
    guests[2].place(0..PAGES, ONLY_MEMORY);
    bed.come_to_rest();
    assert!(bed.node(ONLY_MEMORY).pages_shared > 0);
    bed.unmerge(&all);
}
