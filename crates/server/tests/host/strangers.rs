//! Clients that are not let in, and clients that lie.

use std::collections::BTreeSet;

use numerge_engine::Knob;
use numerge_server::{Domains, Members, Options, Quotas};

use crate::bed::{Bed, Client, until};

const PAGES: u64 = 50;

fn my_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn s6_another_processs_pagemap_is_refused() {
    let Some(bed) = Bed::new() else { return };
    let mut client = bed.process();
    let socket = bed.socket();
    for other in [format!("/proc/{}/pagemap", std::process::id()), "/proc/self/maps".to_owned()] {
        assert_eq!(client.ask(&format!("connect {socket} - {other}")), "Protocol");
    }
    assert_eq!(client.ask(&format!("connect {socket}")), "welcome");
}

#[test]
fn s6_a_domain_is_for_its_members() {
    let named = |users: &[u32]| Members { users: users.iter().copied().collect() };
    let domains = Domains {
        by_user: true,
        named: [
            ("ours".to_owned(), named(&[my_user()])),
            ("theirs".to_owned(), named(&[my_user() + 1])),
        ]
        .into(),
    };
    let Some(bed) = Bed::with(Options { domains, ..Options::default() }) else { return };
    let mut client = bed.process();
    let socket = bed.socket();
    assert_eq!(client.ask(&format!("connect {socket} theirs")), "Domain");
    assert_eq!(client.ask(&format!("connect {socket} nobodys")), "Domain");
    assert_eq!(client.ask(&format!("connect {socket} ours")), "welcome");
}

#[test]
fn s6_domains_share_no_frame() {
    let named = || Members { users: [my_user()].into() };
    let named = [("red".to_owned(), named()), ("blue".to_owned(), named())].into();
    let domains = Domains { by_user: true, named };
    let Some(bed) = Bed::with(Options { domains, ..Options::default() }) else { return };
    let mut clients = Vec::new();
    for domain in ["red", "red", "blue", "blue"] {
        let mut client = bed.process();
        assert_eq!(client.ask(&format!("connect {} {domain}", bed.socket())), "welcome");
        client.ask(&format!("map {PAGES} 1 1"));
        client.ask("register 0");
        clients.push(client);
    }
    bed.until_merged(2 * PAGES, 2 * PAGES);
    bed.scan_twice();
    bed.until_merged(2 * PAGES, 2 * PAGES);
    let frames: Vec<_> = clients.iter_mut().map(|client| client.frames(0, PAGES)).collect();
    if frames[0][0] != 0 {
        assert_eq!(frames[0], frames[1]);
        assert_eq!(frames[2], frames[3]);
        assert!(frames[0].iter().all(|frame| !frames[2].contains(frame)));
    }
    // What it may map some day: the files that it was given, each by device and inode.
    let files: Vec<BTreeSet<String>> = clients
        .iter_mut()
        .map(|client| client.ask("files").split_whitespace().map(str::to_owned).collect())
        .collect();
    assert!(files.iter().all(|files| !files.is_empty()), "{files:?}");
    for red in &files[..2] {
        assert!(files[2..].iter().all(|blue| red.is_disjoint(blue)), "{files:?}");
    }
    let per_domain: Vec<u64> =
        bed.server.domains().iter().map(|d| d.engine().counters().pages_shared).collect();
    assert_eq!(per_domain, [PAGES, PAGES]);
}

#[test]
fn s6_no_more_clients_than_allowed() {
    for quotas in [
        Quotas { clients: 2, ..Quotas::default() },
        Quotas { clients_of_user: 2, ..Quotas::default() },
    ] {
        let Some(bed) = Bed::with(Options { quotas, ..Options::default() }) else { return };
        two_clients_and_no_more(&bed);
    }
}

fn two_clients_and_no_more(bed: &Bed) {
    let mut clients = [bed.client(), bed.client()];
    let mut third = bed.process();
    let connect = format!("connect {}", bed.socket());
    assert_eq!(third.ask(&connect), "TooManyClients");
    clients[0].kill();
    until(|| bed.server.client_count() == 1, || "two clients".into());
    assert_eq!(third.ask(&connect), "welcome");
}

