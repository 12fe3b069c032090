//! What lies at each page now.
//!
//! The page tables alone do not tell. A page mapped to a frame has no entry until somebody looks at
//! it, and may lose it again, like a page never touched. And an entry that is "swapped out" may be
//! a mere marker that the kernel leaves for its write protection, with the frame still behind it.
//! To take either for a page that has left its frame would let the frame be given back while it is
//! mapped. So: what is in a file mapping is a frame unless a page of the program's own is seen.

use std::io;
use std::ops::Range;

use numerge_engine::machine::{Kind, Memory, MemoryError, Vpn};

use crate::error::system;
use crate::memory::ProcessMemory;
use crate::num::{address, count, size};
use crate::pagemap::{PageRegion, Pagemap, category};
use crate::ranges::Ranges;

/// A page as the page tables have it, to a [`Kind`], if it is no frame that can't be seen.
pub(crate) fn kind(categories: u64) -> Kind {
    if categories & category::PFNZERO != 0 {
        Kind::Zero
    } else if categories & category::FILE != 0 {
        Kind::Frame
    } else {
        Kind::Private
    }
}

impl ProcessMemory {
    /// Appends the kind of each page; nothing if that fails.
    pub(crate) fn append_kinds(
        &self,
        runs: &[Range<Vpn>],
        out: &mut Vec<Option<Kind>>,
    ) -> Result<(), MemoryError> {
        // Held over the look: pages go from one kind of mapping to the other only under it.
        let tables = self.tables();
        let look_at = |page: Vpn| _ = self.read(&[page..page.plus(1)], &mut |_| {});
        append(&self.pagemap, &tables.in_file, &look_at, runs, out)
            .map_err(|source| system("PAGEMAP_SCAN", source))
    }
}

/// Appends the kind of each page; nothing if that fails. `in_file` are the pages that may be in a file
/// mapping, `look_at` reads a page.
pub(crate) fn append<T: Copy + PartialEq>(
    pagemap: &Pagemap,
    in_file: &Ranges<T>,
    look_at: &dyn Fn(Vpn),
    runs: &[Range<Vpn>],
    out: &mut Vec<Option<Kind>>,
) -> io::Result<()> {
    let before = out.len();
    let appended = runs.iter().try_for_each(|run| append_run(pagemap, in_file, look_at, run, out));
    appended.inspect_err(|_| out.truncate(before))
}

fn append_run<T: Copy + PartialEq>(
    pagemap: &Pagemap,
    in_file: &Ranges<T>,
    look_at: &dyn Fn(Vpn),
    pages: &Range<Vpn>,
    out: &mut Vec<Option<Kind>>,
) -> io::Result<()> {
    let mut found = vec![None; size(count(pages))];
    let mut at = pages.start;
    while let Some((in_file, _)) = in_file.next_in(&(at..pages.end)) {
        found[places(pages, &in_file)].fill(Some(Kind::Frame));
        at = in_file.end;
    }
    // Category 0: whatever is there, in memory or not.
    let each_there = |pages: &Range<Vpn>, each: &mut dyn FnMut(PageRegion)| {
        pagemap.find(address(pages.start)..address(pages.end), 0, each)
    };
    let mut swapped = Vec::new();
    each_there(pages, &mut |region| {
        if region.categories & category::PRESENT != 0 {
            found[places(pages, &region.pages())].fill(Some(kind(region.categories)));
        } else {
            swapped.push(region.pages());
        }
    })?;
    let mut unknown = Vec::new();
    for page in swapped.into_iter().flat_map(|run| (run.start.0..run.end.0).map(Vpn)) {
        match &mut found[size(page.0 - pages.start.0)] {
            Some(_) => unknown.push(page),
            none => *none = Some(Kind::Private),
        }
    }
    for page in unknown {
        // Looking at it brings in what is really there.
        look_at(page);
        each_there(&(page..page.plus(1)), &mut |region| {
            if region.categories & category::PRESENT != 0 {
                found[size(page.0 - pages.start.0)] = Some(kind(region.categories));
            }
        })?;
    }
    out.append(&mut found);
    Ok(())
}

/// Where `part` is in `pages`.
fn places(pages: &Range<Vpn>, part: &Range<Vpn>) -> Range<usize> {
    let place = |page: Vpn| size(page.clamp(pages.start, pages.end).0 - pages.start.0);
    place(part.start)..place(part.end)
}
