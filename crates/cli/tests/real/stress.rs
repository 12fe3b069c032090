//! Writers keep writing to half of the pages while the engine merges and unmerges at full speed, at
//! limits from 2 to 256; every page is checked against what it must hold, all the time.
//!
//! `NUMERGE_STRESS_SECONDS` says how long; 20 when it is not set.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use numerge::{Knob, KnobError, Region};

use crate::bed::{check, check_sums, merger, settle, write};
use crate::bounds::Bounds;

const PAGES: usize = 4096;
const WRITERS: usize = 2;
const CONTENTS: u64 = 5;

/// A random number; the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Writes to its own share of the first half of the pages, checking each before it writes to it.
fn writer(region: &Region, number: usize, stop: &AtomicBool, checks: &AtomicU64) -> Vec<u64> {
    let mut random = Random(number as u64 + 1);
    let mine: Vec<usize> = (number..PAGES / 2).step_by(WRITERS).collect();
    let mut contents = vec![1; PAGES];
    while !stop.load(Ordering::Relaxed) {
        let page = mine[usize::try_from(random.below(mine.len() as u64)).unwrap()];
        check(region, page, contents[page]);
        contents[page] = random.below(CONTENTS);
        write(region, page, contents[page]);
        checks.fetch_add(1, Ordering::Relaxed);
        if random.below(64) == 0 {
            thread::sleep(Duration::from_millis(random.below(10)));
        }
    }
    contents
}

fn reader(region: &Region, stop: &AtomicBool, checks: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        for page in PAGES / 2..PAGES {
            check(region, page, still(page));
            checks.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What the pages that nobody writes to hold.
fn still(page: usize) -> u64 {
    page as u64 % 3
}

#[test]
fn s1_1_writers_keep_writing_and_nothing_changes_but_by_them() {
    let Some(merger) = merger() else { return };
    let seconds = std::env::var("NUMERGE_STRESS_SECONDS").map_or(20, |text| text.parse().unwrap());
    merger.set(Knob::UseZeroPages, 1).unwrap();
    let region = merger.allocate(PAGES * 4096).unwrap();
    (0..PAGES / 2).for_each(|page| write(&region, page, 1));
    (PAGES / 2..PAGES).for_each(|page| write(&region, page, still(page)));
    let (stop, checks) = (AtomicBool::new(false), AtomicU64::new(0));
    let (rounds, most_merged) = thread::scope(|scope| {
        // Whatever fails below, the threads must end.
        let _stop = StopOnDrop(&stop);
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                scope.spawn({
                    let (region, stop, checks) = (&region, &stop, &checks);
                    move || writer(region, number, stop, checks)
                })
            })
            .collect();
        let watching = scope.spawn(|| {
            let (mut bounds, mut most_merged) = (Bounds::default(), 0);
            // Relaxed: one look more or less does no harm.
            while !stop.load(Ordering::Relaxed) {
                let counters = merger.counters();
                bounds.check(counters);
                most_merged = most_merged.max(counters.pages_sharing);
                thread::sleep(Duration::from_micros(50));
            }
            most_merged
        });
        let reading = scope.spawn(|| reader(&region, &stop, &checks));
        let mut random = Random(99);
        let mut rounds = 0_u64;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            merger.set(Knob::Run, 2).unwrap();
            let limit = [2, 3, 5, 16, 256][usize::try_from(random.below(5)).unwrap()];
            merger.set(Knob::MaxPageSharing, limit).unwrap();
            merger.set(Knob::PagesToScan, 1 + random.below(5000)).unwrap();
            merger.set(Knob::Run, 1).unwrap();
            thread::sleep(Duration::from_millis(random.below(300)));
            if random.below(3) == 0 {
                // Interrupted by the next `run=2`, or not at all.
                scope
                    .spawn(|| match merger.set(Knob::Run, 2) {
                        Ok(()) | Err(KnobError::Unmerge(numerge::UnmergeError::Interrupted)) => {}
                        Err(error) => panic!("{error}"),
                    })
                    .join()
                    .unwrap();
            }
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
        reading.join().unwrap();
        let contents: Vec<Vec<u64>> =
            writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        for page in 0..PAGES / 2 {
            check(&region, page, contents[page % WRITERS][page]);
        }
        (rounds, watching.join().unwrap())
    });
    let collisions = merger.counters().fingerprint_collisions;
    println!(
        "{rounds} rounds, {} checks, {most_merged} pages saved at most, {collisions} collisions",
        checks.into_inner()
    );
    assert!(rounds > 0 && most_merged > 0);
    merger.set(Knob::Run, 1).unwrap();
    check_sums(&settle(&merger));
    assert!(merger.take_errors().is_empty());
    merger.shut_down().unwrap();
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
