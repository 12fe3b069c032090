//! Joins adjacent anonymous mappings that the kernel keeps apart.
//!
//! Memory given back in the middle of a file mapping has no anonymous neighbour to take its
//! `anon_vma` from ([`crate::convert`]), so it gets its own, and when its surroundings become
//! anonymous too, the kernel joins them with it no more. Such islands would use up the program's
//! mappings. Here they are put over by empty memory once more, this time beside a neighbour.

use std::fs;
use std::ops::Range;

use numerge_engine::machine::Vpn;

use crate::convert::put_over;
use crate::maps::Mapping;
use crate::memory::{ProcessMemory, STAGING_PAGES, span};
use crate::merge::Place;
use crate::num::{PAGE_SHIFT, count, size};
use crate::uffd::Mode;

/// Islands that are worth looking for them: a look reads all of /proc/self/maps.
const MANY: u64 = 1024;
/// The largest mapping that is joined to another, in pages: what is larger is not what uses up
/// mappings.
const LARGEST: u64 = 1024;

/// What became of two adjacent mappings.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pair {
    Joined,
    /// The machine would not let go of a page. Worth another try.
    NotNow,
    /// They are not what is joined.
    Apart,
}

impl ProcessMemory {
    /// Joins what can be joined, if there may be much to join, or nothing is merged any more.
    pub(crate) fn join_if_due(&self) {
        let mut bench = self.bench();
        let islands = bench.tables.islands;
        if islands >= MANY || (islands > 0 && bench.tables.in_file.is_empty()) {
            bench.tables.islands = 0;
            drop(bench);
            self.join();
        }
    }

    /// Joins what can be joined.
    pub(crate) fn join(&self) {
        // What can't be read can't be joined; nothing else depends on it.
        // All of it before anything is changed: what is read across a change has gaps and overlaps. (This
        // gives an error where there is no memory.)
        let Ok(maps) = fs::read_to_string("/proc/thread-self/maps") else { return };
        let mut before: Option<Range<Vpn>> = None;
        let mut islands = 0;
        for mapping in maps.lines().filter_map(Mapping::parse) {
            let pages =
                Vpn(mapping.bytes.start >> PAGE_SHIFT)..Vpn(mapping.bytes.end >> PAGE_SHIFT);
            if mapping.inode != 0 {
                before = None;
                continue;
            }
            let left = before.take().filter(|left| left.end == pages.start);
            let pair = left.as_ref().map_or(Pair::Apart, |left| self.join_pair(left, &pages));
            islands += u64::from(pair == Pair::NotNow);
            before = Some(match left {
                Some(left) if pair == Pair::Joined => left.start..pages.end,
                _ => pages,
            });
        }
        let mut bench = self.bench();
        // Those with files for neighbours have to be looked at once more when these are gone.
        islands += u64::from(!bench.tables.in_file.is_empty());
        bench.tables.islands += islands;
    }

    /// Makes one mapping of two adjacent ones.
    fn join_pair(&self, left: &Range<Vpn>, right: &Range<Vpn>) -> Pair {
        let step = STAGING_PAGES as u64;
        if count(left).min(count(right)) > LARGEST {
            return Pair::Apart;
        }
        if count(right) <= count(left) {
            let mut at = right.start;
            while at < right.end {
                let part = at..at.plus(step).min(right.end);
                match self.lay_again(&part, &(Vpn(at.0 - 1)..at)) {
                    Pair::Joined => {}
                    other => return other,
                }
                at = part.end;
            }
        } else {
            let mut end = left.end;
            while end > left.start {
                let part = Vpn(end.0.saturating_sub(step)).max(left.start)..end;
                match self.lay_again(&part, &(end..end.plus(1))) {
                    Pair::Joined => {}
                    other => return other,
                }
                end = part.start;
            }
        }
        Pair::Joined
    }

    /// Replaces the mapping of anonymous pages by one that is joined to `neighbour`'s.
    fn lay_again(&self, pages: &Range<Vpn>, neighbour: &Range<Vpn>) -> Pair {
        let bench = self.bench();
        let both = neighbour.start.min(pages.start)..neighbour.end.max(pages.end);
        let Some((found, attributes)) = bench.tables.registered.next_in(&both) else {
            return Pair::Apart;
        };
        let empty = bench.tables.empties.iter().find(|(of, _)| *of == attributes);
        let anonymous = found == both && bench.tables.in_file.next_in(&both).is_none();
        let Some((_, empty)) = empty.filter(|_| anonymous && !self.strict_overcommit) else {
            return Pair::Apart;
        };
        let mut places = [Place::Staged; STAGING_PAGES];
        let places = &mut places[..size(count(pages))];
        // From here to wake(), nothing is allocated.
        let mut joined = self.tracking.register(span(pages), Mode::MISSING_WP).is_ok();
        if joined {
            self.stage(pages, places);
            // A page that was not let go of would be lost with its mapping; one that was never
            // there is not.
            joined = places.iter().all(|place| place.is_staged() || place.is_gone())
                && (put_over(pages, empty).is_ok() || self.refill(pages));
            if joined {
                // Only a loss of joining if it fails.
                let _ = self.tracking.register(span(neighbour), Mode::MISSING_WP);
            }
            let mut at = 0;
            for same in places.chunk_by(|a, b| a == b) {
                let start = pages.start.plus(at as u64);
                if same[0].is_staged() {
                    self.put_back(&(start..start.plus(same.len() as u64)), at);
                }
                at += same.len();
            }
            // Fails only if the range is no valid one, which it is.
            let _ = self.tracking.wake(span(pages));
        }
        self.track_again(if joined { &both } else { pages });
        if joined { Pair::Joined } else { Pair::NotNow }
    }
}
