//! Clients that keep frames mapped of which they say that they have given them up, or that they were not
//! asked to map: that harms nobody else, and whoever has it from them without a lie.

use numerge_engine::Knob;

use crate::bed::{Bed, Client, until};

const PAGES: u64 = 200;

fn waiting(bed: &Bed, wanted: u64) {
    let found = || bed.server.waiting_frames();
    until(|| found() == wanted, || format!("{} frames wait, not {wanted}", found()));
}

/// Has other content merged in as many frames as there were.
fn reuse_frames(bed: &Bed, clients: &mut [Client; 2]) {
    for page in 0..PAGES {
        for client in &mut *clients {
            client.ask(&format!("write 0 {page} {}", page + 70_001));
        }
    }
    bed.until_merged(PAGES, PAGES);
    bed.scan_twice();
    for client in clients {
        assert_eq!(client.ask("wrong 0 70001 1"), "0");
    }
}

#[test]
fn s6_who_says_that_mapped_pages_are_gone_harms_nobody() {
    let Some(bed) = Bed::new() else { return };
    let [mut liar, mut honest @ ..] = bed.merged_clients::<3>(PAGES);
    liar.ask("gone-as-is 0");
    bed.until_merged(PAGES, PAGES);
    // The frames are others' too, so that nothing of them is given back.
    bed.scan_twice();
    assert_eq!(liar.ask("wrong 0 1 1"), "0");
    // No more: what the liar sees now is nobody's concern.
    reuse_frames(&bed, &mut honest);
    assert_eq!(liar.ask("news"), "connected");
    bed.no_errors();
}

/// A child has not lied, and is no client: it keeps what its parent has said to have given up.
#[test]
fn s1_1_a_child_keeps_its_frames_when_its_parent_says_goodbye() {
    let Some(bed) = Bed::new() else { return };
    let [mut parent, mut honest @ ..] = bed.merged_clients::<3>(PAGES);
    let child = parent.ask("fork 0 1 1");
    parent.ask("bye-as-is");
    until(|| bed.server.client_count() == 2, || "the parent is there still".into());
    bed.until_merged(PAGES, PAGES);
    reuse_frames(&bed, &mut honest);
    waiting(&bed, PAGES);
    // It is no client any more, either, so that its own are looked after too.
    assert_eq!(parent.ask("wrong 0 1 1"), "0");
    assert_eq!(parent.ask(&format!("reap {child}")), "true", "the child saw something else");
    waiting(&bed, PAGES);
    parent.kill();
    waiting(&bed, 0);
    bed.no_errors();
}

#[test]
fn s6_who_maps_frames_unasked_keeps_nobody_from_using_them() {
    let Some(bed) = Bed::new() else { return };
    let [mut liar, mut honest @ ..] = bed.merged_clients::<3>(PAGES);
    liar.ask("map-frames 4096");
    reuse_frames_without(&bed, &mut liar, &mut honest);
    // Once it is no client any more, it is one of those that may map anything.
    liar.ask("hang-up");
    until(|| bed.server.client_count() == 2, || "the liar is there still".into());
    bed.server.set_patiently(Knob::Run, 2).unwrap();
    until(|| bed.server.waiting_frames() > 0, || "the frames were given back".into());
    liar.kill();
    waiting(&bed, 0);
    for client in &mut honest {
        assert_eq!(client.ask("wrong 0 70001 1"), "0");
    }
    bed.no_errors();
}

fn reuse_frames_without(bed: &Bed, liar: &mut Client, honest: &mut [Client; 2]) {
    for page in 0..PAGES {
        liar.ask(&format!("write 0 {page} {}", page + 90_001));
    }
    reuse_frames(bed, honest);
    waiting(bed, 0);
    assert_eq!(liar.ask("wrong 0 90001 1"), "0");
}
