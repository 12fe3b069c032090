//! Four nodes in a ring.

use numerge::Nid;

use crate::bed::Bed;

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_3_frames_go_round_all_nodes() {
    let bed = Bed::by_hand();
    let guest = bed.guest(Nid(0), 100, |page| page as u64 % 10);
    bed.settle();
    for step in 1..=4_u32 {
        guest.place(0..100, Nid(step % 4));
        let c = bed.settle();
        assert_eq!(bed.figures(Nid(step % 4)), [10, 90, 0, 0]);
        assert_eq!(c.stable_nodes_replaced, u64::from(step) * 10);
        guest.check_is_on(Nid(step % 4));
    }
    bed.unmerge(&[&guest]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_the_nearest_nodes_shard_takes_over() {
    let bed = Bed::by_hand();
    let nodes = [0, 1, 2, 3].map(Nid);
    let guests = nodes.map(|nid| bed.equal(nid, 10, 7));
    bed.settle();
    bed.merger.offline_node(Nid(2)).unwrap();
    // 1 and 3 are as near: the lower.
    assert_eq!(nodes.map(|nid| bed.node(nid).pages_home), [10, 20, 0, 10]);
    assert_eq!(bed.figures(Nid(2)), [0; 4]);
    bed.merger.offline_node(Nid(1)).unwrap();
    let homes = nodes.map(|nid| bed.node(nid).pages_home);
    assert_eq!((homes[1], homes[2], homes[0] + homes[3]), (0, 0, 40));
    guests.iter().for_each(|guest| guest.check());
    bed.merger.online_node(Nid(1)).unwrap();
    bed.merger.online_node(Nid(2)).unwrap();
    for (guest, nid) in guests.iter().zip(nodes) {
        guest.place(0..10, nid);
    }
    bed.settle();
    assert_eq!(nodes.map(|nid| bed.node(nid).pages_home), [10; 4]);
    assert_eq!(nodes.map(|nid| bed.figures(nid)), [[1, 9, 0, 0]; 4]);
    bed.unmerge(&guests.iter().collect::<Vec<_>>());
}
