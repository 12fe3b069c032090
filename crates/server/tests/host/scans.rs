//! `full_scans`: that it rises, whatever clients do.

use crate::bed::{Bed, until};

const PAGES: u64 = 200;

/// A page that was written to after it was merged can be one that is never merged again, and what its
/// agent tried leaves it written to: each round finds it, and has it tried.
#[test]
fn s3_4_full_scans_end_though_a_page_is_refused_in_each() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    one.ask("manner put-back");
    one.ask("write 0 7 9");
    bed.scan_twice();
    bed.scan_twice();
    assert_eq!(bed.server.counters().pages_sharing, PAGES - 1);
    one.ask("manner honest");
    one.ask("write 0 7 8");
    bed.until_merged(PAGES, PAGES);
    assert_eq!([one.ask("wrong 0 1 1"), other.ask("wrong 0 1 1")], ["0", "0"]);
    bed.no_errors();
}

/// A client that says nothing does not keep others' scans from being over.
#[test]
fn s3_4_full_scans_end_though_a_client_is_stopped() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, other] = bed.merged_clients(PAGES);
    one.ask("write 0 7 9");
    other.signal(libc::SIGSTOP);
    bed.scan_twice();
    one.ask("write 0 7 8");
    bed.scan_twice();
    let sharing = || bed.server.counters().pages_sharing;
    until(|| sharing() == PAGES, || format!("{} pages saved, not {PAGES}", sharing()));
    other.signal(libc::SIGCONT);
    assert_eq!(one.ask("wrong 0 1 1"), "0");
}
