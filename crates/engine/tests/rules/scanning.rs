//! S3: scanning.

use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge_engine::machine::{Memory, Vpn};
use numerge_engine::{EngineOptions, Knob};

use crate::bed::{Bed, figures};

#[test]
fn s3_1_a_page_is_a_candidate_when_seen_unchanged_twice() {
    let bed = Bed::new(3);
    bed.write(0..2, 5);
    let first = bed.scan(1);
    assert_eq!((first.pages_volatile, first.pages_unshared), (2, 0));
    bed.write([1], 6);
    let second = bed.scan(1);
    assert_eq!((second.pages_volatile, second.pages_unshared), (1, 1), "page 1 is volatile");
    bed.write([1], 5);
    bed.scan(1);
    assert_eq!(figures(&bed.scan(1)), [1, 1, 0, 0, 0]);
}

#[test]
fn s3_1_a_page_rewritten_with_the_same_content_is_unchanged() {
    let bed = Bed::new(2);
    bed.write(0..2, 5);
    bed.scan(1);
    bed.write(0..2, 5);
    assert_eq!(figures(&bed.scan(1)), [1, 1, 0, 0, 0]);
}

#[test]
fn s3_2_zero_page_then_stable_tree_then_unstable_tree() {
    let bed = Bed::new(10);
    bed.engine.set(Knob::UseZeroPages, 1).unwrap();
    bed.write(0..4, 0);
    bed.write(4..6, 5);
    let counters = bed.scan(2);
    assert_eq!((counters.ksm_zero_pages, counters.pages_sharing), (4, 1));
    bed.write([6], 5);
    bed.write([7], 9);
    let counters = bed.scan(2);
    assert_eq!(figures(&counters), [1, 2, 1, 0, 0], "6 joins the frame, 7 waits");
    bed.write([8], 9);
    assert_eq!(figures(&bed.scan(2)), [2, 3, 0, 0, 0], "8 finds 7: one new frame for both");
    assert_eq!(bed.frame(7), bed.frame(8));
}

#[test]
fn s3_3_a_partner_that_changed_is_no_partner() {
    let bed = Bed::new(4);
    bed.write([2], 5);
    bed.scan(2);
    assert_eq!(bed.counters().pages_unshared, 1);
    bed.write([1], 5);
    bed.scan(1);
    // Page 2 changes after page 1 has become a candidate, and before its own next look.
    bed.write([2], 6);
    bed.scan(1);
    assert_eq!((bed.read(1), bed.read(2)), (5, 6));
    assert_eq!((bed.frame(1), bed.frame(2)), (None, None));
}

#[test]
fn s3_4_a_full_scan_visits_all_and_looks_only_at_what_changed() {
    let bed = Bed::new(1000);
    (0..900).for_each(|page| bed.write([page], page + 1));
    assert_eq!(bed.scan(1).pages_scanned, 900, "read");
    assert_eq!(bed.scan(1).pages_scanned, 1800, "looked at again");
    let counters = bed.scan(3);
    assert_eq!((counters.pages_scanned, counters.full_scans), (1800, 5), "known unchanged");
    bed.write([3, 950], 4);
    assert_eq!(bed.scan(2).pages_scanned, 1800 + 2 + 1, "3 has not changed, 950 is new");
    assert_eq!(bed.counters().pages_sharing, 1);
}

#[test]
fn s3_5_pages_to_scan_bounds_a_batch_and_sleep_millisecs_follows_it() {
    let bed = Bed::with(1, 1000, EngineOptions::default());
    bed.write(0..1000, 5);
    bed.engine.set(Knob::PagesToScan, 10).unwrap();
    bed.engine.set(Knob::SleepMillisecs, 20).unwrap();
    bed.engine.set(Knob::Run, 1).unwrap();
    let start = Instant::now();
    while bed.counters().pages_scanned == 0 {
        std::thread::yield_now();
    }
    assert_eq!(bed.counters().pages_scanned % 10, 0);
    while bed.counters().pages_scanned < 100 {
        std::thread::yield_now();
    }
    assert!(start.elapsed() > Duration::from_millis(9 * 20), "9 rests");
    bed.engine.set(Knob::SleepMillisecs, 0).unwrap();
    bed.engine.set(Knob::PagesToScan, 1000).unwrap();
    while bed.counters().pages_sharing < 999 - 3 {
        std::thread::yield_now();
    }
}

