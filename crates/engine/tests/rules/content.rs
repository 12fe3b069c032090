//! S1: content and identity.

use numerge_engine::{EngineOptions, Knob};

use crate::bed::{Bed, figures};

#[test]
fn s1_1_pages_with_one_fingerprint_and_different_content_are_not_merged() {
    // All pages have the same fingerprint: 8 contents, of which no more than 4 can be in the tree.
    let options =
        EngineOptions { fingerprint_bits: 0, background: false, ..EngineOptions::default() };
    let bed = Bed::with(1, 64, options);
    (0..64).for_each(|page| bed.write([page], 1 + page % 8));
    let counters = bed.scan(30);
    (0..64).for_each(|page| assert_eq!(bed.read(page), 1 + page % 8));
    assert!(counters.fingerprint_collisions > 0);
    assert!(counters.pages_sharing > 0, "what can be merged is: {counters:?}");
    for content in 0..8 {
        for frame in bed.frames((0..64).filter(|page| page % 8 == content)) {
            let sharers = (0..64).filter(|page| bed.frame(*page) == Some(frame));
            sharers.for_each(|page| assert_eq!(page % 8, content));
        }
    }
}

#[test]
fn s1_1_unmerging_and_shutdown_leave_content_as_it_is() {
    let bed = Bed::new(100);
    (0..100).for_each(|page| bed.write([page], page % 7));
    bed.scan(3);
    bed.engine.set(Knob::Run, 2).unwrap();
    (0..100).for_each(|page| assert_eq!((bed.read(page), bed.frame(page)), (page % 7, None)));
    bed.scan(3);
    assert!(bed.frame(0).is_some(), "merged again");
    let Bed { machine, engine, .. } = bed;
    engine.shut_down().unwrap();
    for page in 0..100 {
        let vpn = numerge_engine::machine::Vpn(page);
        assert_eq!((machine.read(vpn), machine.frame_of(vpn)), (page % 7, None));
    }
    assert!(machine.frames().is_empty());
}

#[test]
fn s1_2_one_content_has_one_first_dimension_node_and_its_dups_one_content() {
    let bed = Bed::new(1200);
    (0..1200).for_each(|page| bed.write([page], page % 3));
    bed.engine.set(Knob::MaxPageSharing, 10).unwrap();
    let counters = bed.scan(3);
    assert_eq!(figures(&counters), [120, 1080, 0, 3, 120]);
    for frame in bed.frames(0..1200) {
        let mut contents: Vec<u64> =
            (0..1200).filter(|page| bed.frame(*page) == Some(frame)).map(|page| page % 3).collect();
        contents.dedup_by(|a, b| a == b);
        contents.sort_unstable();
        contents.dedup();
        assert_eq!(contents.len(), 1);
    }
}
