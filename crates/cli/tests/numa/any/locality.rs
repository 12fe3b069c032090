//! S4.2: threads and tables are where the memory is that they are for.

use numerge::{Nid, Options};

use crate::bed::{Bed, PAGE};
use crate::kernel;

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_2_threads_run_on_the_cpus_of_their_node() {
    let bed = Bed::with(Options { threads_per_node: Some(2), ..Options::default() });
    check_threads(&bed);
}

/// That each node has its threads, and that they may run on its CPUs, or on those of the nearest
/// node that has some (S4.6), and nowhere else.
pub(crate) fn check_threads(bed: &Bed) {
    let names = |nid: Nid| ["", "-0", "-1"].map(|suffix| format!("numerge-{nid}{suffix}"));
    let expected: Vec<String> =
        bed.topology.nodes().iter().flat_map(|node| names(node.nid)).collect();
    let there = || kernel::threads().into_keys().collect::<Vec<_>>() == expected;
    crate::bed::wait_for("the threads of all nodes", there);
    let wrong = || {
        kernel::threads().into_iter().find(|(name, cpus)| {
            let nid = kernel::node_of_thread(name).unwrap();
            let node = bed.topology.nearest_with_cpus(nid).unwrap();
            !cpus.iter().eq(&node.cpus)
        })
    };
    // A thread binds itself when it begins, and if the CPUs were not there yet, once they are.
    let start = std::time::Instant::now();
    while let Some(found) = wrong() {
        assert!(start.elapsed().as_secs() < 60, "{found:?} may run elsewhere");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_2_tables_are_on_the_node_whose_memory_they_are_about() {
    let bed = Bed::by_hand();
    let nodes = bed.memory_nodes();
    // Different pages, so that all of them are in the tables of candidates too.
    let guests = nodes.iter().zip(0..);
    let guests: Vec<_> = guests
        .map(|(nid, at)| bed.guest(*nid, 4096, move |page| at * 10_000 + page as u64))
        .collect();
    let c = bed.settle();
    assert_eq!(c.pages_unshared, 4096 * nodes.len() as u64);
    for &nid in &nodes {
        let node = bed.node(nid);
        assert_eq!(node.pages_home, 4096);
        // A record of 16 bytes for each page, but for the ends that are no whole pages.
        assert!(node.metadata_bytes >= 4096 * 16 - 2 * PAGE as u64, "{node:?}");
        assert!(node.metadata_bytes_remote * 20 <= node.metadata_bytes, "{node:?}");
    }
    drop(guests);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_2_tables_follow_memory_that_is_moved() {
    let bed = Bed::by_hand();
    let (a, b) = bed.two_nodes();
    let guest = bed.guest(a, 4096, |page| page as u64);
    bed.settle();
    assert_eq!((bed.node(a).pages_home, bed.node(b).pages_home), (4096, 0));
    guest.place(0..4096, b);
    bed.settle();
    assert_eq!((bed.node(a).pages_home, bed.node(b).pages_home), (0, 4096));
    let node = bed.node(b);
    assert!(node.metadata_bytes >= 4096 * 16 - 2 * PAGE as u64, "{node:?}");
    assert!(node.metadata_bytes_remote * 20 <= node.metadata_bytes, "{node:?}");
    guest.check();
}
