//! S4: nodes.

use numerge_engine::{Knob, KnobError};

use crate::bed::{Bed, NIDS, figures};

fn per_node(pages: u64) -> Bed {
    let bed = Bed::on(3, pages);
    bed.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    bed
}

#[test]
fn s4_1_each_node_has_its_own_frames_or_all_have_one_set() {
    let bed = per_node(30);
    for (node, nid) in (0..).zip(NIDS) {
        bed.write_on(node * 10..node * 10 + 10, 5, nid);
    }
    assert_eq!(figures(&bed.scan(2)), [3, 27, 0, 0, 0]);
    let mut nids: Vec<_> = bed.machine.frames().iter().map(|(_, nid, _)| *nid).collect();
    nids.sort_unstable();
    assert_eq!(nids, NIDS);

    let busy = bed.engine.set(Knob::MergeAcrossNodes, 1).unwrap_err();
    assert!(matches!(busy, KnobError::Busy { shared: 3, .. }));
    bed.engine.set(Knob::Run, 2).unwrap();
    bed.engine.set(Knob::MergeAcrossNodes, 1).unwrap();
    assert_eq!(figures(&bed.scan(2)), [1, 29, 0, 0, 0]);
}

#[test]
fn s4_1_candidates_are_sorted_anew_when_the_trees_change() {
    let bed = Bed::on(2, 4);
    bed.write_on([0], 5, NIDS[0]);
    bed.scan(2);
    assert_eq!(bed.counters().pages_unshared, 1);
    bed.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    bed.write_on([1], 5, NIDS[1]);
    assert_eq!(figures(&bed.scan(3)), [0, 0, 2, 0, 0]);
    bed.engine.set(Knob::MergeAcrossNodes, 1).unwrap();
    assert_eq!(figures(&bed.scan(3)), [1, 1, 0, 0, 0]);
}

#[test]
fn s4_2_there_is_a_shard_for_each_node() {
    let bed = per_node(2);
    bed.write_on(0..2, 5, NIDS[0]);
    // Only node 0 has pages, so only its shard looks at any.
    bed.engine.scan_node(NIDS[1]);
    bed.engine.scan_node(NIDS[2]);
    assert_eq!(bed.counters().pages_scanned, 0);
    bed.engine.scan_node(NIDS[0]);
    assert_eq!((bed.counters().pages_scanned, bed.counters().full_scans), (2, 1));
}

#[test]
fn s4_3_a_frame_that_moved_goes_through_the_queue_to_the_tree_of_its_node() {
    let bed = per_node(10);
    bed.write_on(0..4, 5, NIDS[0]);
    bed.scan(2);
    let frame = bed.frame(0).unwrap();
    bed.machine.move_frame(frame, NIDS[2]);
    let counters = bed.scan(1);
    assert_eq!((counters.stable_nodes_replaced, counters.stable_nodes_queued), (1, 0));
    assert_eq!(figures(&counters), [1, 3, 0, 0, 0]);
    bed.write_on([5], 5, NIDS[2]);
    bed.write_on([6], 5, NIDS[0]);
    assert_eq!(figures(&bed.scan(2)), [1, 4, 1, 0, 0]);
    assert_eq!((bed.frame(5), bed.frame(6)), (Some(frame), None));
}

#[test]
fn s4_4_at_the_destination_a_frame_joins_the_chain_and_a_lone_sharer_a_dup_with_room() {
    let bed = per_node(20);
    bed.write_on(0..4, 5, NIDS[0]);
    bed.write_on(4..8, 5, NIDS[1]);
    bed.scan(2);
    let moved = bed.frame(0).unwrap();
    bed.machine.move_frame(moved, NIDS[1]);
    assert_eq!(figures(&bed.scan(1)), [2, 6, 0, 1, 2], "more than one sharer: a dup");

    bed.write_on(8..10, 5, NIDS[2]);
    bed.scan(2);
    bed.write_on([8], 6, NIDS[2]);
    bed.scan(1);
    let lone = bed.frame(9).unwrap();
    bed.machine.move_frame(lone, NIDS[1]);
    let counters = bed.scan(2);
    assert_eq!(figures(&counters), [2, 7, 1, 1, 2], "page 9 is merged into a dup");
    assert_ne!(bed.frame(9), Some(lone));
    assert_eq!(bed.read(9), 5);
}

#[test]
fn s4_4_a_lone_sharer_joins_as_a_dup_where_none_has_room() {
    let bed = per_node(20);
    bed.engine.set(Knob::MaxPageSharing, 2).unwrap();
    bed.write_on(0..2, 5, NIDS[0]);
    bed.write_on(4..6, 5, NIDS[1]);
    bed.scan(2);
    bed.write_on([0], 6, NIDS[0]);
    bed.scan(1);
    bed.machine.move_frame(bed.frame(1).unwrap(), NIDS[1]);
    assert_eq!(figures(&bed.scan(2)), [2, 1, 1, 1, 2]);
}

#[test]
fn s4_6_nodes_without_cpus_or_memory_and_gaps_in_their_numbers_are_ordinary() {
    let mut nodes = crate::bed::topology(3).nodes().to_vec();
    nodes[1].cpus.clear();
    nodes[2].memory_bytes = 0;
    let topology = numerge_engine::Topology::new(nodes).unwrap();
    let machine = numerge_engine::in_memory::Machine::new(topology, 20);
    let options = numerge_engine::EngineOptions { background: false, ..Default::default() };
    let engine = numerge_engine::Engine::new(machine.clone(), machine.clone(), options).unwrap();
    engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    let memory: std::sync::Arc<dyn numerge_engine::machine::Memory> = machine.clone();
    let vpn = numerge_engine::machine::Vpn;
    let _region = engine.register(&memory, vpn(0)..vpn(20)).unwrap();
    (0..20).for_each(|page| machine.write(vpn(page), 5, NIDS[usize::from(page % 2 == 1)]));
    (0..3).for_each(|_| engine.full_scan());
    assert_eq!(figures(&engine.counters()), [2, 18, 0, 0, 0]);
}
