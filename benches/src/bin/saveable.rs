//! What merging saves of programs' memory, and the most that it could, both seen from outside: who merges
//! is only asked for its knobs.
//!
//! What is in a program's memory changes from look to look, and with it what can be saved. The share of that
//! which is saved tells how well it is merged. `tools/decay` compares it between rounds.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use numerge::control::{Client, path_beside};
use numerge_engine::machine::{Kind, PAGE_SIZE, Vpn};
use numerge_linux::{Ranges, RemoteProcess};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const USAGE: &str = "usage: saveable PID:ADDRESS:BYTES..., below `numerge run`: of whole pages, such as \
                     71:0x7f0000000000:4096. Prints how many pages are saved, and how many could be";
const PAGE_BYTES: u64 = PAGE_SIZE as u64;
/// A page that can't be read is in the midst of being merged, for some milliseconds at most.
const FROZEN_PAUSE: Duration = Duration::from_millis(10);
const FROZEN_TRIES: usize = 500;

/// Where in which file a mapping's pages are: the file's inode, and what is to be added to a page's number.
type Backing = (u64, u64);

/// Memory of a process, as on the command line.
struct Memory {
    pid: Pid,
    pages: Range<Vpn>,
}

impl Memory {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let pid = Pid::from_raw(fields.next()?.parse().ok()?)?;
        let address = u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok()?;
        let bytes: u64 = fields.next()?.parse().ok()?;
        let is_whole =
            address.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES) && bytes > 0;
        if fields.next().is_some() || !is_whole {
            return None;
        }
        let end = address.checked_add(bytes)?;
        Some(Self { pid, pages: Vpn(address / PAGE_BYTES)..Vpn(end / PAGE_BYTES) })
    }

    /// Which of the process's pages are mapped to files of frames.
    fn frames(&self) -> io::Result<Ranges<Backing>> {
        let mut frames = Ranges::new();
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid.as_raw_nonzero()))?;
        for line in maps.lines().filter(|line| line.contains(" /memfd:numerge-frames")) {
            let mut fields = line.split_ascii_whitespace();
            let mut backing = || {
                let (start, end) = fields.next()?.split_once('-')?;
                let [start, end, offset] = [start, end, fields.nth(1)?]
                    .map(|field| u64::from_str_radix(field, 16).map(|bytes| bytes / PAGE_BYTES));
                let (start, inode) = (start.ok()?, fields.nth(1)?.parse().ok()?);
                Some((Vpn(start)..Vpn(end.ok()?), (inode, offset.ok()?.wrapping_sub(start))))
            };
            let unknown = || io::Error::other(format!("no line of /proc/PID/maps: {line}"));
            let (pages, backing) = backing().ok_or_else(unknown)?;
            frames.insert(pages, backing);
        }
        Ok(frames)
    }
}

/// What was found in all the memory.
#[derive(Default)]
struct Found {
    /// How many pages have each content, by a hash of 64 bits, which is enough to count by.
    contents: HashMap<u64, u64>,
    /// Pages that are mapped to frames, and these.
    merged: u64,
    frames: HashSet<(u64, u64)>,
    /// Pages of nothing but zeros, and pages mapped to the system's page of zeros, which take no memory.
    zeros: u64,
    at_system_zero: u64,
}

impl Found {
    fn look(&mut self, memory: &Memory) -> io::Result<()> {
        let number = memory.pid.as_raw_nonzero();
        let pidfd = pidfd_open(memory.pid, PidfdFlags::empty())?;
        let pagemap = File::open(format!("/proc/{number}/pagemap"))?.into();
        let process = RemoteProcess::new(number.get(), pidfd.as_fd(), pagemap);
        let process = process.map_err(io::Error::other)?;
        let content = File::open(format!("/proc/{number}/mem"))?;
        let frames = memory.frames()?;
        let mut kinds = Vec::new();
        process.kinds(std::slice::from_ref(&memory.pages), frames.clone(), &mut kinds)?;
        for (page, kind) in (memory.pages.start.0..).map(Vpn).zip(kinds) {
            match kind {
                None => continue,
                Some(Kind::Zero) => {
                    self.at_system_zero += 1;
                    continue;
                }
                Some(Kind::Private) => {}
                Some(Kind::Frame) => {
                    // If it is none any more, it was written to since the mappings were read.
                    if let Some((inode, distance)) = frames.get(page) {
                        self.merged += 1;
                        self.frames.insert((inode, page.0.wrapping_add(distance)));
                    }
                }
            }
            self.read(&content, page).map_err(|error| {
                io::Error::other(format!("page {:#x} of {number} can't be read: {error}", page.0))
            })?;
        }
        Ok(())
    }

