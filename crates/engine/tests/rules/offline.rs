//! S4.5: memory that goes offline and comes back.

use numerge_engine::{Knob, Kpfn, Nid, OfflineError};

use crate::bed::{Bed, NIDS, figures};

fn merged_on_two() -> Bed {
    let bed = Bed::on(2, 40);
    bed.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    bed.write_on(0..20, 5, NIDS[0]);
    bed.write_on(20..40, 5, NIDS[1]);
    assert_eq!(figures(&bed.scan(2)), [2, 38, 0, 0, 0]);
    bed
}

fn online(bed: &Bed) -> Vec<bool> {
    bed.engine.nodes().iter().map(|node| node.online).collect()
}

#[test]
fn s4_5_a_node_goes_offline_and_its_pages_get_their_own_memory() {
    let bed = merged_on_two();
    bed.engine.offline_node(NIDS[1]).unwrap();
    assert_eq!(online(&bed), [true, false]);
    assert!((20..40).all(|page| bed.frame(page).is_none() && bed.read(page) == 5));
    assert!(bed.machine.frames().iter().all(|(_, nid, _)| *nid == NIDS[0]));
    // Nothing is merged there, and they stay registered.
    let counters = bed.scan(3);
    assert_eq!(figures(&counters), [1, 19, 0, 0, 0]);
    assert_eq!((counters.pages_volatile, counters.pages_registered), (20, 40));
    // Scanning goes on elsewhere.
    let scans = counters.full_scans;
    bed.write_on([0], 6, NIDS[0]);
    assert_eq!(bed.scan(2).full_scans, scans + 2);
    assert_eq!(figures(&bed.counters()), [1, 18, 1, 0, 0]);

    bed.engine.online_node(NIDS[1]).unwrap();
    assert_eq!(online(&bed), [true, true]);
    assert_eq!(figures(&bed.scan(3)), [2, 37, 1, 0, 0]);
}

#[test]
fn s4_5_what_the_machine_moves_off_an_offline_node_is_merged_where_it_comes_to() {
    let bed = merged_on_two();
    bed.engine.offline_node(NIDS[1]).unwrap();
    bed.scan(2);
    bed.machine.take_node(NIDS[1], NIDS[0]);
    assert_eq!(figures(&bed.scan(3)), [1, 39, 0, 0, 0]);
    // It went, so that its return is enough.
    bed.machine.give_node(NIDS[1]);
    bed.scan(1);
    assert_eq!(online(&bed), [true, true]);
}

#[test]
fn s4_5_the_engine_follows_when_the_machine_takes_a_node_and_brings_it_back() {
    let bed = merged_on_two();
    bed.machine.take_node(NIDS[1], NIDS[0]);
    let counters = bed.scan(3);
    assert_eq!(online(&bed), [true, false]);
    assert_eq!(figures(&counters), [2, 38, 0, 1, 2], "its frames are in the tree of node 0");
    assert_eq!(counters.stable_nodes_queued, 0);
    assert_eq!(bed.engine.nodes()[0].pages_home, 40);
    bed.machine.give_node(NIDS[1]);
    bed.scan(1);
    assert_eq!(online(&bed), [true, true]);
}

#[test]
fn s4_5_chains_and_queued_frames_leave_too() {
    let bed = Bed::on(3, 60);
    bed.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    bed.engine.set(Knob::MaxPageSharing, 2).unwrap();
    bed.write_on(0..20, 5, NIDS[0]);
    bed.write_on(20..40, 6, NIDS[1]);
    assert_eq!(figures(&bed.scan(2)), [20, 20, 0, 2, 20]);
    // One is on its way while its destination goes.
    bed.machine.move_frame(bed.frame(0).unwrap(), NIDS[1]);
    bed.engine.offline_node(NIDS[1]).unwrap();
    assert_eq!(figures(&bed.counters()), [9, 9, 0, 1, 9]);
    let c = bed.scan(1);
    assert_eq!(c.stable_nodes_queued, 0);
    assert_eq!(c.pages_shared + c.pages_sharing + c.pages_unshared + c.pages_volatile, 40);
}

#[test]
fn s4_5_a_range_of_frames_goes_offline_and_comes_back() {
    let bed = merged_on_two();
    let frame = bed.frame(20).unwrap();
    let range = frame..frame.plus(1);
    bed.engine.offline_frames(range.clone()).unwrap();
    assert!((20..40).all(|page| bed.frame(page).is_none() && bed.read(page) == 5));
    assert_eq!(figures(&bed.scan(3)), [2, 38, 0, 0, 0], "merged again, into another frame");
    assert_ne!(bed.frame(20), Some(frame));

    let twice = bed.engine.offline_frames(Kpfn(0)..Kpfn(1 << 30)).unwrap_err();
    assert!(matches!(twice, OfflineError::AlreadyOffline(known) if known == range));
    bed.engine.online_frames(range.clone()).unwrap();
    assert!(matches!(bed.engine.online_frames(range), Err(OfflineError::NotOffline(_))));
}

#[test]
fn s4_5_the_last_node_and_what_is_none_are_refused() {
    let bed = merged_on_two();
    let unknown = bed.engine.offline_node(Nid(7)).unwrap_err();
    assert_eq!(unknown.to_string(), "there is no node 7: the engine was built for 0, 2");
    assert!(bed.engine.online_node(Nid(7)).is_err());
    bed.engine.offline_node(NIDS[0]).unwrap();
    assert!(
        matches!(bed.engine.offline_node(NIDS[1]), Err(OfflineError::LastNode(nid)) if nid == NIDS[1])
    );
    bed.engine.offline_node(NIDS[0]).unwrap();
    let (begin, end) = (Kpfn(5), Kpfn(u64::MAX));
    for range in [begin..begin, end..begin, begin..end] {
        assert!(matches!(bed.engine.offline_frames(range), Err(OfflineError::NoRange(_))));
    }
    assert_eq!(figures(&bed.scan(2)), [1, 19, 0, 0, 0]);
}

#[test]
fn s4_5_without_memory_for_copies_everything_stays_as_it_was() {
    let bed = merged_on_two();
    bed.machine.limit(u64::MAX, 7);
    assert!(matches!(bed.engine.offline_node(NIDS[1]), Err(OfflineError::Memory(_))));
    assert_eq!(online(&bed), [true, true]);
    bed.machine.limit(u64::MAX, 0);
    let frames = Kpfn(0)..Kpfn(1 << 30);
    assert!(matches!(bed.engine.offline_frames(frames), Err(OfflineError::Memory(_))));
    assert!((0..40).all(|page| bed.read(page) == 5));
    bed.machine.limit(u64::MAX, u64::MAX);
    assert_eq!(figures(&bed.scan(3)), [2, 38, 0, 0, 0]);
}
