//! Programs that go on using their memory while it is merged and unmerged.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{Random, World, page_of, sub};
use numerge_engine::Kpfn;
use numerge_engine::machine::{Memory, Outcome, PAGE_SIZE, Target};
use numerge_linux::AnonymousRegion;

const PAGES: usize = 256;
const CONTENTS: u64 = 4;
const WRITERS: usize = 3;
/// Longer than anything here may take; then somebody is blocked for ever.
const PATIENCE: Duration = Duration::from_secs(60);

fn seconds() -> Duration {
    let seconds = std::env::var("NUMERGE_STRESS_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|s| s.parse().ok()).unwrap_or(3))
}

/// Runs `body` in a thread and fails if it does not end.
fn with_patience(body: impl FnOnce() + Send + 'static) {
    let (done, finished) = channel();
    let thread = std::thread::spawn(move || {
        body();
        done.send(()).unwrap();
    });
    match finished.recv_timeout(seconds() + PATIENCE) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            eprintln!("somebody is blocked for ever");
            std::process::abort();
        }
        _ => thread.join().unwrap(),
    }
}

/// Frames of each content, as many as a run may be long.
fn stock(world: &World) -> Vec<Kpfn> {
    (1..CONTENTS).map(|content| world.frames(&[content; PAGES]).start).collect()
}

/// Merges and unmerges random runs until told to stop. Gives how many pages were merged.
fn churn(world: &World, region: &AnonymousRegion, stop: &AtomicBool, seed: u64) -> u64 {
    let stock = stock(world);
    let mut random = Random(seed);
    let mut merged = 0;
    let mut out = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let longest = [1, 4, 16, 64][random.below(4)];
        let first = random.below(PAGES);
        let last = (first + 1 + random.below(longest)).min(PAGES);
        let pages = sub(region, first..last);
        match random.below(8) {
            0 => world.memory.unmerge(&[pages]).unwrap(),
            1 => {
                world.memory.written(pages, u64::MAX, &mut Vec::new()).unwrap();
            }
            2 => {
                out.extend(world.merge(pages, Target::Zero));
            }
            _ => {
                let frame = stock[random.below(stock.len())];
                out.extend(world.merge(pages, Target::Frames(frame)));
            }
        }
        merged += out.iter().filter(|o| **o == Outcome::Merged).count() as u64;
        assert!(!out.contains(&Outcome::Exhausted));
        out.clear();
    }
    merged
}

#[test]
fn s6_writers_see_only_their_own_writes() {
    let Some(world) = World::new() else { return };
    with_patience(move || {
        let region = world.region(PAGES, |_| 0);
        let stop = AtomicBool::new(false);
        let writes = AtomicU64::new(0);
        let merged = std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (region, stop, writes) = (&region, &stop, &writes);
                scope.spawn(move || {
                    let mut random = Random(writer as u64);
                    let mut mine = [0; PAGES];
                    let mut found = [0; PAGE_SIZE];
                    while !stop.load(Ordering::Relaxed) {
                        let page = random.below(PAGES) / WRITERS * WRITERS + writer;
                        if page >= PAGES {
                            continue;
                        }
                        region.read(page * PAGE_SIZE, &mut found).unwrap();
                        assert!(found == page_of(mine[page]), "page {page}");
                        if random.below(3) == 0 {
                            mine[page] = random.below(4) as u64;
                            region.write(page * PAGE_SIZE, &page_of(mine[page])).unwrap();
                        }
                        writes.fetch_add(1, Ordering::Relaxed);
                    }
                    for page in (writer..PAGES).step_by(WRITERS) {
                        region.read(page * PAGE_SIZE, &mut found).unwrap();
                        assert!(found == page_of(mine[page]), "page {page} at the end");
                    }
                });
            }
            let merger = scope.spawn(|| churn(&world, &region, &stop, 42));
            std::thread::sleep(seconds());
            stop.store(true, Ordering::Relaxed);
            merger.join().unwrap()
        });
        println!(
            "{merged} pages merged, {} made mergeable again, {} left, under {} reads",
            world.memory.pages_made_mergeable(),
            world.memory.pages_left_in_file_mapping(),
            writes.load(Ordering::Relaxed)
        );
        assert!(merged > 100);
        assert_eq!(world.memory.pages_untracked(), 0);
    });
}

#[test]
fn s6_every_write_is_seen_by_written() {
    let Some(world) = World::new() else { return };
    with_patience(move || {
        let region = world.region(PAGES, |_| 0);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| churn(&world, &region, &stop, 7));
            let mut random = Random(1);
            let began = Instant::now();
            while began.elapsed() < seconds() {
                let page = random.below(PAGES);
                region.write(page * PAGE_SIZE, &page_of(random.below(4) as u64)).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        // After all the registering and unregistering, each page is still tracked.
        world.written(region.pages());
        for page in 0..PAGES {
            region.write(page * PAGE_SIZE, &page_of(9)).unwrap();
        }
        let written = world.written(region.pages());
        let pages = written.iter().map(|w| w.pages.end.0 - w.pages.start.0);
        assert_eq!(pages.sum::<u64>(), PAGES as u64);
    });
}

