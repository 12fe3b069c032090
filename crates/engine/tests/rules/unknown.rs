//! What a program does not let be known for a while, and when it does.

use numerge_engine::machine::Vpn;

use crate::script::{After, Before, Call, When};
use crate::two::Two;

/// Two equal pages and one alone, and a page in each state that a failed read may meet.
fn merged_although_reads_fail(when: When, before: usize) {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    [7, 8].iter().for_each(|page| two.write(*page, *page));
    (0..before).for_each(|_| two.scan(0));
    // They all change, and nobody can see to what.
    (5..9).for_each(|page| two.write(page, 60));
    two.memory.fail(when, Call::Read, 0..100, 3);
    (0..8).for_each(|_| two.scan(0));
    two.check();
    assert_eq!(two.memory.clear(), 0, "all that was to fail has failed");
    let frame = two.machine.frame_of(Vpn(5));
    assert!(frame.is_some());
    assert!((5..9).all(|page| two.machine.frame_of(Vpn(page)) == frame));
    assert!(!two.engine.take_errors().is_empty());
    two.end();
}

#[test]
fn s3_4_what_could_not_be_read_is_read_later_whatever_was_known_of_it() {
    for before in 0..4 {
        merged_although_reads_fail(Before, before);
        merged_although_reads_fail(After, before);
    }
}

/// Its memory may be gone before that is reported again.
#[test]
fn s3_4_what_could_not_be_read_and_is_gone_is_no_candidate() {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    two.scan(0);
    two.write(5, 60);
    two.memory.fail(Before, Call::Read, 5..6, 1);
    two.scan(0);
    assert_eq!(two.memory.clear(), 0);
    two.machine.discard(Vpn(5));
    (0..4).for_each(|_| {
        two.scan(0);
        two.check();
    });
    assert_eq!(two.engine.counters().pages_untouched, 200 - 2, "but for the first and 6");
    two.end();
}

/// It may be one that can never be counted, and nobody waits for it to be.
#[test]
fn s3_4_a_program_whose_mappings_can_not_be_counted_is_not_tried_in_each_pass() {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    two.memory.fail(Before, Call::Mappings, 0..1, u64::MAX);
    (0..4).for_each(|_| two.scan(0));
    let tried = two.engine.progress();
    assert_eq!((tried.attempted, tried.deferred), (2, 0));
    (0..4).for_each(|_| two.scan(0));
    assert_eq!(two.engine.progress().attempted, tried.attempted);
    two.check();
    assert_eq!(two.memory.clear(), 1);
    two.end();
}

/// It may have them locked for a moment, while others are counted.
#[test]
fn s3_4_a_program_whose_mappings_are_not_told_at_once_is_asked_again_for_some_seconds() {
    // Two looks, and then a try in each pass.
    let cases = [(1, 1, 2), (1, 3, 4), (1, u64::MAX, 5), (10, 3, 4), (10, u64::MAX, 4)];
    for (seconds, times, tries) in cases {
        let two = Two::new();
        [5, 6].iter().for_each(|page| two.write(*page, 50));
        two.memory.no_answer(Before, Call::Mappings, 0..1, times);
        for _ in 0..12 {
            two.scan(0);
            two.wait(seconds * 1000);
        }
        assert_eq!(two.engine.progress().attempted, 2 * tries, "{times} times, {seconds} s");
        assert_eq!(
            two.machine.frame_of(Vpn(5)).is_some(),
            times <= 3,
            "{times} times, {seconds} s"
        );
        assert!(!two.engine.take_errors().is_empty());
        two.check();
        two.memory.clear();
        two.end();
    }
}

/// However many batches that concerns.
#[test]
fn s3_4_what_is_deferred_does_not_use_up_a_programs_time() {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    two.memory.no_answer(Before, Call::Mappings, 0..1, 20);
    (0..30).for_each(|_| two.scan(0));
    assert!(two.machine.frame_of(Vpn(5)).is_some());
    two.check();
    assert_eq!(two.memory.clear(), 0);
    two.end();
}
