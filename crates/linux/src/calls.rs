//! What a program does to its own memory, when who merges it sees the calls before they are made.
//!
//! Unmapping or mapping over needs no more than to [`forget`](ProcessMemory::forget) what was there. A
//! call that changes a mapping in another way must find anonymous memory, as the program left it:
//!
//! 1. [`let_go_begin`](ProcessMemory::let_go_begin): from now on nothing there is merged.
//! 2. [`give_back`](ProcessMemory::give_back): what is in file mappings goes back to anonymous memory,
//!    and mappings are joined. This freezes pages, so the thread that does it must have neither stack
//!    nor thread-local storage in registered memory, as the program's threads may.
//! 3. [`let_go_end`](ProcessMemory::let_go_end): the range is not registered any more, and the call is
//!    made.
//!
//! Pages that unmerging had to leave in their file mapping, and those that a fork's child inherited in
//! one, are private and of the right content. The kernel treats them as it would anonymous memory in
//! all but a few calls; [`discard`](ProcessMemory::discard) is what MADV_DONTNEED has to be there.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

use numerge_engine::machine::{MemoryError, PAGE_SIZE, Vpn};

use crate::error::Error;
use crate::fork::AddressSpace;
use crate::lookup::protections;
use crate::maps::{self, Attributes, Mapping};
use crate::memory::{ProcessMemory, Tables, span};
use crate::num::{PAGE_SHIFT, count, pointer, size};
use crate::ranges::Ranges;
use crate::{host, sys};

/// Pages of a mapping that is worth giving back for the mapping's sake.
const SMALL: u64 = 16;

/// Adjacent pages that were found to be mergeable, and what must be kept of their mapping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// The pages.
    pub pages: Range<Vpn>,
    attributes: Attributes,
}

impl Part {
    /// What of `wanted`, in ascending order and disjoint, could be registered as things are now. Reads
    /// what the kernel says of all mappings, once.
    ///
    /// # Errors
    /// If that can't be read.
    pub fn find(wanted: &[Range<Vpn>]) -> Result<Vec<Self>, Error> {
        let parts = maps::mergeable_parts(wanted)?;
        Ok(parts.into_iter().map(|(pages, attributes)| Self { pages, attributes }).collect())
    }

    /// The same for some of its pages only.
    #[must_use]
    pub fn within(&self, pages: &Range<Vpn>) -> Self {
        let start = self.pages.start.max(pages.start);
        let end = self.pages.end.min(pages.end).max(start);
        Self { pages: start..end, attributes: self.attributes }
    }
}

/// Checks that all of `pages` could be registered as things are now.
///
/// # Errors
/// [`Error::NotAnonymous`] or [`Error::Attribute`], which say why not; or if /proc can't be read.
pub fn check_mergeable(pages: &Range<Vpn>) -> Result<(), Error> {
    maps::mergeable(pages).map(|_| ())
}

/// Pages in file mappings that a fork's child has from its parent.
#[derive(Debug, Default)]
pub struct LoosePages(Ranges<Attributes>);

impl LoosePages {
    /// The first of them in `pages`.
    #[must_use]
    pub fn next_in(&self, pages: &Range<Vpn>) -> Option<Range<Vpn>> {
        self.0.next_in(pages).map(|(found, _)| found)
    }

    /// From the first to the last.
    #[must_use]
    pub fn hull(&self) -> Option<Range<Vpn>> {
        self.0.hull()
    }

    /// `pages` are something else now.
    pub fn forget(&mut self, _space: &AddressSpace, pages: &Range<Vpn>) {
        self.0.remove(pages);
    }

    /// Adds what `memory`, whose process forked this one, had in file mappings.
    pub fn inherit(&mut self, _space: &AddressSpace, memory: &ProcessMemory) {
        for (pages, attributes) in memory.tables().in_file.iter() {
            if !attributes.dont_fork {
                self.0.insert(pages, attributes);
            }
        }
    }

    /// What is in file mappings in `pages`, of these or of those that `memory` knows, was moved and lies
    /// `to` now, as the program's own.
    pub fn moved(
        &mut self,
        _space: &AddressSpace,
        memory: Option<&ProcessMemory>,
        pages: &Range<Vpn>,
        to: Vpn,
    ) {
        let mut files: Vec<_> = parts(&self.0, pages);
        files.extend(memory.into_iter().flat_map(|memory| parts(&memory.tables().in_file, pages)));
        self.0.remove(pages);
        for (found, attributes) in files {
            let first = to.plus(found.start.0 - pages.start.0);
            self.0.insert(first..first.plus(count(&found)), attributes);
        }
    }

