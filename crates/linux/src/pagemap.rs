//! PAGEMAP_SCAN on /proc/PID/pagemap: which pages were written, and what lies where.
//!
//! Of another process, memory can go while it is walked. A walk that protects passes over what is not
//! registered for asynchronous write protection, so the worst that comes of it is a page not reported:
//! no PM_SCAN_CHECK_WPASYNC, which would end the walk with an error there.
//!
//! Structures and flags are those of include/uapi/linux/fs.h (Linux 6.7).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use numerge_engine::machine::{Vpn, Written};

use crate::error::Error;
use crate::kinds::kind;
use crate::num::{PAGE_BYTES, PAGE_SHIFT, address};

/// What a page can be, any number at once.
pub(crate) mod category {
    /// Not write protected: written, newly mapped or newly registered since the last look.
    pub(crate) const WRITTEN: u64 = 1 << 1;
    /// A page of a file, still shared: here, a frame.
    pub(crate) const FILE: u64 = 1 << 2;
    /// In memory.
    pub(crate) const PRESENT: u64 = 1 << 3;
    /// Swapped out (or a marker that the kernel keeps in place of a page).
    pub(crate) const SWAPPED: u64 = 1 << 4;
    /// The machine's page of zeros.
    pub(crate) const PFNZERO: u64 = 1 << 5;
}

/// `PM_SCAN_WP_MATCHING`: write protect what is reported, in the same walk.
const WP_MATCHING: u64 = 1 << 0;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<ScanArg>() as u64) << 16 | (b'f' as u64) << 8 | 16;

/// Regions of one call: 12 KiB of stack.
const REGIONS: usize = 512;
/// Protected pages worth walking over rather than making a call of its own for what follows.
const GAP_BYTES: u64 = 256 * PAGE_BYTES;
/// The same where there may be pages of files.
const GAP_IN_FILES_BYTES: u64 = 64 * PAGE_BYTES;
/// Nothing, yet.
const EMPTY: PageRegion = PageRegion { start: 0, end: 0, categories: 0 };

/// `struct page_region`: adjacent pages of the same categories.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRegion {
    /// First byte.
    pub(crate) start: u64,
    /// Byte after the last.
    pub(crate) end: u64,
    /// Of [`category`], those asked for.
    pub(crate) categories: u64,
}

impl PageRegion {
    /// The same in pages.
    pub(crate) const fn pages(&self) -> Range<Vpn> {
        Vpn(self.start >> PAGE_SHIFT)..Vpn(self.end >> PAGE_SHIFT)
    }
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// A process's page tables, to ask.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
}

impl Pagemap {
    /// Opens this process's pagemap and tries a scan.
    pub(crate) fn open() -> Result<Self, Error> {
        let file = File::open("/proc/self/pagemap")
            .map_err(|source| Error::System { call: "open /proc/self/pagemap", source })?;
        Self::try_scan(Self { file })
    }

    /// Takes over the pagemap of any process and tries a scan.
    pub(crate) fn of(file: File) -> Result<Self, Error> {
        Self::try_scan(Self { file })
    }

