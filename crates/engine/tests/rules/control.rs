//! S5: control.

use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge_engine::machine::{Mappings, Memory, Vpn};
use numerge_engine::{
    ADVISOR_NONE, ADVISOR_SCAN_TIME, EngineOptions, Knob, KnobError, RegisterError, UnmergeError,
};

use crate::bed::{Bed, figures};

fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn s5_1_run_starts_stops_and_unmerges() {
    let bed = Bed::with(1, 100, EngineOptions::default());
    bed.write(0..100, 5);
    bed.engine.set(Knob::SleepMillisecs, 0).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(bed.counters().pages_scanned, 0, "run is 0 at first");
    bed.engine.set(Knob::Run, 1).unwrap();
    until("all is merged", || bed.counters().pages_sharing == 99);

    bed.engine.set(Knob::Run, 0).unwrap();
    let stopped = bed.counters();
    assert_eq!(stopped.pages_sharing, 99, "what is merged stays merged");

    bed.engine.set(Knob::Run, 2).unwrap();
    let unmerged = bed.counters();
    assert_eq!((unmerged.pages_sharing, unmerged.pages_registered), (0, 100));
    assert_eq!(unmerged.pages_untouched, 100, "what was seen is forgotten, as by the kernel");
    assert!((0..100).all(|page| bed.frame(page).is_none() && bed.read(page) == 5));

    bed.engine.set(Knob::Run, 1).unwrap();
    until("all is merged again", || bed.counters().pages_sharing == 99);
    assert!(matches!(bed.engine.set(Knob::Run, 3), Err(KnobError::Invalid { value: 3, .. })));
    assert_eq!(bed.engine.knob(Knob::Run), 1);
}

#[test]
fn s5_1_unmerging_everything_forgets_also_what_was_not_merged() {
    let bed = Bed::new(100);
    (0..50).for_each(|page| bed.write([page], 100 + page));
    bed.write(50..60, 7);
    bed.engine.set(Knob::UseZeroPages, 1).unwrap();
    bed.write(60..70, 0);
    bed.write(70..80, 9);
    bed.machine.pin(Vpn(75), true);
    bed.scan(2);
    bed.write(80..90, 11);
    let with = bed.scan(1);
    assert_eq!((with.pages_unshared, with.ksm_zero_pages, with.pages_held), (50, 10, 1));
    bed.engine.set(Knob::Run, 2).unwrap();
    let without = bed.counters();
    assert_eq!(figures(&without), [0; 5]);
    assert_eq!((without.pages_volatile, without.ksm_zero_pages, without.pages_held), (0, 0, 0));
    assert_eq!(without.pages_untouched, 100);
    // Nothing was written since, and all of it is looked at again; where nothing is, nothing is found.
    bed.machine.pin(Vpn(75), false);
    bed.scan(2);
    let again = bed.counters();
    assert_eq!(again.pages_shared + again.pages_sharing, 10 + 10 + 10);
    assert_eq!((again.pages_unshared, again.ksm_zero_pages), (50, 10));
    assert_eq!(again.pages_untouched, 10);
}

#[test]
fn s5_4_the_advisor_has_pages_to_scan_for_itself() {
    let bed = Bed::new(10);
    bed.engine.set(Knob::PagesToScan, 77).unwrap();
    bed.engine.set(Knob::AdvisorMinPagesToScan, 600).unwrap();
    bed.engine.set(Knob::AdvisorMode, ADVISOR_SCAN_TIME).unwrap();
    assert_eq!(bed.engine.knob(Knob::PagesToScan), 600);
    assert!(matches!(bed.engine.set(Knob::PagesToScan, 5), Err(KnobError::Advised)));
    // A scan of nothing is over soon, so that less than its least would do.
    bed.scan(3);
    assert_eq!(bed.engine.knob(Knob::PagesToScan), 600);
    bed.engine.set(Knob::AdvisorMinPagesToScan, 500).unwrap();
    bed.scan(20);
    assert_eq!(bed.engine.knob(Knob::PagesToScan), 500);
    bed.engine.set(Knob::AdvisorMode, ADVISOR_NONE).unwrap();
    assert_eq!(bed.engine.knob(Knob::PagesToScan), 100);
    bed.engine.set(Knob::PagesToScan, 5).unwrap();
}

