//! Three nodes, the third without CPUs.

use numerge::Nid;

use crate::bed::Bed;

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_6_a_node_without_cpus_is_scanned_by_the_nearest_that_has_some() {
    let bed = Bed::by_hand();
    let nid = Nid(2);
    assert!(bed.topology.node(nid).unwrap().cpus.is_empty());
    let guest = bed.equal(nid, 100, 7);
    bed.settle();
    let node = bed.node(nid);
    assert_eq!((node.pages_home, node.pages_shared, node.pages_sharing), (100, 1, 99));
    assert_eq!((node.pages_scanned, node.pages_scanned_remote), (200, 200));
    guest.check_is_on(nid);
    bed.unmerge(&[&guest]);
}
