//! The mappings of some pages, without a look at all others.
//!
//! A program can have tens of thousands, and ask something about each: a look at the whole of
//! /proc/PID/maps for each would take minutes. PROCMAP_QUERY (Linux 6.11) finds one by its address.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use numerge_engine::machine::Vpn;

use crate::maps::{Attributes, Mapping};
use crate::memory::ADDRESSABLE;
use crate::num::{PAGE_SHIFT, address};
use crate::ranges::Ranges;

/// `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: u64 = 3 << 30 | (size_of::<Query>() as u64) << 16 | (b'f' as u64) << 8 | 17;
/// The mapping at an address, or else the next.
const COVERING_OR_NEXT: u64 = 0x10;
/// Mappings with MAP_SHARED: what the kernel says of one, and part of what it may be asked for.
const SHARED: u64 = 0x08;
/// Asks for mappings of files only.
const OF_FILES: u64 = 0x20;
/// Asks for mappings with MAP_SHARED, of files, only.
const SHARED_FILES: u64 = SHARED | OF_FILES;
/// Asks for mappings of files that may be executed only.
const EXECUTABLE_FILES: u64 = 0x04 | OF_FILES;
/// Mappings that are asked about one by one, a millisecond's worth.
const ONE_BY_ONE: u32 = 2048;
/// Readable, writable, executable, with the same bits as in mmap(2).
const PROTECTION: u64 = 0x7;

/// `struct procmap_query` of include/uapi/linux/fs.h. Zeros for what is not asked.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// The mappings in `pages`, in ascending order, each as far as it lies there, with their protection as in
/// mmap(2).
///
/// # Errors
/// If /proc can't be read.
pub(crate) fn protections(pages: &Range<Vpn>) -> io::Result<Vec<(Range<Vpn>, i32)>> {
    // By way of the thread, for a process whose first thread has ended shows none.
    let maps = File::open("/proc/thread-self/maps")?;
    match ask(&maps, pages) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => read(maps, pages),
        answer => answer,
    }
}

fn ask(maps: &File, pages: &Range<Vpn>) -> io::Result<Vec<(Range<Vpn>, i32)>> {
    let mut found = Vec::new();
    let mut at = pages.start;
    while at < pages.end {
        let Some(query) = query(maps.as_fd(), COVERING_OR_NEXT, address(at), &mut [])? else {
            break;
        };
        let part = clipped(query.vma_start..query.vma_end, &(at..pages.end));
        if part.is_empty() {
            break;
        }
        at = part.end;
        let protection = i32::try_from(query.vma_flags & PROTECTION).unwrap_or_default();
        found.push((part, protection));
    }
    Ok(found)
}

/// None if there is no such mapping. Allocates nothing.
fn query(
    maps: BorrowedFd<'_>,
    query_flags: u64,
    query_addr: u64,
    name: &mut [u8],
) -> io::Result<Option<Query>> {
    let mut query = Query {
        size: size_of::<Query>() as u64,
        query_flags,
        query_addr,
        vma_name_size: u32::try_from(name.len()).unwrap_or(u32::MAX),
        vma_name_addr: if name.is_empty() {
            0
        } else {
            name.as_mut_ptr().expose_provenance() as u64
        },
        ..Query::default()
    };
    // SAFETY: the structure is the kernel's, which writes to no more than that and to the name, as far as
    // its length says.
    let result =
        unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, std::ptr::from_mut(&mut query)) };
    if result == 0 {
        return Ok(Some(query));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOENT) { Ok(None) } else { Err(error) }
}

/// Passes the name of the file of each mapping with MAP_SHARED to `each`, as /proc/PID/maps has it, in
/// ascending order, while that says so. Passes over what is `registered`, where none of them is, and may be tens
/// of thousands of others. Allocates nothing.
///
/// # Errors
/// That of the kernel: one before 6.11 has ENOTTY for it. ENAMETOOLONG if a file has no path of at most 4095
/// bytes.
pub(crate) fn shared_files(
    maps: BorrowedFd<'_>,
    registered: &Ranges<Attributes>,
    mut each: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let mut name = [0; 4096];
    let (mut at, mut asked) = (0, 0);
    loop {
        let page = Vpn(at >> PAGE_SHIFT);
        let known =
            registered.next_in(&(page..ADDRESSABLE)).filter(|(known, _)| known.start == page);
        if let Some((known, _)) = known {
            at = address(known.end);
            continue;
        }
        // Asked for one of a kind, the kernel goes from mapping to mapping, through what is registered too. That is
        // worth it only where there are many others.
        let kind = if asked < ONE_BY_ONE { 0 } else { SHARED_FILES };
        let Some(mut found) = query(maps, COVERING_OR_NEXT | kind, at, &mut [])? else { break };
        asked += 1;
        if found.vma_flags & SHARED != 0 {
            let start = found.vma_start;
            let named = query(maps, COVERING_OR_NEXT | SHARED_FILES, start, &mut name)?;
            let Some(named) = named else { break };
            found = named;
            // It counts the zero at the end.
            let length = usize::try_from(found.vma_name_size).unwrap_or(0);
            if !each(name.get(..length.saturating_sub(1)).unwrap_or_default()) {
                break;
            }
        }
        at = found.vma_end;
    }
    Ok(())
}

/// A file, by its device, major and minor, and its inode.
pub type FileNumber = (u32, u32, u64);

/// The files that this process has mapped to execute, with their paths as far as those have no more than 4095
/// bytes: what is mapped of them, or was there once.
///
/// # Errors
/// If /proc can't be read.
pub fn executables() -> io::Result<Vec<(FileNumber, PathBuf)>> {
    let maps = File::open("/proc/thread-self/maps")?;
    // Also where the kernel knows the question, and somebody refuses it.
    ask_executables(&maps).or_else(|_| read_executables(maps))
}