#[test]
fn s5_4_the_advisor_takes_its_owners_word_for_full_scans() {
    let options =
        EngineOptions { background: false, advise_by_visits: false, ..EngineOptions::default() };
    let bed = Bed::with(1, 10, options);
    bed.engine.set(Knob::AdvisorMinPagesToScan, 600).unwrap();
    bed.engine.set(Knob::AdvisorMode, ADVISOR_SCAN_TIME).unwrap();
    bed.engine.set(Knob::AdvisorMinPagesToScan, 500).unwrap();
    bed.scan(20);
    assert_eq!(bed.engine.knob(Knob::PagesToScan), 600);
    (0..3).for_each(|_| bed.engine.full_scan_is_over());
    assert_eq!(bed.engine.knob(Knob::PagesToScan), 500);
}

#[test]
fn s5_4_the_advisors_cpu_limit_is_for_all_threads_that_scan() {
    let pages = 4000;
    let bed = Bed::new(pages);
    let advised = || bed.engine.knob(Knob::PagesToScan);
    // A scan that takes longer than wanted, so that the next is to look at more at a time.
    let scan = || {
        (0..pages).for_each(|page| bed.write([page], page + 1));
        std::thread::sleep(Duration::from_millis(1100));
        bed.scan(1);
    };
    bed.engine.set(Knob::AdvisorTargetScanTime, 1).unwrap();
    bed.engine.set(Knob::AdvisorMaxCpu, 50).unwrap();
    bed.engine.set(Knob::AdvisorMinPagesToScan, 2000).unwrap();
    bed.engine.set(Knob::AdvisorMode, ADVISOR_SCAN_TIME).unwrap();
    bed.engine.set(Knob::AdvisorMinPagesToScan, 1).unwrap();
    scan();
    let more = advised();
    assert!(more > 2000, "where reading costs nothing: {more}");

    // All threads together, whichever has read a page, take four seconds.
    bed.machine.set_read_cost(Duration::from_millis(1));
    let began = Instant::now();
    scan();
    let took = began.elapsed();
    let allowed = |took: Duration| u128::from(more) * took.as_millis() / 2 / 4000;
    let (least, most) = (allowed(Duration::from_millis(1100)), allowed(2 * took) + 1);
    let found = u128::from(advised());
    assert!((least..=most).contains(&found), "{found} of {more}, for {least} to {most}");
}

#[test]
fn s5_2_unmerging_blocks_nothing_and_can_be_interrupted() {
    let pages = 200_000;
    let bed = Bed::with(1, pages, EngineOptions::default());
    bed.write(0..pages, 5);
    // On a busy machine all may be unmerged before this thread has its turn: then once more.
    let interrupted = (0..50).any(|_| {
        bed.scan(2);
        assert_eq!(bed.counters().pages_shared, pages.div_ceil(256));
        std::thread::scope(|scope| {
            let unmerging = scope.spawn(|| bed.engine.set(Knob::Run, 2));
            until("it has begun", || bed.counters().pages_sharing < pages - pages / 100);
            bed.engine.set(Knob::PagesToScan, 1_000_000).unwrap();
            let limit = bed.engine.set(Knob::MaxPageSharing, 9);
            bed.engine.set(Knob::Run, 0).unwrap();
            let left = bed.counters();
            match unmerging.join().unwrap() {
                Ok(()) => {
                    bed.engine.set(Knob::MaxPageSharing, 256).unwrap();
                    false
                }
                Err(KnobError::Unmerge(UnmergeError::Interrupted)) => {
                    assert!(matches!(limit, Err(KnobError::Busy { .. })), "{limit:?}");
                    assert!(left.pages_sharing > 0);
                    true
                }
                Err(error) => panic!("{error}"),
            }
        })
    });
    assert!(interrupted, "never came to it in time");
    assert_eq!(bed.engine.knob(Knob::Run), 0);
    assert!((0..pages).all(|page| bed.read(page) == 5));
    bed.engine.set(Knob::Run, 2).unwrap();
    assert_eq!(bed.counters().pages_shared, 0);
}

#[test]
fn s5_2_running_out_of_memory_leaves_the_rest_merged_and_intact() {
    let bed = Bed::new(5000);
    bed.write(0..5000, 5);
    bed.scan(2);
    bed.machine.limit(u64::MAX, 2000);
    let error = bed.engine.set(Knob::Run, 2).unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
    assert_eq!(bed.engine.knob(Knob::Run), 0);
    assert!((0..5000).all(|page| bed.read(page) == 5));
    assert!(bed.counters().pages_sharing > 2500);

    // Nor can the region be let go of; once there is memory, it can.
    let region = bed.region.as_ref().unwrap();
    assert!(region.unregister().is_err());
    bed.machine.limit(u64::MAX, u64::MAX);
    region.unregister().unwrap();
    assert!((0..5000).all(|page| bed.frame(page).is_none() && bed.read(page) == 5));
}

