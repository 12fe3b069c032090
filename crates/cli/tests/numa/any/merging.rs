//! S4.1: with whom pages are merged, and where.

use std::collections::BTreeMap;

use numerge::{Knob, KnobError, Nid};

use crate::bed::{Bed, Figures, Guest, PAGE, every, wait_for};
use crate::kernel;

/// Equal pages on each node at the default limit of 256, and the worked figures of S5 for them: the
/// counters, and pages without a partner.
const WORKED: [(usize, Figures, u64); 5] = [
    (255, [1, 254, 0, 0], 0),
    (256, [1, 255, 0, 0], 0),
    (257, [1, 255, 0, 0], 1),
    (258, [2, 256, 1, 2], 0),
    (512, [2, 510, 1, 2], 0),
];

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_1_each_node_merges_into_frames_of_its_own() {
    let bed = Bed::by_hand();
    let nodes = bed.memory_nodes();
    for (pages, figures, unshared) in WORKED {
        let guests: Vec<Guest> = nodes.iter().map(|nid| bed.equal(*nid, pages, 7)).collect();
        let c = bed.settle();
        assert_eq!(c.pages_unshared, unshared * nodes.len() as u64, "{pages} pages");
        let mut frames = BTreeMap::new();
        for (guest, &nid) in guests.iter().zip(&nodes) {
            assert_eq!(bed.figures(nid), figures, "{pages} pages, node {nid}");
            assert_eq!(bed.node(nid).sharers_remote, 0);
            assert_eq!(bed.pool(nid), BTreeMap::from([(nid, figures[0])]));
            guest.check_is_on(nid);
            let here = guest.page_frames();
            assert_eq!(here.len() as u64, figures[0] + unshared, "{here:?}");
            assert!(here.values().all(|sharers| *sharers <= 256), "{here:?}");
            frames.extend(here);
        }
        let all = (figures[0] + unshared) * nodes.len() as u64;
        assert_eq!(frames.len() as u64, all, "no frame is in use on two nodes");
        bed.unmerge(&guests.iter().collect::<Vec<_>>());
    }
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_1_merging_across_nodes_needs_one_set_of_frames() {
    let bed = Bed::by_hand();
    bed.merger.set(Knob::MergeAcrossNodes, 1).unwrap();
    let nodes = bed.memory_nodes();
    let guests: Vec<Guest> = nodes.iter().map(|nid| bed.equal(*nid, 100, 7)).collect();
    let c = bed.settle();
    let pages = 100 * nodes.len() as u64;
    // As few as the limit allows.
    let needed = pages.div_ceil(256);
    assert_eq!((c.pages_shared, c.pages_sharing), (needed, pages - needed));
    let mut frames: BTreeMap<u64, u64> = BTreeMap::new();
    for guest in &guests {
        for (frame, sharers) in guest.page_frames() {
            *frames.entry(frame).or_default() += sharers;
        }
    }
    assert_eq!(frames.len() as u64, needed, "{frames:?}");
    assert!(frames.values().all(|sharers| *sharers <= 256), "{frames:?}");
    let (mut on, mut remote) = (0, 0);
    for node in bed.merger.nodes() {
        on += node.pages_shared + node.pages_sharing;
        remote += node.sharers_remote;
    }
    assert_eq!(on, pages);
    // What is not at home where its frame is, the kernel says as well.
    let homes = guests.iter().zip(&nodes);
    let elsewhere = homes.map(|(guest, nid)| {
        guest.nodes().iter().filter(|found| **found != Some(*nid)).count() as u64
    });
    assert_eq!(remote, elsewhere.sum::<u64>());
    assert!(remote > 0);
    bed.unmerge(&guests.iter().collect::<Vec<_>>());
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_1_a_frame_is_on_the_node_of_its_first_sharer() {
    let bed = Bed::by_hand();
    bed.merger.set(Knob::MergeAcrossNodes, 1).unwrap();
    let (_, last) = bed.two_nodes();
    let first = bed.equal(last, 10, 7);
    bed.settle();
    let second = bed.equal(bed.two_nodes().0, 10, 7);
    let c = bed.settle();
    assert_eq!((c.pages_shared, c.pages_sharing), (1, 19));
    assert_eq!((bed.figures(last), bed.node(last).sharers_remote), ([1, 19, 0, 0], 10));
    first.check_is_on(last);
    second.check_is_on(last);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_1_the_knob_changes_only_while_nothing_is_shared() {
    let bed = Bed::by_hand();
    let nodes = bed.memory_nodes();
    let guests: Vec<Guest> = nodes.iter().map(|nid| bed.equal(*nid, 10, 7)).collect();
    bed.settle();
    let shared = nodes.len() as u64;
    let refused = bed.merger.set(Knob::MergeAcrossNodes, 1);
    assert!(
        matches!(refused, Err(KnobError::Busy { shared: found, .. }) if found == shared),
        "{refused:?}"
    );
    assert_eq!(bed.merger.knob(Knob::MergeAcrossNodes), 0);
    bed.merger.set(Knob::MergeAcrossNodes, 0).unwrap();
    assert!(matches!(bed.merger.set(Knob::MergeAcrossNodes, 2), Err(KnobError::Invalid { .. })));

    bed.merger.set(Knob::Run, 2).unwrap();
    bed.merger.set(Knob::MergeAcrossNodes, 1).unwrap();
    assert_eq!(bed.settle().pages_shared, 1);
    assert!(matches!(bed.merger.set(Knob::MergeAcrossNodes, 0), Err(KnobError::Busy { .. })));
    bed.merger.set(Knob::Run, 2).unwrap();
    bed.merger.set(Knob::MergeAcrossNodes, 0).unwrap();
    // Where the pages were merged across nodes, the kernel chose where their own memory is.
    for (guest, nid) in guests.iter().zip(&nodes) {
        guest.place(0..guest.pages(), *nid);
    }
    assert_eq!(bed.settle().pages_shared, shared);
    bed.unmerge(&guests.iter().collect::<Vec<_>>());
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_1_interleaved_memory_is_merged_by_node() {
    let bed = Bed::by_hand();
    let nodes = bed.memory_nodes();
    // Runs of equal pages of which each has another node than its neighbours.
    let guest = Guest::new(&bed.merger, 100 * nodes.len());
    (0..guest.pages()).for_each(|page| guest.write(page, 7));
    for (at, &nid) in nodes.iter().enumerate() {
        guest.place(every(nodes.len(), at, guest.pages()), nid);
    }
    bed.settle();
    let expected: Vec<Option<Nid>> =
        (0..guest.pages()).map(|page| Some(nodes[page % nodes.len()])).collect();
    assert_eq!(guest.nodes(), expected);
    assert_eq!(guest.page_frames().len(), nodes.len());
    let by_node: BTreeMap<Nid, u64> = nodes.iter().map(|nid| (*nid, 100)).collect();
    assert_eq!(guest.region.pages_by_node().unwrap(), by_node);
    for &nid in &nodes {
        assert_eq!(bed.figures(nid), [1, 99, 0, 0]);
        // Each page was looked at twice, by threads on its node's CPUs where there are any.
        let node = bed.node(nid);
        let has_cpus = !bed.topology.node(nid).unwrap().cpus.is_empty();
        let remote = if has_cpus { 0 } else { 200 };
        assert_eq!((node.pages_scanned, node.pages_scanned_remote), (200, remote), "node {nid}");
    }
    bed.unmerge(&[&guest]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s5_5_counters_of_a_node_are_of_what_is_at_home_there() {
    let bed = Bed::by_hand();
    bed.merger.set(Knob::UseZeroPages, 1).unwrap();
    // On each node more of everything than on the one before.
    let nodes: Vec<(Nid, usize)> = bed.memory_nodes().into_iter().zip(1..).collect();
    let (mut guests, mut zeros) = (Vec::new(), Vec::new());
    for &(nid, more) in &nodes {
        guests.push(bed.guest(nid, 10 * more, |page| (1000 * more + page) as u64));
        guests.push(bed.equal(nid, 20 * more, 7));
        let region = bed.merger.allocate(5 * more * PAGE).unwrap();
        let addresses: Vec<usize> =
            (0..5 * more).map(|page| region.as_ptr().addr() + page * PAGE).collect();
        region.write(0, &vec![0; region.len()]).unwrap();
        wait_for("moving pages", || kernel::move_to(&addresses, nid));
        zeros.push(region);
    }
    bed.settle();
    for &(nid, more) in &nodes {
        let (node, more) = (bed.node(nid), more as u64);
        assert_eq!((node.pages_home, node.ksm_zero_pages), (35 * more, 5 * more), "{node:?}");
        assert_eq!((node.pages_unshared, node.pages_volatile), (10 * more, 0), "{node:?}");
        assert_eq!(node.bytes_saved(), (5 * more + 20 * more - 1) * PAGE as u64, "{node:?}");
    }
    bed.unmerge(&guests.iter().collect::<Vec<_>>());
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_1_candidates_that_were_moved_find_partners_where_they_are() {
    let bed = Bed::by_hand();
    let (a, b) = bed.two_nodes();
    let (there, here) =
        (bed.guest(a, 50, |page| page as u64), bed.guest(b, 50, |page| page as u64));
    let c = bed.settle();
    assert_eq!((c.pages_shared, c.pages_unshared), (0, 100));
    there.place(0..20, b);
    here.place(40..50, a);
    let c = bed.settle();
    assert_eq!((c.pages_shared, c.pages_sharing, c.pages_unshared), (30, 30, 40));
    assert_eq!((bed.figures(a), bed.figures(b)), ([10, 10, 0, 0], [20, 20, 0, 0]));
    // What has no partner moves again, and finds one.
    here.place(20..40, a);
    let c = bed.settle();
    assert_eq!((c.pages_shared, c.pages_sharing, c.pages_unshared), (50, 50, 0));
    bed.unmerge(&[&there, &here]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s5_6_all_adds_up_while_the_kernel_balances_nodes_by_itself() {
    let bed = Bed::at_work();
    let before = kernel::vmstat("numa_hint_faults");
    let (a, b) = bed.two_nodes();
    let guests = [bed.guest(a, 128, |page| page as u64 % 40), bed.equal(b, 128, 7)];
    bed.start();
    kernel::set_balancing(true);
    // Longer than two seconds, for that is when it begins to look at a process.
    crate::bed::while_written(&bed, &[&guests[0], &guests[1]], None, || {
        std::thread::sleep(std::time::Duration::from_secs(5));
    });
    println!("{} hint faults", kernel::vmstat("numa_hint_faults") - before);
    bed.come_to_rest();
    kernel::set_balancing(false);
    bed.unmerge(&[&guests[0], &guests[1]]);
}
