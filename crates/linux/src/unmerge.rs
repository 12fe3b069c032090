//! Gives merged pages memory of their own again.

use std::ops::Range;
use std::sync::atomic::Ordering;

use numerge_engine::machine::{MemoryError, Vpn};

use crate::convert::Refusal;
use crate::error::system;
use crate::maps::Attributes;
use crate::memory::{Bench, ProcessMemory, STAGING_PAGES, pages_of, span};
use crate::num::{address, count, pointer, size};
use crate::pagemap::{PageRegion, category};
use crate::{host, sys};

/// Pages whose pages of zeros are replaced in one go.
const ZEROS_AT_ONCE: u64 = 4096;

impl ProcessMemory {
    /// Unmerges all pages of some ranges, in ascending order.
    pub(crate) fn unmerge_ranges(&self, ranges: &[Range<Vpn>]) -> Result<(), MemoryError> {
        if ranges.iter().map(count).sum::<u64>() > host::spare_pages() {
            return Err(MemoryError::OutOfMemory);
        }
        for pages in self.hulls(ranges) {
            self.leave_files(&pages)?;
        }
        ranges.iter().try_for_each(|pages| self.fill_registered_zeros(pages))
    }

    fn fill_registered_zeros(&self, pages: &Range<Vpn>) -> Result<(), MemoryError> {
        let mut at = pages.start;
        while at < pages.end {
            // Short, and what is not registered (any more) is left alone.
            let bench = self.bench();
            let Some((found, _)) = bench.tables.registered.next_in(&(at..pages.end)) else {
                break;
            };
            let end = found.start.plus(count(&found).min(ZEROS_AT_ONCE));
            self.fill_zeros(&(found.start..end))?;
            at = end;
        }
        Ok(())
    }

    /// Ranges with nothing but pages between them that were written to since they were merged are
    /// taken as one, with those: a run costs what it costs, however long it is, and those pages can
    /// be merged again afterwards.
    fn hulls(&self, ranges: &[Range<Vpn>]) -> Vec<Range<Vpn>> {
        let bench = self.bench();
        let tables = &bench.tables;
        let can_go = tables.can_tell_pins();
        let mut hulls: Vec<Range<Vpn>> = Vec::with_capacity(ranges.len());
        for pages in ranges {
            match hulls.last_mut() {
                Some(last) if can_go && last.end <= pages.start => {
                    let gap = last.end..pages.start;
                    let in_file = tables.in_file.next_in(&gap).map(|(found, _)| found);
                    if gap.is_empty() || in_file == Some(gap) {
                        last.end = pages.end;
                        continue;
                    }
                }
                _ => {}
            }
            hulls.push(pages.clone());
        }
        hulls
    }

    /// Gives all pages of a range that are in file mappings back to anonymous memory, or where that
    /// can't be, makes them the program's own.
    pub(crate) fn leave_files(&self, pages: &Range<Vpn>) -> Result<(), MemoryError> {
        let mut at = pages.start;
        while at < pages.end {
            // Short, so that forks and writers get their turn.
            let mut bench = self.bench();
            // What is not registered any more is the program's own to change.
            let found = bench.tables.registered_file_in(&(at..pages.end));
            let Some((found, attributes)) =
                found.and_then(|found| bench.tables.in_file.next_in(&found))
            else {
                break;
            };
            let end = found.start.plus(count(&found).min(STAGING_PAGES as u64));
            for stays in self.convert_around(&mut bench, &(found.start..end), attributes) {
                self.copy_in_place(&stays)?;
                bench.tables.left.insert(stays, ());
            }
            at = end;
        }
        Ok(())
    }