    /// Puts fresh anonymous memory where they are in `pages`.
    ///
    /// # Errors
    /// What the system said; some may have been replaced.
    pub fn discard(&mut self, _space: &AddressSpace, pages: &Range<Vpn>) -> io::Result<()> {
        lay_fresh(&mut self.0, None, pages).map(|_| ())
    }
}

impl ProcessMemory {
    /// Registers a part that is still as it was when it was found.
    ///
    /// # Errors
    /// As [`ProcessMemory::register_range`].
    pub fn register_part(&self, _space: &AddressSpace, part: &Part) -> Result<(), Error> {
        if part.pages.is_empty() || self.is_inherited() {
            return Ok(());
        }
        self.register_found(&mut self.tables(), part.pages.clone(), part.attributes)
    }

    /// The first pages in `pages` that are registered.
    #[must_use]
    pub fn registered_in(&self, _space: &AddressSpace, pages: &Range<Vpn>) -> Option<Range<Vpn>> {
        self.tables().registered.next_in(pages).map(|(found, _)| found)
    }

    /// The first pages in `pages` that are in file mappings.
    #[must_use]
    pub fn in_file_in(&self, _space: &AddressSpace, pages: &Range<Vpn>) -> Option<Range<Vpn>> {
        self.tables().in_file.next_in(pages).map(|(found, _)| found)
    }

    /// From the first page that is registered or in a file mapping to the last.
    #[must_use]
    pub fn hull(&self, _space: &AddressSpace) -> Option<Range<Vpn>> {
        let tables = self.tables();
        let hulls = [tables.registered.hull(), tables.in_file.hull()];
        hulls.into_iter().flatten().reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
    }

    /// `pages` were unmapped or mapped over.
    pub fn forget(&self, _space: &AddressSpace, pages: &Range<Vpn>) {
        let tables = &mut *self.tables();
        tables.registered.remove(pages);
        tables.in_file.remove(pages);
        tables.left.remove(pages);
        tables.leaving.remove(pages);
    }

    /// Puts fresh anonymous memory where `pages` are in file mappings, and gives where that was. It is
    /// not registered.
    ///
    /// # Errors
    /// What the system said; some may have been replaced.
    pub fn discard(
        &self,
        _space: &AddressSpace,
        pages: &Range<Vpn>,
    ) -> io::Result<Vec<Range<Vpn>>> {
        let tables = &mut *self.tables();
        let Tables { registered, in_file, left, leaving, .. } = tables;
        let fresh = lay_fresh(in_file, Some(registered), pages)?;
        for pages in &fresh {
            registered.remove(pages);
            left.remove(pages);
            leaving.remove(pages);
        }
        Ok(fresh)
    }

    /// Unmaps the empty memory kept for mappings that are registered. None may be, before and after.
    pub fn give_up_empties(&self, _space: &AddressSpace) {
        self.tables().empties.clear();
    }

    /// After the program has locked all its memory, ours with it: what is needed for merging must not be, and
    /// must be empty.
    pub fn unlock(&self, _space: &AddressSpace) {
        let len = self.staging.pages() * PAGE_SIZE;
        sys::unlock(self.staging.as_ptr(), len);
        // SAFETY: memory of ours, which is empty while the address space is held. Can't fail now that it is not
        // locked.
        let _ = unsafe { sys::advise(self.staging.as_ptr(), len, libc::MADV_DONTNEED) };
    }

    /// Nothing in `pages` is merged from now on.
    pub fn let_go_begin(&self, _space: &AddressSpace, pages: &Range<Vpn>) {
        self.tables().leaving.insert(pages.clone(), ());
    }

    /// Gives what is registered in `pages` and in file mappings back to anonymous memory, as one mapping
    /// where it was one. Takes the [`AddressSpace`] itself, again and again. Who must not call this:
    /// threads of the program.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`]; what was not given back is intact, in its file mapping.
    pub fn give_back(&self, pages: &Range<Vpn>) -> Result<(), MemoryError> {
        if self.is_inherited() {
            return Ok(());
        }
        let mut at = pages.start;
        loop {
            let bench = self.bench();
            let Some((found, _)) = bench.tables.registered.next_in(&(at..pages.end)) else {
                break;
            };
            let merged = bench.tables.in_file.next_in(&found).is_some();
            drop(bench);
            if merged && count(&found) > host::spare_pages() {
                return Err(MemoryError::OutOfMemory);
            }
            self.leave_files(&found)?;
            at = found.end;
        }
        let mut bench = self.bench();
        if bench.tables.islands > 0 {
            bench.tables.islands = 0;
            drop(bench);
            self.join();
        }
        Ok(())
    }

