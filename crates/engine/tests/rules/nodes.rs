//! S5.5, by node: the kernel's counters, of what lies or is at home where.

use std::sync::Arc;

use numerge_engine::machine::{Memory, Vpn};
use numerge_engine::{Knob, NodeReport, RegionHandle};

use crate::bed::{Bed, NIDS};
use crate::sums::nodes_add_up;

/// Three nodes, and a region of 100 pages at home on each, of contents of its own.
fn three() -> (Bed, Vec<RegionHandle>) {
    let mut bed = Bed::on(3, 300);
    drop(bed.region.take());
    let regions = (0..).zip(NIDS).map(|(node, nid)| {
        let start = 100 * node;
        bed.write_on(start..start + 10, 5, nid);
        let memory: Arc<dyn Memory> = bed.machine.clone();
        bed.engine.register(&memory, Vpn(start)..Vpn(start + 100)).unwrap()
    });
    let regions = regions.collect();
    (bed, regions)
}

fn adds_up(bed: &Bed) -> Vec<NodeReport> {
    let nodes = bed.engine.nodes();
    nodes_add_up(&bed.counters(), &nodes);
    nodes
}

#[test]
fn s5_5_counters_of_nodes_are_of_what_is_there_and_add_up() {
    for across in [0, 1] {
        let (bed, _regions) = three();
        bed.engine.set(Knob::MergeAcrossNodes, across).unwrap();
        bed.engine.set(Knob::UseZeroPages, 1).unwrap();
        bed.engine.set(Knob::MaxPageSharing, 4).unwrap();
        // On each node more of everything than on the one before.
        for (node, nid) in (0..).zip(NIDS) {
            let (start, more) = (100 * node, 1 + node);
            bed.write_on(start + 20..start + 20 + 2 * more, 0, nid);
            (0..3 * more).for_each(|at| bed.write_on([start + 30 + at], 1000 + start + at, nid));
            bed.write_on(start + 50..start + 50 + 4 * more, 9, nid);
            (0..2).for_each(|at| bed.machine.pin(Vpn(start + 50 + at), true));
        }
        bed.scan(3);
        for (node, nid) in (0..).zip(NIDS) {
            let first = 70 + 100 * node;
            (0..=node).for_each(|at| bed.write_on([first + at], 2000 + first + at, nid));
            bed.write_on(100 * node..100 * node + 1 + node, 2500 + node, nid);
        }
        bed.scan(1);
        let nodes = adds_up(&bed);
        for (node, report) in (0..).zip(&nodes) {
            let more = 1 + node;
            assert_eq!(report.ksm_zero_pages, 2 * more, "{report:?}");
            // Candidates alone for their content; those seen for the first time, and those pinned.
            let alone = (report.pages_unshared, report.pages_volatile);
            assert_eq!(alone, (3 * more, 2 * more + 2), "{report:?}");
            assert_eq!((report.pages_broken, report.pages_home), (more, 100), "{report:?}");
            assert_eq!(report.full_scans, 4);
        }
        let c = bed.counters();
        assert!(c.stable_node_chains > 0 && c.pages_held == 6 && c.pages_sharing > 0, "{c:?}");
        bed.engine.set(Knob::Run, 2).unwrap();
        adds_up(&bed);
    }
}

#[test]
fn s5_5_looks_left_out_are_counted_by_node() {
    let (bed, _regions) = three();
    bed.engine.set(Knob::SmartScan, 1).unwrap();
    for scan in 0..40 {
        // That change, on two of the nodes.
        (0..10).for_each(|page| bed.write_on([page], 1000 + 10 * scan + page, NIDS[0]));
        (200..230).for_each(|page| bed.write_on([page], 2000 + 30 * scan + page, NIDS[2]));
        bed.scan(1);
    }
    let skipped: Vec<u64> = adds_up(&bed).iter().map(|node| node.pages_skipped).collect();
    assert!(skipped[0] > 0 && skipped[1] == 0 && skipped[2] > skipped[0], "{skipped:?}");
}

/// Where there is but one, nothing is looked through.
#[test]
fn s5_5_of_one_node_the_counters_are_those_of_all() {
    let bed = Bed::new(100);
    bed.engine.set(Knob::UseZeroPages, 1).unwrap();
    bed.write(0..10, 5);
    bed.write(10..20, 0);
    (20..40).for_each(|page| bed.write([page], page));
    bed.scan(2);
    bed.write(40..45, 7);
    bed.scan(1);
    let nodes = adds_up(&bed);
    let node = &nodes[0];
    assert_eq!((node.ksm_zero_pages, node.pages_unshared, node.pages_volatile), (10, 20, 5));
}
