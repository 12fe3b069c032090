//! `full_scans`: that it rises, whatever clients do.

use crate::bed::{Bed, Client, until};

const PAGES: u64 = 200;

/// The engine's own count, which rises in each round.
fn rounds(bed: &Bed) -> u64 {
    bed.server.domains().iter().map(|domain| domain.engine().progress().full_scans).sum()
}

/// Once it does as it is asked, all of it.
fn is_merged_again(bed: &Bed, one: &mut Client, other: &mut Client) {
    one.ask("manner honest");
    one.ask("write 0 7 8");
    bed.until_merged(PAGES, PAGES);
    assert_eq!([one.ask("wrong 0 1 1"), other.ask("wrong 0 1 1")], ["0", "0"]);
    bed.no_errors();
}

/// What an agent could not merge, and had out of view, counts as written to afterwards.
#[test]
fn what_is_refused_is_not_tried_in_each_round() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    one.ask("manner put-back");
    one.ask("write 0 7 9");
    let asked = |client: &mut Client| client.ask("asked").parse::<u64>().unwrap();
    let before = (asked(&mut one), rounds(&bed));
    (0..10).for_each(|_| bed.scan_twice());
    assert_eq!(bed.server.counters().pages_held, 1);
    let tried = asked(&mut one) - before.0;
    let rounds = rounds(&bed) - before.1;
    assert!(tried > 0 && tried * 8 < rounds, "tried {tried} times in {rounds} rounds");
    is_merged_again(&bed, &mut one, &mut other);
}

/// There is something to merge in each round then, and an answer that is not there yet.
#[test]
fn s3_4_full_scans_end_though_pages_are_written_to_as_soon_as_they_are_merged() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    one.ask("manner restless");
    one.ask("write 0 7 9");
    bed.scan_twice();
    bed.scan_twice();
    is_merged_again(&bed, &mut one, &mut other);
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
