//! Three nodes, the third without memory.

use numerge::Nid;

use crate::bed::Bed;

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_6_a_node_without_memory_has_a_shard_and_no_pages() {
    let bed = Bed::at_work();
    let nid = Nid(2);
    let known = bed.topology.node(nid).unwrap();
    assert_eq!(known.memory_bytes, 0);
    assert!(!known.cpus.is_empty());
    let guests = [bed.equal(Nid(0), 100, 7), bed.equal(Nid(1), 100, 7)];
    bed.start();
    bed.come_to_rest();
    let node = bed.node(nid);
    assert!(node.online);
    assert_eq!((node.pages_home, node.pages_shared, node.pages_scanned), (0, 0, 0), "{node:?}");
    assert!(bed.pool(nid).is_empty());
    // It can go, and come back.
    bed.merger.offline_node(nid).unwrap();
    bed.wait_for_scans(2);
    bed.merger.online_node(nid).unwrap();
    bed.come_to_rest();
    assert_eq!(bed.figures(Nid(0)), [1, 99, 0, 0]);
    bed.unmerge(&[&guests[0], &guests[1]]);
}
