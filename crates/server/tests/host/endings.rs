//! Clients that end, stop, fork, and hang up; and the end of the server.

use numerge_engine::Knob;

use crate::bed::{Bed, Client, until};

const PAGES: u64 = 200;

fn client_count(bed: &Bed, wanted: usize) {
    until(
        || bed.server.client_count() == wanted,
        || format!("{} clients, not {wanted}", bed.server.client_count()),
    );
}

fn assert_whole(clients: &mut [Client]) {
    for client in clients {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
}

#[test]
fn s5_3_a_killed_client_leaves_nothing() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut others @ ..] = bed.merged_clients::<3>(PAGES);
    one.kill();
    client_count(&bed, 2);
    bed.until_merged(PAGES, PAGES);
    assert_eq!(bed.server.counters().pages_registered, 2 * PAGES);
    let [other, last] = &mut others;
    other.kill();
    client_count(&bed, 1);
    bed.until_merged(PAGES, 0);
    assert_eq!(last.ask("wrong 0 1 1"), "0");
    last.kill();
    client_count(&bed, 0);
    // The engine gives up its frames, and nobody maps them.
    until(|| bed.server.waiting_frames() == 0, || format!("{} wait", bed.server.waiting_frames()));
}

#[test]
fn s5_3_clients_killed_while_they_merge() {
    let Some(bed) = Bed::new() else { return };
    let mut staying = bed.client_with(PAGES, 1, 1);
    for round in 0..10 {
        let mut doomed = bed.client_with(PAGES, 1, 1);
        for page in 0..round * 20 {
            doomed.ask(&format!("write 0 {} {}", page % PAGES, page + 1));
        }
        doomed.kill();
    }
    client_count(&bed, 1);
    assert_eq!(bed.server.counters().pages_registered, PAGES);
    let mut other = bed.client_with(PAGES, 1, 1);
    bed.until_merged(PAGES, PAGES);
    assert_eq!(staying.ask("wrong 0 1 1"), "0");
    assert_eq!(other.ask("wrong 0 1 1"), "0");
    bed.no_errors();
}

#[test]
fn s6_a_stopped_client_holds_nobody_up() {
    let Some(bed) = Bed::new() else { return };
    let mut stopped = bed.client_with(PAGES, 1, 1);
    let mut others = [bed.client_with(PAGES, 501, 1), bed.client_with(PAGES, 501, 1)];
    bed.until_merged(PAGES, PAGES);
    stopped.signal(libc::SIGSTOP);
    // It is asked to merge with this one, and does not answer.
    let mut like_it = bed.client_with(PAGES, 1, 1);
    bed.scan_twice();
    let mut more = [bed.client_with(PAGES, 901, 1), bed.client_with(PAGES, 901, 1)];
    until(|| bed.server.counters().pages_sharing >= 2 * PAGES, || "others wait".into());
    for client in others.iter_mut() {
        assert_eq!(client.ask("wrong 0 501 1"), "0");
    }
    assert_eq!(like_it.ask("wrong 0 1 1"), "0");
    stopped.signal(libc::SIGCONT);
    bed.until_merged(3 * PAGES, 3 * PAGES);
    assert_eq!(stopped.ask("wrong 0 1 1"), "0");
    for client in more.iter_mut() {
        assert_eq!(client.ask("wrong 0 901 1"), "0");
    }
    bed.no_errors();
}

#[test]
fn s5_2_run_2_reports_a_client_that_does_not_answer() {
    let Some(bed) = Bed::new() else { return };
    let mut clients = bed.merged_clients::<2>(PAGES);
    clients[0].signal(libc::SIGSTOP);
    let failed = bed.server.set(Knob::Run, 2).unwrap_err();
    assert!(failed.to_string().contains("does not answer"), "{failed}");
    assert_eq!(bed.server.knob(Knob::Run), 0);
    clients[0].signal(libc::SIGCONT);
    // Until it has answered what it was asked before.
    until(|| bed.server.set(Knob::Run, 2).is_ok(), || "still merged".into());
    assert_eq!(bed.server.counters().pages_shared, 0);
    assert_whole(&mut clients);
    bed.server.set(Knob::Run, 1).unwrap();
    bed.until_merged(PAGES, PAGES);
    assert_whole(&mut clients);
}