#[test]
fn s6_no_more_pages_and_regions_than_allowed() {
    let quotas = Quotas { pages: 100, regions: 2, ..Quotas::default() };
    let Some(bed) = Bed::with(Options { quotas, ..Options::default() }) else { return };
    let mut client = bed.client();
    client.ask("say-register 7 1000 101");
    client.until_news("unregistered 7 Some(OverLimit)");
    client.ask("say-register 1 1000 50");
    client.ask("say-register 2 2000 50");
    client.ask("say-register 3 3000 1");
    client.until_news("unregistered 3 Some(OverLimit)");
    client.ask("say-register 2 4000 1");
    client.until_news("unregistered 2 Some(InUse)");
    // What is gone makes room, and a number free.
    client.ask("say-gone 1000 50");
    client.ask("say-register 1 2010 10");
    client.until_news("unregistered 1 Some(InUse)");
    client.ask("say-register 1 1010 50");
    client.ask("say-register 4 5000 1");
    client.until_news("unregistered 4 Some(OverLimit)");
    assert_eq!(bed.server.counters().pages_registered, 100);
}

/// What the clients of a user have counts together, whether it is there or not.
#[test]
fn s6_a_user_has_no_more_pages_than_allowed_and_others_have_theirs() {
    let quotas = Quotas { pages_of_user: 100, pages_of_all: 150, ..Quotas::default() };
    let Some(bed) = Bed::with(Options { quotas, ..Options::default() }) else { return };
    let (mut one, mut two) = (bed.client(), bed.client());
    one.ask("say-register 1 1000 60");
    until(|| bed.server.counters().pages_registered == 60, || "not registered".into());
    two.ask("say-register 1 1000 41");
    two.until_news("unregistered 1 Some(OverLimit)");
    two.ask("say-register 2 1000 40");
    let registered = || bed.server.counters().pages_registered;
    until(|| registered() == 100, || format!("{} pages, not 100", registered()));
    two.ask("say-register 3 2000 1");
    two.until_news("unregistered 3 Some(OverLimit)");
    if rustix::process::geteuid().is_root() {
        let mut other = bed.process();
        let user = my_user() + 1;
        let answer = other.ask(&format!("connect {} - /proc/self/pagemap {user}", bed.socket()));
        assert_eq!(answer, "welcome");
        other.ask("say-register 1 1000 51");
        other.until_news("unregistered 1 Some(OverLimit)");
        other.ask("say-register 2 1000 50");
        until(|| registered() == 150, || format!("{} pages, not 150", registered()));
    } else {
        println!("SKIPPED: only root has clients of several users");
    }
    // What is gone makes room for the user's others, and so does the end of a client.
    one.ask("say-gone 1000 20");
    until(|| registered() < 150, || "not gone".into());
    one.kill();
    until(|| registered() < 100, || "a client that has ended has pages".into());
    two.ask("say-register 4 3000 60");
    until(|| registered() >= 100, || format!("{} pages", registered()));
    bed.no_errors();
}

#[test]
fn s6_no_more_domains_than_allowed_and_an_idle_one_makes_room() {
    let named = ["red", "blue", "green"]
        .map(|name| (name.to_owned(), Members { users: [my_user()].into() }));
    let domains = Domains { by_user: true, named: named.into() };
    let quotas = Quotas { domains: 2, ..Quotas::default() };
    let options = Options { domains, quotas, ..Options::default() };
    let Some(bed) = Bed::with(options) else { return };
    let mut clients = ["red", "blue", "green"].map(|domain| (bed.process(), domain));
    let connect = |client: &mut (Client, &str)| {
        client.0.ask(&format!("connect {} {}", bed.socket(), client.1))
    };
    let [red, blue, green] = &mut clients;
    assert_eq!(connect(red), "welcome");
    assert_eq!(connect(blue), "welcome");
    assert_eq!(connect(green), "Unavailable");
    assert_eq!(bed.server.domains().len(), 2);
    // A domain that is there takes others in.
    let mut another = (bed.process(), "red");
    assert_eq!(connect(&mut another), "welcome");
    blue.0.kill();
    until(|| bed.server.client_count() == 2, || "the client is there still".into());
    assert_eq!(connect(green), "welcome");
    assert_eq!(bed.server.domains().len(), 2);
}

