//! What the tests share.

use std::time::{Duration, Instant};

use numerge::{Counters, Knob, Merger, Options, Region};

pub(crate) const PAGE: usize = 4096;

/// A merger, or a word on why there is none.
pub(crate) fn merger() -> Option<Merger> {
    match Merger::new(Options::default()) {
        Ok(merger) => {
            merger.set(Knob::PagesToScan, 100_000).unwrap();
            merger.set(Knob::SleepMillisecs, 0).unwrap();
            Some(merger)
        }
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

/// Fills a page so that every byte depends on `content`; 0 is a page of zeros.
pub(crate) fn page_of(content: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    if content != 0 {
        for (word, place) in page.chunks_exact_mut(8).zip(1_u64..) {
            let value = (content ^ place << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    page
}

pub(crate) fn write(region: &Region, page: usize, content: u64) {
    region.write(page * PAGE, &page_of(content)).unwrap();
}

pub(crate) fn holds(region: &Region, page: usize, content: u64) -> bool {
    let mut found = [0; PAGE];
    region.read(page * PAGE, &mut found).unwrap();
    found == page_of(content)
}

/// Fails with what is there if a page does not hold `content`.
pub(crate) fn check(region: &Region, page: usize, content: u64) {
    let mut found = [0; PAGE];
    region.read(page * PAGE, &mut found).unwrap();
    let wanted = page_of(content);
    if found != wanted {
        let differ: Vec<usize> = (0..PAGE).filter(|at| found[*at] != wanted[*at]).collect();
        let known = (0..100).find(|content| found == page_of(*content));
        let mut later = [0; PAGE];
        region.read(page * PAGE, &mut later).unwrap();
        panic!(
            "page {page} changed: {content} was written, {known:?} is there, {} bytes differ from \
             {} to {}; on a second look {}",
            differ.len(),
            differ[0],
            differ[differ.len() - 1],
            if later == wanted {
                "it is right"
            } else if later == found {
                "the same"
            } else {
                "again another"
            },
        );
    }
}

/// Waits until `count` more full scans are over.
pub(crate) fn scans(merger: &Merger, count: u64) -> Counters {
    let start = Instant::now();
    let goal = merger.counters().full_scans + count;
    while merger.counters().full_scans < goal {
        assert!(start.elapsed() < Duration::from_secs(120), "scanning has come to a halt");
        std::thread::sleep(Duration::from_millis(1));
    }
    merger.counters()
}

/// Scans until scans change nothing any more.
pub(crate) fn settle(merger: &Merger) -> Counters {
    let key = |c: &Counters| (c.pages_shared, c.pages_sharing, c.pages_unshared, c.ksm_zero_pages);
    let mut last = scans(merger, 3);
    for _ in 0..100 {
        let now = scans(merger, 2);
        if key(&now) == key(&last) && now.pages_volatile == now.pages_held + now.pages_over_budget {
            return now;
        }
        last = now;
    }
    panic!("never at rest: {last:?}")
}

/// S5.6.
pub(crate) fn check_sums(c: &Counters) {
    let all = c.pages_shared
        + c.pages_sharing
        + c.pages_unshared
        + c.pages_volatile
        + c.ksm_zero_pages
        + c.pages_untouched;
    assert_eq!(c.pages_registered, all, "{c:?}");
}