    /// Before a merge with the page of zeros: gives pages that were written after they were merged back to
    /// anonymous memory, where that is safe.
    pub(crate) fn make_mergeable(&self, bench: &mut Bench<'_>, pages: &Range<Vpn>) {
        let next_in = |bench: &Bench<'_>, pages: &Range<Vpn>| {
            let found = bench.tables.registered_file_in(pages)?;
            bench.tables.in_file.next_in(&found)
        };
        let Some(first) = next_in(bench, pages) else {
            return;
        };
        let mut next = Some(first);
        while let Some((found, attributes)) = next {
            next = next_in(bench, &(found.end..pages.end));
            let stay = self.convert_around(bench, &found, attributes);
            let converted = count(&found) - stay.iter().map(count).sum::<u64>();
            let counter = &self.counters.made_mergeable;
            counter.fetch_add(converted, Ordering::Relaxed); // a counter
            stay.into_iter().for_each(|stays| bench.tables.left.insert(stays, ()));
        }
    }

    /// Gives pages of a file mapping back to anonymous memory, all but those that may be pinned, or all
    /// but those there is no memory for; gives which these are.
    pub(crate) fn convert_around(
        &self,
        bench: &mut Bench<'_>,
        pages: &Range<Vpn>,
        attributes: Attributes,
    ) -> Vec<Range<Vpn>> {
        let mut stay = match self.convert(bench, pages, attributes) {
            Ok(()) => return Vec::new(),
            Err(Refusal::Exhausted) => return vec![pages.clone()],
            Err(Refusal::MaybePinned) => joined(bench.tables.pin_test.pinned()),
        };
        let mut at = pages.start;
        for pinned in stay.clone().into_iter().chain([pages.end..pages.end]) {
            let between = at..pinned.start;
            at = pinned.end;
            if !between.is_empty() && self.convert(bench, &between, attributes).is_err() {
                stay.push(between);
            }
        }
        stay
    }

    /// Makes the kernel copy each frame where it is mapped. The pages stay in the file mapping.
    fn copy_in_place(&self, pages: &Range<Vpn>) -> Result<(), MemoryError> {
        populate(pages)?;
        let mut own = 0;
        self.each_present(pages, &mut |region| {
            if region.categories & category::FILE == 0 {
                own += count(&pages_of(region));
            }
        })?;
        let bytes = address(pages.start)..address(pages.end);
        self.pagemap
            .find(bytes, category::SWAPPED, &mut |region| {
                own += count(&pages_of(&region));
            })
            .map_err(|source| system("PAGEMAP_SCAN", source))?;
        if own == count(pages) { Ok(()) } else { Err(MemoryError::OutOfMemory) }
    }

    /// Gives pages that are mapped to the machine's page of zeros memory of their own.
    fn fill_zeros(&self, pages: &Range<Vpn>) -> Result<(), MemoryError> {
        let mut zeros = Vec::new();
        self.pagemap
            .find(address(pages.start)..address(pages.end), category::PFNZERO, &mut |region| {
                zeros.push(pages_of(&region))
            })
            .map_err(|source| system("PAGEMAP_SCAN", source))?;
        zeros.iter().try_for_each(populate)
    }

    fn each_present(
        &self,
        pages: &Range<Vpn>,
        each: &mut dyn FnMut(&PageRegion),
    ) -> Result<(), MemoryError> {
        let bytes = address(pages.start)..address(pages.end);
        self.pagemap
            .find(bytes, category::PRESENT, &mut |region| each(&region))
            .map_err(|source| system("PAGEMAP_SCAN", source))
    }
}

/// Pages, in ascending order, as ranges.
fn joined(pages: &[Vpn]) -> Vec<Range<Vpn>> {
    let mut ranges: Vec<Range<Vpn>> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(last) if last.end == *page => last.end = page.plus(1),
            _ => ranges.push(*page..page.plus(1)),
        }
    }
    ranges
}

/// Makes every page of `pages` the program's own, as writing what is there would.
pub(crate) fn populate(pages: &Range<Vpn>) -> Result<(), MemoryError> {
    // SAFETY: changes no content; registered memory of the program.
    let result = unsafe {
        sys::advise(pointer(pages.start), size(span(pages).len), libc::MADV_POPULATE_WRITE)
    };
    let Err(error) = result else {
        return Ok(());
    };
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EFAULT | libc::EHWPOISON) => Err(MemoryError::OutOfMemory),
        _ => Err(system("MADV_POPULATE_WRITE", error)),
    }
}
