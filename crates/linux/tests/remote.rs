//! Another process's memory, looked at from outside. As a rule the other is this one.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs::File;
use std::num::NonZero;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use common::{World, page_of, sub};
use numerge_engine::machine::{Kind, Memory, Outcome, Vpn, Written};
use numerge_linux::{AnonymousRegion, Ranges, RemoteError, RemoteProcess};
use rustix::process::{Pid, PidfdFlags};

fn pagemap_of(pid: i32) -> OwnedFd {
    File::open(format!("/proc/{pid}/pagemap")).unwrap().into()
}

fn remote(pid: i32, pagemap: OwnedFd) -> Result<RemoteProcess, RemoteError> {
    let number = Pid::from_raw(NonZero::new(pid).unwrap().get()).unwrap();
    let pidfd = rustix::process::pidfd_open(number, PidfdFlags::empty()).unwrap();
    RemoteProcess::new(pid, pidfd.as_fd(), pagemap)
}

fn me() -> i32 {
    std::process::id().cast_signed()
}

fn contents(process: &RemoteProcess, runs: &[Range<Vpn>]) -> Vec<[u8; 4096]> {
    let mut read = Vec::new();
    process.read(runs, &mut |page| read.push(*page)).unwrap();
    read
}

#[test]
fn copies_pages_up_to_the_first_that_is_not_there() {
    let process = remote(me(), pagemap_of(me())).unwrap();
    let region = AnonymousRegion::new(100 * 4096).unwrap();
    for page in 0..100 {
        region.write(page * 4096, &page_of(page as u64 + 1)).unwrap();
    }
    let runs = [sub(&region, 3..50), sub(&region, 70..71), sub(&region, 72..72)];
    let read = contents(&process, &runs);
    let wanted: Vec<_> = (3..50).chain([70]).map(|page| page_of(page + 1)).collect();
    assert!(read == wanted);
    let nowhere = Vpn(5)..Vpn(9);
    let read = contents(&process, &[sub(&region, 0..2), nowhere, sub(&region, 0..2)]);
    assert_eq!(read.len(), 2);
}

#[test]
fn tells_what_was_written_and_what_lies_where() {
    let Some(world) = World::new() else { return };
    let process = remote(me(), pagemap_of(me())).unwrap();
    let region = world.region(8, |page| page as u64 + 1);
    let mut written = Vec::new();
    let look = |out: &mut Vec<Written>| {
        let end = process.written(vec![region.pages()], u64::MAX, |_| true, out).unwrap();
        assert_eq!(end, None);
    };
    process.first_look(vec![region.pages()], &mut written).unwrap();
    assert_eq!(written, [Written { pages: region.pages(), kind: Kind::Private }]);
    written.clear();
    look(&mut written);
    assert_eq!(written, [], "armed");
    region.write(2 * 4096, &page_of(99)).unwrap();
    look(&mut written);
    assert_eq!(written, [Written { pages: sub(&region, 2..3), kind: Kind::Private }]);
    written.clear();
    process.first_look(vec![region.pages()], &mut written).unwrap();
    assert_eq!(written.iter().map(|run| run.pages.end.0 - run.pages.start.0).sum::<u64>(), 8);

    let frames = world.frames(&[4, 5]);
    let outcomes = world.merge_frames(sub(&region, 3..5), &frames);
    assert_eq!(outcomes, [Outcome::Merged, Outcome::Merged]);
    let mut in_file = Ranges::new();
    in_file.insert(sub(&region, 3..5), ());
    let mut kinds = Vec::new();
    process.kinds(&[sub(&region, 2..4), sub(&region, 4..6)], in_file.clone(), &mut kinds).unwrap();
    let (private, frame) = (Some(Kind::Private), Some(Kind::Frame));
    assert_eq!(kinds, [private, frame, frame, private]);
    region.write(4 * 4096, &page_of(77)).unwrap();
    kinds.clear();
    process.kinds(&[sub(&region, 2..6)], in_file, &mut kinds).unwrap();
    assert_eq!(kinds, [private, frame, private, private]);
    world.memory.unmerge(&[region.pages()]).unwrap();
    world.memory.unregister(region.pages()).unwrap();
}