    /// Ends what [`let_go_begin`](Self::let_go_begin) began: `pages` are registered no more, or, if they
    /// could not be given back, as they were. Who must not call this: threads of the program.
    pub fn let_go_end(&self, _space: &AddressSpace, pages: &Range<Vpn>, given_back: bool) {
        let tables = &mut *self.tables();
        tables.leaving.remove(pages);
        let mut at = pages.start;
        while given_back && let Some((found, _)) = tables.registered.next_in(&(at..pages.end)) {
            // Fails if the range is no valid one, which it is.
            let _ = self.tracking.unregister(span(&found));
            at = found.end;
        }
        if given_back {
            tables.registered.remove(pages);
        }
    }

    /// Gives small mappings of files, side by side if there are such, back to anonymous memory, at
    /// most `most` of them, and gives how many were tried. Who must not call this:
    /// threads of the program.
    ///
    /// # Errors
    /// If /proc/self/maps can't be read.
    pub fn give_back_mappings(&self, most: usize) -> io::Result<usize> {
        let mut maps = BufReader::with_capacity(1 << 16, File::open("/proc/thread-self/maps")?);
        let (mut ranges, mut mappings) = (Vec::<Range<Vpn>>::new(), 0);
        let mut line = String::new();
        while mappings < most && maps.read_line(&mut line)? > 0 {
            let found = Mapping::parse(&line).filter(|mapping| mapping.inode != 0);
            let pages = found.map(|mapping| {
                Vpn(mapping.bytes.start >> PAGE_SHIFT)..Vpn(mapping.bytes.end >> PAGE_SHIFT)
            });
            line.clear();
            let Some(pages) = pages.filter(|pages| count(pages) <= SMALL) else { continue };
            // What the program was given back for good is its own to change.
            let ours = self.bench().tables.registered_file_in(&pages) == Some(pages.clone());
            if !ours {
                continue;
            }
            mappings += 1;
            match ranges.last_mut() {
                Some(last) if last.end == pages.start => last.end = pages.end,
                _ => ranges.push(pages),
            }
        }
        for pages in &ranges {
            // What can't be given back stays.
            let _ = self.leave_files(pages);
        }
        self.bench().tables.islands = 0;
        self.join();
        Ok(mappings)
    }
}

/// The mappings in `pages`, in ascending order, each as far as it lies there.
///
/// # Errors
/// If /proc can't be read.
pub fn mappings_in(pages: &Range<Vpn>) -> io::Result<Vec<Range<Vpn>>> {
    Ok(protections(pages)?.into_iter().map(|(part, _)| part).collect())
}

fn parts(files: &Ranges<Attributes>, pages: &Range<Vpn>) -> Vec<(Range<Vpn>, Attributes)> {
    let (mut found, mut at) = (Vec::new(), pages.start);
    while let Some(next) = files.next_in(&(at..pages.end)) {
        at = next.0.end;
        found.push(next);
    }
    found
}

/// Puts fresh anonymous memory where `files` are in `pages`, takes those out of `files` and gives them.
fn lay_fresh(
    files: &mut Ranges<Attributes>,
    registered: Option<&Ranges<Attributes>>,
    pages: &Range<Vpn>,
) -> io::Result<Vec<Range<Vpn>>> {
    let mut fresh = Vec::new();
    let mut at = pages.start;
    while let Some((found, attributes)) = files.next_in(&(at..pages.end)) {
        at = found.end;
        let readable_writable = libc::PROT_READ | libc::PROT_WRITE;
        let known = registered.and_then(|registered| registered.next_in(&found));
        if known.is_some_and(|(known, _)| known == found) {
            lay(&found, readable_writable, attributes)?;
        } else {
            // Since it was merged the program may have protected it otherwise.
            let parts = protections(&found)?;
            if parts.iter().map(|(part, _)| count(part)).sum::<u64>() != count(&found) {
                return Err(io::ErrorKind::NotFound.into());
            }
            for (part, protection) in parts {
                lay(&part, protection, attributes)?;
            }
        }
        files.remove(&found);
        fresh.push(found);
    }
    Ok(fresh)
}

fn lay(pages: &Range<Vpn>, protection: i32, attributes: Attributes) -> io::Result<()> {
    let reserve = if attributes.no_reserve { libc::MAP_NORESERVE } else { 0 };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | reserve;
    let (start, len) = (pointer(pages.start), size(span(pages).len));
    // SAFETY: the program has asked for the content to be dropped.
    unsafe { sys::map(start, len, protection, flags, -1, 0) }?;
    if let Some(advice) = attributes.huge_pages {
        // SAFETY: changes no content.
        unsafe { sys::advise(start, len, advice) }?;
    }
    attributes.give_to(start, len)
}