/// An engine that is unmerging waits for no client: answers that come later count all the same.
#[test]
fn s5_2_run_2_asks_once_and_takes_late_answers() {
    let Some(bed) = Bed::new() else { return };
    let [mut slow, mut other] = bed.merged_clients(PAGES);
    slow.ask("manner slow-to-unmerge");
    std::thread::scope(|scope| {
        let unmerging = scope.spawn(|| while bed.server.set(Knob::Run, 2).is_err() {});
        for region in 1.. {
            if unmerging.is_finished() {
                break;
            }
            assert!(region < 10_000, "asked again and again");
            if slow.ask("kept-back") != "0" {
                // Meanwhile the engine is there for others.
                other.ask(&format!("say-register {region} 1000 10"));
                other.ask(&format!("unregister {region}"));
                other.until_news(&format!("unregistered {region} None"));
                slow.ask("answer");
            }
        }
    });
    assert_eq!(bed.server.counters().pages_shared, 0);
    assert_eq!(slow.ask("unmerged"), PAGES.to_string(), "asked more than once");
    assert_eq!(other.ask("unmerged"), PAGES.to_string(), "asked more than once");
    assert_whole(&mut [slow, other]);
    bed.no_errors();
}

#[test]
fn s5_3_a_client_stopped_and_killed_while_it_is_asked() {
    let Some(bed) = Bed::new() else { return };
    let mut doomed = bed.client_with(PAGES, 1, 1);
    bed.scan_twice();
    doomed.ask("manner slow");
    let mut other = bed.client_with(PAGES, 1, 1);
    until(|| bed.server.counters().pages_volatile > 0, || "nothing is under way".into());
    bed.scan_twice();
    doomed.signal(libc::SIGSTOP);
    doomed.kill();
    client_count(&bed, 1);
    assert_eq!(other.ask("wrong 0 1 1"), "0");
    let mut third = bed.client_with(PAGES, 1, 1);
    bed.until_merged(PAGES, PAGES);
    assert_eq!(third.ask("wrong 0 1 1"), "0");
    bed.no_errors();
}

#[test]
fn s1_1_a_forks_child_keeps_what_its_parent_gave_up() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    let child = one.ask("fork 0 1 1");
    // All frames are given up, and others are taken.
    bed.server.set_patiently(Knob::Run, 2).unwrap();
    until(|| bed.server.waiting_frames() == PAGES, || "the frames are free".into());
    for page in 0..PAGES {
        one.ask(&format!("write 0 {page} {}", page + 1001));
        other.ask(&format!("write 0 {page} {}", page + 1001));
    }
    bed.server.set(Knob::Run, 1).unwrap();
    bed.until_merged(PAGES, PAGES);
    bed.scan_twice();
    assert_eq!(bed.server.waiting_frames(), PAGES, "the child has them");
    assert_eq!(one.ask("wrong 0 1001 1"), "0");
    assert_eq!(other.ask("wrong 0 1001 1"), "0");
    assert_eq!(one.ask(&format!("reap {child}")), "true", "the child saw something else");
    until(|| bed.server.waiting_frames() == 0, || format!("{} wait", bed.server.waiting_frames()));
    bed.no_errors();
}

#[test]
fn s5_3_a_killed_client_whose_child_holds_the_connection_open() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    let orphan: libc::pid_t = one.ask("fork-orphan").parse().unwrap();
    one.kill();
    client_count(&bed, 1);
    bed.until_merged(PAGES, 0);
    other.kill();
    client_count(&bed, 0);
    until(|| bed.server.waiting_frames() == PAGES, || "the frames are free".into());
    // SAFETY: ends the child of our child.
    unsafe { libc::kill(orphan, libc::SIGKILL) };
    until(|| bed.server.waiting_frames() == 0, || format!("{} wait", bed.server.waiting_frames()));
}

#[test]
fn s1_1_who_hangs_up_and_lives_keeps_its_memory() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    one.ask("hang-up");
    client_count(&bed, 1);
    bed.until_merged(PAGES, 0);
    other.kill();
    client_count(&bed, 0);
    // The engine has no use for any frame, but it maps them.
    until(|| bed.server.counters().pages_shared == 0, || "frames in use".into());
    until(|| bed.server.waiting_frames() == PAGES, || "the frames are free".into());
    let mut more = [bed.client_with(PAGES, 501, 1), bed.client_with(PAGES, 501, 1)];
    bed.until_merged(PAGES, PAGES);
    bed.scan_twice();
    assert_eq!(one.ask("wrong 0 1 1"), "0");
    one.kill();
    until(|| bed.server.waiting_frames() == 0, || format!("{} wait", bed.server.waiting_frames()));
    for client in &mut more {
        assert_eq!(client.ask("wrong 0 501 1"), "0");
    }
}

