//! Pages of several clients are merged with each other.

use numerge_engine::Knob;

use crate::bed::{Bed, until};

const PAGES: u64 = 200;

#[test]
fn s1_1_equal_pages_of_two_processes_are_one() {
    let Some(bed) = Bed::new() else { return };
    let mut clients = bed.merged_clients::<2>(PAGES);
    let frames = clients.each_mut().map(|client| client.frames(0, PAGES));
    if frames[0][0] == 0 {
        println!("SKIPPED in part: no right to see page frame numbers");
    } else {
        assert_eq!(frames[0], frames[1]);
    }
    for client in &mut clients {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
    let told = bed.server.clients();
    assert_eq!(told.len(), 2);
    for client in told {
        assert_eq!((client.pages_registered, client.counters.pages_merged), (PAGES, PAGES));
        assert_eq!(client.counters.pages_saved, PAGES / 2);
    }
    bed.no_errors();
}

#[test]
fn s3_6_a_page_written_to_is_the_writers_own_and_is_merged_again() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    one.ask("write 0 7 4444");
    assert_eq!(one.ask("wrong 0 1 1"), "1");
    assert_eq!(other.ask("wrong 0 1 1"), "0");
    bed.until_merged(PAGES, PAGES - 1);
    one.ask("write 0 7 8");
    bed.until_merged(PAGES, PAGES);
    assert_eq!(one.ask("wrong 0 1 1"), "0");
    assert_eq!(other.ask("wrong 0 1 1"), "0");
    bed.no_errors();
}

#[test]
fn s5_1_run_2_gives_all_clients_their_own_memory() {
    let Some(bed) = Bed::new() else { return };
    let mut clients = bed.merged_clients::<2>(PAGES);
    bed.server.set_patiently(Knob::Run, 2).unwrap();
    let counters = bed.server.counters();
    assert_eq!((counters.pages_shared, counters.pages_sharing), (0, 0));
    let frames = clients.each_mut().map(|client| client.frames(0, PAGES));
    if frames[0][0] != 0 {
        assert!(frames[0].iter().all(|frame| !frames[1].contains(frame)));
    }
    for client in &mut clients {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
    bed.server.set(Knob::Run, 1).unwrap();
    bed.until_merged(PAGES, PAGES);
    bed.no_errors();
}

#[test]
fn s5_5_the_worked_figures_over_several_processes() {
    let Some(bed) = Bed::new() else { return };
    bed.server.set(Knob::MaxPageSharing, 3).unwrap();
    let mut clients: Vec<_> = (0..3).map(|_| bed.client_with(259, 7, 0)).collect();
    bed.until_merged(259, 518);
    for client in &mut clients {
        assert_eq!(client.ask("wrong 0 7 0"), "0");
    }
}

#[test]
fn s5_3_pages_replaced_are_forgotten_and_what_is_there_instead_is_merged() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    one.ask("replace 0 50 150 77777 1");
    // The other's pages have no partners now, but keep their frames; the new ones share one.
    bed.until_merged(PAGES + 1, PAGES - 100 + 99);
    assert_eq!(one.ask("wrong 0 1 1"), "100");
    assert_eq!(other.ask("wrong 0 1 1"), "0");
    other.ask("replace 0 0 50 77777 1");
    bed.until_merged(PAGES + 1, PAGES - 150 + 149);
    one.ask("replace 0 50 150 66666 2");
    assert_eq!(other.ask("wrong 0 1 1"), "50");
    bed.until_merged(PAGES + 2, PAGES - 150 + 49 + 99);
    bed.no_errors();
}

#[test]
fn s5_3_a_region_unregistered_is_the_clients_own() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    one.ask("unregister 0");
    one.until_news("unregistered 0 None");
    let counters = bed.server.counters();
    assert_eq!(counters.pages_registered, PAGES);
    assert_eq!((counters.pages_shared, counters.pages_sharing), (PAGES, 0));
    assert_eq!(one.ask("wrong 0 1 1"), "0");
    assert_eq!(other.ask("wrong 0 1 1"), "0");
    one.ask("unregister 0");
    one.until_news("unregistered 0 Some(Unknown)");
    bed.no_errors();
}

#[test]
fn s5_3_a_client_that_says_goodbye_leaves_nothing() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    one.ask("bye");
    until(|| bed.server.client_count() == 1, || "the client is there still".into());
    bed.until_merged(PAGES, 0);
    assert_eq!(one.ask("wrong 0 1 1"), "0");
    assert_eq!(other.ask("wrong 0 1 1"), "0");
    bed.no_errors();
}

#[test]
fn s5_4_what_was_set_holds_for_domains_to_come() {
    let Some(bed) = Bed::new() else { return };
    bed.server.set(Knob::MaxPageSharing, 2).unwrap();
    assert!(bed.server.set(Knob::MaxPageSharing, 1).is_err());
    assert_eq!(bed.server.knob(Knob::MaxPageSharing), 2);
    assert_eq!(bed.server.knob(Knob::UseZeroPages), 0);
    let _client = bed.client_with(4, 9, 0);
    bed.until_merged(2, 2);
    assert!(bed.server.set(Knob::MaxPageSharing, 3).is_err(), "pages are shared");
    assert_eq!(bed.server.knob(Knob::MaxPageSharing), 2);
}
