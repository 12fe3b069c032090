//! Programs that answer late, and pages that they unmap meanwhile.

use std::sync::Arc;
use std::time::Duration;

use numerge_engine::machine::{Mappings, MemoryError, Vpn};
use numerge_engine::{Knob, KnobError, OfflineError, UnmergeError};

use crate::bed::{NIDS, figures};
use crate::script::{After, Before, Call};
use crate::two::Two;

/// Two pages of the first node are to share a frame, and their program has not answered.
fn two_late() -> Two {
    let two = Two::new();
    two.memory.be_late(5..7);
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    (0..2).for_each(|_| two.scan(0));
    two
}

/// Shared, sharing, unshared and held pages, and frames that are allocated.
fn state(two: &Two) -> ([u64; 3], u64, usize) {
    let c = two.engine.counters();
    let [shared, sharing, unshared, ..] = figures(&c);
    ([shared, sharing, unshared], c.pages_held, two.machine.frames().len())
}

fn answer(two: &Two) {
    two.memory.answer(|_| true);
    two.scan(0);
}

#[test]
fn s3_2_a_page_whose_outcome_is_late_keeps_its_share_and_nothing_else_is_done_with_it() {
    let two = two_late();
    let late = ([0, 0, 1], 0, 1);
    assert_eq!(state(&two), late);
    // It is asked for once, whatever is written meanwhile.
    two.write(5, 50);
    (0..4).for_each(|_| two.engine.full_scan());
    assert_eq!(state(&two), ([0, 0, 2], 0, 1));
    assert_eq!(two.engine.nodes()[0].pages_sharing, 1);
    two.check();
    answer(&two);
    assert_eq!(state(&two), ([1, 1, 2], 0, 1));
    two.check();
    two.end();
}

#[test]
fn s3_3_a_late_outcome_is_recorded_as_one_that_came_at_once() {
    // Differs: it is looked at again, and again a candidate.
    let two = two_late();
    two.write(5, 51);
    answer(&two);
    assert_eq!(state(&two), ([1, 0, 1], 0, 1));
    (0..2).for_each(|_| two.scan(0));
    assert_eq!(state(&two), ([1, 0, 2], 0, 1));
    two.check();
    two.end();

    // Pinned: it is held.
    let two = two_late();
    two.machine.pin(Vpn(5), true);
    answer(&two);
    assert_eq!(state(&two), ([1, 0, 1], 1, 1));
    two.check();
    two.end();

    // Gone: it is untouched, and its share is given up.
    let two = two_late();
    let touched = two.engine.counters().pages_untouched;
    [5, 6].iter().for_each(|page| two.machine.discard(Vpn(*page)));
    answer(&two);
    (0..2).for_each(|_| two.engine.full_scan());
    assert_eq!(state(&two), ([0, 0, 2], 0, 0));
    assert_eq!(two.engine.counters().pages_untouched, touched + 1);
    two.check();
    two.end();
}

#[test]
fn s3_6_a_page_written_between_its_late_merge_and_the_record_of_it_is_noticed() {
    let two = two_late();
    two.memory.answer(|_| true);
    two.write(5, 51);
    (0..3).for_each(|_| two.engine.full_scan());
    assert_eq!(state(&two), ([1, 0, 3], 0, 1));
    two.check();
    two.end();
}

/// The same where it was not even merged: it is a candidate with what it holds now.
#[test]
fn s3_1_a_page_written_before_its_late_merge_was_refused_is_read_again() {
    let two = two_late();
    two.machine.pin(Vpn(5), true);
    [5, 6].iter().for_each(|page| two.write(*page, 46 + page));
    two.scan(0);
    answer(&two);
    (0..2).for_each(|_| two.scan(0));
    assert_eq!(state(&two), ([0, 0, 3], 0, 0));
    two.machine.pin(Vpn(5), false);
    two.memory.be_late([]);
    two.write(7, 51);
    (0..3).for_each(|_| two.scan(0));
    assert_eq!(state(&two), ([1, 1, 2], 0, 1));
    two.check();
    two.end();
}

/// The answer comes, and another shard asks for answers, before the merge is recorded as late.
#[test]
fn s3_3_an_answer_that_comes_before_it_is_missed_is_not_lost() {
    let two = Two::new();
    two.memory.be_late(5..7);
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    two.scan(0);
    let (engine, memory) = (Arc::clone(&two.engine), Arc::clone(&two.memory));
    two.memory.on(After, Call::Merge, 5, move || {
        memory.answer(|_| true);
        engine.scan_node(NIDS[1]);
    });
    (0..2).for_each(|_| two.scan(0));
    assert_eq!(state(&two), ([1, 1, 1], 0, 1));
    two.check();
    two.end();
}