    fn try_scan(pagemap: Self) -> Result<Self, Error> {
        match pagemap.find(0..4096, category::PRESENT, &mut |_| {}) {
            Ok(()) => Ok(pagemap),
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                Err(Error::KernelTooOld { feature: "PAGEMAP_SCAN", since: "6.7" })
            }
            Err(source) => Err(Error::System { call: "PAGEMAP_SCAN", source }),
        }
    }

    /// Appends what was written in `pages` since the last call, adjacent pages of one kind together,
    /// and arms it again; stops at `max_pages` (at least 1). Gives where the walk ended.
    pub(crate) fn append_written(
        &self,
        pages: &Range<Vpn>,
        max_pages: u64,
        may_be_files: &dyn Fn(&Range<Vpn>) -> bool,
        out: &mut Vec<Written>,
    ) -> io::Result<Vpn> {
        let may_be_files = |bytes: &Range<u64>| {
            may_be_files(&(Vpn(bytes.start >> PAGE_SHIFT)..Vpn(bytes.end >> PAGE_SHIFT)))
        };
        let before = out.len();
        let bytes = address(pages.start)..address(pages.end);
        let end = self.take_written(bytes, max_pages, &may_be_files, &mut |region| {
            let found = Written { pages: region.pages(), kind: kind(region.categories) };
            match out.get_mut(before..).and_then(<[_]>::last_mut) {
                Some(last) if last.pages.end == found.pages.start && last.kind == found.kind => {
                    last.pages.end = found.pages.end;
                }
                _ => out.push(found),
            }
        })?;
        Ok(Vpn(end >> PAGE_SHIFT))
    }

    /// Passes to `each` what was written in `bytes` since the last call, in ascending order, and
    /// arms it again; stops at `max_pages` (at least 1). Gives where the walk ended.
    ///
    /// Two walks. The kernel tells in 2 ns a page what is not write protected, if asked for nothing
    /// else; but that includes pages that are not there (never touched, or frames that nobody has
    /// looked at since they were mapped), which must not be reported, and protecting those would
    /// allocate page tables. Only what that walk finds is walked again, to be told apart and armed:
    /// at 5 ns a page, or at 30 where there may be pages of files, for then the kernel looks at
    /// each page itself. `may_be_files` says where that is.
    pub(crate) fn take_written(
        &self,
        bytes: Range<u64>,
        max_pages: u64,
        may_be_files: &dyn Fn(&Range<u64>) -> bool,
        each: &mut dyn FnMut(PageRegion),
    ) -> io::Result<u64> {
        let mut left = max_pages.max(1);
        let mut at = bytes.start;
        let (mut regions, mut parts) = ([EMPTY; REGIONS], [EMPTY; REGIONS]);
        while at < bytes.end {
            // No more than can be taken: what is found beyond would be walked again next time.
            let question = Question::unprotected(at..bytes.end, left);
            let (found, end) = self.scan(&question, &mut regions)?;
            for near in in_parts(&regions[..found], GAP_BYTES) {
                let files = may_be_files(&hull(near));
                let gap = if files { GAP_IN_FILES_BYTES } else { GAP_BYTES };
                for part in in_parts(near, gap) {
                    let reached = self.take_part(hull(part), files, &mut left, &mut parts, each)?;
                    if left == 0 {
                        return Ok(reached);
                    }
                }
            }
            at = end;
        }
        Ok(at)
    }

    fn take_part(
        &self,
        bytes: Range<u64>,
        files: bool,
        left: &mut u64,
        regions: &mut [PageRegion; REGIONS],
        each: &mut dyn FnMut(PageRegion),
    ) -> io::Result<u64> {
        let mut at = bytes.start;
        // The kernel allocates as much as it is offered, which for a page or two is most of the cost.
        let pages = usize::try_from((bytes.end - bytes.start) / PAGE_BYTES).unwrap_or(REGIONS);
        let regions = &mut regions[..pages.clamp(1, REGIONS)];
        while at < bytes.end && *left > 0 {
            let question = Question::written(at..bytes.end, *left, files);
            let (found, end) = self.scan(&question, regions)?;
            for region in &regions[..found] {
                *left = left.saturating_sub((region.end - region.start) / PAGE_BYTES);
                each(*region);
            }
            at = end;
        }
        Ok(at)
    }

    /// Passes to `each` the pages of `bytes` that are present or swapped out and have all of
    /// `categories`, changing nothing.
    pub(crate) fn find(
        &self,
        bytes: Range<u64>,
        categories: u64,
        each: &mut dyn FnMut(PageRegion),
    ) -> io::Result<()> {
        let mut at = bytes.start;
        while at < bytes.end {
            let mut regions = [EMPTY; REGIONS];
            let question = Question::there(at..bytes.end, categories);
            let (found, end) = self.scan(&question, &mut regions)?;
            regions[..found].iter().for_each(|region| each(*region));
            at = end;
        }
        Ok(())
    }

    /// How many pages from the beginning of `bytes` on are there, in memory or not, and no file's.
    pub(crate) fn first_own(&self, bytes: Range<u64>) -> io::Result<u64> {
        let mut region = [EMPTY];
        let (found, _) = self.scan(&Question::own(bytes.clone()), &mut region)?;
        let first = region[..found].first().filter(|first| first.start == bytes.start);
        Ok(first.map_or(0, |first| (first.end - first.start) / PAGE_BYTES))
    }

    /// One call: as many regions as fit. Gives how many, and where the walk ended.
    fn scan(&self, question: &Question, regions: &mut [PageRegion]) -> io::Result<(usize, u64)> {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: question.flags,
            start: question.bytes.start,
            end: question.bytes.end,
            walk_end: 0,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: regions.len() as u64,
            max_pages: question.max_pages,
            category_inverted: question.inverted,
            category_mask: question.all_of,
            category_anyof_mask: question.any_of,
            return_mask: question.tell,
        };
        // SAFETY: `arg` is the structure PAGEMAP_SCAN reads and writes, and its `vec` has room for
        // `vec_len` regions; both live over the call. Write protection changes no content.
        let found = unsafe {
            libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, std::ptr::from_mut(&mut arg))
        };
        let Ok(found) = usize::try_from(found) else {
            return Err(io::Error::last_os_error());
        };
        // A walk that found nothing to do still has to come to an end.
        let end = arg.walk_end.max(question.bytes.start + PAGE_BYTES);
        Ok((found.min(regions.len()), end.min(question.bytes.end)))
    }
}

