//! Pages that are looked at whatever was written to them.

use std::ops::Range;

use numerge_engine::machine::Vpn;
use numerge_linux::Ranges;

use crate::pages::count;

/// Most ranges kept track of, where more pages than necessary may be looked at instead.
const RANGES: usize = 1 << 12;
/// Where there are more, those within so many pages become one.
const GRAIN: u64 = 512;
/// Most ranges looked at by one look.
const LOOK_RANGES: usize = 1 << 10;

/// The set. Pages in it that are not there are of no account.
#[derive(Default)]
pub(super) struct Fresh(Ranges<()>);

impl Fresh {
    pub(super) fn insert(&mut self, pages: Range<Vpn>) {
        self.0.insert(pages, ());
    }

    /// These, and others near them if there would be too many ranges.
    pub(super) fn insert_few(&mut self, ranges: &[Range<Vpn>]) {
        ranges.iter().for_each(|pages| self.insert(pages.clone()));
        if self.0.len() > RANGES {
            let (mut all, mut grain): (Vec<_>, _) =
                (self.0.iter().map(|(pages, ())| pages).collect(), GRAIN);
            while all.len() > RANGES {
                all = coarser(&all, grain);
                grain *= 8;
            }
            self.0 = Ranges::new();
            all.into_iter().for_each(|pages| self.insert(pages));
        }
    }

    pub(super) fn remove(&mut self, pages: &Range<Vpn>) {
        self.0.remove(pages);
    }

    /// The first of `pages` that are live, as far as they are all in the set or none is, and whether they are.
    /// Of those in it at most `most`, which leave it.
    pub(super) fn take_next(
        &mut self,
        live: &Ranges<()>,
        pages: &Range<Vpn>,
        most: u64,
    ) -> Option<(Vec<Range<Vpn>>, bool)> {
        let (mut parts, mut are_fresh, mut left) = (Vec::new(), None, most);
        let mut at = pages.start;
        while left > 0 && parts.len() < LOOK_RANGES {
            let next = live.next_in(&(at..Vpn(u64::MAX))).map(|(next, ())| next);
            // What is not there is looked at when it comes.
            self.remove(&(at..next.as_ref().map_or(Vpn(u64::MAX), |next| next.start)));
            let Some(next) = next.filter(|next| next.start < pages.end) else { break };
            let next = next.start..next.end.min(pages.end);
            let fresh = self.0.next_in(&next).map(|(fresh, ())| fresh);
            let is_fresh = fresh.as_ref().is_some_and(|fresh| fresh.start == next.start);
            if *are_fresh.get_or_insert(is_fresh) != is_fresh {
                break;
            }
            let part = match fresh {
                Some(fresh) if is_fresh => {
                    let part = fresh.start..fresh.start.plus(count(&fresh).min(left));
                    left -= count(&part);
                    self.remove(&part);
                    part
                }
                Some(fresh) => next.start..fresh.start,
                None => next,
            };
            at = part.end;
            parts.push(part);
        }
        Some((parts, are_fresh?))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes()
    }
}

/// Ranges in order, from a multiple of `grain` to the next, so that those near each other become one.
fn coarser(all: &[Range<Vpn>], grain: u64) -> Vec<Range<Vpn>> {
    let mut coarse: Vec<Range<Vpn>> = Vec::new();
    for pages in all {
        let start = Vpn(pages.start.0 / grain * grain);
        let end = Vpn(pages.end.0.saturating_add(grain - 1) / grain * grain);
        match coarse.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => coarse.push(start..end),
        }
    }
    coarse
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(range: Range<u64>) -> Range<Vpn> {
        Vpn(range.start)..Vpn(range.end)
    }

    fn live(ranges: impl IntoIterator<Item = Range<u64>>) -> Ranges<()> {
        let mut live = Ranges::new();
        ranges.into_iter().for_each(|range| live.insert(pages(range), ()));
        live
    }

    #[test]
    fn what_is_not_known_is_looked_at_in_few_ranges() {
        let ranges = RANGES as u64;
        let (all, mut fresh) = (pages(0..4 * ranges), Fresh::default());
        let live = live(std::iter::once(0..4 * ranges));
        let apart: Vec<_> = (0..ranges).map(|n| pages(2 * n..2 * n + 1)).collect();
        fresh.insert_few(&apart);
        let next = fresh.take_next(&live, &all, u64::MAX);
        assert_eq!(next, Some((vec![pages(0..1)], true)), "with others between");
        let last = 4 * ranges - 1;
        fresh.insert_few(&[pages(0..1), pages(last..last + 1)]);
        let wanted = [pages(0..2 * ranges), pages(last / GRAIN * GRAIN..last + 1)];
        assert!(fresh.0.iter().map(|(pages, ())| pages).eq(wanted));
        assert_eq!(fresh.take_next(&live, &all, 4), Some((vec![pages(0..4)], true)));
    }

    /// However small the parts are that are walked at a time.
    #[test]
    fn what_is_not_there_does_not_stay() {
        let regions = 2 * RANGES as u64;
        let live = live((0..regions).map(|n| 2 * n..2 * n + 1));
        let mut fresh = Fresh::default();
        fresh.insert(pages(0..4 * regions));
        for n in 0..regions {
            let region = pages(2 * n..2 * n + 1);
            let next = fresh.take_next(&live, &region, u64::MAX);
            assert_eq!(next, Some((vec![region.clone()], true)));
            assert_eq!(fresh.take_next(&live, &region, 9), Some((vec![region], false)));
        }
        assert!(fresh.0.is_empty());
    }

    #[test]
    fn one_look_is_at_so_many_ranges_at_most() {
        let ranges = 3 * LOOK_RANGES as u64;
        let live = live((0..ranges).map(|n| 2 * n..2 * n + 1));
        let (parts, is_fresh) =
            Fresh::default().take_next(&live, &pages(0..2 * ranges), 1).unwrap();
        assert_eq!((parts.len(), is_fresh), (LOOK_RANGES, false));
    }
}
