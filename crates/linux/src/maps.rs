//! What /proc tells of mappings: one line of `maps`, one entry of `smaps`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

use crate::error::Error;
use crate::num::{PAGE_SHIFT, address};
use crate::sys;
use numerge_engine::machine::Vpn;

/// One line of /proc/PID/maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mapping<'a> {
    /// Addresses.
    pub(crate) bytes: Range<u64>,
    /// "rw-p" and the like.
    pub(crate) permissions: &'a str,
    /// Where in the file it begins.
    pub(crate) offset: u64,
    /// The file's device, as major:minor in hexadecimal.
    pub(crate) device: &'a str,
    /// The file's inode; 0 where there is no file.
    pub(crate) inode: u64,
    /// The file, or a name in brackets, or nothing.
    pub(crate) path: &'a str,
}

impl<'a> Mapping<'a> {
    /// Parses a line; None if it is not one.
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let mut rest = line.trim_end_matches('\n');
        let mut field = || {
            let (first, tail) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = tail.trim_start_matches(' ');
            first
        };
        let (start, end) = field().split_once('-')?;
        let permissions = field();
        let offset = u64::from_str_radix(field(), 16).ok()?;
        let device = field();
        let inode = field().parse().ok()?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        Some(Self { bytes: start..end, permissions, offset, device, inode, path: rest })
    }
}

/// VmFlags that a range may have and still be merged; the rest of smaps' flags would be lost, or
/// make merging wrong. Each two-letter name is documented in Documentation/filesystems/proc.rst.
const HARMLESS: [&str; 12] =
    ["rd", "wr", "mr", "mw", "me", "ac", "nr", "hg", "nh", "sd", "dc", "dd"];

/// Names of flags that people are likely to meet.
const KNOWN: [(&str, &str); 12] = [
    ("sh", "sharing (MAP_SHARED)"),
    ("ex", "permission to execute"),
    ("lo", "locked pages (mlock)"),
    ("lf", "pages locked on fault (mlock2)"),
    ("io", "device memory"),
    ("pf", "pure page frame numbers"),
    ("wf", "MADV_WIPEONFORK"),
    ("gd", "growth downwards (a stack)"),
    ("ht", "huge pages of hugetlbfs"),
    ("mg", "MADV_MERGEABLE (the kernel's own merging)"),
    ("um", "a userfaultfd of the program's own (missing pages)"),
    ("uw", "a userfaultfd of the program's own (write protection)"),
];

/// What a range that may be merged has in common, to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Attributes {
    /// Mapped with MAP_NORESERVE.
    pub(crate) no_reserve: bool,
    /// Advice on huge pages.
    pub(crate) huge_pages: Option<i32>,
    /// Not for children of a fork (MADV_DONTFORK).
    pub(crate) dont_fork: bool,
    /// Not for core dumps (MADV_DONTDUMP).
    pub(crate) dont_dump: bool,
}

impl Attributes {
    /// Gives a mapping just made what no flag of mmap gives. Advice on huge pages is not among it:
    /// frames have their own.
    ///
    /// # Errors
    /// What madvise said; the mapping is there all the same.
    pub(crate) fn give_to(self, at: *mut u8, len: usize) -> io::Result<()> {
        let wanted = [(self.dont_fork, libc::MADV_DONTFORK), (self.dont_dump, libc::MADV_DONTDUMP)];
        for (_, advice) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
            // SAFETY: changes no content.
            unsafe { sys::advise(at, len, advice) }?;
        }
        Ok(())
    }
}