#[test]
fn s5_3_unregistering_takes_pages_out_of_every_structure() {
    let mut bed = Bed::new(1000);
    bed.engine.set(Knob::UseZeroPages, 1).unwrap();
    bed.write(0..500, 5);
    (500..700).for_each(|page| bed.write([page], page));
    bed.write(700..800, 0);
    bed.scan(3);
    bed.write(800..810, 7);
    bed.scan(1);
    let with = bed.counters();
    assert_eq!((with.pages_unshared, with.pages_volatile, with.ksm_zero_pages), (200, 10, 100));
    let memory: Arc<dyn Memory> = bed.machine.clone();
    let program = bed.engine.program(&memory);
    assert_eq!(program.counters().pages_touched, 1000 - with.pages_untouched);
    drop(bed.region.take());
    let without = bed.counters();
    assert_eq!(program.counters().pages_touched, 0);
    assert_eq!(figures(&without), [0; 5]);
    assert_eq!((without.pages_registered, without.pages_volatile), (0, 0));
    assert_eq!((without.ksm_zero_pages, without.pages_untouched), (0, 0));
    assert!(without.metadata_bytes + 1000 * 16 <= with.metadata_bytes);
    assert!((0..500).all(|page| bed.read(page) == 5));

    let _region = bed.engine.register(&memory, Vpn(0)..Vpn(1000)).unwrap();
    assert_eq!(bed.scan(2).pages_sharing, 498 + 9);
}

#[test]
fn s5_4_ranges_that_can_not_be_registered_are_named() {
    let bed = Bed::new(100);
    let memory: Arc<dyn Memory> = bed.machine.clone();
    let register = |pages| bed.engine.register(&memory, pages).err().unwrap();
    assert!(matches!(register(Vpn(5)..Vpn(5)), RegisterError::Empty));
    let overlap = register(Vpn(99)..Vpn(150));
    assert_eq!(overlap.to_string(), "pages 0x63..0x96 overlap a region that is registered already");
    assert!(matches!(register(Vpn(100)..Vpn(1 << 50)), RegisterError::TooMany { .. }));
    assert!(matches!(register(Vpn(100)..Vpn(101)), RegisterError::Memory(_)));
    assert_eq!(bed.counters().pages_registered, 100);
}

#[test]
fn s5_5_general_profit_is_what_is_saved_less_what_tracking_takes() {
    let bed = Bed::new(1000);
    bed.write(0..1000, 5);
    let counters = bed.scan(2);
    assert_eq!(counters.bytes_saved(), (1000 - 4) * 4096);
    let metadata = i64::try_from(counters.metadata_bytes).unwrap();
    assert_eq!(counters.general_profit(), (1000 - 4) * 4096 - metadata);
    assert!(metadata > 1000 * 16, "at least the records are counted");
}

#[test]
fn s6_runs_that_would_take_too_many_mappings_are_left_long_ones_come_first() {
    let bed = Bed::new(200);
    // 40 pages twice in the same order, and 40 twice in another.
    for at in [0, 100] {
        (0..40).for_each(|page| bed.write([at + page], 1000 + page));
        let step = if at == 0 { 1 } else { 7 };
        (0..40).for_each(|page| bed.write([at + 40 + page * step % 40], 2000 + page));
    }
    // Half of 40 mappings, less 4 in use, are 16: 8 runs.
    bed.machine.set_mappings(Mappings { used: 4, limit: 100 });
    bed.engine.set(Knob::PagesToScan, 1_000_000).unwrap();
    let counters = bed.scan(2);
    assert!(counters.pages_over_budget > 0, "{counters:?}");
    assert!(
        (0..40).all(|page| bed.frame(page).is_some() && bed.frame(page) == bed.frame(100 + page))
    );
    bed.machine.set_mappings(Mappings { used: 4, limit: 1_000_000 });
    let counters = bed.scan(20);
    assert_eq!((counters.pages_over_budget, counters.pages_sharing), (0, 80));
}

#[test]
fn frames_that_can_not_be_had_leave_pages_as_they_are() {
    let bed = Bed::new(100);
    (0..100).for_each(|page| bed.write([page], page % 10 + 1));
    bed.machine.limit(3, u64::MAX);
    let counters = bed.scan(2);
    assert_eq!(counters.pages_shared, 3);
    assert_eq!((counters.frames_refused, counters.pages_held), (7, 70));
    bed.machine.limit(u64::MAX, u64::MAX);
    let counters = bed.scan(1);
    assert_eq!((counters.pages_shared, counters.pages_held), (10, 0));
}
