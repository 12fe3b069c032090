//! Page ranges with something that holds for all their pages: as few entries as there are mappings.

use std::collections::BTreeMap;
use std::ops::Range;

use numerge_engine::machine::Vpn;

/// Disjoint ranges in ascending order; adjacent ones with equal values are one.
#[derive(Clone, Debug, Default)]
pub struct Ranges<T> {
    by_start: BTreeMap<Vpn, (Vpn, T)>,
}

impl<T: Copy + PartialEq> Ranges<T> {
    /// Empty.
    #[must_use]
    pub const fn new() -> Self {
        Self { by_start: BTreeMap::new() }
    }

    /// Gives all pages of `pages` this value, whatever they had before.
    pub fn insert(&mut self, pages: Range<Vpn>, value: T) {
        if pages.is_empty() {
            return;
        }
        self.remove(&pages);
        let Range { mut start, mut end } = pages;
        if let Some((&before, &(until, other))) = self.by_start.range(..start).next_back()
            && until == start
            && other == value
        {
            start = before;
        }
        if let Some(&(until, other)) = self.by_start.get(&end)
            && other == value
        {
            self.by_start.remove(&end);
            end = until;
        }
        self.by_start.insert(start, (end, value));
    }

    /// Takes all pages of `pages` out.
    pub fn remove(&mut self, pages: &Range<Vpn>) {
        while let Some((found, value)) = self.first_in(pages) {
            self.by_start.remove(&found.start);
            if found.start < pages.start {
                self.by_start.insert(found.start, (pages.start, value));
            }
            if found.end > pages.end {
                self.by_start.insert(pages.end, (found.end, value));
            }
        }
    }

    /// The part of the first entry that lies in `pages`, and its value.
    #[must_use]
    pub fn next_in(&self, pages: &Range<Vpn>) -> Option<(Range<Vpn>, T)> {
        let (found, value) = self.first_in(pages)?;
        Some((found.start.max(pages.start)..found.end.min(pages.end), value))
    }

    /// The value of a page.
    #[must_use]
    pub fn get(&self, page: Vpn) -> Option<T> {
        self.next_in(&(page..page.plus(1))).map(|(_, value)| value)
    }

    /// How many pages have a value.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let entries = self.by_start.iter();
        entries.map(|(start, (end, _))| end.0 - start.0).sum()
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether no page has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    /// The entries, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<Vpn>, T)> + '_ {
        self.by_start.iter().map(|(start, (end, value))| (*start..*end, *value))
    }

    /// From the first page with a value to the last.
    #[must_use]
    pub fn hull(&self) -> Option<Range<Vpn>> {
        let (start, _) = self.by_start.first_key_value()?;
        let (_, (end, _)) = self.by_start.last_key_value()?;
        Some(*start..*end)
    }

    /// Bytes of memory this takes, nearly: a node of the tree holds 11 entries, and is half full
    /// when they came in order.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.by_start.len() * size_of::<(Vpn, (Vpn, T))>() * 2) as u64
    }

    /// The first entry that overlaps `pages`, whole.
    fn first_in(&self, pages: &Range<Vpn>) -> Option<(Range<Vpn>, T)> {
        if pages.is_empty() {
            return None;
        }
        let before = self.by_start.range(..=pages.start).next_back();
        let entry = before
            .filter(|(_, (end, _))| *end > pages.start)
            .or_else(|| self.by_start.range(pages.clone()).next());
        entry.map(|(start, (end, value))| (*start..*end, *value))
    }
}

/// Cuts ranges, and puts them together to pieces of so many pages and ranges at most, both at least 1.
#[must_use]
pub fn in_pieces(ranges: &[Range<Vpn>], pages: u64, most: usize) -> Vec<Vec<Range<Vpn>>> {
    let mut pieces: Vec<Vec<Range<Vpn>>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            if room == 0 || pieces.last().is_none_or(|last| last.len() >= most) {
                pieces.push(Vec::new());
                room = pages.max(1);
            }
            let end = at.plus((range.end.0 - at.0).min(room));
            pieces.last_mut().into_iter().for_each(|last| last.push(at..end));
            room -= end.0 - at.0;
            at = end;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_so_many_pages_and_ranges_at_most() {
        let ranges = [pages(0..1), pages(5..5), pages(7..20), pages(30..31), pages(40..41)];
        let wanted = vec![
            vec![pages(0..1), pages(7..13)],
            vec![pages(13..20)],
            vec![pages(30..31), pages(40..41)],
        ];
        assert_eq!(in_pieces(&ranges, 7, 2), wanted);
        assert_eq!(in_pieces(&[], 7, 2), Vec::<Vec<_>>::new());
    }

    fn pages(range: Range<u64>) -> Range<Vpn> {
        Vpn(range.start)..Vpn(range.end)
    }

    #[test]
    fn joins_and_splits() {
        let mut ranges = Ranges::new();
        ranges.insert(pages(10..20), 1);
        ranges.insert(pages(30..40), 1);
        ranges.insert(pages(20..30), 1);
        assert_eq!(ranges.by_start.len(), 1);
        ranges.remove(&pages(15..25));
        assert_eq!(ranges.pages(), 20);
        assert_eq!(ranges.next_in(&pages(12..26)), Some((pages(12..15), 1)));
        assert_eq!(ranges.next_in(&pages(15..26)), Some((pages(25..26), 1)));
        assert_eq!(ranges.next_in(&pages(15..25)), None);
        ranges.insert(pages(12..28), 2);
        assert_eq!(ranges.get(Vpn(11)), Some(1));
        assert_eq!(ranges.get(Vpn(12)), Some(2));
        assert_eq!(ranges.get(Vpn(28)), Some(1));
        assert_eq!(ranges.get(Vpn(40)), None);
        assert_eq!(ranges.pages(), 30);
    }
}
