//! `run`, set by several at once.

use std::time::Duration;

use numerge_engine::machine::MemoryError;
use numerge_engine::{ADVISOR_SCAN_TIME, Knob, KnobError, UnmergeError};

use crate::bed::{Bed, until};

const PAGES: u64 = 200;

/// Who has set 2 waits for a client that is stopped: it is not that client's fault that all ends here.
#[test]
fn s5_2_what_is_set_while_everything_is_unmerged_counts() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    other.signal(libc::SIGSTOP);
    for value in [0, 1] {
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| bed.server.set_patiently(Knob::Run, 2));
            until(|| bed.server.knob(Knob::Run) == 2, || "it has not begun".into());
            std::thread::sleep(Duration::from_millis(20));
            bed.server.set(Knob::Run, value).unwrap();
            let ended = writer.join().unwrap();
            let is_interrupted =
                matches!(ended, Err(KnobError::Unmerge(UnmergeError::Interrupted)));
            assert!(is_interrupted, "{ended:?}");
        });
        assert_eq!(bed.server.knob(Knob::Run), value);
        for domain in bed.server.domains() {
            assert_eq!(domain.engine().knob(Knob::Run), value);
        }
    }
    other.signal(libc::SIGCONT);
    bed.until_merged(PAGES, PAGES);
    assert_eq!([one.ask("wrong 0 1 1"), other.ask("wrong 0 1 1")], ["0", "0"]);
}

/// One that says this and that all the time.
#[test]
fn s5_2_run_2_ends_though_a_client_talks_and_never_answers() {
    let Some(bed) = Bed::new() else { return };
    let [mut talker, mut other] = bed.merged_clients(PAGES);
    talker.ask("manner slow-to-unmerge");
    std::thread::scope(|scope| {
        let unmerging = scope.spawn(|| bed.server.set(Knob::Run, 2));
        let mut said = 0;
        while !unmerging.is_finished() {
            assert!(said < 3000, "waited for all the time");
            // That is in use already, and it is told so.
            talker.ask("say-register 77 0 10");
            said += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        let error = unmerging.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
    });
    talker.ask("manner honest");
    talker.ask("answer");
    until(|| bed.server.set(Knob::Run, 2).is_ok(), || "still merged".into());
    assert_eq!(bed.server.counters().pages_shared, 0);
    assert_eq!([talker.ask("wrong 0 1 1"), other.ask("wrong 0 1 1")], ["0", "0"]);
}

/// Each time when nobody waits for that answer any more.
#[test]
fn s5_2_run_2_reports_want_of_memory_that_is_told_late() {
    let Some(bed) = Bed::new() else { return };
    let [mut poor, mut other] = bed.merged_clients(PAGES);
    poor.ask("manner late-without-memory");
    let error = bed.server.set_patiently(Knob::Run, 2).unwrap_err();
    let is_memory =
        matches!(error, KnobError::Unmerge(UnmergeError::Memory(MemoryError::OutOfMemory)));
    assert!(is_memory, "{error}");
    assert_eq!(bed.server.knob(Knob::Run), 0);
    poor.ask("manner honest");
    bed.server.set_patiently(Knob::Run, 2).unwrap();
    assert_eq!(bed.server.counters().pages_shared, 0);
    assert_eq!([poor.ask("wrong 0 1 1"), other.ask("wrong 0 1 1")], ["0", "0"]);
}

/// By the full scans that are counted for others.
#[test]
fn s5_4_the_advisor_hears_of_full_scans() {
    let Some(bed) = Bed::new() else { return };
    let _clients = bed.merged_clients::<2>(PAGES);
    bed.server.set(Knob::AdvisorMinPagesToScan, 600).unwrap();
    bed.server.set(Knob::AdvisorMode, ADVISOR_SCAN_TIME).unwrap();
    assert_eq!(bed.server.knob(Knob::PagesToScan), 600);
    bed.server.set(Knob::AdvisorMinPagesToScan, 500).unwrap();
    let advised = || bed.server.knob(Knob::PagesToScan);
    until(|| advised() == 500, || format!("pages_to_scan is {}", advised()));
}