#[test]
fn s6_a_client_that_registers_what_it_does_not_have_harms_nobody() {
    let Some(bed) = Bed::new() else { return };
    let mut liar = bed.client();
    liar.ask("say-register 1 1 1000000");
    liar.ask("say-register 2 68719476000 700");
    liar.ask("say-gone 500 400000");
    liar.ask("say-gone 0 68719476736");
    liar.ask("say-register 3 4096 100");
    let mut clients = bed.merged_clients::<2>(PAGES);
    for client in &mut clients {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
    assert_eq!(liar.ask("news"), "connected");
    let registered = || bed.server.counters().pages_registered;
    until(|| registered() == 2 * PAGES + 100, || format!("{} pages registered", registered()));
    bed.no_errors();
}

#[test]
fn s6_a_second_hello_is_refused() {
    let Some(bed) = Bed::new() else { return };
    let mut client = bed.client();
    client.ask("hello");
    client.until_news("rejected Protocol");
}

/// Whoever answers wrongly is turned away, and the others go on.
#[test]
fn s6_answers_that_can_not_be_true_end_the_connection() {
    let Some(bed) = Bed::new() else { return };
    let mut honest = bed.client_with(PAGES, 1, 1);
    for manner in ["short", "long", "unasked", "twice", "other-kind"] {
        let mut liar = bed.client();
        liar.ask(&format!("map {PAGES} 1 1"));
        liar.ask(&format!("manner {manner}"));
        liar.ask("register 0");
        liar.until_news("rejected Protocol");
        assert_eq!(liar.ask("wrong 0 1 1"), "0", "{manner}");
        assert_eq!(honest.ask("wrong 0 1 1"), "0", "{manner}");
        if manner != "twice" {
            // It hung up with questions unanswered, which it may carry out until it ends.
            assert_eq!(bed.server.client_count(), 2, "{manner}");
        }
        liar.kill();
        until(|| bed.server.client_count() == 1, || format!("{manner}: it is there still"));
    }
    let mut other = bed.client_with(PAGES, 1, 1);
    bed.until_merged(PAGES, PAGES);
    assert_eq!(honest.ask("wrong 0 1 1"), "0");
    assert_eq!(other.ask("wrong 0 1 1"), "0");
    bed.no_errors();
}

/// What it says of its own pages can't be checked; it harms itself alone.
#[test]
fn s6_a_client_that_pretends_to_merge_harms_nobody() {
    let Some(bed) = Bed::new() else { return };
    let mut liar = bed.client();
    liar.ask(&format!("map {PAGES} 1 1"));
    liar.ask("manner pretend");
    liar.ask("register 0");
    let mut clients = [bed.client_with(PAGES, 1, 1), bed.client_with(PAGES, 1, 1)];
    until(|| bed.server.counters().pages_sharing >= PAGES, || "nothing is shared".into());
    bed.scan_twice();
    for client in &mut clients {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
    assert_eq!(liar.ask("wrong 0 1 1"), "0");
    liar.ask("manner honest");
    bed.server.set_patiently(Knob::Run, 2).unwrap();
    assert_eq!(bed.server.counters().pages_shared, 0);
    for client in &mut clients {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
}

#[test]
fn s6_a_client_that_refuses_is_left_alone() {
    let Some(bed) = Bed::new() else { return };
    let mut refuser = bed.client();
    refuser.ask(&format!("map {PAGES} 1 1"));
    refuser.ask("manner refuse");
    refuser.ask("register 0");
    let mut clients = bed.merged_clients::<2>(PAGES);
    refuser.ask("manner honest");
    // Tried again after some passes.
    bed.until_merged(PAGES, 2 * PAGES);
    for client in clients.iter_mut().chain([&mut refuser]) {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
}