/// A shard that asks for answers stands still. Meanwhile another records that a page was pinned, and
/// has it asked for again; the answer to that is not the one that the first shard asks for.
#[test]
fn s3_3_an_answer_is_not_taken_for_one_to_an_earlier_question() {
    let two = two_late();
    [5, 6].iter().for_each(|page| two.machine.pin(Vpn(*page), true));
    two.memory.answer(|_| true);
    for page in [5, 6] {
        two.machine.pin(Vpn(page), false);
        two.write(page, 51);
    }
    let (engine, memory) = (Arc::clone(&two.engine), Arc::clone(&two.memory));
    let (ask, asked) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel();
    two.memory.on(Before, Call::Late, 5, move || {
        let again = Arc::clone(&memory);
        memory.on(After, Call::Merge, 5, move || {
            again.answer(|_| true);
            let _ = ask.send(());
            std::thread::sleep(Duration::from_millis(100));
        });
        std::thread::spawn(move || {
            (0..3).for_each(|_| engine.scan_node(NIDS[0]));
            end.send(()).unwrap();
        });
        // It is not asked for again while this shard stands still: then the wait ends by itself.
        let _ = asked.recv_timeout(Duration::from_millis(300));
    });
    two.scan(1);
    ended.recv().unwrap();
    (0..4).for_each(|_| two.scan(0));
    assert_eq!(two.memory.clear(), 0);
    assert_eq!(state(&two), ([1, 1, 1], 0, 1));
    two.check();
    two.end();
}

#[test]
fn s5_1_unmerging_says_that_a_program_does_not_answer_and_unmerges_the_others() {
    let two = two_late();
    two.memory.be_late([]);
    [105, 106].iter().for_each(|page| two.write(*page, 60));
    (0..3).for_each(|_| two.scan(1));
    assert_eq!(state(&two), ([1, 1, 2], 0, 2));
    let done = two.engine.set(Knob::Run, 2);
    let no_answer = |done: &Result<(), KnobError>| {
        matches!(done, Err(KnobError::Unmerge(UnmergeError::Memory(MemoryError::NoAnswer))))
    };
    assert!(no_answer(&done), "{done:?}");
    assert_eq!(two.engine.knob(Knob::Run), 0);
    assert_eq!(two.machine.frame_of(Vpn(105)), None);
    two.memory.answer(|_| true);
    two.engine.set(Knob::Run, 2).unwrap();
    assert!((0..200).all(|page| two.machine.frame_of(Vpn(page)).is_none()));
    two.check();
    two.end();
}

#[test]
fn s5_3_unregistering_says_that_a_program_does_not_answer_and_can_be_done_later() {
    let two = two_late();
    let done = two.regions[0].unregister();
    assert!(matches!(done, Err(MemoryError::NoAnswer)), "{done:?}");
    assert_eq!(two.engine.counters().pages_registered, 200);
    // It goes on being merged.
    [15, 16].iter().for_each(|page| two.write(*page, 60));
    (0..3).for_each(|_| two.scan(0));
    assert!(two.machine.frame_of(Vpn(15)).is_some());
    two.memory.answer(|_| true);
    two.regions[0].unregister().unwrap();
    assert_eq!(two.engine.counters().pages_registered, 100);
    assert!((0..100).all(|page| two.machine.frame_of(Vpn(page)).is_none()));
    two.check();
    two.end();
}

/// Such a frame may have more sharers than the new limit, or be on the wrong node.
#[test]
fn s2_8_what_needs_that_nothing_is_shared_waits_for_late_outcomes_too() {
    let two = two_late();
    for (knob, value) in [(Knob::MaxPageSharing, 2), (Knob::MergeAcrossNodes, 0)] {
        let done = two.engine.set(knob, value);
        assert!(matches!(done, Err(KnobError::Busy { shared: 1, .. })), "{done:?}");
    }
    [5, 6].iter().for_each(|page| two.machine.discard(Vpn(*page)));
    two.memory.answer(|_| true);
    two.engine.set(Knob::MaxPageSharing, 2).unwrap();
    two.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    two.check();
    two.end();
}

#[test]
fn s2_1_shares_of_pages_whose_outcome_is_late_count_against_the_limit() {
    let two = Two::new();
    two.engine.set(Knob::MaxPageSharing, 3).unwrap();
    two.memory.be_late(5..8);
    for pages in [5..7, 7..8, 8..10] {
        pages.for_each(|page| two.write(page, 50));
        (0..3).for_each(|_| two.scan(0));
    }
    // Three are late, and two share a frame that was made for them.
    let [first, second] = [8, 9].map(|page| two.machine.frame_of(Vpn(page)).unwrap());
    assert_eq!(first, second);
    answer(&two);
    let mut maps: Vec<u64> = two.machine.frames().iter().map(|frame| frame.2).collect();
    maps.sort_unstable();
    assert_eq!(maps, [2, 3]);
    two.check();
    two.end();
}

