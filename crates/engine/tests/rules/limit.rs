//! S2: the sharing limit.

use numerge_engine::{Knob, KnobError};

use crate::bed::{Bed, figures};

#[test]
fn s2_1_no_frame_has_more_sharers_than_the_limit() {
    for limit in [2, 3, 7, 256] {
        let bed = Bed::new(600);
        bed.engine.set(Knob::MaxPageSharing, limit).unwrap();
        bed.write(0..200, 5);
        bed.scan(3);
        bed.write(200..600, 5);
        bed.write(0..100, 6);
        bed.scan(3);
        assert!(bed.machine.frames().iter().all(|(_, _, maps)| *maps <= limit));
        let counters = bed.counters();
        let merged = counters.pages_shared + counters.pages_sharing;
        assert_eq!(merged + counters.pages_unshared, 600);
    }
}

#[test]
fn s2_2_a_page_waits_for_a_second_one_before_a_full_node_becomes_a_chain() {
    let bed = Bed::new(10);
    bed.engine.set(Knob::MaxPageSharing, 4).unwrap();
    bed.write(0..4, 5);
    assert_eq!(figures(&bed.scan(3)), [1, 3, 0, 0, 0]);
    bed.write([4], 5);
    assert_eq!(figures(&bed.scan(3)), [1, 3, 1, 0, 0], "it waits");
    bed.write([5], 5);
    assert_eq!(figures(&bed.scan(3)), [2, 4, 0, 1, 2], "old node and new one are dups");
    bed.write([6], 5);
    assert_eq!(figures(&bed.scan(3)), [2, 5, 0, 1, 2], "there is room");
}

#[test]
fn s2_3_before_the_limit_is_hit_there_is_no_chain_and_no_memory_for_one() {
    let bed = Bed::new(2000);
    bed.write(0..256, 5);
    let counters = bed.scan(3);
    assert_eq!((counters.stable_node_chains, counters.stable_node_dups), (0, 0));
    // A second frame costs its own record and link, and nothing for the chain.
    let before = counters.metadata_bytes;
    bed.write(256..512, 5);
    let counters = bed.scan(3);
    assert_eq!((counters.stable_node_chains, counters.stable_node_dups), (1, 2));
    assert!(counters.metadata_bytes <= before + 160, "{before} -> {}", counters.metadata_bytes);
}

#[test]
fn s2_4_of_the_dups_with_room_the_one_with_most_sharers_is_picked() {
    let bed = Bed::new(40);
    bed.engine.set(Knob::MaxPageSharing, 4).unwrap();
    bed.write(0..12, 5);
    bed.scan(3);
    let frames = bed.frames(0..12);
    assert_eq!(frames.len(), 3);
    // Leave 1, 2 and 3 sharers.
    let mut page_of = |frame: usize| {
        let page = (0..12).find(|page| bed.frame(*page) == Some(frames[frame])).unwrap();
        bed.write([page], 100 + page);
    };
    [0, 0, 0, 1, 1, 2].into_iter().for_each(&mut page_of);
    bed.scan(1);
    for (page, expected) in [(20, 2), (21, 1), (22, 1), (23, 0), (24, 0)] {
        bed.write([page], 5);
        bed.scan(2);
        assert_eq!(bed.frame(page), Some(frames[expected]), "page {page}");
    }
}

#[test]
fn s2_5_a_chain_of_one_with_room_is_regular_again_after_a_prune() {
    let bed = Bed::new(20);
    bed.engine.set(Knob::MaxPageSharing, 4).unwrap();
    bed.advance(10_000);
    bed.write(0..8, 5);
    bed.scan(3);
    bed.write([8, 9], 5);
    assert_eq!(figures(&bed.scan(2)), [3, 7, 0, 1, 3], "pruned now, at 10 s");
    bed.advance(1999);
    let keep = bed.frame(0).unwrap();
    let others: Vec<u64> = (0..10).filter(|page| bed.frame(*page) != Some(keep)).collect();
    bed.write(others, 6);
    bed.write([0], 7);
    bed.scan(1);
    assert_eq!(bed.counters().stable_node_chains, 1, "nobody has looked it up since");
    bed.write([10], 5);
    bed.scan(2);
    assert_eq!(bed.frame(10), Some(keep));
    let pruned_early = bed.counters().stable_node_dups;
    assert_eq!(pruned_early, 1 + 2, "too soon for a prune: still a chain beside that of 6");
    bed.advance(1);
    bed.write([11], 5);
    bed.write([0], 8);
    bed.scan(2);
    // Page 11 found no room (4 of 4), so the chain stays until a prune finds room.
    bed.write([10], 9);
    bed.scan(1);
    bed.advance(2000);
    bed.write([12], 5);
    bed.scan(2);
    assert_eq!(bed.counters().stable_node_chains, 1, "only that of 6 is left");
}

#[test]
fn s2_5_the_last_dup_takes_its_chain_with_it() {
    let bed = Bed::new(16);
    bed.engine.set(Knob::MaxPageSharing, 4).unwrap();
    bed.write(0..16, 5);
    assert_eq!(figures(&bed.scan(3)), [4, 12, 0, 1, 4]);
    (0..16).for_each(|page| bed.write([page], 100 + page));
    assert_eq!(figures(&bed.scan(1)), [0, 0, 0, 0, 0]);
    bed.scan(2);
    assert!(bed.machine.frames().is_empty());
}

#[test]
fn s2_6_a_frame_is_returned_when_its_last_sharer_is_noticed_to_have_gone() {
    let bed = Bed::new(4);
    bed.write(0..4, 5);
    bed.scan(2);
    bed.write(0..3, 6);
    bed.scan(1);
    assert_eq!(bed.frames(0..4).len(), 1, "one sharer keeps it");
    bed.write([3], 7);
    assert_eq!(bed.machine.frames().len(), 1, "not noticed yet");
    bed.scan(3);
    assert_eq!(bed.frames([3]).len(), 0);
    // What is left is the frame that pages 0 to 2 share by now.
    assert_eq!(bed.machine.frames().len(), 1);
}

#[test]
fn s2_8_the_limit_changes_only_while_nothing_is_shared() {
    let bed = Bed::new(8);
    bed.write(0..8, 5);
    bed.scan(3);
    let refused = bed.engine.set(Knob::MaxPageSharing, 3).unwrap_err();
    assert!(matches!(refused, KnobError::Busy { shared: 1, .. }), "{refused}");
    assert_eq!(bed.engine.knob(Knob::MaxPageSharing), 256);
    bed.engine.set(Knob::MaxPageSharing, 256).unwrap();
    assert!(matches!(bed.engine.set(Knob::MaxPageSharing, 1), Err(KnobError::Invalid { .. })));
    bed.engine.set(Knob::Run, 2).unwrap();
    bed.engine.set(Knob::MaxPageSharing, 3).unwrap();
    assert_eq!(figures(&bed.scan(3)), [3, 5, 0, 1, 3]);
}