/// Checks that all of `pages` is private anonymous memory, readable and writable, without any
/// attribute that would be lost by mapping something else there, and gives what must be kept.
///
/// # Errors
/// [`Error::NotAnonymous`], [`Error::Attribute`].
pub(crate) fn mergeable(pages: &Range<Vpn>) -> Result<Attributes, Error> {
    let wanted = address(pages.start)..address(pages.end);
    let mut reached = wanted.start;
    let mut attributes: Option<Attributes> = None;
    survey(&wanted, &mut |bytes, fit| {
        if bytes.start > reached {
            return Err(Error::NotAnonymous { start: reached, reason: "nothing is mapped".into() });
        }
        reached = bytes.end;
        let found = fit?;
        if attributes.is_some_and(|seen| seen != found) {
            let what = "another advice or reservation than the memory before it".into();
            return Err(attribute(bytes.start, what));
        }
        attributes = Some(found);
        Ok(())
    })?;
    match attributes {
        Some(attributes) if reached >= wanted.end => Ok(attributes),
        _ => Err(Error::NotAnonymous { start: reached, reason: "nothing is mapped".into() }),
    }
}

/// What of `wanted`, in ascending order and disjoint, [`mergeable`] would accept, in parts with
/// attributes of their own. One look, however many there are.
///
/// # Errors
/// If smaps can't be read.
pub(crate) fn mergeable_parts(
    wanted: &[Range<Vpn>],
) -> Result<Vec<(Range<Vpn>, Attributes)>, Error> {
    let mut parts = Vec::new();
    let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else {
        return Ok(parts);
    };
    let mut rest = wanted;
    survey(&(address(first.start)..address(last.end)), &mut |bytes, fit| {
        let mapping = Vpn(bytes.start >> PAGE_SHIFT)..Vpn(bytes.end >> PAGE_SHIFT);
        let Ok(attributes) = fit else { return Ok(()) };
        while let [next, others @ ..] = rest
            && next.end <= mapping.start
        {
            rest = others;
        }
        for next in rest.iter().take_while(|next| next.start < mapping.end) {
            let part = next.start.max(mapping.start)..next.end.min(mapping.end);
            parts.push((part, attributes));
        }
        Ok(())
    })?;
    Ok(parts)
}

/// Passes on each mapping that overlaps `window`, in ascending order: its addresses, and what must be
/// kept of it, or why it can't be merged. Ends at the first error that `each` gives.
fn survey(
    window: &Range<u64>,
    each: &mut dyn FnMut(Range<u64>, Result<Attributes, Error>) -> Result<(), Error>,
) -> Result<(), Error> {
    let smaps = File::open("/proc/thread-self/smaps").map_err(smaps_error)?;
    let mut smaps = BufReader::with_capacity(1 << 16, smaps);
    let mut line = Vec::new();
    let mut current: Option<(Range<u64>, Result<(), Error>)> = None;
    loop {
        line.clear();
        if smaps.read_until(b'\n', &mut line).map_err(smaps_error)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        if let Some(mapping) = Mapping::parse(&text) {
            if mapping.bytes.start >= window.end {
                return Ok(());
            }
            current = (mapping.bytes.end > window.start)
                .then(|| (mapping.bytes.clone(), check_mapping(&mapping)));
        } else if let Some((bytes, fit)) = &mut current {
            if let Some(key) = text.strip_prefix("ProtectionKey:")
                && key.trim() != "0"
                && fit.is_ok()
            {
                let key = format!("protection key {}", key.trim());
                *fit = Err(attribute(bytes.start, key));
            }
            if let Some(flags) = text.strip_prefix("VmFlags:")
                && let Some((bytes, fit)) = current.take()
            {
                let fit = fit.and_then(|()| check_flags(bytes.start, flags.trim()));
                each(bytes, fit)?;
            }
        }
    }
}

fn smaps_error(source: io::Error) -> Error {
    Error::System { call: "read /proc/thread-self/smaps", source }
}

fn attribute(start: u64, attribute: String) -> Error {
    Error::Attribute { start, attribute }
}

