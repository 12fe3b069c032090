//! S4.2: who scans what.

use numerge_engine::{EngineOptions, Knob, NodeReport};

use crate::bed::{Bed, NIDS, figures};

fn homes(bed: &Bed) -> Vec<u64> {
    bed.engine.nodes().iter().map(|node| node.pages_home).collect()
}

/// Pages looked at by threads of their own node, and by others.
fn scanned(bed: &Bed) -> Vec<(u64, u64)> {
    let nodes = bed.engine.nodes();
    let own = |node: &NodeReport| node.pages_scanned - node.pages_scanned_remote;
    nodes.iter().map(|node| (own(node), node.pages_scanned_remote)).collect()
}

#[test]
fn s4_2_memory_is_scanned_by_the_shard_of_the_node_that_most_of_it_is_on() {
    let bed = Bed::on(3, 100);
    bed.write_on(0..30, 5, NIDS[0]);
    bed.write_on(30..100, 6, NIDS[2]);
    bed.scan(1);
    assert_eq!(homes(&bed), [0, 0, 100]);
    assert_eq!(scanned(&bed), [(30, 0), (0, 0), (70, 0)], "each page by its own node's threads");
    assert_eq!(figures(&bed.scan(1)), [2, 98, 0, 0, 0]);
}

#[test]
fn s4_2_memory_that_moves_changes_its_shard_and_a_full_scan_waits_for_that() {
    let bed = Bed::on(3, 60);
    bed.write_on(0..60, 5, NIDS[2]);
    bed.engine.scan_node(NIDS[0]);
    assert_eq!(homes(&bed), [0, 0, 60]);
    (0..60).for_each(|page| bed.machine.move_page(numerge_engine::machine::Vpn(page), NIDS[1]));
    bed.engine.scan_node(NIDS[1]);
    bed.engine.scan_node(NIDS[2]);
    let counters = bed.counters();
    assert_eq!(homes(&bed), [0, 60, 0]);
    assert_eq!((counters.full_scans, counters.pages_scanned), (0, 0), "nobody has visited it");
    bed.engine.scan_node(NIDS[1]);
    assert_eq!((bed.counters().full_scans, bed.counters().pages_scanned), (1, 60));
}

#[test]
fn s4_2_interleaved_memory_is_read_by_all_its_nodes() {
    let bed = Bed::on(3, 90);
    for (node, nid) in (0..).zip(NIDS) {
        bed.write_on((node..90).step_by(3), 5, nid);
    }
    bed.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    assert_eq!(figures(&bed.scan(2)), [3, 87, 0, 0, 0]);
    assert_eq!(scanned(&bed), [(60, 0), (60, 0), (60, 0)], "two looks at each page");
    let nodes = bed.engine.nodes();
    assert!(nodes.iter().all(|node| (node.pages_shared, node.pages_sharing) == (1, 29)));
    let remote: u64 = nodes.iter().map(|node| node.sharers_remote).sum();
    assert_eq!(remote, 60, "all are at home where a third of them are");
}

#[test]
fn s4_2_nodes_with_nothing_to_do_help_others_only_if_that_is_wanted() {
    for help_other_nodes in [false, true] {
        let options =
            EngineOptions { background: false, help_other_nodes, ..EngineOptions::default() };
        let bed = Bed::with(3, 300, options);
        bed.write_on(0..300, 5, NIDS[0]);
        bed.scan(1);
        let [(here, remote), (0, 0), (0, 0)] = scanned(&bed)[..] else {
            panic!("{:?}", scanned(&bed))
        };
        assert_eq!(here + remote, 300);
        assert_eq!(remote > 0, help_other_nodes);
        assert_eq!(figures(&bed.scan(1)), [2, 298, 0, 1, 2]);
    }
}

#[test]
fn s4_2_a_node_without_cpus_is_scanned_from_the_nearest_with_cpus() {
    let mut nodes = crate::bed::topology(2).nodes().to_vec();
    nodes[1].cpus.clear();
    let topology = numerge_engine::Topology::new(nodes).unwrap();
    let bed =
        Bed::of(topology, 20, EngineOptions { background: false, ..EngineOptions::default() });
    bed.write_on(0..20, 5, NIDS[1]);
    bed.scan(1);
    assert_eq!(homes(&bed), [0, 20]);
    assert_eq!(scanned(&bed), [(0, 0), (0, 20)]);
}

#[test]
fn s4_1_a_candidate_that_the_machine_moved_finds_its_partner_on_its_new_node() {
    let bed = Bed::on(3, 30);
    bed.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    bed.write_on([0], 5, NIDS[0]);
    bed.write_on([1], 5, NIDS[1]);
    assert_eq!(figures(&bed.scan(2)), [0, 0, 2, 0, 0]);
    bed.machine.move_page(numerge_engine::machine::Vpn(1), NIDS[0]);
    assert_eq!(figures(&bed.scan(3)), [1, 1, 0, 0, 0], "though nobody wrote to it");
}

#[test]
fn s4_3_frames_are_moved_back_only_if_that_is_wanted() {
    for move_frames_back in [false, true] {
        let options =
            EngineOptions { background: false, move_frames_back, ..EngineOptions::default() };
        let bed = Bed::with(2, 10, options);
        bed.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
        bed.write_on(0..10, 5, NIDS[0]);
        bed.scan(2);
        bed.machine.move_frame(bed.frame(0).unwrap(), NIDS[1]);
        let counters = bed.scan(1);
        assert_eq!(figures(&counters), [1, 9, 0, 0, 0]);
        let home = NIDS[usize::from(!move_frames_back)];
        assert_eq!(bed.machine.frames()[0].1, home);
        assert_eq!(counters.stable_nodes_replaced, u64::from(!move_frames_back));
        let pools: Vec<u64> =
            bed.engine.pools().iter().map(|pool| pool.frames.values().sum()).collect();
        assert_eq!(pools, [1, 0], "it stays a frame of the pool it came from");
        assert_eq!(bed.engine.pools()[0].frames.get(&home), Some(&1));
    }
}
