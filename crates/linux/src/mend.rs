//! Gives ranges whose merged pages were mostly written to again back to anonymous memory.
//!
//! A page that the program writes to after it was merged is its own again, but lies in the mapping of a
//! file, and so do its neighbours, cut into small mappings. Where most pages of such mappings are the
//! program's own, they go back to anonymous memory all together, and mappings are joined. The few still
//! merged are the program's own then, as if it had written to them: the engine finds that out like any
//! write, and merges them again.
//!
//! What the program writes to nobody tells here. So part of the file mappings is looked at now and then,
//! ever more rarely where nothing is found.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use numerge_engine::machine::Vpn;

use crate::host;
use crate::maps::Attributes;
use crate::memory::{ADDRESSABLE, Bench, ProcessMemory, STAGING_PAGES, pages_of};
use crate::num::{address, count};
use crate::pagemap::category;

/// What is judged, and given back, as a whole.
const WINDOW_PAGES: u64 = STAGING_PAGES as u64;
/// Pages in file mappings that are looked at in one go: half a millisecond.
const LOOK_PAGES: u64 = 16_384;
/// Windows given back in one go: a few milliseconds.
const WINDOWS: u32 = 8;
/// Rest after a look that found something, and the longest.
const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(64);

/// How far the looks are.
#[derive(Debug)]
pub(crate) struct Mending {
    at: Vpn,
    due: Instant,
    rest: Duration,
}

impl Mending {
    pub(crate) fn new() -> Self {
        Self { at: Vpn(0), due: Instant::now() + FIRST_REST, rest: FIRST_REST }
    }
}

impl ProcessMemory {
    /// Gives some of what was mostly written to after it was merged back to anonymous memory, if it is time
    /// to look for that. To be called now and then; who must not call this: threads of the program.
    pub fn mend_if_due(&self) {
        if self.is_inherited() {
            return;
        }
        // Another thread is at it: as good.
        let Ok(mut mending) = self.mending.try_lock() else { return };
        if Instant::now() < mending.due {
            return;
        }
        let found = self.mend(&mut mending.at);
        mending.rest = if found > 0 { FIRST_REST } else { (mending.rest * 2).min(LONGEST_REST) };
        mending.due = Instant::now() + mending.rest;
    }

    /// Looks at some pages from `at` on, and gives how many went back to anonymous memory.
    pub(crate) fn mend(&self, at: &mut Vpn) -> u64 {
        // Without a test for pins, those that were written to would be all that stays.
        let can_tell = self.bench().tables.can_tell_pins();
        if !can_tell || host::spare_pages() < LOOK_PAGES {
            return 0;
        }
        let (mut looked, mut given_back, mut windows) = (0, 0, 0);
        while looked < LOOK_PAGES && windows < WINDOWS {
            // Short, so that forks and writers get their turn.
            let mut bench = self.bench();
            let Some((next, _)) = bench.tables.in_file.next_in(&(*at..ADDRESSABLE)) else {
                *at = Vpn(0);
                break;
            };
            let start = Vpn(next.start.0 / WINDOW_PAGES * WINDOW_PAGES);
            let window = start..start.plus(WINDOW_PAGES);
            *at = window.end;
            let parts = parts_to_mend(&bench, &window);
            let pages = parts.iter().map(|(part, _)| count(part)).sum::<u64>();
            looked += pages;
            if pages == 0 || self.own_pages(&parts) * 4 < pages * 3 {
                continue;
            }
            windows += 1;
            for (part, attributes) in parts {
                let stay = self.convert_around(&mut bench, &part, attributes);
                given_back += count(&part) - stay.iter().map(count).sum::<u64>();
            }
        }
        let counter = &self.counters.made_mergeable;
        counter.fetch_add(given_back, Ordering::Relaxed); // a counter
        if given_back > 0 {
            self.join_if_due();
        }
        given_back
    }

    /// How many pages of file mappings are the program's own.
    fn own_pages(&self, parts: &[(Range<Vpn>, Attributes)]) -> u64 {
        let mut own = 0;
        for (part, _) in parts {
            let bytes = address(part.start)..address(part.end);
            // What can't be asked about is left alone.
            let _ = self.pagemap.find(bytes, category::PRESENT, &mut |region| {
                if region.categories & (category::FILE | category::PFNZERO) == 0 {
                    own += count(&pages_of(&region));
                }
            });
        }
        own
    }
}

/// What of a window is in file mappings, registered, and to be merged further on.
fn parts_to_mend(bench: &Bench<'_>, window: &Range<Vpn>) -> Vec<(Range<Vpn>, Attributes)> {
    let (tables, mut parts, mut at) = (&bench.tables, Vec::new(), window.start);
    if tables.leaving.next_in(window).is_some() {
        return parts;
    }
    while let Some(found) = tables.registered_file_in(&(at..window.end)) {
        let Some(part) = tables.in_file.next_in(&found) else { break };
        at = part.0.end;
        parts.push(part);
    }
    parts
}
