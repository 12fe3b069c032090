//! What /proc tells of mappings: one line of `maps`, one entry of `smaps`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

use crate::error::Error;
use crate::num::address;
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
const HARMLESS: [&str; 10] = ["rd", "wr", "mr", "mw", "me", "ac", "nr", "hg", "nh", "sd"];

/// Names of flags that people are likely to meet.
const KNOWN: [(&str, &str); 14] = [
    ("sh", "sharing (MAP_SHARED)"),
    ("ex", "permission to execute"),
    ("lo", "locked pages (mlock)"),
    ("lf", "pages locked on fault (mlock2)"),
    ("io", "device memory"),
    ("pf", "pure page frame numbers"),
    ("dc", "MADV_DONTFORK"),
    ("wf", "MADV_WIPEONFORK"),
    ("dd", "MADV_DONTDUMP"),
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
}

/// Checks that all of `pages` is private anonymous memory, readable and writable, without any
/// attribute that would be lost by mapping something else there, and gives what must be kept.
///
/// # Errors
/// [`Error::NotAnonymous`], [`Error::Attribute`].
pub(crate) fn mergeable(pages: &Range<Vpn>) -> Result<Attributes, Error> {
    let wanted = address(pages.start)..address(pages.end);
    let smaps = File::open("/proc/self/smaps").map_err(smaps_error)?;
    let mut reached = wanted.start;
    let mut inside = None;
    let mut attributes: Option<Attributes> = None;
    for line in BufReader::new(smaps).split(b'\n') {
        let line = line.map_err(smaps_error)?;
        let line = String::from_utf8_lossy(&line);
        if let Some(mapping) = Mapping::parse(&line) {
            inside = None;
            if mapping.bytes.end <= wanted.start {
                continue;
            }
            if mapping.bytes.start >= wanted.end {
                break;
            }
            check_mapping(&mapping, reached)?;
            if has_policy(mapping.bytes.start) {
                return Err(attribute(mapping.bytes.start, "a memory policy (mbind)".into()));
            }
            inside = Some(mapping.bytes.start);
            reached = mapping.bytes.end;
        } else if let Some(start) = inside {
            if let Some(key) = line.strip_prefix("ProtectionKey:")
                && key.trim() != "0"
            {
                return Err(attribute(start, format!("protection key {}", key.trim())));
            }
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                let found = check_flags(start, flags)?;
                if attributes.is_some_and(|seen| seen != found) {
                    return Err(attribute(
                        start,
                        "another advice or reservation than the memory before it".into(),
                    ));
                }
                attributes = Some(found);
            }
        }
    }
    match attributes {
        Some(attributes) if reached >= wanted.end => Ok(attributes),
        _ => Err(Error::NotAnonymous { start: reached, reason: "nothing is mapped".into() }),
    }
}

fn smaps_error(source: io::Error) -> Error {
    Error::System { call: "read /proc/self/smaps", source }
}

fn attribute(start: u64, attribute: String) -> Error {
    Error::Attribute { start, attribute }
}

fn check_mapping(mapping: &Mapping<'_>, reached: u64) -> Result<(), Error> {
    let start = mapping.bytes.start;
    let reason = if start > reached {
        return Err(Error::NotAnonymous { start: reached, reason: "nothing is mapped".into() });
    } else if mapping.inode != 0 || mapping.path.starts_with('/') {
        format!("a mapping of {}", mapping.path)
    } else if mapping.path.starts_with("[anon:") {
        return Err(attribute(start, format!("a name, {}", mapping.path)));
    } else if !mapping.path.is_empty() {
        format!("{}, which is not the program's to give", mapping.path)
    } else if !mapping.permissions.starts_with("rw") || !mapping.permissions.ends_with('p') {
        format!("its permissions are {}", mapping.permissions)
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
    let mut maps = BufReader::with_capacity(1 << 16, File::open("/proc/self/maps")?);
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
        let error = check_flags(0, " rd wr mr mw me dc ac sd").expect_err("refused");
        assert!(error.to_string().contains("MADV_DONTFORK"), "{error}");
        let error = check_flags(0, "rd wr zz").expect_err("refused");
        assert!(error.to_string().contains("VmFlags zz"), "{error}");
        let kept = check_flags(0, "rd wr mr mw me nr hg").expect("fine");
        assert!(kept.no_reserve);
        assert_eq!(kept.huge_pages, Some(libc::MADV_HUGEPAGE));
    }
}
