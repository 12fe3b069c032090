//! Interleavings that once went wrong, each made to happen: a call of the machine's is held up while
//! another shard, or another thread, gets its turn.

use std::sync::Arc;
use std::time::Duration;

use numerge_engine::machine::{Memory, Vpn};
use numerge_engine::{Counters, Knob, KnobError};

use crate::bed::NIDS;
use crate::script::{After, Before, Call, scripted};
use crate::two::Two;

#[test]
fn s1_1_a_page_merged_by_another_shard_while_it_is_looked_at_stays_merged() {
    let two = Two::new();
    // In the piece looked at there is a page that was merged and written to, beside a candidate.
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    two.write(7, 70);
    (0..3).for_each(|_| two.scan(0));
    assert_eq!(two.machine.frame_of(Vpn(5)), two.machine.frame_of(Vpn(6)));
    two.write(107, 70);
    two.scan(1);
    two.write(6, 60);
    two.write(7, 70);
    let engine = Arc::clone(&two.engine);
    two.memory.on(After, Call::Read, 7, move || engine.scan_node(NIDS[1]));
    two.scan(0);
    assert!(two.machine.frame_of(Vpn(7)).is_some());
    two.check();
    // The other one goes: the frame must stay as long as page 7 is mapped to it.
    two.write(107, 71);
    (0..4).for_each(|_| two.engine.full_scan());
    assert_eq!(two.machine.read(Vpn(7)), 70);
    two.check();
    two.end();
}

#[test]
fn s5_3_a_region_that_is_let_go_of_lends_no_partners() {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    two.write(7, 70);
    (0..3).for_each(|_| two.scan(0));
    two.write(107, 70);
    two.scan(1);
    // A batch that waits for the lock has its turn between unmerging and unregistering.
    let (go, gone) = std::sync::mpsc::channel();
    let memory = Arc::clone(&two.memory);
    two.memory.on(After, Call::Written, 107, move || {
        memory.on(After, Call::Unmerge, 5, || std::thread::sleep(Duration::from_millis(200)));
        go.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    });
    let engine = Arc::clone(&two.engine);
    let scan = std::thread::spawn(move || engine.scan_node(NIDS[1]));
    gone.recv().unwrap();
    two.regions[0].unregister().unwrap();
    scan.join().unwrap();
    assert!((0..300).all(|page| two.machine.frame_of(Vpn(page)).is_none()));
    two.check();
    two.end();
}

#[test]
fn s4_4_a_lone_sharer_is_moved_by_the_shard_that_scans_it() {
    let two = Two::new();
    two.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    [5, 6, 105, 106].iter().for_each(|page| two.write(*page, 50));
    (0..3).for_each(|_| two.engine.full_scan());
    two.write(6, 60);
    two.scan(0);
    // The frame of page 5, its only sharer, moves to the other node, and page 5 is written to.
    let frame = two.machine.frame_of(Vpn(5)).unwrap();
    two.write(5, 51);
    // Enough that page 40 is read when page 5 was judged.
    (20..41).for_each(|page| two.write(page, page));
    let (engine, machine) = (Arc::clone(&two.engine), Arc::clone(&two.machine));
    // Shard 0 has found that page 5 left its frame; before it is recorded, shard 1 begins a pass.
    two.memory.on(After, Call::Read, 40, move || {
        std::thread::sleep(Duration::from_millis(50));
        machine.move_frame(frame, NIDS[1]);
        engine.scan_node(NIDS[1]);
    });
    two.scan(0);
    two.check();
    (0..4).for_each(|_| two.engine.full_scan());
    assert_eq!(two.machine.read(Vpn(5)), 51);
    two.check();
    two.end();
}

#[test]
fn s3_6_a_page_written_between_its_merge_and_the_record_of_it_is_noticed() {
    let two = Two::new();
    two.write(7, 70);
    (0..3).for_each(|_| two.scan(0));
    two.write(107, 70);
    two.scan(1);
    let (engine, machine) = (Arc::clone(&two.engine), Arc::clone(&two.machine));
    two.memory.on(After, Call::Merge, 7, move || {
        machine.write(Vpn(7), 71, NIDS[0]);
        engine.scan_node(NIDS[0]);
    });
    two.scan(1);
    assert_eq!(two.machine.frame_of(Vpn(7)), None);
    (0..4).for_each(|_| two.engine.full_scan());
    two.check();
    two.end();
}

#[test]
fn s3_4_what_was_reported_before_an_error_is_looked_at() {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    (0..3).for_each(|_| two.engine.full_scan());
    two.write(5, 51);
    two.memory.fail(After, Call::Written, 5..6, 1);
    (0..4).for_each(|_| two.engine.full_scan());
    assert_eq!(two.engine.take_errors().len(), 1);
    two.check();
    two.end();
}

