//! S4.5 by command: frames and nodes taken out of use while the machine keeps them.

use std::collections::BTreeSet;

use numerge::{Kpfn, Nid, OfflineError, Options};

use crate::bed::{Bed, Guest, wait_for, while_written};
use crate::kernel;

/// The first file of frames that is made: its numbers are those below 2^18.
const FIRST_FILE: std::ops::Range<Kpfn> = Kpfn(0)..Kpfn(1 << 18);
const ALL: std::ops::Range<Kpfn> = Kpfn(0)..Kpfn(1 << Kpfn::BITS);

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_frames_taken_offline_are_given_up_and_their_pages_merged_elsewhere() {
    let bed = Bed::by_hand();
    let (a, b) = bed.two_nodes();
    let guests = [bed.guest(a, 300, |page| page as u64 % 100), bed.equal(b, 100, 3)];
    let guests: Vec<&Guest> = guests.iter().collect();
    bed.settle();
    let figures = (bed.figures(a), bed.figures(b));
    assert_eq!(figures, ([100, 200, 0, 0], [1, 99, 0, 0]));
    let files = || guests.iter().flat_map(|guest| guest.files()).collect::<BTreeSet<_>>();
    let before = files();
    bed.merger.offline_frames(FIRST_FILE).unwrap();
    assert!(bed.merger.counters().pages_shared < 101, "they were in use");
    bed.check_sums();
    guests.iter().for_each(|guest| guest.check());
    let again = bed.merger.offline_frames(FIRST_FILE);
    assert!(matches!(again, Err(OfflineError::AlreadyOffline(_))), "{again:?}");

    // Its pages' memory is where it was, or wherever the kernel put the copies.
    guests[0].place(0..300, a);
    bed.settle();
    assert_eq!((bed.figures(a), bed.figures(b)), figures);
    let after = files();
    assert!(!before.is_subset(&after), "{before:?} before, {after:?} after");
    guests[0].check_is_on(a);

    bed.merger.online_frames(FIRST_FILE).unwrap();
    let again = bed.merger.online_frames(FIRST_FILE);
    assert!(matches!(again, Err(OfflineError::NotOffline(_))), "{again:?}");
    bed.settle();
    assert_eq!((bed.figures(a), bed.figures(b)), figures);
    bed.unmerge(&guests);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_with_all_frames_offline_nothing_merges_until_they_are_back() {
    let bed = Bed::by_hand();
    let (a, b) = bed.two_nodes();
    let guests = [bed.guest(a, 300, |page| page as u64 % 100), bed.equal(b, 100, 3)];
    bed.settle();
    bed.merger.offline_frames(ALL).unwrap();
    assert_eq!(bed.merger.counters().pages_shared, 0);
    guests[0].place(0..300, a);
    guests[1].place(0..100, b);
    let mappings = bed.merger.mappings().unwrap().used;
    (0..20).for_each(|_| bed.merger.full_scan());
    let c = bed.merger.counters();
    assert_eq!(c.pages_shared, 0);
    assert!(c.frames_refused > 0);
    // What can't be had is not paid for either.
    let now = bed.merger.mappings().unwrap().used;
    assert!(now <= mappings + 8, "{mappings} mappings before, {now} now");
    bed.check_sums();
    bed.merger.online_frames(ALL).unwrap();
    bed.settle();
    assert_eq!((bed.figures(a), bed.figures(b)), ([100, 200, 0, 0], [1, 99, 0, 0]));
    bed.unmerge(&[&guests[0], &guests[1]]);
}

/// Whether a node has threads.
pub(crate) fn has_threads(nid: Nid) -> bool {
    kernel::threads().keys().any(|name| kernel::node_of_thread(name) == Some(nid))
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_a_node_taken_offline_by_command_is_emptied_and_comes_back() {
    let bed = Bed::at_work();
    let (a, b) = bed.two_nodes();
    let guests =
        [bed.guest(a, 128, |page| page as u64 % 5), bed.guest(b, 128, |page| page as u64 % 5)];
    let guests: Vec<&Guest> = guests.iter().collect();
    bed.start();
    assert!(bed.node(b).pages_shared > 0 && has_threads(b));
    while_written(&bed, &guests, None, || {
        bed.merger.offline_node(b).unwrap();
        assert!(!has_threads(b), "{:?}", kernel::threads());
        let node = bed.node(b);
        assert!(!node.online);
        assert_eq!((node.pages_home, node.pages_shared), (0, 0), "{node:?}");
        // Others go on; the machine's word that the node is there does not bring it back.
        bed.wait_for_scans(5);
        assert!(!bed.node(b).online && bed.node(a).online);
        assert_eq!(bed.node(b).pages_shared, 0);
        bed.merger.online_node(b).unwrap();
        wait_for("the node's threads", || has_threads(b));
    });
    bed.merger.online_node(b).unwrap();
    guests[1].place(0..128, b);
    bed.come_to_rest();
    let node = bed.node(b);
    assert!(node.online && node.pages_home >= 128 && node.pages_shared > 0, "{node:?}");
    assert_eq!(bed.merger.counters().pages_registered, 256);
    bed.unmerge(&guests);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_threads_of_a_node_that_came_back_run_on_its_cpus() {
    let bed = Bed::with(Options { threads_per_node: Some(2), ..Options::default() });
    let (_, b) = bed.two_nodes();
    bed.merger.offline_node(b).unwrap();
    bed.merger.online_node(b).unwrap();
    super::locality::check_threads(&bed);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_5_one_node_stays_and_no_other_is_known() {
    let bed = Bed::by_hand();
    let nids: Vec<Nid> = bed.topology.nodes().iter().map(|node| node.nid).collect();
    let unknown = bed.merger.offline_node(Nid(999));
    assert!(matches!(unknown, Err(OfflineError::UnknownNode { .. })), "{unknown:?}");
    for nid in &nids[1..] {
        bed.merger.offline_node(*nid).unwrap();
    }
    let last = bed.merger.offline_node(nids[0]);
    assert!(matches!(last, Err(OfflineError::LastNode(nid)) if nid == nids[0]), "{last:?}");
    let (a, b) = bed.two_nodes();
    let guests = [bed.equal(a, 10, 7), bed.equal(b, 10, 7)];
    bed.merger.full_scan();
    nids.iter().for_each(|nid| bed.merger.online_node(*nid).unwrap());
    bed.settle();
    assert_eq!((bed.figures(a), bed.figures(b)), ([1, 9, 0, 0], [1, 9, 0, 0]));
    bed.unmerge(&[&guests[0], &guests[1]]);
}