fn check_mapping(mapping: &Mapping<'_>) -> Result<(), Error> {
    let start = mapping.bytes.start;
    let reason = if mapping.inode != 0 || mapping.path.starts_with('/') {
        format!("a mapping of {}", mapping.path)
    } else if mapping.path.starts_with("[anon:") {
        return Err(attribute(start, format!("a name, {}", mapping.path)));
    } else if !mapping.path.is_empty() {
        format!("{}, which is not the program's to give", mapping.path)
    } else if !mapping.permissions.starts_with("rw") || !mapping.permissions.ends_with('p') {
        format!("its permissions are {}", mapping.permissions)
    } else if has_policy(start) {
        return Err(attribute(start, "a memory policy (mbind)".into()));
    } else {
        return Ok(());
    };
    Err(Error::NotAnonymous { start, reason })
}

fn check_flags(start: u64, flags: &str) -> Result<Attributes, Error> {
    let mut found = Attributes::default();
    for flag in flags.split_ascii_whitespace() {
        if !HARMLESS.contains(&flag) {
            let name = KNOWN.iter().find(|(known, _)| *known == flag);
            return Err(attribute(
                start,
                name.map_or_else(
                    || format!("VmFlags {flag}"),
                    |(_, name)| format!("{name} (VmFlags {flag})"),
                ),
            ));
        }
        match flag {
            "nr" => found.no_reserve = true,
            "hg" => found.huge_pages = Some(libc::MADV_HUGEPAGE),
            "nh" => found.huge_pages = Some(libc::MADV_NOHUGEPAGE),
            "dc" => found.dont_fork = true,
            "dd" => found.dont_dump = true,
            _ => {}
        }
    }
    Ok(found)
}

/// Whether the mapping at an address has a memory policy of its own; false where the machine does
/// not say, as in some containers, which then can't set one either.
fn has_policy(address: u64) -> bool {
    /// Ask for the policy of an address, not of the thread.
    const MPOL_F_ADDR: libc::c_long = 2;
    const MPOL_DEFAULT: libc::c_int = 0;
    let mut mode: libc::c_int = MPOL_DEFAULT;
    // SAFETY: the kernel writes the mode, and no node mask, since it is given no room for one.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            std::ptr::null_mut::<libc::c_ulong>(),
            0,
            address,
            MPOL_F_ADDR,
        )
    };
    result == 0 && mode != MPOL_DEFAULT
}

/// Number of mappings this process has.
pub(crate) fn count() -> io::Result<u64> {
    let mut maps = BufReader::with_capacity(1 << 16, File::open("/proc/thread-self/maps")?);
    let mut lines = 0;
    loop {
        let read = maps.fill_buf()?;
        if read.is_empty() {
            return Ok(lines);
        }
        lines += read.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        let len = read.len();
        maps.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_a_line_of_maps() {
        let line = "7f00-8000 rw-p 00014000 00:01 24                    /memfd:x (deleted)\n";
        let mapping = Mapping::parse(line).expect("a mapping");
        assert_eq!(mapping.bytes, 0x7f00..0x8000);
        assert_eq!(mapping.permissions, "rw-p");
        assert_eq!(mapping.offset, 0x14000);
        assert_eq!(mapping.device, "00:01");
        assert_eq!(mapping.inode, 24);
        assert_eq!(mapping.path, "/memfd:x (deleted)");
        assert_eq!(Mapping::parse("Size:      144 kB"), None);
        assert_eq!(Mapping::parse("VmFlags: rd wr mr"), None);
    }

    #[test]
    fn names_the_attribute_that_would_be_lost() {
        let error = check_flags(0, " rd wr mr mw me wf ac sd").expect_err("refused");
        assert!(error.to_string().contains("MADV_WIPEONFORK"), "{error}");
        let error = check_flags(0, "rd wr zz").expect_err("refused");
        assert!(error.to_string().contains("VmFlags zz"), "{error}");
        let kept = check_flags(0, "rd wr mr mw me nr hg dc").expect("fine");
        assert!(kept.no_reserve && kept.dont_fork && !kept.dont_dump);
        assert_eq!(kept.huge_pages, Some(libc::MADV_HUGEPAGE));
    }
}