/// Regions with less than `gap` bytes from each to the next, together.
fn in_parts(regions: &[PageRegion], gap: u64) -> impl Iterator<Item = &[PageRegion]> {
    regions.chunk_by(move |a, b| b.start - a.end < gap)
}

/// From the first to the last; there is at least one.
fn hull(part: &[PageRegion]) -> Range<u64> {
    part[0].start..part[part.len() - 1].end
}

/// What to ask in one call.
struct Question {
    bytes: Range<u64>,
    flags: u64,
    max_pages: u64,
    /// Of `all_of`, those that a page must not have.
    inverted: u64,
    all_of: u64,
    any_of: u64,
    tell: u64,
}

impl Question {
    /// What is not write protected, there or not. In exactly this form the kernel is fast.
    const fn unprotected(bytes: Range<u64>, max_pages: u64) -> Self {
        Self {
            bytes,
            flags: 0,
            max_pages,
            inverted: 0,
            all_of: category::WRITTEN,
            any_of: 0,
            tell: category::WRITTEN,
        }
    }

    /// Pages that are there and have all of `categories`.
    const fn there(bytes: Range<u64>, categories: u64) -> Self {
        Self {
            bytes,
            flags: 0,
            max_pages: 0,
            inverted: 0,
            all_of: categories,
            any_of: category::PRESENT | category::SWAPPED,
            tell: category::FILE | category::PRESENT | category::SWAPPED | category::PFNZERO,
        }
    }

    /// Pages that are there, and no file's. Nothing else is told, so that nothing else parts them.
    const fn own(bytes: Range<u64>) -> Self {
        let there = Self::there(bytes, category::FILE);
        Self { inverted: category::FILE, tell: category::FILE, ..there }
    }

    /// Pages that are there and not write protected, to be protected; without `files`, which are
    /// frames is not told.
    const fn written(bytes: Range<u64>, max_pages: u64, files: bool) -> Self {
        let there = Self::there(bytes, category::WRITTEN);
        let tell = if files { there.tell } else { there.tell & !category::FILE };
        Self { flags: WP_MATCHING, max_pages, tell, ..there }
    }
}