fn ask_executables(maps: &File) -> io::Result<Vec<(FileNumber, PathBuf)>> {
    let (mut found, mut at, mut name) = (Vec::new(), 0, [0; 4096]);
    loop {
        let next = match query(maps.as_fd(), COVERING_OR_NEXT | EXECUTABLE_FILES, at, &mut name) {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(found),
            // Has no path that could be opened; where it ends, is asked without.
            Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => {
                let next = query(maps.as_fd(), COVERING_OR_NEXT | EXECUTABLE_FILES, at, &mut [])?;
                let Some(next) = next else { return Ok(found) };
                at = next.vma_end;
                continue;
            }
            Err(error) => return Err(error),
        };
        at = next.vma_end;
        // It counts the zero at the end.
        let length = usize::try_from(next.vma_name_size).unwrap_or(0).saturating_sub(1);
        let path = OsStr::from_bytes(name.get(..length).unwrap_or_default());
        found.push(((next.dev_major, next.dev_minor, next.inode), path.into()));
    }
}

fn read_executables(maps: File) -> io::Result<Vec<(FileNumber, PathBuf)>> {
    let mut found = Vec::new();
    for line in BufReader::with_capacity(1 << 16, maps).split(b'\n') {
        let line = line?;
        // A path may be no text.
        let line = String::from_utf8_lossy(&line);
        let Some(mapping) = Mapping::parse(&line) else { continue };
        if mapping.inode != 0 && mapping.permissions.contains('x') {
            let (major, minor) = mapping.device.split_once(':').unwrap_or_default();
            let [major, minor] =
                [major, minor].map(|number| u32::from_str_radix(number, 16).unwrap_or(0));
            found.push(((major, minor, mapping.inode), mapping.path.into()));
        }
    }
    Ok(found)
}

/// What `ask` does, on older kernels.
fn read(maps: File, pages: &Range<Vpn>) -> io::Result<Vec<(Range<Vpn>, i32)>> {
    let mut found = Vec::new();
    for line in BufReader::with_capacity(1 << 16, maps).lines() {
        let line = line?;
        let Some(mapping) = Mapping::parse(&line) else { continue };
        if mapping.bytes.start >= address(pages.end) {
            break;
        }
        let part = clipped(mapping.bytes.clone(), pages);
        if !part.is_empty() {
            let bits = [('r', libc::PROT_READ), ('w', libc::PROT_WRITE), ('x', libc::PROT_EXEC)];
            let has = |letter| mapping.permissions.contains(letter);
            let bits = bits.iter().filter(|(letter, _)| has(*letter));
            found.push((part, bits.map(|(_, bit)| bit).sum()));
        }
    }
    Ok(found)
}

fn clipped(bytes: Range<u64>, pages: &Range<Vpn>) -> Range<Vpn> {
    let start = Vpn(bytes.start >> PAGE_SHIFT).max(pages.start);
    start..Vpn(bytes.end >> PAGE_SHIFT).min(pages.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::{pointer, size};
    use crate::sys;

    const PAGES: u64 = 64;

    #[test]
    fn both_ways_tell_the_same_of_what_is_executed() {
        let maps = || File::open("/proc/thread-self/maps").expect("opened");
        let by_text = read_executables(maps()).expect("read");
        let own = std::env::current_exe().expect("a program");
        assert!(by_text.iter().any(|(_, path)| *path == own), "{by_text:?}");
        match ask_executables(&maps()) {
            Ok(asked) => assert_eq!(asked, by_text),
            Err(error) => println!("SKIPPED: PROCMAP_QUERY (Linux 6.11): {error}"),
        }
    }

    #[test]
    fn both_ways_tell_the_same() {
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let len = size(PAGES << PAGE_SHIFT);
        // SAFETY: new memory.
        let at = unsafe { sys::map(std::ptr::null_mut(), len, libc::PROT_NONE, anonymous, -1, 0) };
        let at = at.expect("mapped");
        let start = Vpn((at.expose_provenance() >> PAGE_SHIFT) as u64);
        // Pages of all kinds, and holes.
        for n in (0..PAGES).filter(|n| n % 5 != 0) {
            let one = pointer(start.plus(n));
            let kind = i32::try_from(n % 8).expect("small");
            // SAFETY: of the memory that was made here.
            unsafe {
                sys::map(one, size(1 << PAGE_SHIFT), kind, anonymous | libc::MAP_FIXED, -1, 0)
            }
            .expect("mapped");
        }
        for n in (0..PAGES).filter(|n| n % 5 == 0) {
            // SAFETY: the same.
            unsafe { sys::unmap(pointer(start.plus(n)), size(1 << PAGE_SHIFT)) }.expect("unmapped");
        }
        let maps = || File::open("/proc/thread-self/maps").expect("opened");
        for (from, to) in [(0, PAGES), (7, 23), (10, 11), (11, 12), (12, 12)] {
            let pages = start.plus(from)..start.plus(to);
            let by_text = read(maps(), &pages).expect("read");
            let there = by_text.iter().map(|(part, _)| part.end.0 - part.start.0).sum::<u64>();
            assert_eq!(there, (from..to).filter(|n| n % 5 != 0).count() as u64, "{from} to {to}");
            match ask(&maps(), &pages) {
                Ok(asked) => assert_eq!(asked, by_text),
                Err(error) => println!("SKIPPED: PROCMAP_QUERY (Linux 6.11): {error}"),
            }
        }
        // SAFETY: the same.
        unsafe { sys::unmap(at, len) }.expect("unmapped");
    }
}
