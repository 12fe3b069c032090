//! Forks: a child shares frames that the engine does not know it shares.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{World, all, assert_contents, page_of};
use numerge_engine::machine::{Frames, Memory, Outcome, PAGE_SIZE};
use numerge_linux::AnonymousRegion;

const PAGES: usize = 128;

/// Runs `child` in a forked child, which ends with what it gives: true is success.
fn fork(child: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: the child allocates nothing and ends with _exit: it touches only memory of the forking
    // thread and the region, and makes system calls.
    match unsafe { libc::fork() } {
        0 => {
            let code = i32::from(!child());
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => {
            assert!(pid > 0, "{}", std::io::Error::last_os_error());
            pid
        }
    }
}

fn succeeded(pid: libc::pid_t) -> bool {
    let mut status = 0;
    // SAFETY: waits for a child of ours and writes its status.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    waited == pid && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

fn has(region: &AnonymousRegion, content: impl Fn(usize) -> u64) -> bool {
    let mut found = [0; PAGE_SIZE];
    (0..region.len() / PAGE_SIZE).all(|page| {
        region.read(page * PAGE_SIZE, &mut found).is_ok() && found == page_of(content(page))
    })
}

#[test]
fn s1_1_a_child_keeps_reading_what_its_parent_gave_up() {
    let Some(world) = World::new() else { return };
    let content = |page: usize| page as u64 + 1;
    let region = world.region(PAGES, content);
    let contents: Vec<_> = (0..PAGES).map(content).collect();
    let frames = world.frames(&contents);
    assert!(all(&world.merge_frames(region.pages(), &frames), Outcome::Merged));

    let (mut told, mut tell) = std::io::pipe().unwrap();
    let (mut heard, mut hear) = std::io::pipe().unwrap();
    let child = fork(|| {
        // The child's copies do nothing to the parent's memory or frames.
        let inert = world.memory.unmerge(&[region.pages()]).is_ok()
            && world.pools.allocate(world.nid, 1).is_err();
        world.pools.free(&[frames.start]);
        let first = has(&region, content);
        let _ = hear.write_all(b"r");
        let mut go = [0];
        let _ = told.read_exact(&mut go);
        let mut good = inert && first;
        for _ in 0..100 {
            good &= has(&region, content);
        }
        good &= region.write(3 * PAGE_SIZE, &page_of(4444)).is_ok();
        good && has(&region, |page| if page == 3 { 4444 } else { content(page) })
    });
    heard.read_exact(&mut [0]).unwrap();
    // The parent writes to some, unmerges everything, frees the frames and uses new ones.
    region.write(0, &page_of(555)).unwrap();
    world.memory.unmerge(&[region.pages()]).unwrap();
    let kpfns: Vec<_> = (0..PAGES as u64).map(|n| frames.start.plus(n)).collect();
    world.pools.free(&kpfns);
    settle_at(&world, PAGES as u64);
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(world.frames(&[31337; PAGES]));
    }
    assert!(others.iter().all(|other| other.start >= frames.end || other.end <= frames.start));
    tell.write_all(b"g").unwrap();
    assert!(succeeded(child), "the child read something else, or could not write");
    assert_contents(&region, |page| if page == 0 { 555 } else { content(page) });
    // With the child gone the frames come back.
    settle_at(&world, 0);
}

#[test]
fn s6_merging_while_other_threads_fork() {
    let Some(world) = World::new() else { return };
    let content = |page: usize| (page / 8) as u64 + 1;
    let region = world.region(PAGES, content);
    let contents: Vec<_> = (0..PAGES).map(content).collect();
    let frames = world.frames(&contents);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut forks = 0;
                while !stop.load(Ordering::Relaxed) {
                    let child = fork(|| has(&region, content));
                    assert!(succeeded(child), "a child saw a hole");
                    forks += 1;
                }
                println!("{forks} forks");
            });
        }
        let began = Instant::now();
        let mut pinned = 0;
        let mut merged = 0;
        while began.elapsed() < Duration::from_secs(3) {
            let outcomes = world.merge_frames(region.pages(), &frames);
            merged += outcomes.iter().filter(|o| **o == Outcome::Merged).count();
            pinned += outcomes.iter().filter(|o| **o == Outcome::Pinned).count();
            for page in (0..PAGES).step_by(3) {
                region.write(page * PAGE_SIZE, &page_of(content(page))).unwrap();
            }
            world.memory.unmerge(&[region.pages()]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        println!("{merged} merged, {pinned} refused since shared by a fork");
        assert!(merged > 0);
    });
    assert_contents(&region, content);
}

/// Waits until just so many frames wait for processes forked before. Other tests' children come and
/// go, and a look at /proc counts only in a calm moment.
fn settle_at(world: &World, frames: u64) {
    let began = Instant::now();
    while world.pools.settle() > frames {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", world.pools.settle());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(world.pools.settle(), frames, "too few");
}

#[test]
fn frames_are_given_back_after_forks_that_are_over() {
    let Some(world) = World::new() else { return };
    for _ in 0..3 {
        assert!(succeeded(fork(|| true)));
        let frames = world.frames(&[1, 2, 3]);
        world.pools.free(&[frames.start, frames.start.plus(1), frames.start.plus(2)]);
        settle_at(&world, 0);
    }
}

#[test]
fn a_child_that_lives_long_keeps_only_what_it_maps() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, |_| 7);
    let frames = world.frames(&[7; PAGES]);
    assert!(all(&world.merge_frames(region.pages(), &frames), Outcome::Merged));
    let (mut told, tell) = std::io::pipe().unwrap();
    let child = fork(|| {
        let _ = told.read_exact(&mut [0]);
        has(&region, |_| 7)
    });
    let later = world.frames(&[8; PAGES]);
    let list = |run: &std::ops::Range<numerge_engine::Kpfn>| {
        (0..PAGES as u64).map(|n| run.start.plus(n)).collect::<Vec<_>>()
    };
    world.memory.unmerge(&[region.pages()]).unwrap();
    world.pools.free(&list(&later));
    world.pools.free(&list(&frames));
    settle_at(&world, PAGES as u64);
    (&tell).write_all(b"g").unwrap();
    assert!(succeeded(child));
    settle_at(&world, 0);
}

#[test]
fn what_a_fork_made_common_can_be_merged() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, |_| 7);
    let frames = world.frames(&[7; PAGES]);
    assert!(succeeded(fork(|| has(&region, |_| 7))));
    let outcomes = world.merge_frames(common::sub(&region, 0..PAGES / 2), &frames);
    assert!(all(&outcomes, Outcome::Merged), "after the child's end: {outcomes:?}");
    let (mut told, tell) = std::io::pipe().unwrap();
    let child = fork(|| {
        let _ = told.read_exact(&mut [0]);
        has(&region, |_| 7)
    });
    let outcomes = world.merge_frames(common::sub(&region, PAGES / 2..PAGES), &frames);
    assert!(all(&outcomes, Outcome::Merged), "while the child lives: {outcomes:?}");
    assert_contents(&region, |_| 7);
    (&tell).write_all(b"g").unwrap();
    assert!(succeeded(child));
}