#[test]
fn s1_1_a_page_that_seemed_to_collide_belongs_to_one_shard() {
    let two = Two::new();
    two.write(7, 70);
    (0..3).for_each(|_| two.scan(0));
    // Another program on the second node, whose pages are merged after those of the first.
    let other = scripted(&two.machine);
    [205, 206].iter().for_each(|page| two.write(*page, 80));
    two.machine.write(Vpn(200), 200, NIDS[1]);
    let memory: Arc<dyn Memory> = other.clone();
    let region = two.engine.register(&memory, Vpn(200)..Vpn(300)).unwrap();
    two.write(107, 70);
    two.scan(1);
    // Page 7 is taken for a partner, differs when it is merged, and is as before when that is
    // looked into; then, before it is dealt with, its own shard scans.
    let (machine, memory) = (Arc::clone(&two.machine), Arc::clone(&two.memory));
    two.memory.on(After, Call::Read, 7, move || {
        let again = Arc::clone(&memory);
        memory.on(After, Call::Read, 7, move || {
            machine.write(Vpn(7), 71, NIDS[0]);
            again.on(After, Call::Merge, 7, move || machine.write(Vpn(7), 70, NIDS[0]));
        });
    });
    let engine = Arc::clone(&two.engine);
    other.on(After, Call::Merge, 205, move || (0..2).for_each(|_| engine.scan_node(NIDS[0])));
    two.scan(1);
    assert_eq!(two.machine.frame_of(Vpn(205)), two.machine.frame_of(Vpn(206)));
    (0..6).for_each(|_| two.engine.full_scan());
    assert_eq!((two.machine.read(Vpn(7)), two.machine.read(Vpn(107))), (70, 70));
    two.check();
    drop(region);
    two.end();
}

#[test]
fn s4_3_a_queued_frame_is_given_back_though_the_trees_became_one() {
    let two = Two::new();
    two.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    [5, 6, 105, 106].iter().for_each(|page| two.write(*page, 50));
    (0..3).for_each(|_| two.engine.full_scan());
    two.write(6, 60);
    two.scan(0);
    two.machine.move_frame(two.machine.frame_of(Vpn(5)).unwrap(), NIDS[1]);
    // Queued, and left there: page 5 is not this shard's.
    two.scan(1);
    assert_eq!(two.engine.counters().stable_nodes_queued, 1);
    two.engine.set(Knob::Run, 2).unwrap();
    two.engine.set(Knob::MergeAcrossNodes, 1).unwrap();
    (0..4).for_each(|_| two.engine.full_scan());
    assert_eq!(two.engine.counters().stable_nodes_queued, 0);
    two.end();
}

fn is_one_frame(two: &Two, pages: [u64; 3]) -> bool {
    let frames = pages.map(|page| two.machine.frame_of(Vpn(page)));
    frames[0].is_some() && frames.iter().all(|frame| *frame == frames[0])
}

#[test]
fn s3_2_a_frame_that_comes_between_a_pages_two_look_ups_is_found() {
    let two = Two::new();
    two.write(7, 70);
    (0..3).for_each(|_| two.scan(0));
    [8, 107, 108].iter().for_each(|page| two.write(*page, 70));
    [0, 1].iter().for_each(|node| two.scan(*node));
    // Page 8 was not found in the stable tree. While its partner is read, which has changed, the
    // other shard makes a frame; then page 8 enters the unstable tree.
    let (engine, machine) = (Arc::clone(&two.engine), Arc::clone(&two.machine));
    two.memory.on(Before, Call::Read, 7, move || {
        machine.write(Vpn(7), 71, NIDS[0]);
        engine.scan_node(NIDS[1]);
    });
    two.scan(0);
    assert_eq!(two.memory.clear(), 0);
    assert!(is_one_frame(&two, [8, 107, 108]), "{:?}", two.engine.counters());
    two.check();
    two.end();
}

#[test]
fn s3_2_a_page_that_waits_when_a_frame_with_its_content_comes_is_looked_at_again() {
    let two = Two::new();
    [8, 107, 108].iter().for_each(|page| two.write(*page, 70));
    [0, 1].iter().for_each(|node| two.scan(*node));
    // Two pages found no partner and get a frame. Before it is in the stable tree, the other shard
    // looks for one in vain, and its page enters the unstable tree.
    let engine = Arc::clone(&two.engine);
    two.memory.on(Before, Call::Allocate, 0, move || engine.scan_node(NIDS[0]));
    two.scan(1);
    assert_eq!(two.memory.clear(), 0);
    assert_eq!(two.machine.frame_of(Vpn(8)), None);
    (0..2).for_each(|_| two.scan(0));
    assert!(is_one_frame(&two, [8, 107, 108]), "{:?}", two.engine.counters());
    two.check();
    two.end();
}

#[test]
fn s5_2_counters_and_knobs_answer_while_pages_are_being_unmerged() {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    (0..3).for_each(|_| two.scan(0));
    let before = two.engine.counters();
    let (tell, told) = std::sync::mpsc::channel();
    let (answer, answered) = std::sync::mpsc::channel();
    let asked = Arc::clone(&two.engine);
    two.memory.on(Before, Call::Unmerge, 5, move || {
        // Another thread, so that one that has to wait is seen and not a deadlock.
        std::thread::spawn(move || {
            let counters = asked.counters();
            asked.set(Knob::SleepMillisecs, 7).unwrap();
            let _ = answer.send((counters, asked.set(Knob::MaxPageSharing, 9)));
        });
        tell.send(answered.recv_timeout(Duration::from_secs(60))).unwrap();
    });
    two.engine.set(Knob::Run, 2).unwrap();
    let (counters, limit) = told.recv().unwrap().expect("an answer while pages are being unmerged");
    let figures = |counters: &Counters| {
        (counters.pages_shared, counters.pages_sharing, counters.pages_unshared)
    };
    assert_eq!(figures(&counters), figures(&before));
    assert_eq!((before.pages_shared, before.pages_sharing), (1, 1));
    assert_eq!(counters.metadata_bytes, before.metadata_bytes);
    assert!(matches!(limit, Err(KnobError::Busy { shared: 1, .. })), "{limit:?}");
    assert_eq!(two.engine.knob(Knob::SleepMillisecs), 7);
    two.end();
}
