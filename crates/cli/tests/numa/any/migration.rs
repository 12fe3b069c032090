//! S4.3 and S4.4: frames that the machine moves to another node.

use std::collections::BTreeMap;
use std::time::Duration;

use numerge::{Knob, Nid, Options};

use crate::bed::{Bed, Guest, while_written};
use crate::kernel;

/// Two nodes with equal pages on each, merged; and what happens when frames are moved.
struct Case {
    bed: Bed,
    a: Nid,
    b: Nid,
    guests: Vec<Guest>,
}

impl Case {
    fn new(limit: u64) -> Self {
        let bed = Bed::by_hand();
        bed.merger.set(Knob::MaxPageSharing, limit).unwrap();
        let (a, b) = bed.two_nodes();
        Self { bed, a, b, guests: Vec::new() }
    }

    /// Adds a guest, whose pages are merged.
    fn add(&mut self, nid: Nid, pages: usize) -> &Guest {
        self.guests.push(self.bed.equal(nid, pages, 7));
        self.bed.settle();
        self.guest(self.guests.len() - 1)
    }

    fn guest(&self, number: usize) -> &Guest {
        &self.guests[number]
    }

    /// Leaves a guest's frame with one sharer: the others are written to.
    fn leave_one(&self, number: usize) {
        let guest = self.guest(number);
        (1..guest.pages()).for_each(|page| guest.write(page, 1000 + page as u64));
        let a = self.a;
        guest.place(1..guest.pages(), a);
        self.bed.settle();
        assert_eq!(self.bed.figures(a), [1, 0, 0, 0]);
    }