#[test]
fn s6_system_calls_into_pages_being_merged() {
    let Some(world) = World::new() else { return };
    with_patience(move || {
        let region = world.region(PAGES, |_| 0);
        let stop = AtomicBool::new(false);
        let mut file = tempfile::tempfile().unwrap();
        for content in 0..CONTENTS {
            file.write_all(&page_of(content)).unwrap();
        }
        let (mut receive, send) = std::io::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| churn(&world, &region, &stop, 3));
            let mut random = Random(2);
            let began = Instant::now();
            let mut calls = 0;
            while began.elapsed() < seconds() {
                let page = random.below(PAGES);
                let content = random.below(4);
                let at = region.as_ptr().wrapping_add(page * PAGE_SIZE);
                let offset = i64::try_from(content * PAGE_SIZE).unwrap();
                // SAFETY: the kernel writes to one page of the region, which this test owns.
                let read = unsafe { libc::pread(file.as_raw_fd(), at.cast(), PAGE_SIZE, offset) };
                assert_eq!(read, 4096, "{}", std::io::Error::last_os_error());
                // SAFETY: the kernel reads one page of the region.
                let written = unsafe { libc::write(send.as_raw_fd(), at.cast(), PAGE_SIZE) };
                assert_eq!(written, 4096, "{}", std::io::Error::last_os_error());
                let mut back = [0; PAGE_SIZE];
                receive.read_exact(&mut back).unwrap();
                assert!(back == page_of(content as u64), "page {page}");
                calls += 2;
            }
            stop.store(true, Ordering::Relaxed);
            println!("{calls} system calls");
        });
    });
}

#[test]
fn s6_merging_from_several_threads() {
    let Some(world) = World::new() else { return };
    with_patience(move || {
        let regions = [0_u64, 1, 2].map(|n| world.region(PAGES, |page| (page as u64 + n) % 4));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (n, region) in regions.iter().enumerate() {
                let (world, stop) = (&world, &stop);
                scope.spawn(move || churn(world, region, stop, n as u64));
            }
            std::thread::sleep(seconds());
            stop.store(true, Ordering::Relaxed);
        });
        for (n, region) in regions.iter().enumerate() {
            common::assert_contents(region, |page| (page + n) as u64 % 4);
            world.memory.unmerge(&[region.pages()]).unwrap();
            common::assert_contents(region, |page| (page + n) as u64 % 4);
        }
        // What was given back in between is joined when nothing is merged any more.
        for region in &regions {
            assert!(common::mappings_of(region) <= 4, "{} mappings", common::mappings_of(region));
        }
    });
}

/// What the signal handler reads, and how often it did.
static HANDLER_READS: AtomicUsize = AtomicUsize::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn handler(_signal: libc::c_int) {
    let start = HANDLER_READS.load(Ordering::Relaxed);
    for page in 0..PAGES {
        let at = std::ptr::with_exposed_provenance::<u8>(start + page * PAGE_SIZE);
        // SAFETY: a byte of the region, which outlives the thread that is signalled.
        unsafe { at.read_volatile() };
    }
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn s6_signal_handlers_of_the_merging_thread_may_touch_any_page() {
    let Some(world) = World::new() else { return };
    with_patience(move || {
        let region = world.region(PAGES, |page| page as u64 % 4);
        HANDLER_READS.store(region.as_ptr().expose_provenance(), Ordering::Relaxed);
        let handler: extern "C" fn(libc::c_int) = handler;
        // SAFETY: installs a handler that only reads memory and counts.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (tell, told) = channel();
            let (world, region, stop) = (&world, &region, &stop);
            scope.spawn(move || {
                // SAFETY: gives this thread's own number.
                tell.send(unsafe { libc::pthread_self() }).unwrap();
                churn(world, region, stop, 5);
                // Not gone before the last signal was sent.
                std::thread::sleep(Duration::from_millis(100));
            });
            let merger = told.recv().unwrap();
            let began = Instant::now();
            while began.elapsed() < seconds() {
                // SAFETY: the thread runs until it is told to stop below.
                unsafe { libc::pthread_kill(merger, libc::SIGUSR1) };
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(HANDLED.load(Ordering::Relaxed) > 0);
        common::assert_contents(&region, |page| page as u64 % 4);
    });
}

/// The kernel may say that it did not move a page that it moved, when the processor notes an access to
/// the page at the wrong moment (`restore.rs`); so here it is given notes to make.
#[test]
fn s1_1_pages_that_the_kernel_denies_having_moved_are_not_lost() {
    with_patience(|| {
        let Some(world) = World::new() else { return };
        let region = world.region(1, |_| 7);
        let frames = world.frames(&[8]);
        let mut notes = std::fs::File::options().write(true).open("/proc/self/clear_refs").unwrap();
        let stop = AtomicBool::new(false);
        let mut rounds = 0_u64;
        std::thread::scope(|scope| {
            let (region, stop) = (&region, &stop);
            let writer = scope.spawn(move || {
                region.write(64, &0_u64.to_ne_bytes()).unwrap();
                let mut count = 0_u64;
                // Relaxed: a flag; what is checked is this thread's own.
                while !stop.load(Ordering::Relaxed) {
                    let mut found = [0; 8];
                    region.read(64, &mut found).unwrap();
                    assert_eq!(u64::from_ne_bytes(found), count, "what was written is gone");
                    count += 1;
                    region.write(64, &count.to_ne_bytes()).unwrap();
                }
            });
            let began = Instant::now();
            while began.elapsed() < 2 * seconds() && !writer.is_finished() {
                // Forget which pages were accessed.
                notes.write_all(b"1").unwrap();
                let outcomes = world.merge_frames(region.pages(), &frames);
                assert_eq!(outcomes, [Outcome::Differs], "after {rounds} rounds");
                rounds += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        println!("{rounds} rounds");
    });
}