/// The program maps all that it was asked to when it goes on.
#[test]
fn s6_runs_whose_outcome_is_late_count_against_the_mappings_that_may_be_used() {
    let two = Two::new();
    // Half of them may be used, and each run takes two.
    two.machine.set_mappings(Mappings { used: 0, limit: 100 });
    two.memory.be_late(0..100);
    let write = |pages: std::ops::Range<u64>| {
        pages.step_by(2).for_each(|page| two.write(page, 1 + page / 4));
        (0..3).for_each(|_| two.scan(0));
    };
    write(12..52);
    assert_eq!(two.engine.counters().pages_over_budget, 0);
    write(52..92);
    assert_eq!(two.engine.counters().pages_over_budget, 15);
    two.memory.answer(|_| true);
    two.scan(0);
    assert_eq!(two.engine.counters().pages_shared + two.engine.counters().pages_sharing, 25);
    two.check();
    two.end();
}

/// The frame would be merged with after it was said that its memory is free.
#[test]
fn s4_5_memory_that_a_late_outcome_may_use_does_not_go_offline() {
    let two = two_late();
    let frame = two.machine.frames()[0].0;
    let range = frame..frame.plus(1);
    let is_no_answer = |done: Result<(), OfflineError>| {
        assert!(matches!(done, Err(OfflineError::Memory(MemoryError::NoAnswer))), "{done:?}");
    };
    is_no_answer(two.engine.offline_frames(range.clone()));
    is_no_answer(two.engine.offline_node(NIDS[0]));
    two.memory.answer(|_| true);
    two.engine.offline_frames(range).unwrap();
    two.engine.offline_node(NIDS[0]).unwrap();
    assert!(two.machine.frames().is_empty(), "{:?}", two.machine.frames());
    two.check();
    two.end();
}

/// A page in each state that a page can be in.
#[test]
fn s5_3_pages_that_vanish_leave_every_structure_whatever_their_state() {
    let two = Two::new();
    two.engine.set(Knob::UseZeroPages, 1).unwrap();
    // Over budget.
    two.machine.set_mappings(Mappings { used: 1, limit: 1 });
    [13, 14].iter().for_each(|page| two.write(*page, 130));
    (0..3).for_each(|_| two.scan(0));
    two.machine.set_mappings(Mappings { used: 0, limit: u64::MAX });
    // Merged, one of three; the frame stays with the page of the other node.
    [5, 6, 105].iter().for_each(|page| two.write(*page, 50));
    // Of zeros, a candidate, and held.
    two.write(7, 0);
    two.write(8, 80);
    [9, 10].iter().for_each(|page| two.write(*page, 90));
    two.machine.pin(Vpn(9), true);
    // Late, one of them merged by now; that frame is to go with its last share.
    two.memory.be_late((11..13).chain(16..18));
    [11, 12].iter().for_each(|page| two.write(*page, 110));
    [16, 17].iter().for_each(|page| two.write(*page, 160));
    (0..3).for_each(|_| two.engine.full_scan());
    two.memory.answer(|page| page == Vpn(11));
    // Looked at once, and written to since it was merged.
    two.write(15, 150);
    two.scan(0);
    two.write(6, 60);
    // To be read again.
    two.write(16, 161);
    two.memory.answer(|page| page != Vpn(12));
    two.scan(1);
    let c = two.engine.counters();
    assert_eq!((c.ksm_zero_pages, c.pages_held, c.pages_over_budget), (1, 1, 2), "{c:?}");
    // The first three, and three that share with nobody.
    assert_eq!(c.pages_shared + c.pages_sharing, 6, "{c:?}");
    assert_eq!(two.machine.frames().len(), 4);

    let pages = two.regions[0].pages();
    two.memory.vanish(&pages, || two.regions[0].vanished(pages.clone()));
    two.check();
    let c = two.engine.counters();
    assert_eq!((c.pages_untouched, c.pages_shared, c.pages_sharing), (198, 1, 0), "{c:?}");
    let others = [c.ksm_zero_pages, c.pages_held, c.pages_over_budget, c.pages_volatile];
    assert_eq!(others, [0; 4], "{c:?}");
    (0..4).for_each(|_| two.engine.full_scan());
    let frames: Vec<_> = two.machine.frames().iter().map(|frame| frame.0).collect();
    assert_eq!(frames, [two.machine.frame_of(Vpn(105)).unwrap()]);

    // What comes to lie there is merged like any other page, also where an answer was missing.
    two.memory.be_late([]);
    [6, 12].iter().for_each(|page| two.write(*page, 50));
    (0..3).for_each(|_| two.engine.full_scan());
    for page in [6, 12] {
        assert_eq!(two.machine.frame_of(Vpn(page)), two.machine.frame_of(Vpn(105)));
    }
    two.check();
    two.end();
}