    /// Scans, and checks what there is on both nodes and that everything can be unmerged.
    fn expect(self, on_a: [u64; 4], on_b: [u64; 4], moves: [(u64, u64); 2]) {
        self.bed.settle();
        assert_eq!((self.bed.figures(self.a), self.bed.figures(self.b)), (on_a, on_b));
        for (nid, moved) in [self.a, self.b].into_iter().zip(moves) {
            let node = self.bed.node(nid);
            let found = (node.stable_nodes_left, node.stable_nodes_replaced);
            assert_eq!(found, moved, "stable nodes that left and came to node {nid}");
        }
        self.bed.unmerge(&self.guests.iter().collect::<Vec<_>>());
    }
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_4_a_frame_without_equal_there_is_inserted_and_found() {
    let mut case = Case::new(256);
    let (a, b) = (case.a, case.b);
    case.add(a, 10).place([3], b);
    case.bed.settle();
    assert_eq!(case.bed.figures(b), [1, 9, 0, 0]);
    assert_eq!(case.bed.pool(a), BTreeMap::from([(b, 1)]));
    case.guest(0).check_is_on(b);
    // Pages of that node share it from now on; pages of the other need another.
    case.add(b, 5);
    assert_eq!(case.bed.figures(b), [1, 14, 0, 0]);
    case.add(a, 5);
    case.expect([1, 4, 0, 0], [1, 14, 0, 0], [(1, 0), (0, 1)]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_4_a_frame_with_several_sharers_becomes_a_dup() {
    let mut case = Case::new(256);
    case.add(case.a, 10);
    case.add(case.b, 10);
    case.guest(0).place([0], case.b);
    case.expect([0; 4], [2, 18, 1, 2], [(1, 0), (0, 1)]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_4_a_frame_with_one_sharer_is_merged_where_there_is_room() {
    let mut case = Case::new(256);
    case.add(case.a, 3);
    case.add(case.b, 10);
    case.leave_one(0);
    case.guest(0).place([0], case.b);
    case.bed.settle();
    // One frame, by the kernel's word too.
    let mut frames = case.guest(1).page_frames();
    assert_eq!(frames.len(), 1);
    case.guest(0).check();
    frames.extend(kernel::page_frames(&case.guest(0).addresses([0])));
    assert_eq!(frames.len(), 1);
    assert_eq!(case.bed.merger.counters().pages_unshared, 2);
    case.expect([0; 4], [1, 10, 0, 0], [(1, 0), (0, 1)]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_4_a_frame_with_one_sharer_becomes_a_dup_where_there_is_no_room() {
    let mut case = Case::new(4);
    case.add(case.a, 3);
    case.add(case.b, 4);
    case.leave_one(0);
    case.guest(0).place([0], case.b);
    case.expect([0; 4], [2, 3, 1, 2], [(1, 0), (0, 1)]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_4_a_full_frame_makes_a_chain_of_a_full_resident() {
    let mut case = Case::new(4);
    case.add(case.a, 4);
    case.add(case.b, 4);
    case.guest(0).place([0], case.b);
    case.expect([0; 4], [2, 6, 1, 2], [(1, 0), (0, 1)]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_4_a_chain_moves_dup_by_dup() {
    let mut case = Case::new(2);
    case.add(case.a, 8);
    assert_eq!(case.bed.figures(case.a), [4, 4, 1, 4]);
    // Two of the four frames, then the others.
    let guest = case.guest(0);
    let frame_of = |page| *kernel::page_frames(&guest.addresses([page])).keys().next().unwrap();
    guest.check();
    let first = frame_of(0);
    let other = (1..8).find(|page| frame_of(*page) != first).unwrap();
    guest.place([0, other], case.b);
    case.bed.settle();
    assert_eq!(case.bed.figures(case.a), [2, 2, 1, 2]);
    assert_eq!(case.bed.figures(case.b), [2, 2, 1, 2]);
    case.guest(0).place(0..8, case.b);
    case.expect([0; 4], [4, 4, 1, 4], [(4, 0), (0, 4)]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_4_a_misplaced_resident_gives_way_to_the_newcomer() {
    let mut case = Case::new(256);
    case.add(case.a, 10);
    case.add(case.b, 20);
    case.guest(0).place([0], case.b);
    case.guest(1).place([0], case.a);
    case.bed.settle();
    case.guest(0).check_is_on(case.b);
    case.guest(1).check_is_on(case.a);
    assert_eq!(case.bed.node(case.a).sharers_remote, 20);
    assert_eq!(case.bed.node(case.b).sharers_remote, 10);
    case.expect([1, 19, 0, 0], [1, 9, 0, 0], [(1, 1), (1, 1)]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_3_the_queue_empties_when_all_memory_moves_while_programs_write() {
    let bed = Bed::at_work();
    bed.merger.set(Knob::MaxPageSharing, 16).unwrap();
    let (a, b) = bed.two_nodes();
    let guests = [bed.guest(a, 256, |page| page as u64 % 5), bed.equal(a, 64, 3)];
    let guests: Vec<&Guest> = guests.iter().collect();
    bed.start();
    // The writers' CPUs are near the node that everything moves to, so that nothing new comes to
    // the other one; of a node without CPUs the kernel would choose another.
    let near = bed.topology.nearest_with_cpus(b).unwrap().nid;
    let goal = if near == b { b } else { near };
    while_written(&bed, &guests, Some(near), || {
        // More than once: a merge that was under way may have asked for a frame where its pages
        // were.
        for _ in 0..3 {
            kernel::migratepages(a, goal);
            std::thread::sleep(Duration::from_millis(100));
            bed.wait_for_scans(3);
        }
    });
    kernel::migratepages(a, goal);
    let c = bed.come_to_rest();
    // Where the writers' node is another, so many new frames come about there that perhaps none of
    // the old ones are left to be moved.
    assert!(c.stable_nodes_replaced > 0 || near != b, "{c:?}");
    assert_eq!(c.stable_nodes_queued, 0);
    assert!(c.pages_shared > 0);
    for node in bed.merger.nodes() {
        assert!(node.nid == goal || node.pages_shared + node.pages_sharing == 0, "{node:?}");
    }
    for (pool, at) in
        bed.merger.pools().iter().flat_map(|pool| pool.frames.keys().map(move |at| (pool.nid, *at)))
    {
        assert_eq!(at, goal, "a frame of node {pool}'s pool");
    }
    guests.iter().for_each(|guest| guest.check_is_on(goal));
    bed.unmerge(&guests);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s4_3_frames_move_back_where_that_is_wanted() {
    let bed =
        Bed::with(Options { background: false, move_frames_back: true, ..Options::default() });
    let (a, b) = bed.two_nodes();
    let guests = [bed.guest(a, 100, |page| page as u64 % 10), bed.equal(b, 100, 3)];
    bed.settle();
    let figures = (bed.figures(a), bed.figures(b));
    assert_eq!(figures, ([10, 90, 0, 0], [1, 99, 0, 0]));
    kernel::migratepages(a, b);
    assert!(guests[0].nodes().iter().all(|found| *found == Some(b)));
    let c = bed.settle();
    assert_eq!((c.stable_nodes_replaced, bed.node(a).stable_nodes_left), (0, 0));
    assert_eq!((bed.figures(a), bed.figures(b)), figures);
    guests[0].check_is_on(a);
    guests[1].check_is_on(b);
    assert_eq!(bed.pool(a), BTreeMap::from([(a, 10)]));
    bed.unmerge(&[&guests[0], &guests[1]]);
}