    /// Counts a page of a process's memory by its content.
    fn read(&mut self, memory: &File, page: Vpn) -> io::Result<()> {
        let mut content = [0; PAGE_SIZE];
        let mut tries = 0;
        while let Err(error) = memory.read_exact_at(&mut content, page.0 * PAGE_BYTES) {
            tries += 1;
            if tries == FROZEN_TRIES {
                return Err(error);
            }
            sleep(FROZEN_PAUSE);
        }
        if content.iter().all(|byte| *byte == 0) {
            self.zeros += 1;
        } else {
            let mut hasher = DefaultHasher::new();
            hasher.write(&content);
            *self.contents.entry(hasher.finish()).or_default() += 1;
        }
        Ok(())
    }

    /// Pages saved, and pages that would be if all were merged, each content on as few frames as can be.
    fn saved_and_saveable(&self, max_page_sharing: u64, use_zero_pages: bool) -> (u64, u64) {
        let saved = self.merged - self.frames.len() as u64;
        let beyond_frames = |pages: u64| pages - pages.div_ceil(max_page_sharing);
        let saveable: u64 = self.contents.values().copied().map(beyond_frames).sum();
        if use_zero_pages {
            (saved + self.at_system_zero, saveable + self.zeros + self.at_system_zero)
        } else {
            (saved, saveable + beyond_frames(self.zeros))
        }
    }
}

fn count(arguments: impl Iterator<Item = String>) -> io::Result<()> {
    let parse = |text: String| {
        Memory::parse(&text).ok_or_else(|| io::Error::other(format!("'{text}': {USAGE}")))
    };
    let memories: Vec<_> = arguments.map(parse).collect::<io::Result<_>>()?;
    let socket = std::env::var_os("NUMERGE_SOCKET").map(PathBuf::from);
    let socket = socket.filter(|_| !memories.is_empty()).ok_or_else(|| io::Error::other(USAGE))?;
    let mut client = Client::connect(&path_beside(&socket)).map_err(io::Error::other)?;
    let mut knob = |name| client.get(name).map_err(io::Error::other);
    let (max_page_sharing, use_zero_pages) = (knob("max_page_sharing")?, knob("use_zero_pages")?);
    let mut found = Found::default();
    memories.iter().try_for_each(|memory| found.look(memory))?;
    let (saved, saveable) = found.saved_and_saveable(max_page_sharing, use_zero_pages != 0);
    println!("{saved} {saveable}");
    Ok(())
}

fn main() -> ExitCode {
    match count(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("saveable: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_few_frames_as_the_limit_allows() {
        // The kernel's own figures: see the end of SEMANTICS S5.
        for (pages, limit, sharing) in
            [(256, 256, 255), (257, 256, 255), (258, 256, 256), (777, 3, 518)]
        {
            let found = Found { contents: [(1, pages)].into(), ..Found::default() };
            assert_eq!(found.saved_and_saveable(limit, false), (0, sharing), "{pages} of {limit}");
        }
    }

    #[test]
    fn pages_of_zeros_are_saved_as_the_knob_has_it() {
        let found = Found { zeros: 300, at_system_zero: 7, ..Found::default() };
        assert_eq!(found.saved_and_saveable(256, false), (0, 298));
        assert_eq!(found.saved_and_saveable(256, true), (7, 307));
    }

    #[test]
    fn memory_is_whole_pages() {
        let memory = Memory::parse("71:0x7f0000001000:8192").unwrap();
        assert_eq!(memory.pages, Vpn(0x7_f000_0001)..Vpn(0x7_f000_0003));
        for wrong in [
            "",
            "71:0x1000",
            "0:0x1000:4096",
            "71:1000:4096",
            "71:0x1001:4096",
            "71:0x1000:0",
            "71:0x1000:1:1",
        ] {
            assert!(Memory::parse(wrong).is_none(), "{wrong}");
        }
    }
}