#[test]
fn s3_6_pages_written_to_are_counted_for_their_program_and_node() {
    let bed = Bed::on(2, 20);
    bed.write(0..10, 5);
    bed.write(10..20, 6);
    bed.scan(2);
    let memory: Arc<dyn Memory> = bed.machine.clone();
    let program = bed.engine.program(&memory);
    let counters = program.counters();
    assert_eq!((counters.pages_merged, counters.pages_saved, counters.pages_broken), (20, 18, 0));
    bed.write([3, 4], 7);
    bed.scan(1);
    let counters = program.counters();
    assert_eq!((counters.pages_merged, counters.pages_broken), (18, 2));
    // All of it is at home on one node.
    let broken: Vec<u64> = bed.engine.nodes().iter().map(|node| node.pages_broken).collect();
    assert_eq!((broken.iter().sum::<u64>(), broken.iter().max()), (2, Some(&2)));
}

#[test]
fn s3_6_a_page_written_after_merging_is_noticed_and_is_a_candidate_again() {
    let bed = Bed::new(4);
    bed.write(0..4, 5);
    assert_eq!(figures(&bed.scan(2)), [1, 3, 0, 0, 0]);
    bed.write([0, 1], 6);
    assert_eq!((bed.read(0), bed.read(2)), (6, 5), "at once, and only for the writer");
    let noticed = bed.scan(1);
    assert_eq!(figures(&noticed), [1, 1, 0, 0, 0]);
    assert_eq!((noticed.pages_broken, noticed.pages_volatile), (2, 2));
    assert_eq!(figures(&bed.scan(1)), [2, 2, 0, 0, 0], "merged with each other");
}

#[test]
fn pinned_pages_are_left_alone_and_tried_again() {
    let bed = Bed::new(3);
    bed.write(0..3, 5);
    bed.machine.pin(Vpn(1), true);
    let counters = bed.scan(2);
    assert_eq!((counters.pages_sharing, counters.pages_held), (1, 1));
    bed.machine.pin(Vpn(1), false);
    let counters = bed.scan(20);
    assert_eq!((counters.pages_sharing, counters.pages_held), (2, 0));
}

#[test]
fn pages_given_back_are_untouched_again() {
    let bed = Bed::new(6);
    bed.write(0..2, 5);
    bed.write([2], 6);
    bed.scan(3);
    bed.machine.discard(Vpn(2));
    bed.write([3], 6);
    let counters = bed.scan(3);
    assert_eq!((counters.pages_sharing, counters.pages_untouched), (1, 3), "2, 4 and 5");
    assert_eq!(counters.pages_unshared, 1);
}

#[test]
fn s5_4_pages_that_keep_changing_are_looked_at_ever_more_rarely() {
    let looks_in = |smart: u64, scans: u64| {
        let bed = Bed::new(10);
        bed.engine.set(Knob::SmartScan, smart).unwrap();
        for scan in 0..scans {
            bed.write(0..10, 1000 + scan);
            bed.scan(1);
        }
        let c = bed.counters();
        assert_eq!((c.pages_volatile, c.pages_scanned + c.pages_skipped), (10, 10 * scans));
        (bed, c.pages_scanned / 10)
    };
    let (_, always) = looks_in(0, 100);
    assert_eq!(always, 100);
    let (_, young) = looks_in(1, 4);
    assert_eq!(young, 4, "none is left out before it could have been merged");
    let (bed, rarely) = looks_in(1, 100);
    assert!((10..35).contains(&rarely), "{rarely} looks in 100 scans");
    // Once it stays as it is, it is merged, after as many scans as can be left out and two looks.
    bed.scan(8 + 2);
    let merged = bed.counters();
    assert_eq!((merged.pages_shared, merged.pages_sharing), (1, 9));
    // And it is young again.
    let skipped = merged.pages_skipped;
    bed.write(0..10, 5);
    bed.scan(3);
    assert_eq!(bed.counters().pages_skipped, skipped);
    assert_eq!(bed.counters().pages_sharing, 9);
}
