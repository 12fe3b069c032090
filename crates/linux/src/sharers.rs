//! Who else maps a pool's frames: other processes' /proc/PID/maps, read until the answer holds.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

use crate::maps::Mapping;
use crate::num::PAGE_SHIFT;

/// Passes over all processes before giving up on an answer that holds.
const PASSES: u32 = 5;

/// A file as /proc/PID/maps names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FileId {
    /// Major and minor number in hexadecimal.
    pub(crate) device: String,
    /// Number on that device.
    pub(crate) inode: u64,
}

/// Frames of a file that another process maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shared {
    /// Place of the file in the list asked about.
    pub(crate) file: usize,
    /// Pages of the file.
    pub(crate) frames: Range<u64>,
}

/// What other processes map of `files`; None if it can't be told now, so anything may be mapped.
///
/// `since` is when the files were made, in clock ticks since boot ([`now_ticks`]): a process older
/// than they are can't have inherited them, so it does not matter if its maps can't be read.
///
/// Processes fork and exit while they are looked at, so a pass counts only if no process vanished
/// meanwhile, and two such passes are needed: a child made behind the back of the first pass is
/// there for the second.
pub(crate) fn others(files: &[FileId], since: u64) -> Option<Vec<Shared>> {
    let mut calm = 0;
    let mut shared = Vec::new();
    for _ in 0..PASSES {
        match pass(files, since, &mut shared) {
            Pass::Calm => calm += 1,
            Pass::Vanished => calm = 0,
            Pass::Unreadable => return None,
        }
        if calm == 2 {
            return Some(shared);
        }
    }
    None
}

enum Pass {
    Calm,
    Vanished,
    Unreadable,
}

fn pass(files: &[FileId], since: u64, shared: &mut Vec<Shared>) -> Pass {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Pass::Unreadable;
    };
    let mut result = Pass::Calm;
    for entry in entries {
        let Ok(entry) = entry else {
            return Pass::Unreadable;
        };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        match read_maps(pid, files, shared) {
            Ok(()) => {}
            Err(error) if gone(&error) => result = Pass::Vanished,
            Err(_) => match start_ticks(pid) {
                Ok(start) if start < since => {}
                Err(error) if gone(&error) => result = Pass::Vanished,
                _ => return Pass::Unreadable,
            },
        }
    }
    result
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn read_maps(pid: u32, files: &[FileId], shared: &mut Vec<Shared>) -> io::Result<()> {
    let mut maps = BufReader::with_capacity(1 << 16, File::open(format!("/proc/{pid}/maps"))?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if maps.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        let Some(mapping) = Mapping::parse(&text) else {
            continue;
        };
        let file = files
            .iter()
            .position(|file| file.inode == mapping.inode && file.device == mapping.device);
        if let Some(file) = file {
            let first = mapping.offset >> PAGE_SHIFT;
            let pages = (mapping.bytes.end - mapping.bytes.start) >> PAGE_SHIFT;
            shared.push(Shared { file, frames: first..first + pages });
        }
    }
}

/// When a process started, in clock ticks since boot.
fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; what follows the last one is numbers, of which
    // the start time is the 20th.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// This moment, in clock ticks since boot, rounded down.
pub(crate) fn now_ticks() -> u64 {
    // SAFETY: sysconf reads a number and touches no memory of ours.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * per_second + nanoseconds * per_second / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_started_before_now() {
        let start = start_ticks(std::process::id()).expect("stat");
        assert!(start <= now_ticks());
        assert!(start > 0);
    }

    #[test]
    fn nobody_else_maps_a_file_that_is_not_there() {
        let file = FileId { device: "00:00".into(), inode: u64::MAX };
        assert_eq!(others(&[file], now_ticks()).unwrap_or_default(), []);
    }
}
