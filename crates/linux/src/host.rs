//! Facts about the machine and this process, and whether the kernel can do what is needed.

use std::fs;
use std::io;

use crate::device::UffdDevice;
use crate::error::Error;
use crate::num::PAGE_BYTES;
use crate::pagemap::Pagemap;
use crate::uffd::{Uffd, feature};

/// Features of the context that tracks writes and freezes pages.
pub(crate) const TRACKING: u64 = feature::WP
    | feature::WP_SHMEM
    | feature::WP_UNPOPULATED
    | feature::WP_ASYNC
    | feature::MOVE
    | feature::EVENT_REMAP;
/// Features of the context that makes writers wait.
pub(crate) const HOLDING: u64 = feature::WP | feature::WP_SHMEM;

/// Checks that the kernel has all that merging needs and that this user may use it.
///
/// # Errors
/// [`Error::KernelTooOld`], [`Error::NotPermitted`], [`Error::PageSize`], each saying what to do.
pub fn check_kernel() -> Result<(), Error> {
    check_kernel_with(None)
}

/// The same where the device for userfaultfds was lent, if it was.
pub(crate) fn check_kernel_with(lent: Option<&UffdDevice>) -> Result<(), Error> {
    // SAFETY: sysconf reads a number and touches no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if bytes != 4096 {
        return Err(Error::PageSize { bytes });
    }
    Uffd::open(TRACKING, lent)?;
    Uffd::open(HOLDING, lent)?;
    Pagemap::open()?;
    Ok(())
}

/// Memory the machine could give out now without swapping, in bytes: MemAvailable, and what lies on
/// the CPUs' own lists of free pages.
///
/// The kernel leaves those lists out of MemAvailable, and lets them grow to an eighth of a zone
/// while much is freed (seen: 500 MiB of 1 GiB just freed, for some ten seconds), so that without
/// them memory would seem to come back late.
///
/// # Errors
/// If /proc/meminfo can't be read.
pub fn available_bytes() -> io::Result<u64> {
    let lists = fs::read_to_string("/proc/zoneinfo").unwrap_or_default();
    Ok(kilobytes("/proc/meminfo", "MemAvailable:")? + pages_on_lists(&lists) * PAGE_BYTES)
}

/// Pages on the CPUs' lists of free pages, of all zones.
fn pages_on_lists(zoneinfo: &str) -> u64 {
    let counts = zoneinfo.lines().filter_map(|line| line.trim().strip_prefix("count:"));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// What is left to the machine: Linux hands out more memory than it has, and then kills who uses it.
const RESERVE_BYTES: u64 = 64 << 20;

/// How many pages the machine can give out and keep a reserve. Any number if it does not say how
/// much it has.
pub(crate) fn spare_pages() -> u64 {
    let spare = |available: u64| available.saturating_sub(RESERVE_BYTES) / PAGE_BYTES;
    available_bytes().map_or(u64::MAX, spare)
}

/// This process's share of the machine's memory (Pss of smaps_rollup), in bytes: a page that n
/// mappings share counts as 1/n for each.
///
/// # Errors
/// If /proc/self/smaps_rollup can't be read.
pub fn proportional_bytes() -> io::Result<u64> {
    kilobytes("/proc/thread-self/smaps_rollup", "Pss:")
}

/// The most mappings the machine allows one program (`vm.max_map_count`).
///
/// # Errors
/// If it can't be read.
pub fn mappings_limit() -> io::Result<u64> {
    number("/proc/sys/vm/max_map_count")
}

/// Whether the machine counts every private mapping against a limit (vm.overcommit_memory=2).
pub(crate) fn strict_overcommit() -> bool {
    number("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode == 2)
}

/// Pages the machine has moved, or brought in from swap space where they may have come to another
/// node, since it was started.
pub(crate) fn pages_moved() -> io::Result<u64> {
    let path = "/proc/vmstat";
    let text = fs::read_to_string(path)?;
    let counts = text.lines().filter_map(|line| line.split_once(' '));
    let moved = counts.filter(|(name, _)| ["pgmigrate_success", "pswpin", "zswpin"].contains(name));
    moved.map(|(_, count)| count.trim().parse::<u64>().map_err(|_| malformed(path))).sum()
}

fn number(path: &str) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(|_| malformed(path))
}

fn kilobytes(path: &str, key: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix("kB"))
        .and_then(|value| value.trim().parse::<u64>().ok())
        .map(|value| value.saturating_mul(1024))
        .ok_or_else(|| malformed(path))
}

fn malformed(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not as expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_of_the_machine() {
        assert!(available_bytes().expect("MemAvailable") > 1 << 20);
        let zoneinfo = "  pagesets\n    cpu: 0\n              count:    38817\n\
                        high:     43222\n    cpu: 1\n              count:    3\n";
        assert_eq!(pages_on_lists(zoneinfo), 38820);
        assert!(spare_pages() > 0 && spare_pages() < 1 << 50);
        assert!(proportional_bytes().expect("Pss") > 1 << 12);
        assert!(mappings_limit().expect("max_map_count") > 1000);
        let moved = pages_moved().expect("vmstat");
        assert!(pages_moved().expect("vmstat") >= moved);
    }
}