/// Two clients with the same pages, the first of which merges them and tells nobody.
fn slow_and_honest(bed: &Bed) -> (Client, Client) {
    let mut one = bed.client();
    one.ask(&format!("map {PAGES} 1 1"));
    one.ask("manner slow");
    one.ask("register 0");
    let other = bed.client_with(PAGES, 1, 1);
    until(|| bed.server.counters().pages_shared > 0, || "nothing is shared".into());
    bed.scan_twice();
    (one, other)
}

#[test]
fn s1_1_who_hangs_up_with_questions_unanswered_keeps_their_frames() {
    let Some(bed) = Bed::new() else { return };
    let (mut one, mut other) = slow_and_honest(&bed);
    one.ask("hang-up");
    other.kill();
    // It has merged its pages, which nobody was told of: it counts as a client until it ends.
    client_count(&bed, 1);
    let mut more = [bed.client_with(PAGES, 501, 1), bed.client_with(PAGES, 501, 1)];
    until(|| bed.server.counters().pages_sharing >= PAGES, || "nothing is shared".into());
    assert_eq!(one.ask("wrong 0 1 1"), "0");
    one.kill();
    client_count(&bed, 2);
    bed.until_merged(PAGES, PAGES);
    for client in &mut more {
        assert_eq!(client.ask("wrong 0 501 1"), "0");
    }
}

#[test]
fn s1_1_who_connects_again_keeps_its_memory_and_is_one_client() {
    let Some(bed) = Bed::new() else { return };
    let (mut one, mut other) = slow_and_honest(&bed);
    one.ask("hang-up");
    // It has merged its pages, which nobody was told of.
    client_count(&bed, 2);
    assert_eq!(one.ask(&format!("connect {}", bed.socket())), "welcome");
    client_count(&bed, 2);
    let registered = || bed.server.counters().pages_registered;
    until(|| registered() == PAGES, || format!("{} pages registered", registered()));
    other.kill();
    let mut more = [bed.client_with(PAGES, 501, 1), bed.client_with(PAGES, 501, 1)];
    bed.until_merged(PAGES, PAGES);
    bed.scan_twice();
    assert!(bed.server.waiting_frames() > 0, "it maps them");
    assert_eq!(one.ask("wrong 0 1 1"), "0");
    one.kill();
    until(|| bed.server.waiting_frames() == 0, || format!("{} wait", bed.server.waiting_frames()));
    for client in &mut more {
        assert_eq!(client.ask("wrong 0 501 1"), "0");
    }
}

#[test]
fn s5_3_pages_gone_while_they_are_asked_about() {
    let Some(bed) = Bed::new() else { return };
    let (mut one, mut other) = slow_and_honest(&bed);
    assert_ne!(one.ask("kept-back"), "0");
    // Not answered yet, and now there is something else.
    one.ask("replace 0 0 100 77777 1");
    bed.scan_twice();
    one.ask("manner honest");
    one.ask("answer");
    bed.until_merged(PAGES + 1, PAGES - 100 + 99);
    assert_eq!(one.ask("wrong 0 1 1"), "100");
    assert_eq!(other.ask("wrong 0 1 1"), "0");
    bed.no_errors();
}

#[test]
fn s1_1_the_servers_end_with_all_kept() {
    let Some(bed) = Bed::new() else { return };
    let mut clients = bed.merged_clients::<2>(PAGES);
    let dir = bed.into_dir(|server| assert_eq!(server.shut_down(true), 0));
    for client in &mut clients {
        client.until_news("left true");
    }
    assert_whole(&mut clients);
    let frames = clients.each_mut().map(|client| client.frames(0, PAGES));
    assert_eq!(frames[0], frames[1], "merged still");
    drop(dir);
}

#[test]
fn s1_1_the_servers_end_with_nothing_kept() {
    let Some(bed) = Bed::new() else { return };
    let mut clients = bed.merged_clients::<2>(PAGES);
    let dir = bed.into_dir(|server| assert_eq!(server.shut_down(false), 0));
    for client in &mut clients {
        client.until_news("left false");
    }
    assert_whole(&mut clients);
    let frames = clients.each_mut().map(|client| client.frames(0, PAGES));
    if frames[0][0] != 0 {
        assert!(frames[0].iter().all(|frame| !frames[1].contains(frame)));
    }
    drop(dir);
}

#[test]
fn s6_the_servers_end_with_a_client_stopped() {
    let Some(bed) = Bed::new() else { return };
    let mut clients = bed.merged_clients::<2>(PAGES);
    clients[0].signal(libc::SIGSTOP);
    let dir = bed.into_dir(|server| assert_eq!(server.shut_down(false), 1));
    clients[0].signal(libc::SIGCONT);
    assert_whole(&mut clients);
    drop(dir);
}