fn advise(pages: &Range<Vpn>, advice: i32) {
    let start = usize::try_from(pages.start.0 * 4096).unwrap();
    let bytes = usize::try_from((pages.end.0 - pages.start.0) * 4096).unwrap();
    // SAFETY: pages of a region of this test, to which no reference exists.
    let done =
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), bytes, advice) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A file's page would keep whoever reads it waiting for as long as the file likes.
#[test]
fn s6_pages_of_files_are_read_only_where_the_process_has_written_to_them() {
    let Some(world) = World::new() else { return };
    let process = remote(me(), pagemap_of(me())).unwrap();
    let region = world.region(8, |page| page as u64 + 1);
    let frames = world.frames(&[4, 5, 6]);
    let merged = sub(&region, 3..6);
    assert_eq!(world.merge_frames(merged.clone(), &frames), [Outcome::Merged; 3]);
    assert_eq!(contents(&process, std::slice::from_ref(&merged)).len(), 0, "not looked at yet");
    advise(&merged, libc::MADV_POPULATE_READ);
    assert_eq!(contents(&process, std::slice::from_ref(&merged)).len(), 0, "a file's");
    assert_eq!(contents(&process, &[region.pages()]).len(), 3, "up to the first");
    region.write(4 * 4096, &page_of(77)).unwrap();
    assert!(contents(&process, &[sub(&region, 4..5)]) == [page_of(77)]);
    // Nobody can tell what is behind a marker.
    let end = process.written(vec![merged], u64::MAX, |_| true, &mut Vec::new()).unwrap();
    assert_eq!(end, None);
    advise(&sub(&region, 5..6), libc::MADV_DONTNEED);
    assert!(contents(&process, &[sub(&region, 5..6)]) == [page_of(6)]);
    process.wait_for_looks();
    let read = process.read(&[region.pages()], &mut |_| panic!("nobody looks any more"));
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    world.memory.unmerge(&[region.pages()]).unwrap();
    world.memory.unregister(region.pages()).unwrap();
}

#[test]
fn counts_mappings_and_finds_nodes() {
    let process = remote(me(), pagemap_of(me())).unwrap();
    assert!(process.mappings().unwrap() > 10);
    assert!(!process.is_gone());
    let region = AnonymousRegion::new(2 * 4096).unwrap();
    region.write(0, b"touched").unwrap();
    let mut nodes = Vec::new();
    process.nodes_of(&[region.pages()], &mut nodes).unwrap();
    assert!(nodes[0].is_some());
    assert_eq!(nodes[1], None, "never touched");
}

#[test]
fn s6_another_file_is_not_taken_for_the_pagemap() {
    let maps = File::open("/proc/self/maps").unwrap().into();
    assert!(matches!(remote(me(), maps), Err(RemoteError::WrongPagemap { .. })));
    let parents = std::os::unix::process::parent_id().cast_signed();
    let Ok(pagemap) = File::open(format!("/proc/{parents}/pagemap")) else {
        println!("SKIPPED: no right to open the parent's pagemap");
        return;
    };
    assert!(matches!(remote(me(), pagemap.into()), Err(RemoteError::WrongPagemap { .. })));
}

#[test]
fn of_a_process_that_has_ended_nothing_is_left() {
    let region = AnonymousRegion::new(4 * 4096).unwrap();
    region.write(0, &page_of(1)).unwrap();
    // SAFETY: the child only waits to be killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: asks for an end with the parent, and waits; touches no memory.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
            }
        }
    }
    let process = remote(child, pagemap_of(child)).unwrap();
    assert!(!process.is_gone());
    assert_eq!(contents(&process, &[sub(&region, 0..1)]).len(), 1);
    // SAFETY: ends and reaps the child made above.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert!(process.is_gone());
    assert_eq!(contents(&process, &[region.pages()]).len(), 0);
    let (mut kinds, mut written, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    process.kinds(&[region.pages()], Ranges::<()>::new(), &mut kinds).unwrap();
    assert_eq!(kinds, [None; 4]);
    let end = process.written(vec![region.pages()], 9, |_| false, &mut written).unwrap();
    assert_eq!((end, written.len()), (None, 0));
    process.first_look(vec![region.pages()], &mut written).unwrap();
    assert_eq!(written, []);
    process.nodes_of(&[region.pages()], &mut nodes).unwrap();
    assert_eq!(nodes, [None; 4]);
    assert_eq!(process.mappings().unwrap(), 0);
}
